"""An object being written: collected here, uploaded whole at its commit, or not at all.

Collected in memory up to 64 MiB, then in a temporary file without a name, which no sweep has to
remove. At the commit up to 128 MiB are read into memory and sent as one put; more is sent in parts
(`s3.py`). The cost: up to 128 MiB of memory for each object, disk space of this machine for larger
ones, and no byte is sent before the last one is written.
"""

from __future__ import annotations

import io
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage.object_store import Store
from chiasm.pipeline.storage.retry import RetrySettings, retry
from chiasm.pipeline.storage.store_errors import AlreadyExists
from chiasm.pipeline.storage.streams import ErrorContext

MEMORY_BYTES = 64 << 20
SINGLE_PUT_BYTES = 128 << 20


class PendingObject(io.BufferedIOBase):
    """A PendingFile of an object store: collected in memory up to MEMORY_BYTES, then in a file
    without a name; one put where it has at most SINGLE_PUT_BYTES.

    translating_errors: a context that raises callers' errors in place of StoreErrors. name: the
    object's name in messages."""

    def __init__(
        self,
        store: Store,
        path: str,
        retries: RetrySettings,
        translating_errors: ErrorContext,
        name: str,
    ) -> None:
        self._store, self._path, self._retries = store, path, retries
        self._translating_errors, self._name = translating_errors, name
        self._size = 0
        self._spool = tempfile.SpooledTemporaryFile(MEMORY_BYTES)  # noqa: SIM115  `close` does

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        with self._spool_errors():
            self._spool.write(data)
        size = memoryview(data).nbytes
        self._size += size
        return size

    def tell(self) -> int:
        return self._size

    def commit(self) -> None:
        """Upload the object under its name, replacing the one that has it."""
        with self._translating_errors():
            self._upload()
        self.close()

    def commit_new(self) -> bool:
        """Like `commit`, unless the name is taken; returns whether the object got the name. The
        store decides (S3: If-None-Match); its class documents what one without conditions does."""
        with self._translating_errors():
            try:
                self._upload(create_token=secrets.token_hex(8))
            except AlreadyExists:
                return False
        self.close()
        return True

    def _upload(self, create_token: str = "") -> None:
        if self._size > SINGLE_PUT_BYTES:
            self._store.upload(self._path, self._spool, self._size, create_token=create_token)
            return
        with self._spool_errors():
            self._spool.seek(0)
            data = self._spool.read()
        retry(lambda: self._store.put(self._path, data, create_token=create_token), self._retries)

    @contextmanager
    def _spool_errors(self) -> Iterator[None]:
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
