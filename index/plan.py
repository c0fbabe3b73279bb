"""Which index for a column? What a plan says, and the plan of a column that nobody tunes.

Three families. `exact`: every vector is scored. `ivf`: vectors are put into lists around centroids,
a query scans the codes in the best `nprobe` of them. `projected`: the same with codes of a
projection that was fitted to the queries, of fewer dimensions (build/project.py). Whatever is
scanned, the best candidates are scored again from the stored vectors (query/search.py).

`build/tune.py` chooses among plans by what it measures; these are the sizes it starts from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from chiasm.pipeline.errors import UsageError, require_at_least

Count = Annotated[int, Field(ge=0, lt=1 << 63)]

MAX_LISTS = 32_768  # k-means over more takes hours, and 1.3 million training vectors
TRAIN_PER_LIST = 64  # FAISS asks for 39 to 256; the gain from more is below what can be measured
MIN_PER_LIST = 39  # below it FAISS warns that the centroids are guesses
DEFAULT_DIMS = 64  # of a projection that nobody has measured
KINDS = ("exact", "ivf", "projected")
VECTORS = ("float16", "int8", "none")


@dataclass(frozen=True)
class IndexSettings:
    """How an index is built.

    kind: the family to build, "" for the one that the tuner chooses. recall, at: the share of the
    `at` best rows that text queries must get. memory_gb, latency_ms: limits that the choice keeps,
    0 for none: of an open index, and of the 99th percentile of single queries. dims: of the codes,
    0 for what the tuner chooses; of the kind "ivf" so many first numbers of the
    vectors. vectors: the form in which candidates' vectors are stored, "none" for those of the
    Parquet files. nprobe: lists that a query searches, 0 for what the recall needs;
    a search takes it too. queries: a file of queries to learn and to tune with, one a line, ""
    for the captions of the collection. exact_below: with fewer rows than this, a column is exact.
    tune: whether plans are measured; without, the default plan is built. segment_rows: rows after
    which a segment is closed (at the end of a shard). build_memory_mb: what a build may take beyond
    its libraries. catalog_bytes: of captions, json and the like that wait to be written together; a
    row group of the embeddings is read on top. keep_generations, keep_seconds: a generation is
    removed once so many newer ones exist and it ceased to be live so many seconds ago.
    """

    kind: str = ""
    recall: float = 0.95
    at: int = 10
    memory_gb: float = 0.0
    latency_ms: float = 0.0
    dims: int = 0
    vectors: str = "float16"
    nprobe: int = 0
    queries: str = ""
    exact_below: int = 10_000
    tune: bool = True
    segment_rows: int = 1_000_000
    build_memory_mb: int = 1024
    catalog_bytes: int = 64 << 20
    keep_generations: int = 3
    keep_seconds: float = 3600

    def __post_init__(self) -> None:
        require_at_least(
            0,
            index__exact_below=self.exact_below,
            index__nprobe=self.nprobe,
            index__dims=self.dims,
            index__memory_gb=self.memory_gb,
            index__latency_ms=self.latency_ms,
            index__keep_seconds=self.keep_seconds,
        )
        require_at_least(
            1,
            index__at=self.at,
            index__segment_rows=self.segment_rows,
            index__build_memory_mb=self.build_memory_mb,
            index__catalog_bytes=self.catalog_bytes,
            index__keep_generations=self.keep_generations,
        )
        if self.kind and self.kind not in KINDS:
            kinds = ", ".join(KINDS)
            raise UsageError("index.kind", expected=f"one of {kinds}", found=repr(self.kind))
        if self.vectors not in VECTORS:
            forms = ", ".join(VECTORS)
            raise UsageError("index.vectors", expected=f"one of {forms}", found=repr(self.vectors))
        if not 0 < self.recall < 1:
            raise UsageError(
                "index.recall", expected="a share above 0 and below 1", found=f"{self.recall:g}"
            )

    @property
    def memory_bytes(self) -> int:
        """The limit of memory in bytes."""
        return round(self.memory_gb * 1e9)  # 7.59 KB as GB is no float

    @property
    def batch_bytes(self) -> int:
        """Of captions, json and the like that wait to be written: a sixteenth of the memory at the
        most, since writing takes several times as much."""
        return min(self.catalog_bytes, self.build_memory_mb << 16)

    def rows_of_segment(self, plans: Mapping[str, Plan]) -> int:
        """How many rows a segment of these columns has: `segment_rows`, or what fits the memory of
        a build: a sixth of it holds codes, list numbers and row numbers; the rest reads, encodes
        and writes."""
        row_bytes = sum(plan.code_size + 16 for plan in plans.values() if not plan.exact)
        fits = (self.build_memory_mb << 20) // (6 * max(1, row_bytes))
        return max(1, min(self.segment_rows, fits))


@dataclass(frozen=True)
class Plan:
    """A column's index. An exact one has the defaults, but for `vectors`.

    vectors: in which form those are stored that candidates are scored by. lists: of the inverted
    file; nprobe: how many of them a query scans. space: in which the lists were made and are
    ranked, of the vectors or of the projection. dims: of the codes; of the family "ivf" in the
    space "projected" these are the first numbers of the vectors. codes: "SQ8", 8 bits a dimension,
    or "RaBitQn", n bits. spread: how many standard deviations of the scores
    within a list are added to its centroid's score when lists are ranked (Bruch et al., 2024,
    "optimistic" ranking; 0 ranks by centroids alone). oversample: candidates a result that are
    scored again. missed: the share of the best rows that the lists that a filtered query leaves
    out are expected to hold (query/coverage.py), 0 where no build has tuned it. train_rows: how
    many rows it was trained on.
    """

    family: Literal["exact", "ivf", "projected"] = "exact"
    lists: Count = 0
    nprobe: Count = 0
    space: Literal["full", "projected"] = "full"
    dims: Count = 0
    codes: Annotated[str, Field(pattern=r"^(SQ8|RaBitQ[1-8])?\z")] = ""
    spread: float = 0.0
    oversample: Count = 1
    missed: Annotated[float, Field(ge=0, le=1)] = 0.0
    train_rows: Count = 0
    vectors: Literal["float16", "int8", "none"] = "float16"

    @property
    def exact(self) -> bool:
        return self.family == "exact"

    @property
    def is_prefix(self) -> bool:
        """Whether its codes are of the first numbers of the vectors alone."""
        return self.family == "ivf" and self.space == "projected"

    @property
    def code_size(self) -> int:
        """Bytes of one row's code; 0 for an exact index."""
        if self.exact:
            return 0
        if self.codes == "SQ8":
            return self.dims
        bits = int(re.sub("[^0-9]", "", self.codes))
        # FAISS, RaBitQUtils.h: the signs, the other bits, and the factors
        return -(-self.dims // 8) - (-self.dims * (bits - 1) // 8) + (8 if bits == 1 else 20)

    @property
    def row_bytes(self) -> int:
        """Of a row in memory: its code and its number. Codes of 8 bits a dimension are scanned by 4
        bits first, which have a number as well (query/fast_scan.py)."""
        first = (self.dims + 1) // 2 + 8 if self.codes == "SQ8" else 0
        return 0 if self.exact else self.code_size + 8 + first

    def candidates(self, k: int, nprobe: int) -> int:
        """How many candidates for k results are scored again by a query that scans so many lists.
        Whoever scans more than the plan says wants more recall than it promises, which codes limit
        as well: candidates grow as the root of the lists, by which 0.99 costs least where the plan
        is for 0.95 (benchmarks/index_peers.py)."""
        if not self.nprobe or nprobe <= self.nprobe:
            return k * self.oversample
        return math.ceil(k * self.oversample * math.sqrt(nprobe / self.nprobe))

    def __str__(self) -> str:
        """`exact`, `ivf 2048 x SQ8`, `projected 2048 x SQ8, 48 dimensions`, ..."""
        text = self.family if self.exact else f"{self.family} {self.lists} x {self.codes}"
        if self.family == "projected":
            text += f", {self.dims} dimensions"
        elif self.is_prefix:
            text += f", first {self.dims} numbers"
        return (
            text
            + {"float16": "", "int8": ", 8-bit vectors", "none": ", without vectors"}[self.vectors]
        )


def default_plan(rows: int, dim: int, settings: IndexSettings) -> Plan:
    """The index for `rows` vectors of width `dim` of one column, unmeasured."""
    lists = lists_for(rows)
    few = rows < settings.exact_below and settings.kind in ("", "exact")
    vectors: Any = settings.vectors
    if settings.kind == "exact" or few or lists < 1:
        return Plan(vectors=vectors)
    projected = settings.kind == "projected"
    prefix = not projected and 0 < settings.dims < dim
    return Plan(
        family="projected" if projected else "ivf",
        lists=lists,
        nprobe=min(lists, settings.nprobe or nprobe_for(lists)),
        space="projected" if projected or prefix else "full",
        dims=min(dim, settings.dims or (DEFAULT_DIMS if projected else dim)),
        codes="SQ8",
        oversample=4,
        train_rows=min(rows, lists * TRAIN_PER_LIST),
        vectors=vectors,
    )


def lists_for(rows: int) -> int:
    """About 4 sqrt(rows), a power of two, each with enough vectors to learn its centroid from."""
    lists = min(4 * math.sqrt(rows), rows / MIN_PER_LIST, MAX_LISTS)
    return 1 << int(math.log2(lists)) if lists >= 1 else 0


def nprobe_for(lists: int) -> int:
    """A sixteenth of the lists: text vectors are far from the picture vectors that the lists were
    made of, so they need more of them than pictures would."""
    return max(min(lists, 8), lists // 16)
