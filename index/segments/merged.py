"""The lists of several segments as one FAISS index in memory.

Files are read once from front to back, and each list is verified as it is copied, unless the file
was found right before. Nothing is mapped, so that the codes are in memory once. Deleted rows are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments.lists import NO_HEAP_INIT, ListSizes
from chiasm.index.segments.trained import Trained


class ReadLists(Protocol):
    """A segment whose lists can be read."""

    def list_sizes(self, column: str, trained: Trained) -> ListSizes: ...
    def each_list(self, column: str, trained: Trained) -> Iterator[memoryview]: ...
    def deleted(self) -> np.ndarray | None: ...


def merge_lists(
    segments: Sequence[ReadLists], column: str, trained: Trained, starts: np.ndarray
) -> Any:
    """One FAISS index of the lists of several segments. starts: what is added to the row numbers of
    each. Raises CollectionError for a damaged file."""
    faiss = load_faiss()
    merged = trained.empty_index()
    merged.parallel_mode = NO_HEAP_INIT
    lists, code_size = merged.invlists, merged.code_size
    sizes = [segment.list_sizes(column, trained).rows for segment in segments]
    # Once to the size that it will have: what grows takes up to twice its memory.
    room = np.sum(sizes, axis=0) if sizes else np.zeros(merged.nlist, np.int64)
    for number in np.flatnonzero(room).tolist():
        lists.resize(number, int(room[number]))
    filled = np.zeros(merged.nlist, np.int64)
    for segment, start in zip(segments, starts.tolist(), strict=False):
        gone = segment.deleted()
        for number, content in enumerate(segment.each_list(column, trained)):
            if not (count := len(content) // (code_size + 8)):
                continue
            codes = np.frombuffer(content, np.uint8, count * code_size)
            rows = np.frombuffer(content, "<i8", count, count * code_size)
            if gone is not None and gone[rows].any():
                kept = ~gone[rows]
                codes, rows = codes.reshape(count, -1)[kept], rows[kept]
                count = len(rows)
            rows = rows + start  # has a name: a pointer keeps nothing alive
            pointers = faiss.swig_ptr(rows), faiss.swig_ptr(codes)
            lists.update_entries(number, int(filled[number]), count, *pointers)
            filled[number] += count
    for number in np.flatnonzero(filled < room).tolist():
        lists.resize(number, int(filled[number]))
    merged.ntotal = int(filled.sum())
    return merged
