"""Samples in tar order in; batches of decoded rows out, in the same order.

    reader thread -> decode threads -> rows in tar order -> batches

One thread reads ahead, a few decode (Pillow releases the GIL), the caller's thread takes the
results in the order of the tar and cuts batches over the kept samples: the same shard and batch
size give the same batches, whatever the threads did. Memory is bounded by the samples and encoded
bytes in flight, not by the shard. The cost of order: a slow picture holds back those behind it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from PIL import Image

from pipeline import images
from pipeline.errors import EncoderError, require_at_least
from pipeline.images import DecodeSettings, Undecodable
from pipeline.ledger import Stopwatch, Tally
from pipeline.records import Batch, Decoded, Dropped, Note, Sample

Item = Sample | Dropped | Note
Preprocess = Callable[[Image.Image], np.ndarray]


@dataclass(frozen=True)
class BatchSettings:
    """How batches are cut and how much is in flight before them.

    size: rows of a batch. decode_threads: threads that decode. queue: samples between reader and
    batch; queue_bytes: how many bytes of encoded pictures these may have.
    """

    size: int = 64
    decode_threads: int = 2
    queue: int = 128
    queue_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        require_at_least(
            1,
            batch__size=self.size,
            batch__decode_threads=self.decode_threads,
            batch__queue=self.queue,
            batch__queue_bytes=self.queue_bytes,
        )


def batches(
    items: Iterator[Item],
    preprocess: Preprocess,
    target: int | None,
    settings: BatchSettings,
    decode: DecodeSettings,
    tally: Tally,
    clock: Stopwatch,
) -> Iterator[Batch]:
    """Decode what `items` yields and cut it into batches; drops and notes go to `tally`, in order.

    target: as in `images.decode`. An exception of `items` comes out after the full batches before
    it, one of `preprocess` as an EncoderError that names the sample: it is a bug, no bad picture.
    Closing the generator ends all its threads.
    """
    rows: list[Decoded] = []
    work = _Work(preprocess, target, decode, clock)
    with closing(_in_order(items, work, settings, clock)) as results:
        for row in _kept(results, tally):
            rows.append(row)
            if len(rows) == settings.size:
                yield Batch(rows)
                rows = []
    if rows:
        yield Batch(rows)


@dataclass(frozen=True)
class _Work:
    """What becomes of one sample with a picture, in a decode thread."""

    preprocess: Preprocess
    target: int | None
    decode: DecodeSettings
    clock: Stopwatch

    def __call__(self, sample: Sample) -> Decoded | Dropped:
        assert sample.picture is not None
        with self.clock.stage("decode"):
            sha256 = hashlib.sha256(sample.picture).hexdigest()
            try:
                picture = images.decode(sample.picture, self.decode, self.target)
            except Undecodable as lost:
                return Dropped(sample.key, "decode", lost.reason, lost.detail)
        with self.clock.stage("preprocess"):
            try:
                pixels = self.preprocess(picture.image)
            except Exception as error:
                size = f"one of {picture.width} x {picture.height}"
                raise EncoderError(
                    f"sample {sample.key}",
                    expected="an encoder that takes any picture",
                    found=f"for {size} {type(error).__name__}: {error}",
                ) from error
        return Decoded.of(sample, pixels, picture.width, picture.height, sha256)


class _Flight:
    """Keeps what is between reader and batch within a number of samples and of encoded bytes.

    Once full, it lets nothing in until a quarter is free: a reader that is woken for every sample
    that leaves costs the decode threads more than its reading does."""

    def __init__(self, samples: int, size: int) -> None:
        self._free, self._limit, self._bytes = samples, size, 0
        self._quarter = max(1, samples // 4)
        self._waiting: int | None = None  # bytes of the sample that waits
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, size: int) -> bool:
        """Wait until a sample of `size` bytes may follow; False when nothing will any more."""
        with self._changed:
            if not self._has_room(1, size):
                self._waiting = size
                self._changed.wait_for(lambda: self._closed or self._has_room(self._quarter, size))
                self._waiting = None
            self._free -= 1
            self._bytes += size
            return not self._closed

    def decoded(self, size: int) -> None:
        with self._changed:
            self._bytes -= size
            self._wake()

    def leave(self) -> None:
        with self._changed:
            self._free += 1
            self._wake()

    def _has_room(self, samples: int, size: int) -> bool:
        # A picture larger than the limit flies alone, or it would wait for ever.
        return self._free >= samples and (not self._bytes or self._bytes + size <= self._limit)

    def _wake(self) -> None:
        if self._waiting is not None and self._has_room(self._quarter, self._waiting):
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


def _in_order(
    items: Iterator[Item], work: _Work, settings: BatchSettings, clock: Stopwatch
) -> Generator[Item | Decoded, None, None]:
    """Every item, the samples with pictures through `work`, in the order of `items`."""
    flight = _Flight(settings.queue, settings.queue_bytes)
    ready: SimpleQueue[Item | Future[Decoded | Dropped] | None] = SimpleQueue()
    decoders = ThreadPoolExecutor(settings.decode_threads, "chiasm-decode")
    reader = _Reader(items, work, flight, decoders, ready, clock)
    reader.start()
    try:
        while (following := ready.get()) is not None:
            result = following.result() if isinstance(following, Future) else following
            flight.leave()
            yield result
        if reader.error is not None:
            raise reader.error
    finally:
        flight.close()
        reader.join()
        decoders.shutdown(cancel_futures=True)


class _Reader(threading.Thread):
    """Reads ahead into `ready` until `flight` is closed; `error` is what stopped it, if any."""

    def __init__(
        self,
        items: Iterator[Item],
        work: _Work,
        flight: _Flight,
        decoders: ThreadPoolExecutor,
        ready: SimpleQueue[Item | Future[Decoded | Dropped] | None],
        clock: Stopwatch,
    ) -> None:
        # A daemon: a program that ends without closing its batches must not wait for it.
        super().__init__(name="chiasm-read", daemon=True)
        self.items, self.work, self.flight = items, work, flight
        self.decoders, self.ready, self.clock = decoders, ready, clock
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes the rows
            self.error = error
        finally:
            if isinstance(self.items, Generator):
                self.items.close()  # here, where its file was opened, not when it is collected
            self.ready.put(None)

    def _read(self) -> None:
        while True:
            with self.clock.stage("read"):
                item = next(self.items, None)
            if item is None:
                return
            picture = item.picture if isinstance(item, Sample) else None
            size = len(picture or b"")
            if not self.flight.enter(size):
                return
            if isinstance(item, Sample) and picture is not None:
                future = self.decoders.submit(self.work, item)
                future.add_done_callback(lambda _, size=size: self.flight.decoded(size))
                self.ready.put(future)
            else:
                self.ready.put(item)


def _kept(results: Iterator[Item | Decoded], tally: Tally) -> Iterator[Decoded]:
    """The rows among the results. Drops and notes go to the tally, a lost row's notes nowhere."""
    lost_key: str | None = None
    for result in results:
        if isinstance(result, Note):
            if result.key != lost_key:
                tally.note(result)
            continue
        lost_key = result.key if isinstance(result, Dropped) else None
        if isinstance(result, Dropped):
            tally.drop(result)
        elif isinstance(result, Sample):
            yield Decoded.of(result, None, None, None, None)
        else:
            yield result
