"""Progress for a person: a live line on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 10.0


class Pace:
    """Samples a second and the time left, from the first sample on."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def read(self, progress: Progress, now: float) -> tuple[float, float | None]:
        """(samples/s, seconds left or None while nobody knows)."""
        if self._first is None and progress.samples:
            self._first = (now, progress.samples)
        if self._first is None or now - self._first[0] < 1:
            return 0.0, None
        rate = (progress.samples - self._first[1]) / (now - self._first[0])
        finished = progress.done + progress.failed
        left = progress.shards - progress.skipped - finished
        if not rate or not progress.done:
            return rate, None
        per_shard = progress.samples / max(1, progress.done + 0.5)
        return rate, left * per_shard / rate


def line(progress: Progress, pace: tuple[float, float | None]) -> str:
    """`shards 3/7 (1 skipped) | 2,114 samples | 61/s | 0 dropped | about 40 s left`."""
    rate, left = pace
    over = progress.done + progress.skipped + progress.failed
    aside = [f"{progress.skipped} skipped"] if progress.skipped else []
    aside += [f"{progress.failed} quarantined"] if progress.failed else []
    parts = [
        f"shards {over}/{progress.shards}" + (f" ({', '.join(aside)})" if aside else ""),
        f"{progress.samples:,} samples",
        f"{rate:,.0f}/s" if rate else "",
        f"{progress.dropped} dropped",
        f"about {_span(left)} left" if left is not None else "",
        "" if progress.workers_ready else _waiting(progress),
    ]
    return " | ".join(part for part in parts if part)


@contextmanager
def showing(console: Console) -> Iterator:
    """Gives the function that shows a `Progress`."""
    pace = Pace()
    if console.is_terminal:
        with Bar(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task("starting Ray", total=None)

            def live(progress: Progress) -> None:
                over = progress.done + progress.skipped + progress.failed
                text = line(progress, pace.read(progress, time.monotonic()))
                bar.update(task, total=progress.shards, completed=over, description=text)

            yield live
    else:
        last = [time.monotonic()]

        def plain(progress: Progress) -> None:
            now = time.monotonic()
            reading = pace.read(progress, now)
            if now - last[0] >= PLAIN_SECONDS:
                last[0] = now
                console.print(line(progress, reading), highlight=False)

        yield plain


def _waiting(progress: Progress) -> str:
    """A cluster that has no room reports nothing: say at least what was requested."""
    request = f"{progress.workers_asked} workers starting"
    reserved = f" (each reserves {progress.each_reserves})" if progress.each_reserves else ""
    return request + reserved


def _span(seconds: float) -> str:
    """A duration for a person: `40 s`, `12 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Progress:
    """How far a run is, for whoever shows it."""

    shards: int
    done: int
    skipped: int
    failed: int
    samples: int
    dropped: int
    workers_ready: int
    workers_asked: int
    each_reserves: str
