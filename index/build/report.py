"""What was measured when a column's plan was chosen, as it is stored with the index and printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

from chiasm.index.segments import build_command, read_manifest, read_shared
from chiasm.index.sizes import format_size
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

Recalls = dict[str, dict[int, float]]  # kind of query -> k -> recall@k
KS = (1, 10, 100)
SPACES = {"": "-", "full": "vectors", "projected": "projection"}  # in which lists were made


@dataclass(frozen=True)
class Measured:
    """A plan, measured. rows: over how many. nprobe, oversample: with which it was searched. space,
    spread: of its lists, see `Plan`. recall: of text, picture and filtered queries. bytes: of its
    lists and what its segments share, for all rows of the column. build_seconds: training,
    assignment and encoding of these rows. p50_ms, p99_ms: of single queries, on one thread.
    queries_per_second: in batches, by the processor's time of one thread. reached: whether its
    recall is the wanted one."""

    plan: str
    rows: int
    nprobe: int
    oversample: int
    recall: Recalls
    bytes: int
    build_seconds: float
    p50_ms: float
    p99_ms: float
    queries_per_second: float
    reached: bool
    space: str = ""
    spread: float = 0.0

    @property
    def label(self) -> str:
        """The plan, and in what trials of the same plan differ."""
        lists = f", lists by {SPACES[self.space]}, std {self.spread:g}, x {self.oversample}"
        return self.plan + (lists if self.space else "")


@dataclass(frozen=True)
class SmallVectors:
    """What is lost where candidates are scored by smaller vectors than the stored float16: recall@k
    of text queries on a sample of rows, were every row a candidate."""

    stored: str
    bytes: int
    recall: dict[int, float]


def _json(record: Tried | Report) -> bytes:
    return json.dumps(asdict(record), ensure_ascii=False, indent=1).encode() + b"\n"


@dataclass(frozen=True)
class Tried:
    """What was measured when a plan was chosen, as a build keeps it until it has the report, whose
    fields these are: a build that was killed meanwhile hands it on."""

    candidates: tuple[Measured, ...] = ()
    small_vectors: tuple[SmallVectors, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    schema: int = 1

    def to_json(self) -> bytes:
        return _json(self)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Tried:
        """Of a report as well. Raises CollectionError for a damaged file."""
        return read_record(data, where, cls, what="what a build has measured")


@dataclass(frozen=True)
class CurvePoint:
    nprobe: int
    recall: float
    queries_per_second: float


@dataclass(frozen=True)
class Report:
    """A column's report. recall, at: what was wanted. source: where its text queries come from.
    queries: how many there were to learn from, to tune on and to report on. promise: by kind of
    query a recall@at that 98 % of all sets of 500 unseen queries keep, see promise.py. measured:
    the plan that was built, over all rows, on queries that chose nothing. candidates: those that
    were tried on a sample. curve: of the built plan, more and fewer lists scanned. seconds: that
    choosing and measuring took."""

    column: str
    rows: int
    recall: float
    at: int
    source: str
    queries: dict[str, int]
    promise: dict[str, float]
    measured: Measured
    candidates: tuple[Measured, ...]
    curve: tuple[CurvePoint, ...] = ()
    small_vectors: tuple[SmallVectors, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    schema: int = 1

    def to_json(self) -> bytes:
        return _json(self)

    @classmethod
    def from_json(cls, data: bytes, where: str, do: str) -> Report:
        """Raises CollectionError for a damaged report."""
        return read_record(data, where, cls, what="a report of an index", do=do)

    def lines(self) -> Iterator[str]:
        """The report in short, for people."""
        counts = ", ".join(f"{count:,} to {use}" for use, count in self.queries.items())
        yield f"{self.column}: {self.source}; queries: {counts}"
        promised = ", ".join(f"{kind} {value:.3f}" for kind, value in self.promise.items())
        yield f"promised recall@{self.at}: {promised} (wanted {self.recall:g})"
        yield from self._table()
        for small in self.small_vectors:
            recalls = _recalls(small.recall, small.recall)
            yield f"scored by {small.stored}, {small.bytes} bytes a row: {recalls}"

    def _table(self) -> Iterator[str]:
        """A line for every plan, the built one first, below a line of names."""
        plans = (self.measured, *self.candidates)
        kinds = {
            kind: sorted({k for one in plans for k in one.recall.get(kind, {})})
            for kind in self.measured.recall
        }
        recalls = [f"{kind} @{'/'.join(map(str, ks))}" for kind, ks in kinds.items()]
        names = ["plan", "lists by", "std", "nprobe", "x", *recalls]
        lines = [[*names, "size", "build s", "p50/p99 ms", "q/s"]]
        for one in plans:
            mark = "" if one is self.measured else f" ({one.rows:,} rows)"
            lines.append(
                [
                    one.plan + mark + ("" if one.reached else " -"),
                    SPACES[one.space],
                    f"{one.spread:g}",
                    str(one.nprobe),
                    str(one.oversample),
                    *(_recalls(one.recall.get(kind, {}), ks) for kind, ks in kinds.items()),
                    format_size(one.bytes),
                    f"{one.build_seconds:.1f}",
                    f"{one.p50_ms:.2f}/{one.p99_ms:.2f}",
                    f"{one.queries_per_second:,.0f}",
                ]
            )
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        for plan, *cells in lines:
            right = zip(cells, widths[1:], strict=True)
            yield plan.ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in right)


def read_reports(folder: Folder, number: int) -> dict[str, Report]:
    """The stored reports of a generation, by column: none where nothing was measured. An edit has
    those of its build. Raises CollectionError for a damaged report."""
    do = f"run {build_command(folder)}"
    return {
        column: Report.from_json(
            read_shared(folder, one.file, one.checksum), display_name(folder.url_of(one.file)), do
        )
        for column, one in read_manifest(folder, number).reports.items()
    }


def _recalls(recall: dict[int, float], ks: Iterable[int]) -> str:
    """recall@k of each k, `-` where it was not measured."""
    return " ".join(f"{recall[k]:.3f}" if k in recall else "-" for k in ks) or "-"
