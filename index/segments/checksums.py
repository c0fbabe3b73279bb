"""Checksums of index files: of bytes in memory, of files while they are written, and of files read
again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BufferedReader
from typing import Annotated, Any

from pydantic import Field

from chiasm.index.plan import Count
from chiasm.pipeline.storage import PendingFile


@dataclass(frozen=True, slots=True)
class FileSum:
    """A file's size in bytes and the blake2b (16 bytes, hex) of its content."""

    size: Count
    blake2b: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]

    @classmethod
    def of(cls, data: bytes) -> FileSum:
        return cls(len(data), hashlib.blake2b(data, digest_size=16).hexdigest())

    @classmethod
    def of_file(cls, file: BufferedReader) -> FileSum:
        """Of an open file, from its start to its end."""
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        return cls(file.tell(), digest.hexdigest())


class Digest:
    """A file being written; its checksum is computed as the bytes pass."""

    closed = False

    def __init__(self, file: PendingFile) -> None:
        self._file, self._hash, self._size = file, hashlib.blake2b(digest_size=16), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._size

    def sum(self) -> FileSum:
        return FileSum(self._size, self._hash.hexdigest())
