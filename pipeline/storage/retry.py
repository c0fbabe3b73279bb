"""Requests that fail and are made again: what is worth another attempt, and how long to wait.

A store's answers come in a few kinds. `TransientError` is what the next attempt may not meet (500,
503, 429, a broken connection, a body shorter than it was called); it alone is tried again, after a
wait that doubles and is drawn at random, so that many workers do not knock at once. The rest would
be met again, and are told at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RetrySettings:
    """attempts: at each request. first_wait, longest_wait: seconds; the wait before attempt n + 1
    is drawn between half and all of min(longest_wait, first_wait * 2^(n - 1)). timeout: seconds
    without a byte after which a connection counts as broken."""

    attempts: int = 10  # so that some 20 seconds without a store are outlasted
    first_wait: float = 0.05  # most failures are of one request: a long wait would cost, not help
    longest_wait: float = 20.0
    timeout: float = 30.0

    def wait(self, failed: int) -> float:
        """Seconds before the next attempt, after `failed` of them."""
        longest = min(self.longest_wait, self.first_wait * 2 ** (failed - 1))
        return longest * random.uniform(0.5, 1)


class StoreError(Exception):
    """What a store answered instead of what was asked for; told to people by the backend."""


class TransientError(StoreError):
    """A failure that another attempt may not meet."""


class RetriesExhausted(StoreError):
    """Every attempt met a passing failure."""


class NotFound(StoreError):
    """404: nothing there."""


class Refused(StoreError):
    """401, 403 and whatever else is the same at every attempt. `do`: what a person can do."""

    def __init__(
        self, found: str, do: str = "check the credentials and the endpoint (docs/operations.md)"
    ) -> None:
        super().__init__(found)
        self.do = do


class PastEnd(StoreError):
    """416: the object ends before the first byte asked for. `total`: its size, -1 if not told."""

    def __init__(self, total: int = -1) -> None:
        super().__init__("the object ends before")
        self.total = total


class AlreadyExists(StoreError):
    """412: a name that was to be new is taken."""


class VersionChanged(StoreError):
    """The object is not the one that was opened."""


class Cancelled(StoreError):
    """Nobody wants the answer any more."""


def retry(call: Callable[[], T], settings: RetrySettings, stop: threading.Event | None = None) -> T:
    """`call` until it raises nothing passing; Unreachable after the last attempt.

    stop: ends the waiting, with Cancelled."""
    for attempt in range(1, settings.attempts + 1):
        if stop is not None and stop.is_set():
            raise Cancelled
        try:
            return call()
        except TransientError as failure:
            if attempt == settings.attempts:
                told = f"{attempt} attempts failed, the last one: {failure}"
                raise RetriesExhausted(told) from failure
            if stop is None:
                time.sleep(settings.wait(attempt))
            else:
                stop.wait(settings.wait(attempt))
    raise ValueError("expected at least one attempt")
