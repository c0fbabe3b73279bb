"""SIGINT and SIGTERM become `Stopped`, at a moment when raising it is safe.

A signal handler may run anywhere, also inside Ray's compiled code, which does not survive an
exception there. While `deferred` is open a signal is only noted, and `check`, called where nothing
is under way, raises it; elsewhere it is raised at once.

A second signal ends the process at once. Python's own handlers do not run while the main thread is
inside compiled code, so a thread of its own hears of each signal by the wakeup descriptor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A signal that comes sooner is the first one again: timeout(1) and terminals send it to the process
# and to its group, and wrappers such as make pass it on.
REPEAT_SECONDS = 0.5
_SHOW_CURSOR = b"\x1b[?25h"


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
        self._wakeup = -1

    def install(self) -> None:
        """Take over both signals. Only from the main thread."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)
        read, write = os.pipe()
        os.set_blocking(write, False)
        replaced = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if replaced == self._wakeup != -1:
            os.close(replaced)  # of an earlier call: ends its thread
        self._wakeup = write
        # A signal to a forked process is none to this one.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        watch = threading.Thread(target=_leave_at_second, args=[read], name="signals", daemon=True)
        watch.start()

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


def _leave_at_second(read: int) -> None:
    """End the process at the second signal that arrives at the wakeup descriptor."""
    first: float | None = None
    while number := os.read(read, 1):
        if number[0] not in SIGNALS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > REPEAT_SECONDS:
            _show_cursor()
            os._exit(128 + number[0])
    os.close(read)


def _show_cursor() -> None:
    """Progress on a terminal hides the cursor, and does not come to show it again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no stderr at all
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), _SHOW_CURSOR)


STOPPING = Stopping()
