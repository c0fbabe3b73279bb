"""Streams over stores that are kept in memory: the same bytes as the object's, whatever is read."""

from __future__ import annotations

import io
import random
from contextlib import nullcontext

import pytest
from conftest import noise

from chiasm.pipeline.storage import Stat, streams
from chiasm.pipeline.storage.object_store import ByteRange, RangesUnsupported
from chiasm.pipeline.storage.retry import RetrySettings, retry
from chiasm.pipeline.storage.store_errors import (
    RangeNotSatisfiable,
    RetriesExhausted,
    TransientError,
    VersionChanged,
)
from chiasm.pipeline.storage.streams import PrefetchingReader, ResponseReader, SeekableReader

RETRIES = RetrySettings(3, first_wait=0.0, longest_wait=0.0)
DATA = noise(3000)


class Memory:
    """One object. requests: (start, size) of each range that was asked for."""

    def __init__(self, data: bytes, version: str | None = "v") -> None:
        self.data, self.version, self.requests = data, version, []

    def head(self, path: str) -> Stat:
        return Stat(len(self.data), "told by head")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        self.requests.append((start, size))
        first = max(0, len(self.data) + start) if start < 0 else start
        if first >= len(self.data):
            raise RangeNotSatisfiable
        return ByteRange(first, self.data[first : first + size], len(self.data), self.version)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, size in {"FIRST_BLOCK": 50, "BLOCK": 300, "TAIL": 200, "BUFFER": 7}.items():
        monkeypatch.setattr(streams, name, size)


@pytest.mark.parametrize("data", [DATA, DATA[:120], b""])
def test_random_access_is_that_of_a_file_in_memory(data):
    store, rng = Memory(data), random.Random(0)
    reader, plain = SeekableReader(store, "a", RETRIES, nullcontext), io.BytesIO(data)
    assert store.requests == [(-200, 200)] and reader.readable() and reader.seekable()
    for _ in range(300):
        whence = rng.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
        offset = rng.randint(-400, 3300 if whence == io.SEEK_SET else 400)
        place = max(0, offset + {0: 0, 1: plain.tell(), 2: len(data)}[whence])
        assert reader.seek(offset, whence) == plain.seek(place) == reader.tell()
        size = rng.choice([0, 1, 5, 299, 300, 301, 1000, -1, None])
        assert reader.read(size) == plain.read(size)
        assert reader.tell() == plain.tell()
    assert all(start < 0 or size <= 300 for start, size in store.requests)
    assert io.BufferedReader(SeekableReader(store, "a", RETRIES, nullcontext), 64).read() == data


def test_what_lies_in_the_tail_is_requested_once():
    store = Memory(DATA)
    reader = SeekableReader(store, "a", RETRIES, nullcontext, tail=500)
    reader.seek(-500, io.SEEK_END)
    assert reader.read(500) == DATA[-500:] and store.requests == [(-500, 500)]
    reader.seek(2499)
    assert reader.read(2) == DATA[2499:2501] and store.requests[1:] == [(2499, 2)]


@pytest.mark.parametrize("version", ["v", None])
def test_a_stream_goes_forward_and_gives_every_byte_after_a_seek(version):
    for seed in range(8):
        rng = random.Random(seed)
        reader, plain = (
            PrefetchingReader(Memory(DATA, version), "a", RETRIES, nullcontext),
            io.BytesIO(DATA),
        )
        assert reader.readable() and reader.seekable()
        while True:
            step, size = rng.choice([0, 0, 1, 49, 50, 260, 900]), rng.choice([1, 7, 50, 300, 999])
            if rng.random() < 0.5:
                assert reader.seek(step, io.SEEK_CUR) == plain.seek(step, io.SEEK_CUR)
            else:
                assert reader.seek(plain.tell() + step) == plain.seek(plain.tell() + step)
            data = reader.read(size)
            assert data == plain.read(len(data))
            if not data:
                assert plain.read() == b""
                break
        assert reader.stat() == Stat(3000, "v" if version else "told by head")
        reader.close()


def test_a_stream_does_not_go_back_nor_request_what_is_passed_over():
    store = Memory(DATA)
    reader = PrefetchingReader(store, "a", RETRIES, nullcontext)
    assert reader.read(20) == DATA[:20] and reader.seek(20) == 20
    for offset, whence in ((19, io.SEEK_SET), (-1, io.SEEK_CUR), (0, io.SEEK_END)):
        with pytest.raises(io.UnsupportedOperation, match="goes forward only"):
            reader.seek(offset, whence)
    assert reader.read(5) == DATA[20:25]
    assert reader.seek(2900) == 2900
    assert b"".join(iter(lambda: reader.read(64), b"")) == DATA[2900:]
    reader.close()
    requested = sorted(store.requests)
    assert requested[:4] == [(0, 50), (50, 200), (250, 300), (550, 300)] and requested[4:] == [
        (2900, 100)
    ]
    past = PrefetchingReader(Memory(DATA), "a", RETRIES, nullcontext)
    assert past.seek(5000) == 5000 and past.read(1) == b""
    past.close()


def test_an_empty_object_is_read_as_that():
    reader = PrefetchingReader(Memory(b""), "a", RETRIES, nullcontext)
    assert reader.read(1) == b"" and reader.stat() is None
    reader.close()


class Body:
    """One response: what it reports, and what comes before the connection breaks or ends."""

    def __init__(self, size: int, data: bytes, version: str = "", breaks: bool = False) -> None:
        self.size, self.version, self.breaks = size, version, breaks
        self.file, self.closed = io.BytesIO(data), False

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if not data and self.breaks:
            raise TransientError("broken")
        return data

    def close(self) -> None:
        self.closed = True


def read_bodies(*bodies: Body, size: int = -1, version: str = "") -> bytes:
    """What a reader of these responses gives; every one of them is closed then."""
    left = list(bodies)
    whole = RangesUnsupported(size, version, lambda: left.pop(0))
    reader = ResponseReader(whole, RETRIES, nullcontext)
    assert reader.readable() and reader.stat() == Stat(-1, version)
    try:
        return b"".join(iter(lambda: reader.read(16), b""))
    finally:
        reader.close()
        assert all(body.closed for body in bodies if body not in left)


def test_a_response_that_breaks_goes_on_where_it_broke():
    data = DATA[:100]
    assert read_bodies(Body(-1, data)) == data
    broken = [Body(100, data[:end], breaks=True) for end in (30, 60)]
    assert read_bodies(*broken, Body(100, data), size=100) == data
    # An end before the size that was reported is a broken connection.
    assert read_bodies(Body(100, data[:40]), Body(100, data), size=100) == data
    # A size is believed once two responses report it.
    assert read_bodies(Body(100, b""), Body(100, data), size=7) == data


@pytest.mark.parametrize(
    ("bodies", "size", "version", "message"),
    [
        ([Body(9, b"", "w")], 9, "v", "v"),
        ([Body(9, b"1", "v", True), Body(9, b"", "w")], 9, "v", "v"),
        (
            [Body(9, b"123") for _ in range(4)],
            9,
            "",
            "3 attempts failed, the last one: 3 bytes of 9",
        ),
        (
            [Body(9, b"123", breaks=True), *(Body(9, b"1") for _ in range(2))],
            9,
            "",
            "3 attempts failed, the last one: 1 bytes of the 3 read before",
        ),
        (
            [Body(1, b""), Body(2, b""), Body(3, b"")],
            9,
            "",
            "3 attempts failed, the last one: reported as 2 bytes, then as 3",
        ),
        (
            [Body(9, b"1", "v", True), Body(8, b"", "v"), Body(7, b"", "v")],
            9,
            "v",
            "3 attempts failed, the last one: reported as 8 bytes, then as 7",
        ),
    ],
)
def test_responses_that_do_not_agree_are_told(bodies, size, version, message):
    with pytest.raises((VersionChanged, RetriesExhausted)) as caught:
        read_bodies(*bodies, size=size, version=version)
    assert str(caught.value) == message


def test_at_least_one_attempt_is_made():
    with pytest.raises(ValueError, match="at least one attempt"):
        retry(lambda: 1, RetrySettings(attempts=0))
