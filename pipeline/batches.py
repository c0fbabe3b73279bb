"""Samples in tar order in; batches of decoded rows out, in the same order.

    decode threads: each reads a few samples, then decodes them -> chunks in tar order -> batches

No thread only reads and none only distributes: on cores that all decode, each sample would cost the
decoders a core and Python's lock for a moment, a twentieth of the whole. Instead the threads take
turns at reading a chunk of consecutive samples, and each decodes its own (Pillow releases the
lock). The caller's thread takes the chunks in the order of the tar and cuts batches over the kept
samples: the same shard and batch settings give the same batches, whatever the threads did. Memory
is bounded by what is in flight, not by the shard. The cost of order: a slow picture holds back
those behind it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import Fault, Preprocessor
from chiasm.pipeline.errors import Undecodable, require_at_least
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.images import decode as decode_picture
from chiasm.pipeline.records import IMAGE, TEXT, Batch, Decoded, Dropped, Note, Origin, Sample
from chiasm.pipeline.timing import Stopwatch

Item = Sample | Dropped | Note

# Samples that a thread reads at once: many enough that its turn is rare, few enough that at the end
# of a shard no thread has much left when the others have nothing.
CHUNK = 4
CHUNK_BYTES = 1 << 20  # with so many bytes of pictures a chunk is full as well


@dataclass(frozen=True)
class BatchSettings:
    """How batches are cut and how much is in flight before them.

    size: rows of a batch. max_bytes: a batch is cut before the encoder's forward pass would take
    more, by the encoder's `cost`; 16 GiB let 512 pictures of a large model with inputs of a
    fixed size through, and bound those of models that take any size. decode_threads: threads that
    read and decode; each has at most a chunk of encoded pictures: 1 MiB of them and one more, of up
    to read.max_member_bytes. queue: samples read ahead of the batches, give or take a chunk.
    """

    size: int = 64
    max_bytes: int = 16 << 30
    decode_threads: int = 2
    queue: int = 128

    def __post_init__(self) -> None:
        require_at_least(
            1,
            batch__size=self.size,
            batch__max_bytes=self.max_bytes,
            batch__decode_threads=self.decode_threads,
            batch__queue=self.queue,
        )


def batches(
    items: Iterator[Item],
    encoder: Preprocessor,
    decode: DecodeSettings,
    batch: BatchSettings,
    *,
    tally: Tally | None = None,
    clock: Stopwatch | None = None,
) -> Iterator[Batch]:
    """Decode what `items` yields for `encoder` and cut it into batches.

    tally: gets drops and notes, in order. clock: gets the seconds of `read`, `decode` and
    `preprocess`. An exception of `items` comes out after the full batches before it; one of
    the encoder's drops its sample. Closing the generator ends all its threads.
    """
    tally, clock = tally or Tally(), clock or Stopwatch()
    rows: list[Decoded] = []
    total = 0  # bytes of their forward pass
    decoder = SampleDecoder(encoder, decode, clock)
    with closing(_in_order(items, decoder, batch, clock)) as results:
        for row in _kept(results, tally):
            try:
                cost = sum(encoder.cost(modality, item) for modality, item in row.inputs.items())
            except Exception as error:  # noqa: BLE001  an encoder of others may raise anything
                fault = Fault.of(error, "cost")
                tally.drop(Dropped(row.key, "encode", fault.reason, fault.detail))
                continue
            if rows and total + cost > batch.max_bytes:
                yield Batch(rows)
                rows, total = [], 0
            rows.append(row)
            total += cost
            if len(rows) == batch.size:
                yield Batch(rows)
                rows, total = [], 0
    if rows:
        yield Batch(rows)


@dataclass(frozen=True)
class SampleDecoder:
    """A sample -> what the encoder takes of it, or why it is dropped; thread safe."""

    encoder: Preprocessor
    settings: DecodeSettings
    clock: Stopwatch

    def __call__(self, sample: Sample) -> Decoded | Dropped:
        inputs: dict[str, Any] = {}
        origins: dict[str, Origin] = {}
        try:
            for modality, source in sample.sources.items():
                with self.clock.stage("decode"):
                    raw, size = self._decode(modality, source.data)
                    sha256 = hashlib.sha256(source.data).hexdigest()
                inputs[modality] = self._preprocess(modality, raw, size)
                origins[modality] = Origin(source.place, sha256, size)
            if sample.captions and TEXT in self.encoder.modalities:
                inputs[TEXT] = self._preprocess(TEXT, sample.captions[0], None)
        except Undecodable as error:
            return Dropped(sample.key, "decode", error.reason, error.detail)
        except Fault as error:
            return Dropped(sample.key, "encode", error.reason, error.detail)
        return Decoded(sample.key, sample.captions, sample.json, inputs, origins, sample.missing)

    def _decode(self, modality: str, data: bytes) -> tuple[Any, tuple[int, int] | None]:
        """What the encoder's `preprocess` takes of a member, and a picture's width and height."""
        if modality != IMAGE:
            return data, None
        picture = decode_picture(data, self.settings, self.encoder.modalities[IMAGE].side)
        return np.asarray(picture.image), (picture.width, picture.height)

    def _preprocess(self, modality: str, raw: Any, size: tuple[int, int] | None) -> Any:
        """Raises Undecodable for what the encoder says that it cannot use, Fault for what it raises
        beside that."""
        with self.clock.stage("preprocess"):
            try:
                return self.encoder.preprocess(modality, raw)
            except Undecodable:
                raise
            except Exception as error:
                part = f"{modality} of {size[0]} x {size[1]}" if size else modality
                raise Fault.of(error, part) from error


class _Chunk:
    """Consecutive items, each replaced by what became of it; after them, perhaps, an error."""

    def __init__(self) -> None:
        self.items: list[Item | Decoded] = []
        self.error: BaseException | None = None
        self._decoded = threading.Lock()  # held until all are
        self._decoded.acquire()

    def decode(self, decoder: SampleDecoder, unwanted: threading.Event) -> None:
        index = 0
        try:
            for index, item in enumerate(self.items):
                if unwanted.is_set():
                    return
                if isinstance(item, Sample):
                    self.items[index] = decoder(item)
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes the rows
            del self.items[index:]
            self.error = error
        finally:
            self._decoded.release()

    def wait(self) -> None:
        self._decoded.acquire()


class _Decoders:
    """Threads that read and decode; iterated over once, in a `with`, they give the chunks in the
    order of `items`. Leaving the `with` ends them and closes `items`."""

    def __init__(
        self,
        items: Iterator[Item],
        decoder: SampleDecoder,
        settings: BatchSettings,
        clock: Stopwatch,
    ) -> None:
        self._items, self._decoder, self._clock = items, decoder, clock
        self._most = max(1, min(CHUNK, settings.queue // settings.decode_threads))
        self._room = threading.Semaphore(settings.queue // self._most)  # chunks
        self._turn = threading.Lock()  # held by the thread that reads
        self._over = False  # nothing more is there
        self._unwanted = threading.Event()  # and what is there is not to be read or decoded
        self._line: SimpleQueue[_Chunk | None] = SimpleQueue()
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

    def __iter__(self) -> Iterator[_Chunk]:
        while (chunk := self._line.get()) is not None:
            chunk.wait()
            self._room.release()
            yield chunk

    def _run(self) -> None:
        while True:
            with self._turn:
                chunk = self._read()
            if chunk is None:
                return
            chunk.decode(self._decoder, self._unwanted)
            del chunk  # or its pixels stay while this thread waits for its next turn

    def _read(self) -> _Chunk | None:
        """The next items, put in line; None where the shard, or the demand, has come to its end."""
        if self._over or self._unwanted.is_set():
            return None
        self._room.acquire()
        if self._unwanted.is_set():
            return None
        chunk, size = _Chunk(), 0
        try:
            with self._clock.stage("read"):
                while (
                    len(chunk.items) < self._most
                    and size < CHUNK_BYTES
                    and not self._unwanted.is_set()
                ):
                    item = next(self._items)
                    chunk.items.append(item)
                    if isinstance(item, Sample):
                        size += sum(len(source.data) for source in item.sources.values())
        except StopIteration:
            self._over = True
        except BaseException as error:  # noqa: BLE001  raised again in the thread that takes the rows
            chunk.error = error
            self._over = True
        self._line.put(chunk)
        if self._over:
            self._line.put(None)
        return chunk


def _in_order(
    items: Iterator[Item], decoder: SampleDecoder, settings: BatchSettings, clock: Stopwatch
) -> Generator[Item | Decoded, None, None]:
    """Every item, the samples through `decoder`, in the order of `items`."""
    with _Decoders(items, decoder, settings, clock) as decoders:
        for chunk in decoders:
            yield from chunk.items
            if chunk.error is not None:
                raise chunk.error


def _kept(results: Iterator[Item | Decoded], tally: Tally) -> Iterator[Decoded]:
    """The rows among the results. Drops and notes go to the tally, those of a dropped sample
    nowhere."""
    lost_key: str | None = None
    for result in results:
        if isinstance(result, Note):
            if result.key != lost_key:
                tally.note(result)
            continue
        lost_key = result.key if isinstance(result, Dropped) else None
        if isinstance(result, Dropped):
            tally.drop(result)
        elif isinstance(result, Decoded):
            yield result
