"""Which FAISS index for how many vectors? A pure function of the numbers.

Below `exact_below` rows the index is exact inner product ("Flat"). From there on it is IVF with
8-bit codes ("IVF1024,SQ8"): vectors are put into cells around centroids, a query searches the
nearest `nprobe` of them, and the best candidates are scored again from the raw vectors. Scalar
codes of 8 bits lose almost no recall for text queries, where product codes lose a lot; the cost is
dim bytes a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from chiasm.pipeline.errors import require_at_least

Count = Annotated[int, Field(ge=0, lt=1 << 63)]

MAX_CELLS = 32_768  # k-means over more takes hours, and 1.3 million training vectors
TRAIN_PER_CELL = 64  # FAISS asks for 39 to 256; the gain from more is below what can be measured
MIN_PER_CELL = 39  # below it FAISS warns that the centroids are guesses


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built.

    exact_below: with fewer rows than this, a column's index is exact. nprobe: cells of an IVF index
    that a query searches unless it says otherwise; 0 chooses by the number of cells. A search takes
    it too; 0 is then what the index was built with. segment_rows: rows after which a segment is
    closed (at the end of a shard). Memory while building is some segment_rows x dim bytes (IVF)
    or 4 times that (exact), for each column. catalog_bytes: of captions, json and the like that
    wait to be written together; a row group of the embeddings is read on top. keep_generations,
    keep_seconds: a generation is removed once so many newer ones exist and it ceased to be live so
    many seconds ago.
    """

    exact_below: int = 100_000
    nprobe: int = 0
    segment_rows: int = 1_000_000
    catalog_bytes: int = 64 << 20
    keep_generations: int = 3
    keep_seconds: float = 3600

    def __post_init__(self) -> None:
        require_at_least(
            0,
            index__exact_below=self.exact_below,
            index__nprobe=self.nprobe,
            index__keep_seconds=self.keep_seconds,
        )
        require_at_least(
            1,
            index__segment_rows=self.segment_rows,
            index__catalog_bytes=self.catalog_bytes,
            index__keep_generations=self.keep_generations,
        )


@dataclass(frozen=True)
class Plan:
    """A column's index: `kind` is a FAISS factory string; cells, nprobe and train_rows are 0 for
    Flat."""

    kind: str
    cells: Count = 0
    nprobe: Count = 0
    train_rows: Count = 0

    @property
    def exact(self) -> bool:
        return self.cells == 0


def plan_column(rows: int, settings: IndexSettings) -> Plan:
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
    cells = min(4 * math.sqrt(rows), rows / MIN_PER_CELL, MAX_CELLS)
    return 1 << int(math.log2(cells)) if cells >= 1 else 0


def nprobe_for(cells: int) -> int:
    """A sixteenth of the cells: text vectors are far from the picture vectors that the cells were
    trained on, so they need more cells than pictures would."""
    return max(min(cells, 8), cells // 16)
