"""What a build no longer uses, given back at once: its peak is bounded, not what it has used."""

from __future__ import annotations

import ctypes
import functools
import gc
import mmap
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from chiasm.index.query import ColumnIndex


def release_memory() -> None:
    """Give back what is free: Arrow's pool and the C library keep freed memory for later, and an
    index that was searched is freed by the collector of cycles alone."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    if (trim := _malloc_trim()) is not None:
        trim(0)


def release_vectors(index: ColumnIndex) -> None:
    """Let the pages of a column's mapped vectors go: candidates of all queries are on most of
    them."""
    for segment in index.segments:
        stored = getattr(segment.raw(index.column), "stored", None)
        if stored is not None:
            release_pages(stored)


def release_pages(mapped: np.ndarray) -> None:
    """Let the pages of a mapped file go, which count as this process's memory; they are mapped
    again when they are read."""
    base: object = mapped
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Of glibc; other C libraries have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
