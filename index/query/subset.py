"""The lists of an index with the rows alone that a filter lets pass.

A copy of their codes is scanned faster than a bitmap is asked for every row: at 10 % of the rows by
half, at 1 % by nine tenths (benchmarks/filter_costs.py). Making it takes as long as some hundred
queries, so it pays where filters come again or queries come in batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import Trained, numbered_lists


def passing_by_list(index: Any, allowed: np.ndarray) -> np.ndarray:
    """How many rows of each list pass: (L,) int64. allowed: (rows,) bool by row number."""
    counts = np.zeros(index.nlist, np.int64)
    for number, rows in numbered_lists(index):
        counts[number] = np.count_nonzero(allowed[rows])
    return counts


def copy_passing(index: Any, trained: Trained, allowed: np.ndarray) -> tuple[Any, np.ndarray]:
    """A FAISS index in memory of the rows that pass, with their row numbers, and how many of them
    each list has, (L,) int64. index: with row numbers, of the same `trained`; allowed: (rows,)
    bool."""
    faiss = load_faiss()
    subset = trained.empty_index()
    subset.parallel_mode = index.parallel_mode
    counts = np.zeros(index.nlist, np.int64)
    for number, rows in numbered_lists(index):
        passes = allowed[rows]
        counts[number] = count = int(np.count_nonzero(passes))
        if count:
            size = len(rows) * index.code_size
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size)
            kept = np.ascontiguousarray(codes.reshape(len(rows), -1)[passes])
            numbers = np.ascontiguousarray(rows[passes])
            subset.invlists.add_entries(
                number, count, faiss.swig_ptr(numbers), faiss.swig_ptr(kept)
            )
    subset.ntotal = int(counts.sum())
    return subset, counts
