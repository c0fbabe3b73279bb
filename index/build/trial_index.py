"""The sample of a trial, indexed so that it can be searched and timed as all rows will be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from chiasm.index.build.measure import BATCH, seconds_per_query
from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.query import ColumnIndex
from chiasm.index.segments import Trained, Vectors

SAMPLE = "sample"


@dataclass(frozen=True)
class SampleSegment:
    """The sample, as a column's only segment. sample: its vectors; index: of FAISS."""

    sample: Vectors
    index: Any
    in_store = False
    deletions = None

    @property
    def record(self) -> SimpleNamespace:
        lists = SimpleNamespace(size=len(self) * (self.index.code_size + 8))
        files = {f"{SAMPLE}.lists": lists}
        return SimpleNamespace(
            id=SAMPLE, vectors={SAMPLE: len(self)}, files=files, dim=self.sample.dim
        )

    def __len__(self) -> int:
        return len(self.sample)

    def deleted(self) -> None:
        return None

    def has(self, column: str) -> None:
        return None

    def raw(self, column: str) -> Vectors:
        return self.sample

    def vectors(self, column: str) -> Vectors:
        return self.sample

    def is_whole(self, column: str, trained: Trained | None) -> bool:
        return True

    def list_sizes(self, column: str, trained: Trained) -> SimpleNamespace:
        lists = self.index.invlists
        rows = [lists.list_size(number) for number in range(lists.nlist)]
        return SimpleNamespace(rows=np.array(rows, np.int64))

    def each_list(self, column: str, trained: Trained) -> Iterator[memoryview]:
        faiss, lists = load_faiss(), self.index.invlists
        for number, size in enumerate(self.list_sizes(column, trained).rows.tolist()):
            if not size:
                yield memoryview(b"")
                continue
            codes = faiss.rev_swig_ptr(lists.get_codes(number), size * self.index.code_size)
            yield memoryview(
                codes.tobytes() + faiss.rev_swig_ptr(lists.get_ids(number), size).tobytes()
            )


@dataclass(frozen=True)
class Made:
    """The sample, indexed for a trial. index: in the lists of the column, sizes (L,) int64: of
    these. timed: in fewer lists, which have as many rows as those of the column will. factor: by
    which the time of the second is multiplied, since it has no more lists."""

    index: ColumnIndex
    timed: ColumnIndex
    sizes: np.ndarray
    factor: float = 1.0

    def with_nprobe(self, nprobe: int, xq: np.ndarray) -> Made:
        """Both searched as queries xq (Q, D) of the column are that scan so many lists."""
        index = replace(self.index, plan=replace(self.index.plan, nprobe=nprobe))
        trained = index.trained
        assert trained is not None
        ranked = trained.rank(xq, trained.queries(xq), nprobe)
        # Lists that queries scan are not of the mean size.
        lists = self.sizes[ranked].sum(axis=1).mean() / self.sizes.mean()
        scanned = min(self.timed.plan.lists, max(1, round(lists)))
        timed = replace(self.timed, plan=replace(self.timed.plan, nprobe=scanned))
        return replace(self, index=index, timed=timed, factor=max(1.0, lists / scanned))

    def seconds_per_query(self, xq: np.ndarray, at: int) -> float:
        """What a query of the column costs."""
        spent = seconds_per_query(self.timed, xq, at, self.timed.plan.nprobe, rounds=1)
        return self.factor * spent + self._ranking_seconds(xq)

    def _ranking_seconds(self, xq: np.ndarray) -> float:
        """What ranking the lists of one costs a query beyond ranking those of the other."""
        spent = []
        for one in (self.timed, self.index):
            trained = one.trained
            assert trained is not None
            coded = trained.queries(xq)
            began = time.thread_time()
            for start in range(0, len(xq), BATCH):
                some = slice(start, start + BATCH)
                trained.rank(xq[some], coded[some], one.plan.nprobe)
            spent.append((time.thread_time() - began) / len(xq))
        return max(0.0, spent[1] - spent[0])

    def places(self, xq: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """Where lists (Q, k) come in the order in which queries xq (Q, D) scan them: (Q, k)."""
        trained = self.index.trained
        assert trained is not None
        found = []
        for start in range(0, len(xq), BATCH):
            some = slice(start, start + BATCH)
            scores = trained.list_scores(xq[some], trained.queries(xq[some]))
            own = np.take_along_axis(scores, lists[some], 1)
            found.append((scores[:, None] > own[..., None]).sum(axis=2))
        return np.concatenate(found)
