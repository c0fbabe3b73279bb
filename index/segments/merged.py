"""The lists of several segments in memory, as one.

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
    """The lists of several segments, without the rows that are deleted. starts: what is added to
    the row numbers of each, and the end. Raises CollectionError for a damaged file."""
    code_size = trained.plan.code_size
    sizes = np.zeros(trained.plan.lists, np.int64)
    for segment in segments:
        sizes += segment.list_sizes(column, trained).rows
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    codes = np.empty((int(ends[-1]), code_size), np.uint8)
    rows = np.empty(len(codes), np.int64)
    filled = ends[:-1].tolist()
    for segment, start in zip(segments, starts.tolist(), strict=False):
        for number, content in enumerate(segment.each_list(column, trained)):
            if count := len(content) // (code_size + 8):
                some = slice(filled[number], filled[number] + count)
                values = np.frombuffer(content, np.uint8, count * code_size)
                codes[some] = values.reshape(count, code_size)
                rows[some] = np.frombuffer(content, "<i8", count, count * code_size)
                rows[some] += start
                filled[number] += count
    merged = ListCodes(codes, rows, ends)
    gone = [segment.deleted() for segment in segments]
    if all(one is None for one in gone):
        return merged
    kept = np.ones(int(starts[-1]), bool)  # by position, as the numbers of rows are
    for one, start in zip(gone, starts.tolist(), strict=False):
        if one is not None:
            kept[start : start + len(one)] = ~one
    return merged.subset(kept)
