"""An open index and its calibrations: one of a column, made from its captions; p-values of queries.

A calibration is made at the first query that wants one, and kept with the open generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chiasm.index.hits import Hit
from chiasm.index.queries import CALIBRATED_HITS, Query
from chiasm.index.query.calibrate import Calibration, features, words_of
from chiasm.index.query.calibration_sample import BLOCK, calibrate
from chiasm.index.query.encode import encode_queries
from chiasm.index.query.open_index import OpenIndex
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import TEXT
from chiasm.pipeline.storage import display_name

JOINT = "joint"


def calibrate_index(collection: OpenIndex, column: str) -> Calibration:
    """The calibration of a column from all captions of the generation that is open. Raises
    CollectionError where too few captions can ask: of `text` and `joint`, whose vectors hold a
    row's first caption, only its others can."""
    collection.require_column(column)
    has_joint = JOINT in collection.generation.manifest.columns and column != JOINT

    def captions() -> Iterator[Sequence[str]]:
        for segment in collection.segments:
            deleted = segment.deleted()
            for row, texts in enumerate(segment.catalog.column("captions")):
                yield () if texts is None or (deleted is not None and deleted[row]) else texts

    def vectors() -> Iterator[tuple[int, np.ndarray]]:
        first = 0
        for segment in collection.segments:
            raw, deleted = segment.raw(column), segment.deleted()
            for start in range(0, len(segment), BLOCK):
                block = raw[start : start + BLOCK].astype(np.float32)
                if deleted is not None:
                    block[deleted[start : start + BLOCK]] = 0
                yield first + start, block
            first += len(segment)

    def encode(texts: list[str]) -> np.ndarray:
        return encode_queries([Query(text) for text in texts], collection.encoder, collection.dim)

    def joint(positions: np.ndarray) -> np.ndarray:
        return collection.vectors(JOINT, positions.tolist())

    return calibrate(
        captions,
        vectors,
        encode,
        joint if has_joint else None,
        indexed_caption=column in (TEXT, JOINT),
        where=f"column {column} of {display_name(collection.collection.folder.url)}",
    )


def p_absent(query: Query, xq: np.ndarray, hits: Sequence[Hit], collection: OpenIndex) -> float:
    """The p-value that nothing matches a query of words; see `Calibration`. xq: (D,) float32. hits:
    its first ones by vectors, before anything is fused, folded or scored again."""
    require_words(query)
    made: dict[str, Calibration] = collection.generation.calibrations
    if query.column not in made:
        made[query.column] = calibrate_index(collection, query.column)
    calibration = made[query.column]
    first = hits[:CALIBRATED_HITS]
    positions = [hit.position for hit in first]
    rows = collection.rows(positions)
    words = [frozenset().union(*map(words_of, rows[at].captions)) for at in positions]
    other = np.zeros(len(first))
    if JOINT in collection.generation.manifest.columns and query.column != JOINT:
        other = collection.vectors(JOINT, positions) @ xq
    scores = np.array([hit.scores["search"] for hit in first])
    return calibration.p_value(features(scores, words, calibration.query_words(query.words), other))


def require_words(query: Query) -> None:
    """UsageError for a query with a picture or a vector: captions are no sample of those."""
    if query.image is not None or not query.words:
        raise UsageError(
            "false alarms",
            expected="a query of words alone, as captions calibrate it",
            found="a picture" if query.image is not None else "a vector",
        )
