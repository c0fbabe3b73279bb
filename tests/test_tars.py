"""Tars that are cut, damaged, compressed or no tars at all: what is read of them, what is told."""

import gzip
import io
import random
import tarfile
import zlib

import pyarrow as pa
import pytest
from conftest import dropped, notes, samples

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.storage import Stream
from chiasm.pipeline.storage.local import LocalFiles

PLAIN = [("a.jpg", b"A"), ("a.txt", b"one"), ("b.jpg", b"BB"), ("b.txt", b"two")]


def tar_of(*members, **options) -> bytes:
    """(name, content) pairs -> the bytes of a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


@pytest.fixture
def read(tmp_path):
    """read(bytes of a shard) -> all that read_samples yields."""

    def run(data: bytes, name: str = "a.tar"):
        (tmp_path / name).write_bytes(data)
        [shard] = list_shards([str(tmp_path / name)])
        return list(read_samples(shard, ReadSettings()))

    return run


def big_plain():
    """Three samples whose members take one to three blocks."""
    for n, key in enumerate("abc"):
        yield f"{key}.jpg", bytes([65 + n]) * (100 + 600 * n)
        yield f"{key}.txt", f"caption {n}".encode()


def test_a_tar_cut_anywhere_keeps_the_whole_samples_before(read):
    data = tar_of(*big_plain())
    whole = samples(read(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        infos = tar.getmembers()
    end = infos[-1].offset_data + 512
    for cut in sorted({*range(512, end + 1025, 512), *range(513, end + 1024, 509)}):
        items = read(data[:cut])
        begun = [info.name[0] for info in infos if info.offset_data <= cut]
        if cut >= end + 512:
            assert items == whole, cut
            continue
        ends = {
            key: max(i.offset_data + i.size for i in infos if i.name[0] == key) for key in "abc"
        }
        kept = [key for key in "abc" if ends[key] <= cut]
        found = samples(items)
        assert found[: len(kept)] == whole[: len(kept)], cut
        behind = {i.offset_data + i.size: -(-(i.offset_data + i.size) // 512) * 512 for i in infos}
        if cut >= end or any(first <= cut <= last for first, last in behind.items()):
            # Behind a whole member: a note, and no loss.
            assert dropped(items) == [] and notes(items)[-1] == ("", "no_end_mark"), cut
            assert all(s.captions == () for s in found[len(kept) :])
            continue
        # A sample is whole if all its members are; the cut costs it, or else what came after it.
        dropped_keys = [key for key in sorted(set(begun)) if key not in kept]
        assert [s.key for s in found] == kept, cut
        assert dropped(items) == [(dropped_keys[0] if dropped_keys else "", "truncated")], cut
        assert isinstance(items[-1], Dropped) and items[-1].stage == "read"


def zstd_frames(data: bytes) -> bytes:
    return b"".join(zstd(data[start : start + 512]) for start in range(0, len(data), 512))


def content_of(packed: bytes) -> bytes:
    """What can be decompressed of a file that is cut: gzip bit by bit, zstd frame by frame."""
    if packed[:1] == b"\x1f":
        return zlib.decompressobj(wbits=31).decompress(packed)
    frames = [b"\x28\xb5\x2f\xfd" + frame for frame in packed.split(b"\x28\xb5\x2f\xfd")[1:]]
    whole = b""
    for frame in frames:
        try:
            whole += pa.Codec("zstd").decompress(frame, 512, asbytes=True)
        except OSError:
            break
    return whole


@pytest.mark.parametrize("compress", [gzip.compress, zstd_frames])
def test_a_compressed_tar_cut_anywhere_does_the_same(read, compress):
    noise = random.Random(0)
    data = tar_of(*((f"{n}.jpg", noise.randbytes(300)) for n in range(6)))
    packed, whole = compress(data), samples(read(data))
    assert content_of(packed) == data
    for cut in range(1, len(packed), 7):
        content = content_of(packed[:cut])
        try:
            items = read(packed[:cut])
        except SourceError as error:
            assert len(content) < 512 and "expected a tar of samples, found a" in str(error)
            continue
        found = samples(items)
        assert [s.picture for s in found] == [s.picture for s in whole[: len(found)]]
        if dropped(items):
            assert [reason for _, reason in dropped(items)] == ["truncated"]
            assert ("", "no_end_mark") not in notes(items)
            assert len(found) >= len(content) // 1024 - 1
        else:  # the cut took but zeros, or fell between two frames that end with a member
            marked = len(content) >= 6 * 1024 + 512
            assert marked or notes(items)[-1] == ("", "no_end_mark")
            assert len(found) == min(6, (len(content) + 511) // 1024)
            assert len(found) == 6 or compress is zstd_frames


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst", "a"])
def test_compression_is_told_from_the_content(read, compress, name):
    assert [s.key for s in samples(read(compress(tar_of(*PLAIN)), name=name))] == ["a", "b"]


def test_parts_compressed_in_parallel_are_one_stream(read):
    data = tar_of(*PLAIN)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    for parts in (
        gzip.compress(data[:700]) + gzip.compress(data[700:]),
        skippable + zstd(data[:700]) + zstd(data[700:]),
    ):
        assert [s.key for s in samples(read(parts))] == ["a", "b"]


def test_a_damaged_header_is_told_and_not_taken_for_the_end(read):
    data = bytearray(tar_of(*PLAIN))
    data[3 * 1024] ^= 1  # the name in the header of b.txt
    items = read(bytes(data))
    assert [s.key for s in samples(items)] == ["a"]
    assert items[-1] == Dropped("b", "read", "damaged", "bad checksum")


def test_damage_behind_a_whole_sample_counts_as_one_more(read):
    packed = bytearray(gzip.compress(tar_of(*PLAIN)))
    packed[-5] ^= 1  # the checksum of the content
    items = read(bytes(packed))
    assert [s.key for s in samples(items)] == ["a", "b"]  # it looks whole: something else is not
    assert dropped(items) == [("", "damaged")] and "CRC" in items[-1].detail


def test_a_giant_extended_header_is_not_read_into_memory(read):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    items = read(tar_of(*PLAIN)[:4096] + info.tobuf(tarfile.GNU_FORMAT) + b"x" * 10_000)
    assert items[-1] == Dropped("", "read", "damaged", "an extended header of 8589934592 bytes")


def test_endless_extended_headers_are_damage(read):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    chain = (info.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 2000
    assert dropped(read(tar_of(*PLAIN)[:4096] + chain)) == [("", "damaged")]


def test_what_follows_the_end_is_noted(read):
    items = read(tar_of(*PLAIN) + b"a signature" * 99)
    assert [s.key for s in samples(items)] == ["a", "b"]
    assert notes(items) == [("", "data_after_end")]


LINES = b"".join(b"line %d\n" % n for n in range(2000))


@pytest.mark.parametrize(
    "data, found",
    [
        (b"", "an empty file"),
        (bytes(10240), "an empty tar"),
        (gzip.compress(bytes(10240), mtime=0), "an empty tar"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" * 200, "a JPEG picture"),
        (b"a list of pictures\n" * 100, "a file that begins with 'a list of pictur'"),
        (b"PAR1" + bytes(1000), "a Parquet file"),
        (
            b"\xfd7zXZ\x00" * 100,
            "an xz file (of the compressed tars, .tar.gz and .tar.zst are read)",
        ),
        (gzip.compress(b"hello", mtime=0), "a gzip file without a tar in it"),
        (gzip.compress(LINES, mtime=0)[:-30], "a gzip file without a tar in it"),
        (zstd(b"hello" * 999), "a zstd file without a tar in it"),
        (b"a.jpg", "a file that begins with 'a.jpg"),
    ],
)
def test_what_is_no_tar_is_told(read, data, found):
    with pytest.raises(SourceError) as caught:
        read(data)
    assert f"a.tar: expected a tar of samples, found {found}" in str(caught.value)


def test_a_tar_without_samples_is_told(read):
    with pytest.raises(SourceError) as caught:
        read(tar_of(("README", b"x"), ("__meta__/a.jpg", b"x")))
    assert "found no member called key.extension, only others such as README; name" in str(
        caught.value
    )


def test_a_first_member_that_is_cut_is_still_a_tar(read):
    long = tar_of(("k" * 200 + ".jpg", b"x"), format=tarfile.PAX_FORMAT)
    assert dropped(read(long[:800])) == [("", "truncated")]
    assert dropped(read(tar_of(("a.jpg", b"x" * 600))[:900])) == [("a", "truncated")]


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(tar_of(*PLAIN))
    [shard] = list_shards([str(tmp_path / "a.tar")])

    class Disk(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, into):
            start = self.tell_so_far
            if start > 512:
                raise OSError(5, "Input/output error")
            into[:512] = tar_of(*PLAIN)[start : start + 512]
            self.tell_so_far += 512
            return 512

        tell_so_far = 0

    monkeypatch.setattr(LocalFiles, "open_stream", lambda *_: Stream(Disk(), 512))
    with pytest.raises(SourceError, match=r"a\.tar: found Input/output error"):
        list(read_samples(shard, ReadSettings()))
