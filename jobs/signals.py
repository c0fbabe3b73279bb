"""SIGINT and SIGTERM become `Stopped`, at a moment when raising it is safe.

A signal handler may run anywhere, also inside Ray's compiled code, which does not survive an
exception there. While `deferred` is open a signal is only noted, and `check`, called where nothing
is under way, raises it; elsewhere it is raised at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """A signal asked this process to stop. Not an Exception, so nothing takes it for a failure.

    message: what a person should know, where it is not that the same command goes on."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum
        self.message = ""


class Stopping:
    """The process's one way of being stopped."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Take over both signals. Only from the main thread."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self._noted is not None:
            raise Stopped(self._noted)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note signals inside; raise a noted one at the end, of the outermost, unless
        something else is raised."""
        outer, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = outer
        if not outer:
            self.check()

    def _handle(self, signum: int, frame: object) -> None:
        self._noted = signum
        # While Ray starts, its C++ code hears of it first, and would abort the process 3 s later.
        signal.alarm(0)
        if not self._deferred:
            raise Stopped(signum)


STOPPING = Stopping()
