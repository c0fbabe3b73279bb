"""Samples in tar order in; batches of decoded rows out, in the same order.

    decode threads: each reads a handful, then decodes it -> handfuls in tar order -> batches

No thread only reads and none only hands out: on cores that all decode, each sample would cost the
decoders a core and Python's lock for a moment, a twentieth of the whole. Instead the threads take
turns at reading a handful of consecutive samples, and each decodes its own (Pillow releases the
lock). The caller's thread takes the handfuls in the order of the tar and cuts batches over the kept
samples: the same shard and batch size give the same batches, whatever the threads did. Memory is
bounded by what is in flight, not by the shard. The cost of order: a slow picture holds back those
behind it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType

import numpy as np
from PIL import Image

from chiasm.pipeline.collection import Tally
from chiasm.pipeline.errors import EncoderError, Undecodable, require_at_least
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import Batch, Decoded, Dropped, Note, Sample
from chiasm.pipeline.timing import Stopwatch

Item = Sample | Dropped | Note
Preprocess = Callable[[Image.Image], np.ndarray]

# Samples that a thread reads at once: many enough that its turn is rare, few enough that at the end
# of a shard no thread has much left when the others have nothing.
HANDFUL = 4
HANDFUL_BYTES = 1 << 20  # with so many bytes of pictures a handful is full as well


@dataclass(frozen=True)
class BatchSettings:
    """How batches are cut and how much is in flight before them.

    size: rows of a batch. decode_threads: threads that read and decode; each has at most a
    handful of encoded pictures: 1 MiB of them and one more, of up to read.max_member_bytes. queue:
    samples read ahead of the batches, give or take a handful.
    """

    size: int = 64
    decode_threads: int = 2
    queue: int = 128

    def __post_init__(self) -> None:
        require_at_least(
            1,
            batch__size=self.size,
            batch__decode_threads=self.decode_threads,
            batch__queue=self.queue,
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
                picture = decode(sample.picture, self.decode, self.target)
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


class _Handful:
    """Consecutive items, each replaced by what became of it; after them, perhaps, an error."""

    def __init__(self) -> None:
        self.items: list[Item | Decoded] = []
        self.error: BaseException | None = None
        self._decoded = threading.Lock()  # held until all are
        self._decoded.acquire()

    def decode(self, work: _Work, unwanted: threading.Event) -> None:
        place = 0
        try:
            for place, item in enumerate(self.items):
                if unwanted.is_set():
                    return
                if isinstance(item, Sample) and item.picture is not None:
                    self.items[place] = work(item)
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes the rows
            del self.items[place:]
            self.error = error
        finally:
            self._decoded.release()

    def wait(self) -> None:
        self._decoded.acquire()


class _Decoders:
    """Threads that read and decode; iterated over once, in a `with`, they give the handfuls in the
    order of `items`. Leaving the `with` ends them and closes `items`."""

    def __init__(
        self, items: Iterator[Item], work: _Work, settings: BatchSettings, clock: Stopwatch
    ) -> None:
        self._items, self._work, self._clock = items, work, clock
        self._most = max(1, min(HANDFUL, settings.queue // settings.decode_threads))
        self._room = threading.Semaphore(settings.queue // self._most)  # handfuls
        self._turn = threading.Lock()  # held by the thread that reads
        self._over = False  # nothing more is there
        self._unwanted = threading.Event()  # and what is there is not to be read or decoded
        self._line: SimpleQueue[_Handful | None] = SimpleQueue()
        self._threads = [
            # Daemons: a program that ends without closing its batches must not wait for them.
            threading.Thread(target=self._run, name=f"chiasm-decode-{number}", daemon=True)
            for number in range(settings.decode_threads)
        ]

    def __enter__(self) -> _Decoders:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self._end()  # those that did start
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._unwanted.set()
        self._room.release()  # one may wait for it
        for thread in self._threads:
            if thread.ident is not None:  # was started
                thread.join()
        if isinstance(self._items, Generator):
            self._items.close()  # now, not when it is collected: it has a file open

    def __iter__(self) -> Iterator[_Handful]:
        while (handful := self._line.get()) is not None:
            handful.wait()
            self._room.release()
            yield handful

    def _run(self) -> None:
        while True:
            with self._turn:
                handful = self._read()
            if handful is None:
                return
            handful.decode(self._work, self._unwanted)
            del handful  # or its pixels stay while this thread waits for its next turn

    def _read(self) -> _Handful | None:
        """The next items, put in line; None where the shard, or the demand, has come to its end."""
        if self._over or self._unwanted.is_set():
            return None
        self._room.acquire()
        if self._unwanted.is_set():
            return None
        handful, size = _Handful(), 0
        try:
            with self._clock.stage("read"):
                while (
                    len(handful.items) < self._most
                    and size < HANDFUL_BYTES
                    and not self._unwanted.is_set()
                ):
                    item = next(self._items)
                    handful.items.append(item)
                    size += len(item.picture or b"") if isinstance(item, Sample) else 0
        except StopIteration:
            self._over = True
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes the rows
            handful.error = error
            self._over = True
        self._line.put(handful)
        if self._over:
            self._line.put(None)
        return handful


def _in_order(
    items: Iterator[Item], work: _Work, settings: BatchSettings, clock: Stopwatch
) -> Generator[Item | Decoded, None, None]:
    """Every item, the samples with pictures through `work`, in the order of `items`."""
    with _Decoders(items, work, settings, clock) as decoders:
        for handful in decoders:
            yield from handful.items
            if handful.error is not None:
                raise handful.error


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
