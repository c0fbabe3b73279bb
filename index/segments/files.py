"""The files of a segment: each verified before it is used, and opened once.

A local file is mapped where it is, verified whole or, where it is large, in parts (local_parts.py);
of one in a store a copy is, in parts or whole (partial.py, cache.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

from chiasm.index.segments import local_parts
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.blocks import Blocks
from chiasm.index.segments.cache import is_cached, open_cached
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.local_parts import LocalParts
from chiasm.index.segments.names import CATALOG, blocks_file, segment_file
from chiasm.index.segments.partial import PartialCopy, Parts, gone
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.verified import is_verified
from chiasm.pipeline.errors import CollectionError, SourceError, StorageError
from chiasm.pipeline.storage import Folder, display_name


class SegmentFiles:
    """Safe to share. Raises CollectionError for a damaged file, SegmentGone for one that was
    removed."""

    def __init__(self, folder: Folder, record: SegmentRecord) -> None:
        self.in_store = folder.local is None
        self._folder, self._record = folder, record
        self._lock = threading.Lock()
        self._locks: dict[object, threading.RLock] = {}  # one a file: several are read at once
        self._open: dict[object, Any] = {}

    def read(self, name: str) -> bytes:
        return self.open_once(name, lambda file, *_: file.read())

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._record.files[name].size

    def parts(self, name: str, blocks: Blocks | None = None) -> Parts | None:
        """The parts of a file that are here and verified; None where it is used whole. blocks: how
        it is divided, None where that is stored beside it."""

        def opened() -> Parts | None:
            checksum = self._record.files[name]
            if blocks is None and blocks_file(name) not in self._record.files:
                return None
            if self.in_store:
                if is_cached(checksum):
                    return None
                divided = self._read_blocks(name) if blocks is None else blocks
                file = segment_file(self._record.id, name)
                return PartialCopy(self._folder, file, checksum, divided, self)
            if checksum.size < local_parts.WHOLE_BYTES:
                return None
            parts = self.local_parts(name, self._read_blocks(name) if blocks is None else blocks)
            return None if parts.complete else parts

        return self.once((name, "parts"), opened)

    def local_parts(self, name: str, blocks: Blocks) -> LocalParts:
        """A local file, to be verified block by block."""
        file, checksum = segment_file(self._record.id, name), self._record.files[name]
        return LocalParts(self._folder, file, checksum, blocks, self._open_local(file))

    def _read_blocks(self, name: str) -> Blocks:
        content, size = self.read(blocks_file(name)), self._record.files[name].size
        try:
            of = Blocks.of_catalog if name == CATALOG else Blocks.of_vectors
            return of(content, size)
        except ValueError as error:
            file = segment_file(self._record.id, blocks_file(name))
            raise CollectionError(
                display_name(self._folder.url_of(file)),
                expected=f"checksums of the blocks of {size} bytes",
                found=str(error),
                do=f"run {build_command(self._folder)}",
            ) from error

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once."""
        if key in self._open:
            return self._open[key]
        with self._lock:
            lock = self._locks.setdefault(key, threading.RLock())
        with lock:
            if key not in self._open:
                self._open[key] = make()
            return self._open[key]

    def open_once(
        self,
        name: str,
        opener: Callable[[BufferedReader, str, str], Any],
        use: str = "",
        divided: Blocks | None = None,
    ) -> Any:
        """What `opener` makes of a file of the segment, made once. use: apart from other uses.
        divided: how the file is, of one that may be used in parts."""

        def make() -> Any:
            file, rebuild = segment_file(self._record.id, name), build_command(self._folder)
            in_parts = divided is not None or not self.in_store
            if in_parts and (copy := self.parts(name, divided)) is not None:
                if divided is None and isinstance(copy, LocalParts):
                    copy.finish()
                return opener(copy.file, display_name(self._folder.url_of(file)), rebuild)
            with self.opened(file, self._record.files[name]) as (opened, where):
                return opener(opened, where, rebuild)

        return self.once((name, use), make)

    @contextmanager
    def opened(self, name: str, checksum: FileSum) -> Iterator[tuple[BufferedReader, str]]:
        """A file of the collection whose content has its checksum, and its name for messages."""
        where = display_name(self._folder.url_of(name))
        try:
            with self._open_verified(name, checksum, where) as file:
                yield file, where
        except OSError as error:
            found = error.strerror or str(error)
            raise StorageError(where, expected="a usable file", found=found) from error

    def _open_verified(self, file: str, checksum: FileSum, where: str) -> BufferedReader:
        """A file whose content has its checksum; of an object store, its cached copy."""
        if self.in_store:
            try:
                return open_cached(self._folder, file, checksum, self)
            except (SourceError, StorageError):
                if self._folder.stat(file) is None:
                    raise gone(self._folder, where) from None
                raise
        local = self._open_local(file)
        if is_verified(local, checksum):
            local.seek(0)
            return local
        with local:
            found = FileSum.of_file(local)
        raise CollectionError(
            where,
            expected=f"checksum {checksum.blake2b}, {checksum.size} bytes",
            found=f"{found.blake2b}, {found.size} bytes",
            do=f"run {build_command(self._folder)}",
        )

    def _open_local(self, file: str) -> BufferedReader:
        try:
            return open(self._folder.path(file), "rb")
        except FileNotFoundError:
            raise gone(self._folder, display_name(self._folder.url_of(file))) from None
