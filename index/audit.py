"""What audits found: the recall of real queries, and whether it breaks a promise.

An audit answers some of the real queries exactly and takes the share of the best rows that the
index had found. Audits go on for as long as an index is used, and are looked at after each. So the
limits of the mean are limits at all times at once, whatever the number of audits: a promise that is
kept is called broken at most with probability ERROR, ever.

That is a bet against the statement "the mean is at least m": a player stakes a share c of a capital
on every recall x, which becomes 1 + c (m - x) / (1 - m) times what it was. Where the statement is
true the capital does not grow on average, and reaches 1 / ERROR with probability ERROR at most
(Ville's inequality). Waudby-Smith and Ramdas, 2024, "Estimating means of bounded random variables
by betting"; here the stakes are fixed, and the capital is the mean of one player's for each stake,
so that the order of recalls does not matter and records can be merged. Nothing is assumed of the
distribution; queries are taken to be drawn as the next ones will be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field, FiniteFloat

from chiasm.index.plan import Count

ERROR = 0.001
# Shares of the capital: small ones win of small differences, large ones of large differences soon.
STAKES = 0.9 / 2.0 ** np.arange(8)
# Recalls are counted in steps of 1 / SCALE, rounded up: exact where `at` divides it.
SCALE = 1000
HALVINGS = 30  # of the interval that a limit lies in: far below a step

Thousandths = Annotated[int, Field(ge=0, le=SCALE)]


@dataclass(frozen=True)
class Promise:
    """Of a column's report: by kind of query, the recall@at that was promised."""

    at: Annotated[int, Field(ge=1)] = 10
    promise: dict[str, FiniteFloat] = field(default_factory=dict)

    def of(self, kind: str) -> float | None:
        """None for a kind of which nothing was promised. Vectors may be of texts and of pictures:
        what is promised of them is what any mixture keeps."""
        if kind == "vector":
            both = [self.promise[one] for one in ("text", "picture") if one in self.promise]
            return min(both, default=None)
        return self.promise.get(kind)


@dataclass(frozen=True)
class AuditedRecall:
    """The recall of audited queries of one column and kind.

    nprobe: lists that these queries scanned, or would have without their filter; 0 where the
    column is exact and nothing has to be audited. at: recall is of that many best rows, or of as
    many as a query wanted, if fewer. promise: of recall@at, None where there is none. recalls: how
    many queries had which recall, in thousandths, rounded up. vectors: by which rows were scored
    to find the best ones, as of a plan: of the form "int8" what 8 bits lose is not in the recall.
    """

    column: str
    kind: str
    nprobe: Count
    at: Count
    promise: FiniteFloat | None
    recalls: dict[Thousandths, Count]
    vectors: str = "float16"

    @classmethod
    def of(
        cls,
        column: str,
        kind: str,
        nprobe: int,
        at: int,
        promise: float | None,
        found: np.ndarray,
        vectors: str = "float16",
    ) -> AuditedRecall:
        """found (n,): the recall of each query."""
        steps = np.ceil(found * SCALE - 1e-6).astype(int)
        counted = dict(zip(*map(np.ndarray.tolist, np.unique_counts(steps)), strict=True))
        return cls(column, kind, nprobe, at, promise, counted, vectors)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.column, self.kind, self.nprobe

    @property
    def exact(self) -> bool:
        return self.nprobe == 0

    @property
    def queries(self) -> int:
        return sum(self.recalls.values())

    @property
    def mean(self) -> float:
        """NaN without queries."""
        total = sum(step * count for step, count in self.recalls.items())
        return total / SCALE / self.queries if self.queries else math.nan

    @property
    def at_most(self) -> float:
        """The mean recall of such queries is not above it, but for ERROR."""
        return _upper_limit(self._values, self._counts)

    @property
    def at_least(self) -> float:
        """The mean recall of such queries is not below it, but for ERROR."""
        return 1.0 - _upper_limit(1.0 - self._values, self._counts)

    @property
    def broken(self) -> bool:
        """Whether the mean recall is below the promise, beyond chance."""
        return self.promise is not None and self.at_most < self.promise

    @property
    def _values(self) -> np.ndarray:
        return np.array([*self.recalls], float) / SCALE

    @property
    def _counts(self) -> np.ndarray:
        return np.array([*self.recalls.values()], float)

    def with_more(self, other: AuditedRecall) -> AuditedRecall:
        """The queries of both. The promise is that of the other."""
        steps = self.recalls.keys() | other.recalls.keys()
        both = {
            step: self.recalls.get(step, 0) + other.recalls.get(step, 0) for step in sorted(steps)
        }
        return replace(other, recalls=both)

    def as_json(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "kind": self.kind,
            "nprobe": self.nprobe,
            "at": self.at,
            "vectors": self.vectors,
            "queries": self.queries,
            "recall": round(self.mean, 4) if self.queries else None,
            "at_least": round(self.at_least, 4),
            "at_most": round(self.at_most, 4),
            "promise": self.promise,
            "broken": self.broken,
        }

    def __str__(self) -> str:
        """`image, text queries: recall@10 0.948 (0.931 to 0.962) of 812 in 9 lists, promised
        0.95`."""
        text = f"{self.column}, {self.kind} queries: recall@{self.at} {self.mean:.3f}"
        eight_bits = self.vectors == "int8"
        if self.exact:
            scored = "8-bit vector" if eight_bits else "vector"
            return f"{text} of {self.queries:,}, every {scored} is scored"
        text = f"{text} ({self.at_least:.3f} to {self.at_most:.3f}) of {self.queries:,}"
        text = f"{text} in {self.nprobe:,} lists"
        if self.promise is None:
            text = f"{text}, without a promise"
        elif self.broken:
            text = f"{text}, BELOW the promised {self.promise:g}"
        else:
            text = f"{text}, promised {self.promise:g}"
        return f"{text}; against a scan of its 8-bit vectors" if eight_bits else text


def merged(recalls: Iterable[AuditedRecall]) -> tuple[AuditedRecall, ...]:
    """One for each column, kind and number of lists, in order."""
    found: dict[tuple[str, str, int], AuditedRecall] = {}
    for one in recalls:
        known = found.get(one.key)
        found[one.key] = one if known is None else known.with_more(one)
    return tuple(found[key] for key in sorted(found))


def _upper_limit(values: np.ndarray, counts: np.ndarray) -> float:
    """The greatest mean that the recalls (n,), with these counts, do not refute."""
    if not counts.sum():
        return 1.0
    low, high = float(values @ counts / counts.sum()), 1.0
    if low == high:
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _log_capital(middle, values, counts) < -math.log(ERROR):
            low = middle
        else:
            high = middle
    return high


def _log_capital(mean: float, values: np.ndarray, counts: np.ndarray) -> float:
    """What is left of a capital of 1 that was staked against a mean of at least `mean`, below 1;
    its logarithm. It grows with `mean`."""
    gains = np.log1p(STAKES[:, None] * (mean - values) / (1 - mean)) @ counts
    most = float(gains.max())
    return most + math.log(np.exp(gains - most).mean())
