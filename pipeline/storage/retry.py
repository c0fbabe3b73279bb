"""Retries of requests to stores: exponential backoff with jitter.

Only a `TransientError` is retried. The wait doubles with each attempt and is drawn at random, so
that many workers do not send their requests at the same moment. Other errors would be the same at
the next attempt and are raised at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from chiasm.pipeline.storage.store_errors import Cancelled, RetriesExhausted, TransientError

T = TypeVar("T")


@dataclass(frozen=True)
class RetrySettings:
    """attempts: of each request. first_wait, longest_wait: seconds; the wait before attempt n + 1
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


RETRIES = RetrySettings()  # of every store of this process


def retry(call: Callable[[], T], settings: RetrySettings, stop: threading.Event | None = None) -> T:
    """`call()` until it raises no TransientError; RetriesExhausted after the last attempt.

    stop: when set, no further attempt is made and Cancelled is raised."""
    for attempt in range(1, settings.attempts + 1):
        if stop is not None and stop.is_set():
            raise Cancelled
        try:
            return call()
        except TransientError as failure:
            if attempt == settings.attempts:
                message = f"{attempt} attempts failed, the last one: {failure}"
                raise RetriesExhausted(message) from failure
            if stop is None:
                time.sleep(settings.wait(attempt))
            else:
                stop.wait(settings.wait(attempt))
    raise ValueError("expected at least one attempt")
