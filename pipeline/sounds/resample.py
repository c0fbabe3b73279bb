"""Samples at one rate -> samples at another, block by block.

What comes out is what `scipy.signal.resample_poly` makes of the whole sound: a low-pass filter
between insertion of zeros and decimation (Crochiere and Rabiner, 1983), here its default Kaiser
window of beta 5 and ten zero crossings a side. In memory is one block, not the sound at its own
rate, which may be a million samples a second.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

BLOCK = 1 << 18  # input samples that are filtered at once, at the least
# Of up and down: the filter has 20 taps for each. Rates without a common divisor are met to better
# than 1 part in a million: 0.6 ms in ten minutes.
MOST_PHASES = 20_000


class Resampler:
    """Mono blocks, float32 of any length, at `rate` Hz -> blocks at `wanted` Hz. A sound of n
    samples becomes ceil(n x up / down)."""

    def __init__(self, rate: int, wanted: int) -> None:
        self.up, self.down = ratio(rate, wanted)
        self._waiting: list[np.ndarray] = []
        self._count = 0  # samples that are waiting
        self._done = 0  # of these, at the beginning, whose output was given
        if self.up != self.down:
            half = 10 * max(self.up, self.down)
            self._filter = _low_pass(half, max(self.up, self.down))
            # Samples before and behind a block on which its output depends: of whole periods, so
            # that a block begins at the same phase as the sound.
            self._margin = self.down * math.ceil(half / self.up / self.down)

    def add(self, block: np.ndarray) -> np.ndarray:
        """The next samples in; the output of as many as can be filtered by now."""
        if self.up == self.down:
            return block
        self._waiting.append(block)
        self._count += len(block)
        ready = (self._count - self._margin - self._done) // self.down * self.down
        return self._filtered(self._done + ready) if ready >= BLOCK else block[:0]

    def end(self) -> np.ndarray:
        """The output of the rest."""
        if self.up == self.down or not self._count:
            return np.zeros(0, np.float32)
        return self._filtered(None)

    def _filtered(self, until: int | None) -> np.ndarray:
        """The output of what waits, up to its sample `until`; None: to the end."""
        from scipy.signal import resample_poly  # a second to import, for other rates alone

        samples = np.concatenate(self._waiting)
        used = None if until is None else until + self._margin
        made = resample_poly(samples[:used], self.up, self.down, window=self._filter)
        end = None if until is None else until // self.down * self.up
        output = made[self._done // self.down * self.up : end]
        if until is not None:
            first = max(0, until - self._margin)
            self._waiting, self._done = [samples[first:]], until - first
            self._count = len(samples) - first
        return output.astype(np.float32, copy=False)


def ratio(rate: int, wanted: int) -> tuple[int, int]:
    """(up, down), without a common divisor, whose quotient is wanted / rate or as near to it as
    MOST_PHASES allows."""
    exact = Fraction(wanted, rate)
    if max(exact.numerator, exact.denominator) > MOST_PHASES:
        exact = exact.limit_denominator(max(1, int(MOST_PHASES / max(1, exact))))
    return exact.numerator, exact.denominator


def _low_pass(half: int, phases: int) -> np.ndarray:
    """The filter of `resample_poly`: (2 half + 1,) float32."""
    from scipy.signal import firwin

    return firwin(2 * half + 1, 1 / phases, window=("kaiser", 5.0)).astype(np.float32)
