"""The tokens of a segment compared with those of the Parquet files, and what proposes rows with
what was fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from chiasm.index.segments import Generation, Proposals, Segment, fetch, proposal_column
from chiasm.pipeline.collection import token_column, tokens_of
from chiasm.pipeline.verify import MIN_COSINE


def fitted_columns(generation: Generation) -> dict[str, Proposals]:
    """What was fitted to each column that has tokens; CollectionError where it is damaged."""
    manifest = generation.manifest
    columns = [one for one in manifest.columns if proposal_column(one) in manifest.trained]
    return {column: generation.proposals(column) for column in columns}


def token_differences(
    segment: Segment, rows: slice, table: pa.Table, fitted: Mapping[str, Proposals]
) -> Iterator[str]:
    """How these rows of a segment differ from those of a Parquet file, `table`."""
    numbers = np.arange(rows.start, rows.stop)
    for column, proposals in fitted.items():
        theirs = tokens_of(table[token_column(column)])
        stored = segment.tokens(column, proposals.width)
        fetch(stored.wanted(numbers))
        ours = stored.take(numbers)
        if not (
            np.array_equal(ours.lengths, theirs.lengths)
            and np.array_equal(ours.values, theirs.values)
        ):
            yield f"{column} tokens differ from the embeddings"
            continue
        fetch(segment.wanted_vectors(proposal_column(column), numbers))
        found = segment.vectors(proposal_column(column)).take(numbers)
        cosine = np.einsum("nd,nd->n", found, proposals.documents(theirs))
        wrong = np.flatnonzero((theirs.lengths > 0) & ~(cosine >= MIN_COSINE))
        if len(wrong):
            what = f"{len(wrong)} vectors that propose rows by their {column} tokens"
            yield f"{what} are not those of the fit, the first in row {wrong[0]}"
