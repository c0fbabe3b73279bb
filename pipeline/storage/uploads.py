"""An object being written: gathered here, put whole at its commit, or never there.

Gathered in memory up to 64 MiB, then in a temporary file without a name, which nothing has to
sweep. Up to 128 MiB are read into memory at the commit and go up in one put, more goes up in parts
(pipeline/storage/s3.py). The cost: up to 128 MiB of memory for each object, room for the larger
ones on this machine's disk, and nothing goes up before the last byte is there.
"""

from __future__ import annotations

import io
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage.object_store import SEND_AT_ONCE, Store
from chiasm.pipeline.storage.retry import AlreadyExists, RetrySettings, retry
from chiasm.pipeline.storage.streams import Told

IN_MEMORY = 64 << 20  # bytes


class PendingObject(io.BufferedIOBase):
    """An object to be put whole: gathered in memory up to IN_MEMORY bytes, then in a file without a
    name; read into memory for its put where it is no larger than SEND_AT_ONCE."""

    def __init__(
        self, store: Store, path: str, retries: RetrySettings, told: Told, name: str
    ) -> None:
        """name: what people call the object."""
        self._store, self._path, self._retries, self._told = store, path, retries, told
        self._name = name
        self._size = 0
        self._spool = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  closed by `close`

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        with self._spooling():
            self._spool.write(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def tell(self) -> int:
        return self._size

    def commit(self) -> None:
        """Put the object under its name, in place of what stood there."""
        with self._told():
            self._send()
        self.close()

    def commit_new(self) -> bool:
        """Like `commit`, unless something bears the name; says whether it got the name. The store
        decides (S3: If-None-Match); how well one that cannot does, its class says."""
        with self._told():
            try:
                self._send(new=secrets.token_hex(8))
            except AlreadyExists:
                return False
        self.close()
        return True

    def _send(self, new: str = "") -> None:
        if self._size > SEND_AT_ONCE:
            self._store.send(self._path, self._spool, self._size, new=new)
            return
        with self._spooling():
            self._spool.seek(0)
            data = self._spool.read()
        retry(lambda: self._store.put(self._path, data, new=new), self._retries)

    @contextmanager
    def _spooling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._name}: temporary file in {tempfile.gettempdir()}",
                expected=f"room for {self._size:,} bytes",
                found=error.strerror or str(error),
                do="free some, or set TMPDIR",
            ) from error

    def close(self) -> None:
        self._spool.close()
        super().close()
