"""Late interaction: rows are proposed by one vector each, and scored by all their tokens.

    tokens of a query -> their proposal's vector -> the best CANDIDATES rows by FAISS
                      -> the tokens of these alone -> MaxSim, exact

MaxSim is the sum over the tokens of a query of the greatest inner product with a token of the row
(Khattab and Zaharia, ColBERT, 2020). A query of several texts and pictures has the weighted sum of
theirs. What FAISS scans is one vector of a few hundred numbers a row, all of them: rows whose
tokens fit a disk are scanned in milliseconds, 10,000 in less than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.index.hits import Explanation, Hit
from chiasm.index.plan import Plan
from chiasm.index.queries import Query
from chiasm.index.query.filtered import explain_search, search_filtered
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.query.scan import ColumnIndex
from chiasm.index.segments import Proposals, as_float32, proposal_column
from chiasm.pipeline.encoders import Ragged, unit
from chiasm.pipeline.errors import UsageError

# Of 10,000 drawn scenes, by the tokens of `pocket`, the best 100 hold 0.998 of MaxSim's best ten;
# by those of a ColPali of random weights 0.985, the best 200 0.988. To score 200 rows of 36 tokens
# takes 2 ms.
CANDIDATES = 200
PER_RESULT = 20  # candidates of each row that is wanted beyond ten

BLOCK = 256  # candidates whose tokens are in memory at once: 200 MB of the 1,030 of a ColPali

STAGE = "tokens"  # the name of the score

# The parts of a query: their weights, and their tokens (T, W) float32.
QueryTokens = Sequence[tuple[float, np.ndarray]]


@dataclass(frozen=True)
class TokenIndex:
    """What searches of a column by tokens use. index: of the vectors that propose."""

    proposals: Proposals
    index: ColumnIndex


def searches_tokens(collection: OpenIndex, column: str) -> bool:
    """Whether a column's index has tokens."""
    return proposal_column(column) in collection.generation.manifest.trained


def token_index(collection: OpenIndex, column: str) -> TokenIndex:
    """Opened once for a generation; two threads may both open it, to the same end."""
    generation, name = collection.generation, proposal_column(column)
    if name not in generation.opened:
        index = ColumnIndex(generation.segments, name, Plan(), None)
        generation.opened[name] = TokenIndex(generation.proposals(column), index)
    return generation.opened[name]


def search_tokens(
    tokens: Sequence[QueryTokens], k: int, collection: OpenIndex, column: str, where: str | None
) -> tuple[list[list[Hit]], Explanation]:
    """The k best rows of each query, best first: their score `search` is that of the vectors that
    propose, `tokens` MaxSim; and the way in which they were found."""
    opened, allowed = token_index(collection, column), collection.allowed(where)
    xq = np.stack([proposing(parts, opened.proposals) for parts in tokens])
    count = min(max(CANDIDATES, PER_RESULT * k), len(collection))
    way = explain_search(opened.index, count, 0, allowed, len(tokens))
    scores, positions = search_filtered(opened.index, xq, count, 0, allowed)
    hits = []
    for parts, row_scores, row_positions in zip(tokens, scores, positions, strict=True):
        found = row_positions >= 0
        hits.append(_scored(parts, row_scores[found], row_positions[found], k, collection, column))
    return hits, way


def proposing(parts: QueryTokens, proposals: Proposals) -> np.ndarray:
    """The vector (D,) of a query, of unit length, that finds candidates."""
    whole = sum(weight * proposals.query(tokens) for weight, tokens in parts)
    return unit(np.asarray(whole, np.float32)[None])[0]


def _scored(
    parts: QueryTokens,
    scores: np.ndarray,
    positions: np.ndarray,
    k: int,
    collection: OpenIndex,
    column: str,
) -> list[Hit]:
    order = np.argsort(positions)  # as they lie in the files
    scores, positions = scores[order], positions[order]
    exact = np.concatenate(
        [np.empty(0, np.float32)]
        + [
            query_max_sim(
                parts, collection.tokens(column, positions[start : start + BLOCK].tolist())
            )
            for start in range(0, len(positions), BLOCK)
        ]
    )
    best = np.lexsort((positions, -exact))[:k]
    return [
        Hit(int(positions[n]), {"search": float(scores[n]), STAGE: float(exact[n])})
        for n in best.tolist()
    ]


def query_max_sim(parts: QueryTokens, tokens: Ragged) -> np.ndarray:
    """MaxSim of a query with each of the rows, (n,) float32; of several parts the weighted sum."""
    values = tokens.values
    if values.dtype == np.float16:
        values = as_float32(values)
    total = np.zeros(len(tokens.lengths), np.float32)
    for weight, query in parts:
        total += np.float32(weight) * max_sim(query, values, tokens.lengths)
    return total


def max_sim(query: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """query (T, W), values (sum of lengths, W), both float32; lengths (n,), at least 1 -> (n,)."""
    if not len(lengths):
        return np.empty(0, np.float32)
    products = query @ values.T  # (T, tokens): each maximum is of numbers beside each other
    starts = np.cumsum(lengths) - lengths
    return np.maximum.reduceat(products, starts, axis=1).sum(axis=0)


def require_single_vectors(query: Query, collection: OpenIndex) -> None:
    """NotCalibrated for a p-value of a query that MaxSim ranks: its scores are of no
    calibration."""
    if query.calibrated and searches_tokens(collection, query.column):
        raise NotCalibrated(
            "a rate of false alarms",
            expected="a column with one vector a row",
            found=f"column {query.column}, which is ranked by tokens",
            do="leave --false-alarms out",
        )


class NotCalibrated(UsageError):
    """No p-value can be had of a column."""
