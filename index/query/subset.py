"""The lists of an index with the rows alone that a filter lets pass.

A copy of their codes is scanned faster than a bitmap is asked for every row: at 10 % of the rows by
half, at 1 % by nine tenths (benchmarks/filter_costs.py). Making it takes as long as some hundred
queries, so it pays where filters come again or queries come in batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import Trained, numbered_lists


@dataclass(frozen=True)
class PassingRows:
    """The rows of each list that pass: how many, counts (L,) int64, and their mean in the space of
    the codes, means (L, d) float32, 0 where there are none; None for codes that are not decoded."""

    counts: np.ndarray
    means: np.ndarray | None


def passing_by_list(index: Any, trained: Trained, allowed: np.ndarray) -> PassingRows:
    """Of an index with row numbers, of the same `trained`. allowed: (rows,) bool by row
    number."""
    return _passing(index, trained, allowed, None)


def copy_passing(index: Any, trained: Trained, allowed: np.ndarray) -> tuple[Any, PassingRows]:
    """The same, and a FAISS index in memory of the rows that pass, with their row numbers."""
    subset = trained.empty_index()
    subset.parallel_mode = index.parallel_mode
    passing = _passing(index, trained, allowed, subset)
    subset.ntotal = int(passing.counts.sum())
    return subset, passing


def _passing(index: Any, trained: Trained, allowed: np.ndarray, subset: Any) -> PassingRows:
    """subset: takes the rows that pass; None where they are only counted."""
    faiss = load_faiss()
    counts = np.zeros(index.nlist, np.int64)
    sums = np.zeros((index.nlist, index.code_size), np.float32)
    for number, rows in numbered_lists(index):
        passes = allowed[rows]
        counts[number] = count = int(np.count_nonzero(passes))
        if count:
            size = len(rows) * index.code_size
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size)
            kept = np.ascontiguousarray(codes.reshape(len(rows), -1)[passes])
            np.add.reduce(kept, axis=0, dtype=np.float32, out=sums[number])
            if subset is not None:
                numbers = np.ascontiguousarray(rows[passes])
                subset.invlists.add_entries(
                    number, count, faiss.swig_ptr(numbers), faiss.swig_ptr(kept)
                )
    if trained.plan.codes != "SQ8":
        return PassingRows(counts, None)
    assert trained.ranges is not None
    low, width = trained.ranges
    means = low + width * ((sums / np.maximum(counts, 1)[:, None] + 0.5) / 255)  # as FAISS decodes
    means[counts == 0] = 0
    return PassingRows(counts, means.astype(np.float32))
