"""Which FAISS index for how many vectors? A pure function of the numbers.

Below `exact_below` rows the index is exact inner product ("Flat"). From there on it is IVF with
8-bit codes ("IVF1024,SQ8"): vectors are put into cells around centroids, a search looks into
`nprobe` of them, and the best candidates are scored again from the raw vectors. Eight bits a
dimension lose next to nothing against text queries, where product codes lose a lot; the cost is dim
bytes a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chiasm.pipeline.errors import UsageError

MAX_CELLS = 32_768  # k-means over more takes hours, and 1.3 million training vectors
TRAIN_PER_CELL = 64  # FAISS asks for 39 to 256; the gain from more is below what can be measured
MIN_PER_CELL = 39  # below it FAISS warns that the centroids are guesses


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built.

    exact_below: with fewer rows than this, a column's index is exact. nprobe: cells of an IVF index
    a search looks into unless the query says otherwise; 0 chooses. segment_rows: rows after which a
    segment is closed (at the end of a shard). Memory while building is some segment_rows x dim
    bytes (IVF) or 4 times that (exact), for each column. keep_generations, keep_seconds: older
    generations than the last few and younger ones are removed.
    """

    exact_below: int = 100_000
    nprobe: int = 0
    segment_rows: int = 1_000_000
    keep_generations: int = 3
    keep_seconds: float = 3600

    def __post_init__(self) -> None:
        least = {"exact_below": 0, "nprobe": 0, "segment_rows": 1, "keep_generations": 1}
        for name, bound in {**least, "keep_seconds": 0}.items():
            if getattr(self, name) < bound:
                raise UsageError(
                    f"index.{name}", expected=f"{bound} or more", found=str(getattr(self, name))
                )


@dataclass(frozen=True)
class Plan:
    """A column's index: `kind` is a FAISS factory string; cells, nprobe and train_rows are 0 for
    Flat."""

    kind: str
    cells: int = 0
    nprobe: int = 0
    train_rows: int = 0

    @property
    def exact(self) -> bool:
        return self.cells == 0


def plan(rows: int, settings: IndexSettings) -> Plan:
    """The index for `rows` vectors of one column."""
    cells = cells_for(rows)
    if rows < settings.exact_below or cells < 1:
        return Plan("Flat")
    return Plan(
        kind=f"IVF{cells},SQ8",
        cells=cells,
        nprobe=min(cells, settings.nprobe or nprobe_for(cells)),
        train_rows=min(rows, cells * TRAIN_PER_CELL),
    )


def cells_for(rows: int) -> int:
    """About 4 sqrt(rows), a power of two, each with enough vectors to learn its centroid from."""
    wanted = min(4 * math.sqrt(rows), rows / MIN_PER_CELL, MAX_CELLS)
    return 1 << int(math.log2(wanted)) if wanted >= 1 else 0


def nprobe_for(cells: int) -> int:
    """A sixteenth of the cells: texts lie far from the pictures the cells were made from, and look
    into more of them than a picture would have to."""
    return max(min(cells, 8), cells // 16)
