"""Batches: tar order whatever the threads do, bounds on what is in flight, no thread left over."""

import gc
import hashlib
import importlib
import io
import threading
import time

import numpy as np
import pytest
from conftest import HandClock, until
from PIL import Image

from chiasm.pipeline.batches import CHUNK, BatchSettings, batches
from chiasm.pipeline.collection import Tally
from chiasm.pipeline.encoders import BaseEncoder, Input
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Dropped, Note, Place, Sample, Source
from chiasm.pipeline.timing import Stopwatch

FULL = DecodeSettings()
images = importlib.import_module("chiasm.pipeline.images.decode")


def picture(number: int, side: int = 4) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue()


def sample(number: int, data: bytes | None = None) -> Sample:
    data = picture(number) if data is None else data
    return Sample(
        f"k{number}", {"image": Source(data, Place("m", 0, len(data)))}, ("a caption",), None
    )


def to_pixels(image: np.ndarray) -> np.ndarray:
    return image.transpose(2, 0, 1)


class Pixels(BaseEncoder):
    """What `batches` asks of an encoder: pictures by a test's function."""

    name = "pixels"

    def __init__(self, of_image=to_pixels, target: int | None = None) -> None:
        self.of_image = of_image
        self.modalities = {"image": Input(side=target), "text": Input()}

    def preprocess(self, modality, raw):
        return raw if modality == "text" else self.of_image(raw)


def run(
    items,
    preprocess=to_pixels,
    target=None,
    now=time.perf_counter,
    decode=FULL,
    **options,
):
    """The batches of `items`, the tally and the clock."""
    tally, clock = Tally(), Stopwatch(now)
    cut = BatchSettings(**{"size": 4, **options})
    made = list(
        batches(iter(items), Pixels(preprocess, target), decode, cut, tally=tally, clock=clock)
    )
    return made, tally, clock


def ours():
    return [t for t in threading.enumerate() if t.name.startswith("chiasm-")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert ours() == []


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("queue", [1, 3, 128])
def test_rows_come_in_the_order_of_the_tar(threads, queue):
    chance = np.random.default_rng(0)

    def slow(image):
        time.sleep(float(chance.random()) / 500)
        return to_pixels(image)

    made, tally, _ = run((sample(n) for n in range(30)), slow, decode_threads=threads, queue=queue)
    assert [len(batch) for batch in made] == [4] * 7 + [2]
    rows = [row for batch in made for row in batch.rows]
    assert [row.key for row in rows] == [f"k{n}" for n in range(30)]
    for number, row in enumerate(rows):
        pixels, origin = row.inputs["image"], row.origins["image"]
        assert pixels.shape == (3, 4, 4) and pixels[0, 0, 0] == number
        assert origin.size == (4, 4) and row.inputs["text"] == "a caption"
        assert origin.sha256 == hashlib.sha256(picture(number)).hexdigest()
    assert tally.dropped == tally.notes == []


def test_batches_are_cut_over_samples_and_losses_are_told_in_order():
    items = [
        sample(0),
        sample(1, b"broken"),
        Note("k1", "no_caption"),
        Sample("text", {}, ("only text",), None),
        Note("text", "no_picture"),
        Dropped("lost", "read", "empty"),
        Note("k0", "late_member"),
        *map(sample, range(2, 6)),
        sample(6, b""),
        Note("", "no_end_mark"),
    ]
    made, tally, _ = run(items)
    keys = [[row.key for row in batch.rows] for batch in made]
    assert keys == [["k0", "text", "k2"], ["k3", "k4", "k5"]]  # k1 was one of the first four
    text = made[0].rows[1]
    assert (text.inputs, text.origins) == ({"text": "only text"}, {})
    assert [(d.key, d.stage, d.reason) for d in tally.dropped] == [
        ("k1", "decode", "not_a_picture"),
        ("lost", "read", "empty"),
        ("k6", "decode", "not_a_picture"),
    ]
    # A note tells of a row that was kept: k1 was not.
    assert [(n.key, n.reason) for n in tally.notes] == [
        ("text", "no_picture"),
        ("k0", "late_member"),
        ("", "no_end_mark"),
    ]


def test_nothing_in_gives_nothing_out():
    assert run([])[0] == [] and run([Dropped("a", "read", "empty")])[0] == []


def test_the_target_reaches_the_decoder():
    out = io.BytesIO()
    Image.new("RGB", (80, 80)).save(out, "JPEG")
    scaled = DecodeSettings(scaled=True)
    [batch], _, _ = run([sample(0, out.getvalue())], target=5, decode=scaled)
    (row,) = batch.rows
    assert row.inputs["image"].shape == (3, 10, 10) and row.origins["image"].size == (80, 80)


def test_time_is_told_by_stage():
    now = HandClock()

    def slowly():
        for n in range(3):
            now.now += 2
            yield sample(n)

    def preprocess(image):
        now.now += 30
        return to_pixels(image)

    clock = run(slowly(), preprocess, now=now)[2]
    assert clock.seconds == {"read": 6, "decode": 0, "preprocess": 90}


def test_an_exception_of_the_reader_comes_out_after_the_rows_before_it():
    def items():
        yield from map(sample, range(5))
        raise SourceError("a.tar", found="a worn-out disk")

    tally, seen = Tally(), []
    made = batches(items(), Pixels(), DecodeSettings(), BatchSettings(4), tally=tally)
    with pytest.raises(SourceError, match=r"a\.tar: found a worn-out disk"):
        seen.extend(made)
    assert [len(batch) for batch in seen] == [4]


def test_what_preprocess_or_cost_raises_for_a_sample_drops_it_by_name():
    def preprocess(image):
        if image[0, 0, 0] == 6:
            raise KeyError("size")
        return to_pixels(image)

    class Costly(Pixels):
        def cost(self, modality, item):
            if modality == "image" and item[0, 0, 0] == 9:
                raise MemoryError
            return super().cost(modality, item)

    tally = Tally()
    cut = BatchSettings(size=4)
    made = batches(map(sample, range(12)), Costly(preprocess), DecodeSettings(), cut, tally=tally)
    assert [len(batch) for batch in made] == [4, 3, 3]
    assert tally.dropped == [
        Dropped("k6", "encode", "refused", "image of 4 x 4: KeyError: 'size'"),
        Dropped("k9", "encode", "out_of_memory", "cost: MemoryError"),
    ]


class Endless:
    """An iterator of samples that remembers how many were asked for, and whether it was closed."""

    def __init__(self, data=None):
        self.samples_taken, self.closed, self.data = 0, threading.Event(), data

    def items(self):
        try:
            while True:
                self.samples_taken += 1
                yield sample(self.samples_taken, self.data)
        finally:
            self.closed.set()


def start(endless, preprocess=to_pixels, **options):
    cut = BatchSettings(**{"size": 4, **options})
    return batches(endless.items(), Pixels(preprocess), DecodeSettings(), cut)


def settle(number, least):
    """Wait until `number()` is `least` and then stays the same for a while, and return it."""
    until(lambda: number() >= least)
    last = -1
    while (now := number()) != last:
        last = now
        time.sleep(0.1)
    return last


@pytest.mark.parametrize("queue", [1, 5, 12])
def test_no_more_than_the_queue_is_in_flight(queue):
    endless = Endless()
    made = start(endless, queue=queue, decode_threads=2)
    chunk = max(1, min(CHUNK, queue // 2))
    for taken in (4, 8, 12):
        next(made)
        assert settle(lambda: endless.samples_taken, taken + 1) <= taken + queue + chunk
    made.close()


@pytest.mark.parametrize(("size", "read"), [(10, 2 * CHUNK), (400_000, 2 * 3), (2 << 20, 2)])
def test_each_thread_has_few_encoded_pictures_and_of_large_ones_fewer(size, read):
    gate = threading.Event()

    def preprocess(image):
        gate.wait(60)
        return to_pixels(image)

    endless = Endless(picture(0) + bytes(size))
    made = start(endless, preprocess, size=1, decode_threads=2)
    first = threading.Thread(target=lambda: next(made))
    first.start()
    assert settle(lambda: endless.samples_taken, read) == read
    gate.set()
    first.join()
    made.close()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_early_stops_reader_and_decoders(taken):
    endless = Endless()
    made = start(endless)
    for _ in range(taken):
        next(made)
    if taken:
        assert ours()
    made.close()
    assert ours() == [] and endless.closed.is_set() == bool(taken)


def test_an_exception_in_the_loop_or_a_forgotten_generator_stops_them_too():
    endless = Endless()
    with pytest.raises(KeyError):
        for _ in start(endless):
            raise KeyError
    gc.collect()
    assert ours() == [] and endless.closed.is_set()
    made = start(endless := Endless())
    next(made)
    del made
    gc.collect()
    assert ours() == [] and endless.closed.is_set()


def test_closing_waits_for_the_pictures_at_work_and_for_no_others(monkeypatch):
    begun, decoded, closing = [], [], threading.Event()
    join = threading.Thread.join

    def preprocess(image):
        begun.append(image)
        if image[0, 0, 0] > CHUNK:  # behind the first chunk
            closing.wait(60)
        decoded.append(image)
        return to_pixels(image)

    def close_then_join(thread, timeout=None):
        closing.set()
        join(thread, timeout)

    made = start(Endless(), preprocess, decode_threads=2, size=CHUNK - 1)
    next(made)
    until(lambda: len(begun) == CHUNK + 2)
    monkeypatch.setattr(threading.Thread, "join", close_then_join)
    made.close()
    assert len(decoded) == len(begun) == CHUNK + 2


def test_a_thread_that_cannot_start_leaves_none_behind(monkeypatch):
    real, started = threading.Thread.start, []

    def start_two(thread):
        if thread.name.startswith("chiasm-decode"):
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    made = start(endless := Endless(), decode_threads=3)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(made)
    assert len(started) == 2 and ours() == [] and endless.closed.is_set()


def test_decoding_runs_in_parallel(monkeypatch):
    together = threading.Barrier(3, timeout=60)
    real = images.decode

    def decode(*arguments):
        together.wait()  # breaks unless three are in here at once
        return real(*arguments)

    monkeypatch.setattr(images, "decode", decode)
    made, _, _ = run(map(sample, range(36)), decode_threads=3)
    assert sum(map(len, made)) == 36
