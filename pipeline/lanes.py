"""Work on batches by lanes: threads, one a core, each of which reads, decodes and works by itself.

On a CPU this is faster than threads that decode beside one that encodes with all cores: threads of
an operator wait for each other at every layer, and one that waits for a core which decodes holds up
all. A lane's operators have one thread, so what a lane makes does not depend on how many lanes
there are: the same shard and settings give the same bytes on any number of cores.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from chiasm.pipeline.batches import (
    BatchSettings,
    Item,
    batches,
    cut,
    decoded,
    decoder_for,
    made_in,
    results_of,
    size_of,
)
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import Preprocessor
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.in_order import InOrder, Source
from chiasm.pipeline.records import Batch, Dropped, Note, Sample
from chiasm.pipeline.sounds import SoundSettings
from chiasm.pipeline.timing import Stopwatch

R = TypeVar("R")

CPU = "cpu"  # a device
# A lane reads a whole batch, but no more encoded bytes than this and one picture: memory is bounded
# whatever the pictures, and hundreds of common photographs fit.
LANE_BYTES = 64 << 20


def lanes(
    items: Iterator[Item],
    encoder: Preprocessor,
    decode: DecodeSettings,
    batch: BatchSettings,
    work: Callable[[Batch], R],
    *,
    sound: SoundSettings | None = None,
    tally: Tally | None = None,
    clock: Stopwatch | None = None,
    operator_threads: int = 1,
) -> Iterator[R]:
    """What `work` makes of each batch of `items`, in order; `work` runs in the lanes.

    operator_threads: of torch's operators, in each lane. tally, clock and exceptions: as for
    `batches`; what `work` raises comes out after what it made of the batches before.
    """
    clock, budget = clock or Stopwatch(), Budget(batch.max_bytes)
    decoder = decoder_for(encoder, decode, sound, clock)

    def read(source: Source[Item], taken: list[Item], unwanted: threading.Event) -> None:
        samples = size = 0
        while not unwanted.is_set():
            item = source.peek()
            if isinstance(item, Sample):
                if samples == batch.size or size >= LANE_BYTES:
                    return
                samples, size = samples + 1, size + size_of(item)
            taken.append(source.take())

    def run(
        taken: list[Item], made: list[Note | Dropped | R | None], unwanted: threading.Event
    ) -> None:
        for outcome in cut(decoded(taken, decoder, unwanted), encoder, batch):
            if isinstance(outcome, Batch):
                with budget.holding(outcome.cost):
                    made.append(work(outcome))
            else:
                made.append(outcome)

    threads = batch.threads
    crew = InOrder(
        items, read, run,
        threads=threads, ahead=max(threads, batch.queue // batch.size), clock=clock,
        begin=functools.partial(set_operator_threads, operator_threads),
    )  # fmt: skip
    with operator_threads_kept(), crew:
        yield from results_of(made_in(crew), tally or Tally())


def work_on_batches(
    items: Iterator[Item],
    encoder: Preprocessor,
    decode: DecodeSettings,
    batch: BatchSettings,
    work: Callable[[Batch], R],
    *,
    device: str,
    operator_threads: int = 1,
    sound: SoundSettings | None = None,
    tally: Tally | None = None,
    clock: Stopwatch | None = None,
) -> Iterator[R]:
    """What `work` makes of each batch of `items`, in order: in `lanes` for a model on a CPU, else
    in the caller's thread, which `batches` feeds."""
    if device == CPU:
        made = lanes(
            items, encoder, decode, batch, work,
            sound=sound, tally=tally, clock=clock, operator_threads=operator_threads,
        )  # fmt: skip
        yield from made
    else:
        for rows in batches(items, encoder, decode, batch, sound=sound, tally=tally, clock=clock):
            yield work(rows)


class Budget:
    """Bytes that several threads share. What is more than all of them has them alone."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._most)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def set_operator_threads(count: int) -> None:
    """How many threads torch's operators take in the calling thread, where torch is loaded. OpenMP
    keeps that number for each thread: one that was set in another thread does not hold here."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


@contextmanager
def operator_threads_kept() -> Iterator[None]:
    """A context after which torch's number of threads is what it was."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    try:
        yield
    finally:
        if before:
            set_operator_threads(before)
