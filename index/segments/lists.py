"""The inverted lists of one column of a segment, as FAISS maps them.

    COLUMN.lists    list after list: the codes of its rows, then their row numbers (int64)
    COLUMN.sizes    of each list the number of its rows (int64), then of each the blake2b (16 bytes)
                    of its bytes in COLUMN.lists, so that a list can be read alone

An exact column has neither: FAISS maps its vectors, `COLUMN.f16`, as the codes of one list.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments.blocks import Blocks
from chiasm.index.segments.trained import Trained
from chiasm.pipeline.errors import CollectionError

DIGEST = 16  # bytes of a list's checksum
ENCODED_AT_ONCE = 16_384  # rows: enough for all cores, some MB
# Bit of IndexIVF.parallel_mode: a search adds to the heaps it is given (FAISS, IndexIVF.h).
NO_HEAP_INIT = 1024


class ListsWriter:
    """Encodes rows as they come and keeps their codes, code_size + 8 bytes a row, until they are
    written list by list. capacity: how many rows may come."""

    def __init__(self, trained: Trained, capacity: int) -> None:
        self.trained = trained
        self._index = trained.empty_index()
        # Pages of these that no row needs are never touched.
        self._codes = np.empty((capacity, self._index.code_size), np.uint8)
        self._lists = np.empty(capacity, np.int32)
        self._rows = np.empty(capacity, np.int32)
        self._pending: list[np.ndarray] = []  # (n, D) vectors that are not encoded yet
        self._encoded = self.count = 0

    def add(self, vectors: np.ndarray, rows: np.ndarray) -> None:
        """Take vectors (n, D) float16 or float32 of these rows of the segment."""
        self._rows[self.count : self.count + len(rows)] = rows
        self._pending.append(vectors)
        self.count += len(rows)
        if self.count - self._encoded >= ENCODED_AT_ONCE:
            self._encode()

    def copy(self, codes: np.ndarray, lists: np.ndarray, rows: np.ndarray) -> None:
        """Take codes (n, code_size) of rows of the segment, as they are, and their lists (n,)."""
        if self._pending:
            self._encode()
        some = slice(self.count, self.count + len(rows))
        self._codes[some], self._lists[some], self._rows[some] = codes, lists, rows
        self.count = self._encoded = some.stop

    def _encode(self) -> None:
        faiss = load_faiss()
        vectors = np.concatenate(self._pending)
        self._pending.clear()
        for start in range(0, len(vectors), ENCODED_AT_ONCE):
            xb = vectors[start : start + ENCODED_AT_ONCE].astype(np.float32)
            some = slice(self._encoded, self._encoded + len(xb))
            coded = np.ascontiguousarray(self.trained.rows(xb))
            lists = np.ascontiguousarray(self.trained.assign(xb, coded))
            self._index.encode_vectors(
                len(coded),
                faiss.swig_ptr(coded),
                faiss.swig_ptr(lists),
                faiss.swig_ptr(self._codes[some]),
            )
            self._lists[some] = lists
            self._encoded += len(xb)

    def write(self, lists_file: Any, sizes_file: Any) -> None:
        """Write the two files, given as writable ones."""
        if self._pending:
            self._encode()
        codes, rows = self._codes[: self.count], self._rows[: self.count]
        numbers = self._lists[: self.count]
        order = np.argsort(numbers, kind="stable")  # rows rise within a list
        sizes = np.bincount(numbers, minlength=self.trained.plan.lists)
        digests: list[bytes] = []
        first = 0
        for size in sizes.tolist():
            members = order[first : first + size]
            content = codes[members].tobytes() + rows[members].astype("<i8").tobytes()
            lists_file.write(content)
            digests.append(hashlib.blake2b(content, digest_size=DIGEST).digest())
            first += size
        sizes_file.write(sizes.astype("<i8").tobytes())
        sizes_file.write(b"".join(digests))


class ListSizes:
    """What `COLUMN.sizes` says. rows: of each list. digests: of each list's bytes. offsets: where
    each begins in COLUMN.lists, and where the last ends, (L + 1,) int64."""

    def __init__(
        self, content: bytes, lists: int, code_size: int, where: str, rebuild: str
    ) -> None:
        """Raises CollectionError for content that is not of so many lists."""
        if len(content) != lists * (8 + DIGEST):
            raise CollectionError(
                where,
                expected=f"the sizes of {lists} lists",
                found=f"{len(content)} bytes",
                do=f"run {rebuild}",
            )
        self.rows = np.frombuffer(content, "<i8", lists)
        self.digests = np.frombuffer(content, f"V{DIGEST}", lists, 8 * lists)
        ends = np.cumsum(self.rows * (code_size + 8))
        self.offsets = np.concatenate([np.zeros(1, np.int64), ends])

    @property
    def blocks(self) -> Blocks:
        """The lists as blocks of COLUMN.lists."""
        return Blocks(self.offsets, self.digests)


def open_lists(
    file: BufferedReader, size: int, lists: ListSizes, trained: Trained, where: str, rebuild: str
) -> Any:
    """The FAISS index that scans a mapped COLUMN.lists of `size` bytes; the file may be closed
    afterwards. where, rebuild: the file's name, and the command that errors advise. Raises
    CollectionError where the two do not fit together."""
    index = trained.empty_index()
    expected = int(lists.offsets[-1])
    if expected != size:
        raise CollectionError(
            where,
            expected=f"lists of {expected} bytes, as their sizes say",
            found=f"{size} bytes",
            do=f"run {rebuild}",
        )
    return _map(index, file, [lists.rows, lists.rows, lists.offsets[:-1]], size, where)


def open_exact(file: BufferedReader, rows: int, dim: int, where: str) -> Any:
    """The FAISS index of one list that scans `rows` mapped vectors (rows, dim) float16. Its file
    holds no row numbers: it is to be searched with `store_pairs`, which returns places in the list,
    and a selector is of those places, too."""
    faiss = load_faiss()
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dim, 1, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.own_fields = False
    index.referenced_objects = [quantizer]
    index.is_trained = True
    one = [np.array([number]) for number in (rows, rows, 0)]
    return _map(index, file, one, rows * dim * 2, where)


def _map(index: Any, file: BufferedReader, lists: list[np.ndarray], size: int, where: str) -> Any:
    """The index over a file of `size` bytes. lists: sizes, capacities and offsets of its lists."""
    faiss = load_faiss()
    # By the open file, which stays the one that was verified whatever happens to its name.
    path = f"/dev/fd/{file.fileno()}"
    mapped = faiss.OnDiskInvertedLists(index.nlist, index.code_size, "")
    mapped.filename = path if os.path.exists(path) else file.name
    mapped.read_only = True
    table = np.ascontiguousarray(np.stack(lists, axis=1).astype(np.uint64))
    faiss.memcpy(mapped.lists.data(), faiss.swig_ptr(table), table.nbytes)
    mapped.totsize = size
    if size:
        try:
            mapped.do_mmap()
        except RuntimeError as error:
            found = str(error).strip().splitlines()[-1]
            raise CollectionError(where, expected="a file to map", found=found) from error
    index.replace_invlists(mapped, False)
    index.referenced_objects.append(mapped)
    index.ntotal = int(lists[0].sum())
    index.parallel_mode = NO_HEAP_INIT
    return index


@dataclass(frozen=True, eq=False)
class ListCodes:
    """The codes of a column in memory, list after list: codes (N, code size) uint8, rows (N,)
    int64, their positions; starts (L + 1,) int64: where each list begins, and the end."""

    codes: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def counts(self) -> np.ndarray:
        """Of the rows of each list: (L,) int64."""
        return np.diff(self.starts)

    def passing(self, mask: np.ndarray) -> np.ndarray:
        """How many rows of each list pass: (L,) int64. mask: by position, (rows,) bool."""
        counts = np.concatenate([[0], np.cumsum(mask[self.rows])])
        return np.diff(counts[self.starts])

    def subset(self, mask: np.ndarray) -> ListCodes:
        """A copy of the rows that pass."""
        kept = np.flatnonzero(mask[self.rows])
        return ListCodes(self.codes[kept], self.rows[kept], kept.searchsorted(self.starts))

    def index(self, trained: Trained) -> Any:
        """A FAISS index in memory that scans them."""
        faiss = load_faiss()
        index = trained.empty_index()
        index.parallel_mode = NO_HEAP_INIT
        starts = self.starts.tolist()
        for number, (first, after) in enumerate(pairwise(starts)):
            if first < after:
                rows, codes = self.rows[first:after], self.codes[first:after]
                index.invlists.add_entries(
                    number, after - first, faiss.swig_ptr(rows), faiss.swig_ptr(codes)
                )
        index.ntotal = len(self)
        return index


def rows_in_lists(index: Any) -> Iterator[np.ndarray]:
    """The row numbers of each list that has any, as copies."""
    return (rows for _, rows in _numbered_lists(index))


def coded_rows(index: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Of so many rows: the list of each (rows,) int32, -1 for none, and its code (rows, code_size)
    uint8."""
    faiss = load_faiss()
    lists = np.full(rows, -1, np.int32)
    codes = np.zeros((rows, index.code_size), np.uint8)
    for number, members in _numbered_lists(index):
        lists[members] = number
        content = index.invlists.get_codes(number)
        stored = faiss.rev_swig_ptr(content, members.size * index.code_size)
        codes[members] = stored.reshape(len(members), index.code_size)
    return lists, codes


def _numbered_lists(index: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Each list that has rows: its number, and a copy of their numbers."""
    faiss = load_faiss()
    lists = index.invlists
    for number in range(lists.nlist):
        if size := lists.list_size(number):
            yield number, faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
