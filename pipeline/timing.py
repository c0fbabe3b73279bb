"""The clock that promises rest on, and a timer of stages that several threads work on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol


class Clock(Protocol):
    """Time as seen by one process. Durations come from `monotonic`; `time` is for display alone,
    since a person may set it. All in seconds."""

    def time(self) -> float: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class SystemClock:
    """The clock of this machine."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float, /) -> None:
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


class Stopwatch:
    """Busy seconds by stage, by the clock `now`, summed over all threads; safe in any of them."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now
        self._lock = threading.Lock()

    def stage(self, name: str) -> Stage:
        """A context whose seconds are those of a stage."""
        return Stage(self, name)

    def now(self) -> float:
        return self._now()

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class Stage:
    """See `Stopwatch.stage`. A class: contextlib's takes twice as long, some times a sample."""

    __slots__ = ("_clock", "_name", "_start")

    def __init__(self, clock: Stopwatch, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = self._clock.now()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clock.add(self._name, self._clock.now() - self._start)
