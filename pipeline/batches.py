"""Samples in tar order in; batches of decoded rows out, in the same order.

Threads read a few samples each, and decode them. The caller's thread takes their rows in the order
of the tar and cuts batches: so an accelerator is fed. Models on a CPU are fed by `lanes.py`.

Where batches are cut depends on the shard and the settings alone: after every `size` samples,
dropped ones among them, and before the forward pass would take more than `max_bytes`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import Fault, Preprocessor
from chiasm.pipeline.errors import Undecodable, require_at_least
from chiasm.pipeline.images import DECODING, DecodeSettings
from chiasm.pipeline.images import decode as decode_picture
from chiasm.pipeline.in_order import InOrder, Source
from chiasm.pipeline.records import IMAGE, TEXT, Batch, Decoded, Dropped, Note, Origin, Sample
from chiasm.pipeline.resizing import by_pillow
from chiasm.pipeline.sounds import SoundSettings, require_decoder
from chiasm.pipeline.sounds import decode as decode_sound
from chiasm.pipeline.timing import Stopwatch

Item = Sample | Dropped | Note
Seen = Decoded | Dropped | Note
R = TypeVar("R")

# Samples that a thread which only decodes reads at once: many enough that its turn is rare, few
# enough that at the end of a shard no thread has much left when the others have nothing.
CHUNK = 4
NOTHING = nullcontext()
CHUNK_BYTES = 1 << 20  # with so many bytes of pictures a chunk is full as well


@dataclass(frozen=True)
class BatchSettings:
    """How batches are cut and how much is in flight before them.

    size: samples of a batch. max_bytes: a batch is cut before the encoder's forward pass would take
    more, by the encoder's `cost`; 16 GiB let 512 pictures of a large model with inputs of a
    fixed size through, and bound those of models that take any size. All lanes share them.
    decode_threads: threads that read and decode and, on a CPU, encode; 0 for as many as there are
    cores for this process. queue: samples read ahead of the batches, give or take a chunk, or a
    batch a lane.
    """

    size: int = 64
    max_bytes: int = 16 << 30
    decode_threads: int = 0
    queue: int = 128

    def __post_init__(self) -> None:
        require_at_least(0, batch__decode_threads=self.decode_threads)
        require_at_least(
            1,
            batch__size=self.size,
            batch__max_bytes=self.max_bytes,
            batch__queue=self.queue,
        )

    @property
    def threads(self) -> int:
        """How many threads decode."""
        return self.decode_threads or cores()


def cores() -> int:
    """How many cores this process is to use: as OMP_NUM_THREADS says, which Ray sets to what a
    worker reserves, else those that it may run on."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def batches(
    items: Iterator[Item],
    encoder: Preprocessor,
    decode: DecodeSettings,
    batch: BatchSettings,
    *,
    tally: Tally | None = None,
    clock: Stopwatch | None = None,
    sound: SoundSettings | None = None,
) -> Iterator[Batch]:
    """Decode what `items` yields for `encoder` and cut it into batches.

    tally: gets drops and notes, in order. clock: gets the seconds of `read`, `decode` and
    `preprocess`. An exception of `items` comes out after the full batches before it; one of
    the encoder's drops its sample. Closing the generator ends all its threads. Raises EncoderError
    where the encoder takes sound and nothing here decodes it.
    """
    clock = clock or Stopwatch()
    decoder, threads = decoder_for(encoder, decode, sound, clock), batch.threads
    most = max(1, min(CHUNK, batch.queue // threads))

    def read(source: Source[Item], taken: list[Item], unwanted: threading.Event) -> None:
        size = 0
        while len(taken) < most and size < CHUNK_BYTES and not unwanted.is_set():
            taken.append(source.take())
            size += size_of(taken[-1])

    def work(taken: list[Item], made: list[Seen], unwanted: threading.Event) -> None:
        made.extend(decoded(taken, decoder, unwanted))

    crew = InOrder(items, read, work, threads=threads, ahead=batch.queue // most, clock=clock)
    with crew:
        yield from results_of(cut(made_in(crew), encoder, batch), tally or Tally())


def decoder_for(
    encoder: Preprocessor,
    decode: DecodeSettings,
    sound: SoundSettings | None,
    clock: Stopwatch,
) -> SampleDecoder:
    """What decodes the samples of a shard; EncoderError where the encoder takes sound and nothing
    here decodes it."""
    if any(given.rate is not None for given in encoder.modalities.values()):
        require_decoder()
    return SampleDecoder(encoder, decode, clock, sound=sound or SoundSettings())


@dataclass(frozen=True)
class SampleDecoder:
    """A sample -> what the encoder takes of it, or why it is dropped; thread safe. decoding: an
    earlier version of DECODING, for vectors that it has made."""

    encoder: Preprocessor
    settings: DecodeSettings
    clock: Stopwatch
    decoding: int = DECODING
    sound: SoundSettings = field(default_factory=SoundSettings)

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
        wanted = self.encoder.modalities[modality]
        if wanted.rate is not None:
            return decode_sound(data, self.sound, wanted.rate), None
        if modality != IMAGE:
            return data, None
        picture = decode_picture(data, self.settings, wanted.side, self.decoding)
        return picture.pixels, (picture.width, picture.height)

    def _preprocess(self, modality: str, raw: Any, size: tuple[int, int] | None) -> Any:
        """Raises Undecodable for what the encoder says that it cannot use, Fault for what it raises
        beside that."""
        exact = self.settings.exact or self.decoding == 1
        with self.clock.stage("preprocess"), by_pillow() if exact else NOTHING:
            try:
                return self.encoder.preprocess(modality, raw)
            except Undecodable:
                raise
            except Exception as error:
                part = f"{modality} of {size[0]} x {size[1]}" if size else modality
                raise Fault.of(error, part) from error


def size_of(item: Item) -> int:
    """Bytes of a sample's encoded members."""
    if not isinstance(item, Sample):
        return 0
    return sum(len(source.data) for source in item.sources.values())


def decoded(taken: list[Item], decoder: SampleDecoder, unwanted: threading.Event) -> Iterator[Seen]:
    """Every item, the samples through `decoder`. Encoded bytes are freed as they are decoded."""
    taken.reverse()
    while taken and not unwanted.is_set():
        item = taken.pop()
        yield decoder(item) if isinstance(item, Sample) else item


def made_in(crew: InOrder[Item, R]) -> Iterator[R]:
    """What was made of all chunks; an error comes out behind what was made before it."""
    for chunk in crew:
        yield from chunk.made
        if chunk.error is not None:
            raise chunk.error


def cut(
    seen: Iterator[Seen], encoder: Preprocessor, settings: BatchSettings
) -> Iterator[Note | Dropped | Batch | None]:
    """Batches of the rows that are seen; before each what the tally is to hear of its samples: None
    for a row that is kept."""
    rows: list[Decoded] = []
    samples = total = 0
    for item in seen:
        if isinstance(item, Note) or (isinstance(item, Dropped) and item.stage == "read"):
            yield item
            continue
        if samples == settings.size:
            if rows:
                yield Batch(rows, total)
            rows, samples, total = [], 0, 0
        samples += 1
        cost = _cost_of(item, encoder) if isinstance(item, Decoded) else item
        if isinstance(cost, Dropped):
            yield cost
            continue
        if rows and total + cost > settings.max_bytes:
            yield Batch(rows, total)
            rows, total = [], 0
        assert isinstance(item, Decoded)
        rows.append(item)
        total += cost
        yield None
    if rows:
        yield Batch(rows, total)


def _cost_of(row: Decoded, encoder: Preprocessor) -> int | Dropped:
    """Bytes that the row's forward pass takes, or why the row is dropped."""
    try:
        return sum(encoder.cost(modality, item) for modality, item in row.inputs.items())
    except Exception as error:  # noqa: BLE001  an encoder of others may raise anything
        fault = Fault.of(error, "cost")
        return Dropped(row.key, "encode", fault.reason, fault.detail)


def results_of(outcomes: Iterator[Note | Dropped | R | None], tally: Tally) -> Iterator[R]:
    """The results among the outcomes. Drops and notes go to the tally, those of a dropped sample
    nowhere."""
    lost_key: str | None = None
    for outcome in outcomes:
        if isinstance(outcome, Note):
            if outcome.key != lost_key:
                tally.note(outcome)
        elif isinstance(outcome, Dropped):
            lost_key = outcome.key
            tally.drop(outcome)
        elif outcome is None:
            lost_key = None
        else:
            yield outcome
