"""What proposes rows of a column with tokens: fitted to a sample of its rows and to query tokens.

Whose tokens: of the file of queries where one is given, encoded; of the stored captions where they
have tokens; else of the rows themselves, as a picture that is searched with has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

import numpy as np
import pyarrow as pa

from chiasm.index.build.covered import CoveredShards, ShardReplaced, vector_counts
from chiasm.index.build.sampled_rows import sampled_rows
from chiasm.index.build.samples import ENCODED_AT_ONCE, query_lines
from chiasm.index.build.train import cluster
from chiasm.index.segments import (
    TOKENS,
    Manifest,
    Proposals,
    SharedFile,
    distances,
    open_segments,
    proposal_column,
    read_shared,
    winners,
)
from chiasm.pipeline.collection import Identity, token_column, tokens_of
from chiasm.pipeline.encoders import Encoder, Ragged
from chiasm.pipeline.records import TEXT
from chiasm.pipeline.storage import Folder, display_name

LOG = logging.getLogger(__name__)

# Of a document's partitions, 128 KB: 256 centres of 128 numbers. Of the drawn scenes, seed 1, by
# the tokens of `pocket`, the best 100 hold 0.924 of MaxSim's best 10 with 32 centres, 0.977 with
# 64 and 0.994 with 128; shorter tokens leave room for more centres, and need them.
NUMBERS = 1 << 15
# Query tokens a centre, of those that differ: marks that stand in every query have thousands alike,
# and would draw all centres to them, away from the rare ones.
PER_CENTRE = 2
ROWS = 1024  # more than a projection has directions; 270 MB of the 1,030 tokens of a ColPali
LINES = 2048  # of a file of queries, which are encoded
# Query tokens by which a row group's unusual rows are told. Unusual rows are among the best of many
# queries, and a direction in which no row of the sample differs is lost. By tokens of a ColPali of
# random weights the best 200 hold 0.963 (seed 0) and 0.942 (seed 2) of MaxSim's best 10 where all
# rows of the sample are drawn, 0.988 and 0.983 where half of them are the most unusual ones.
MARKS = 64
QUERY_ROWS = 8192  # whose captions stand for queries: rare tokens are in few
QUERY_TOKENS = 1 << 15  # of a sample: k-means and moments gain nothing from more
RIDGE = 1e-3  # of a partition's mean variance: its few query tokens do not span the space
NULL = 1e-6  # of the greatest component: what is smaller is rounding
SLACK = 1.05  # times the length of the longest document of the sample


def fit_proposals(documents: Ragged, queries: np.ndarray, dim: int) -> Proposals:
    """documents: tokens of rows. queries (n, W): tokens of queries, n > 0. dim: of the vectors."""
    queries = np.ascontiguousarray(queries, np.float32)
    differing, queries = _some(_differing(queries)), _some(queries)
    most = max(1, NUMBERS // queries.shape[1])
    count = max(1, min(most, len(differing) // PER_CENTRE))
    centres = cluster(differing, count, seed=0) if count > 1 else differing.mean(0)[None]
    gaps = distances(queries, centres)
    roots, inverses = _query_metric(queries, gaps.argmin(axis=1), len(centres))
    starts = np.cumsum(documents.lengths) - documents.lengths
    having = np.flatnonzero(documents.lengths)
    items = [documents.values[starts[n] : starts[n] + documents.lengths[n]] for n in having]
    seen = np.einsum("nkw,kwv->nkv", winners(items, centres), roots, optimize=True)
    flat = seen.reshape(len(items), -1)
    mean = flat.mean(axis=0)
    directions = _components(flat - mean, dim - 1)
    kinds = (*centres.shape, dim - 1)
    projected = (flat - mean) @ directions
    longest = float(np.linalg.norm(projected, axis=1).max(initial=0)) or 1.0
    shaped = directions.reshape(kinds)
    return Proposals(
        centres.astype(np.float32),
        (roots @ shaped).astype(np.float32),
        (inverses @ shaped).astype(np.float32),
        (mean @ directions).astype(np.float32),
        np.array([SLACK * longest], np.float32),
        np.array([max(float(gaps.min(axis=1).mean()), NULL)], np.float32),
    )


def _some(tokens: np.ndarray) -> np.ndarray:
    """At most QUERY_TOKENS of tokens (n, W), drawn."""
    if len(tokens) <= QUERY_TOKENS:
        return tokens
    return tokens[np.sort(np.random.default_rng(4).permutation(len(tokens))[:QUERY_TOKENS])]


def _differing(tokens: np.ndarray) -> np.ndarray:
    """The first of each group of tokens (n, W) that are alike: equal once they are rounded to half
    of what a number of theirs is in the mean."""
    step = 0.5 * np.sqrt(np.square(tokens).mean()) or 1.0
    rounded = np.rint(tokens / step).astype(np.int16)
    return tokens[np.sort(np.unique(rounded, axis=0, return_index=True)[1])]


def _query_metric(
    queries: np.ndarray, parts: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Roots of the second moments of the query tokens of each partition, by how many these are, and
    their inverses: (K, W, W) both. parts: of each token its partition, of `count`."""
    width = queries.shape[1]
    moments = np.stack([(own := queries[parts == n]).T @ own / len(queries) for n in range(count)])
    variance = np.einsum("kww->k", moments.astype(np.float64)) / width
    ridge = RIDGE * np.maximum(variance, NULL * max(variance.max(), NULL))
    values, vectors = np.linalg.eigh(moments.astype(np.float64))
    roots = np.sqrt(np.maximum(values, 0) + ridge[:, None])[:, None, :]
    turned = vectors.transpose(0, 2, 1)
    both = (vectors * roots) @ turned, (vectors / roots) @ turned
    return both[0].astype(np.float32), both[1].astype(np.float32)


def _components(rows: np.ndarray, count: int) -> np.ndarray:
    """The first principal directions of centred rows (n, d): (d, count) float32, zeros where there
    are fewer."""
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    kept = np.flatnonzero(values > NULL * max(values[-1], np.finfo(np.float64).tiny))[-count:][::-1]
    found = np.zeros((rows.shape[1], count), np.float32)
    found[:, : len(kept)] = rows.T @ (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    return found


def sampled_proposals(
    covered: CoveredShards, column: str, queries: str, encoder: Callable[[], Encoder]
) -> Proposals:
    """Of a column that has tokens and rows. queries: a file of queries, "" for none."""
    own = token_column(column)
    if queries:
        wanted = _encoded(query_lines(queries)[:LINES], encoder())
    else:
        captioned = TEXT in covered.identity.tokens and _has_captions(covered)
        source, count = (token_column(TEXT), QUERY_ROWS) if captioned else (own, ROWS)
        tables = sampled_rows(covered, source, count, [source], seed=4)
        wanted = np.concatenate([tokens_of(table[source]).values for table in tables])
    rng = np.random.default_rng(5)
    marks = rng.permutation(_differing(_some(wanted)))[:MARKS].astype(np.float32)

    def preferred(group: pa.Table) -> np.ndarray:
        return _half_unusual(_unusual(tokens_of(group[own]), marks), rng)

    tables = sampled_rows(covered, own, ROWS, [own], seed=3, preferred=preferred)
    documents = _joined([tokens_of(table[own]) for table in tables])
    LOG.info("column %s: proposals fitted to %d rows, %d tokens of queries",
             column, len(documents.lengths), len(wanted))  # fmt: skip
    return fit_proposals(documents, wanted, covered.identity.dim)


def _half_unusual(unusual: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A number for each row: the greatest have in turn the next of the most unusual rows, and one
    that is drawn."""
    turn = 2 * np.argsort(np.argsort(-unusual, kind="stable"))
    return -np.minimum(turn, 2 * rng.permutation(len(unusual)) + 1)


def _unusual(tokens: Ragged, marks: np.ndarray) -> np.ndarray:
    """How far rows are from their mean by the greatest inner products of their tokens with each of
    some tokens of queries (n, W): squares of distances (rows,); 0 without tokens."""
    found = np.zeros(len(tokens.lengths), np.float32)
    having = np.flatnonzero(tokens.lengths)
    if len(having):
        ends = np.cumsum(tokens.lengths)
        items = [tokens.values[ends[n] - tokens.lengths[n] : ends[n]] for n in having]
        best = np.stack([(np.asarray(item, np.float32) @ marks.T).max(axis=0) for item in items])
        found[having] = np.square(best - best.mean(axis=0)).sum(axis=1)
    return found


def _has_captions(covered: CoveredShards) -> bool:
    """Whether any row has the vector of a caption, and so its tokens."""
    for file in covered.files:
        with suppress(ShardReplaced), covered.replaced_errors(file):
            if vector_counts(file, [TEXT])[TEXT]:
                return True
    return False


def fitted_proposals(
    covered: CoveredShards, columns: Iterable[str], queries: str, encoder: Callable[[], Encoder]
) -> Iterator[tuple[str, bytes]]:
    """Of each of the columns that has tokens, under the name of its proposals, what was fitted."""
    for column in token_widths(covered.identity, columns):
        fitted = sampled_proposals(covered, column, queries, encoder)
        yield proposal_column(column), fitted.to_bytes()


def token_widths(identity: Identity, columns: Iterable[str]) -> dict[str, int]:
    """The width of a token's vector, of those of the columns that have tokens."""
    return {column: identity.tokens[column] for column in columns if column in identity.tokens}


def token_bytes(folder: Folder, manifest: Manifest) -> dict[str, float]:
    """By column with tokens, how many bytes they take in the mean in a row that has some."""
    named = {column: proposal_column(column) for column in manifest.columns}
    having = {column: name for column, name in named.items() if name in manifest.trained}
    segments = open_segments(folder, manifest) if having else ()
    found = {}
    for column, name in having.items():
        size = sum(one.record.files[f"{column}.{TOKENS}"].size for one in segments)
        found[column] = size / max(1, sum(one.record.vectors[name] for one in segments))
    return found


def _joined(parts: list[Ragged]) -> Ragged:
    return Ragged(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def _encoded(lines: list[str], encoder: Encoder) -> np.ndarray:
    """The tokens of queries, (n, W)."""
    found = []
    for start in range(0, len(lines), ENCODED_AT_ONCE):
        items = [encoder.preprocess(TEXT, line) for line in lines[start : start + ENCODED_AT_ONCE]]
        tokens = encoder.encode_queries(TEXT, items).tokens
        assert tokens is not None
        found.append(tokens.values)
    return np.concatenate(found)


def stored_proposals(
    folder: Folder, shared: Mapping[str, SharedFile], column: str, dim: int
) -> Proposals:
    """Those that were fitted to a column; CollectionError where they are missing or damaged."""
    entry = shared[proposal_column(column)]
    content = read_shared(folder, entry.file, entry.checksum)
    return Proposals.from_bytes(content, dim, display_name(folder.url_of(entry.file)), "")
