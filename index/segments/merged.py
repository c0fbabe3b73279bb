"""The lists of several segments, read into memory.

Files are read once from front to back, and each list is verified as it is copied, unless the file
was found right before. Nothing is mapped, so that the codes are in memory once. Deleted rows are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from chiasm.index.segments.lists import ListCodes, ListSizes
from chiasm.index.segments.trained import Trained


class ReadLists(Protocol):
    """A segment whose lists can be read."""

    def list_sizes(self, column: str, trained: Trained) -> ListSizes: ...
    def each_list(self, column: str, trained: Trained) -> Iterator[memoryview]: ...
    def deleted(self) -> np.ndarray | None: ...


def merge_lists(
    segments: Sequence[ReadLists], column: str, trained: Trained, starts: np.ndarray
) -> ListCodes:
    """The lists of several segments together. starts: what is added to the row numbers of each.
    Raises CollectionError for a damaged file."""
    code_size, lists = trained.plan.code_size, trained.plan.lists
    sizes = [segment.list_sizes(column, trained).rows for segment in segments]
    room = np.sum(sizes, axis=0) if sizes else np.zeros(lists, np.int64)
    ends = np.concatenate([[0], np.cumsum(room)]).astype(np.int64)
    codes = np.empty((ends[-1], code_size), np.uint8)
    rows = np.empty(ends[-1], np.int64)
    kept = np.ones(ends[-1], bool)
    filled = ends[:-1].copy()
    for segment, start in zip(segments, starts.tolist(), strict=False):
        gone = segment.deleted()
        for number, content in enumerate(segment.each_list(column, trained)):
            count = len(content) // (code_size + 8)
            some = slice(filled[number], filled[number] + count)
            codes[some] = np.frombuffer(content, np.uint8, count * code_size).reshape(
                count, code_size
            )
            numbers = np.frombuffer(content, "<i8", count, count * code_size)
            if gone is not None:
                kept[some] = ~gone[numbers]
            rows[some] = numbers + start
            filled[number] += count
    if kept.all():
        return ListCodes(codes, rows, ends)
    places = np.flatnonzero(kept)
    return ListCodes(codes[places], rows[places], places.searchsorted(ends))
