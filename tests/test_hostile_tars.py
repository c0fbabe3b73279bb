"""Tars as other programs and worse people write them: dialects, links, odd names, sparse files."""

import gzip
import io
import operator
import os
import re
import shutil
import subprocess
import tarfile
import tracemalloc

import pyarrow as pa
import pytest
from conftest import dropped, notes, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped, Note, Sample
from chiasm.pipeline.shards import (
    DROP_REASONS,
    NOTE_REASONS,
    ReadSettings,
    list_shards,
    read_member,
    read_samples,
    sample_builder,
)
from chiasm.pipeline.shards import tar_stream as tar_bytes
from chiasm.pipeline.shards.seen_keys import SeenKeys
from chiasm.pipeline.shards.tar_header import Header
from chiasm.pipeline.shards.tar_stream import MAX_HEADER

MEMBERS = [(f"d/{n}.{ext}", f"{ext} {n}".encode() * 99) for n in range(3) for ext in ("jpg", "txt")]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def header(name: str, size: int = 0, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """A header by hand. v7 has no magic, ustar and old GNU tar have their own."""
    block = bytearray(512)
    block[:100] = name.encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0")
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size
    block[136:148], block[148:156], block[156:157] = b"%011o\0" % 0, b" " * 8, kind
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def by_hand(*members: tuple[str, bytes], **fields: bytes) -> bytes:
    return b"".join(header(name, len(data), **fields) + padded(data) for name, data in members)


END = bytes(1024)
PAIR = [("a.jpg", b"A"), ("a.txt", b"one")]


def by_tarfile(form: int, *members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


DIALECTS = {
    **{name: by_tarfile(form, *MEMBERS) for name, form in FORMATS.items()},
    "oldgnu": by_hand(*MEMBERS, magic=b"ustar  \0") + END,
    "v7": by_hand(*MEMBERS, magic=b"", kind=b"\0") + END,
}


@pytest.fixture
def read(tmp_path):
    """read(bytes of a shard) -> all that read_samples yields."""

    def run(data: bytes, settings: ReadSettings = ReadSettings()):  # noqa: B008  frozen
        (tmp_path / "a.tar").write_bytes(data)
        [shard] = list_shards([str(tmp_path / "a.tar")])
        items = list(read_samples(shard, settings))
        assert {i.reason for i in items if isinstance(i, Dropped)} <= set(DROP_REASONS)
        assert {i.reason for i in items if isinstance(i, Note)} <= set(NOTE_REASONS)
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]  # nothing is extracted
        return items

    return run


# --- dialects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_samples(read, dialect):
    items = read(DIALECTS[dialect])
    contents = dict(MEMBERS)
    assert [(s.key, s.picture, s.captions[0]) for s in items] == [
        (f"d/{n}", contents[f"d/{n}.jpg"], contents[f"d/{n}.txt"].decode().strip())
        for n in range(3)
    ]
    for one in items:
        place = one.sources["image"].place
        assert DIALECTS[dialect][place.offset :][: place.size] == one.picture


def gnu_tar(folder, *arguments: str) -> bytes:
    """What the program writes of a folder; skips where there is none."""
    program = shutil.which("tar")
    version = program and subprocess.run([program, "--version"], capture_output=True, text=True)
    if not version or "GNU tar" not in version.stdout:
        pytest.skip("no GNU tar on this machine")
    command = [program, "-c", "-C", folder, "--sort=name", *arguments, "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes_is_read(read, tmp_path_factory, form):
    folder = tmp_path_factory.mktemp("files")
    for name, data in MEMBERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    contents = dict(MEMBERS)
    found = [(s.key, s.picture) for s in read(gnu_tar(folder, f"--format={form}"))]
    assert found == [(f"./d/{n}", contents[f"d/{n}.jpg"]) for n in range(3)]


# --- what is no file ------------------------------------------------------------------------------

KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"Z": "a member of type Z",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_no_file_costs_its_sample(read, kind):
    odd = header("b.jpg", kind=kind)
    data = by_hand(("a.jpg", b"A")) + odd + by_hand(("b.txt", b"two"), ("c.jpg", b"C")) + END
    items = read(data)
    assert [(s.key, s.picture) for s in samples(items)] == [("a", b"A"), ("c", b"C")]
    assert Dropped("b", "read", "no_file", f"b.jpg: {KINDS[kind]}") in items


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_without_another_member_that_is_no_file(read, kind):
    odd = header("a.txt", kind=kind) + header("a.npy", kind=kind) + header("a.png", kind=kind)
    items = read(by_hand(("a.jpg", b"A"), ("a.json", b'{"caption": "one"}')) + odd + END)
    assert [(s.picture, s.captions) for s in samples(items)] == [(b"A", ("one",))]
    assert notes(items) == [("a", "no_file")] * 2
    assert dropped(read(header("a.txt", kind=kind) + END)) == [("a", "no_file")]


def test_a_regular_file_stands_beside_a_link_of_its_name(read):
    data = header("a.jpg", kind=b"2") + by_hand(("a.jpg", b"A"), ("a.txt", b"one")) + END
    assert [(s.picture, s.captions) for s in samples(read(data))] == [(b"A", ("one",))]


def test_folders_are_passed_over_whatever_they_are_called(read):
    data = header("x.jpg/", kind=b"5") + by_hand(("x.jpg/a.jpg", b"A")) + header("y.v1", kind=b"5")
    items = read(data + END)
    assert [s.key for s in samples(items)] == ["x.jpg/a"] and dropped(items) == []


# --- names ----------------------------------------------------------------------------------------


def test_absolute_and_parent_names_are_only_text(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("/etc/passwd.jpg", "../../up.jpg", "a/../b.jpg", "./c.jpg", "C:\\d.jpg", "~/e.jpg")
    items = read(by_hand(*((name, name.encode()) for name in names)) + END)
    assert [(s.key, s.picture.decode()) for s in samples(items)] == [
        (name.removesuffix(".jpg"), name) for name in names
    ]
    assert not os.path.exists("/etc/passwd.jpg")


@pytest.mark.parametrize(
    "name, key",
    [
        ("a.b.jpg", None),  # its extension is b.jpg, which is a picture beside another
        ("d.1/a.jpg", "d.1/a"),
        ("d.1/e.2/a.jpg", "d.1/e.2/a"),
        ("./a.jpg", "./a"),
        (".hidden.jpg", None),
        ("d/.jpg", None),
        ("jpg", None),
        ("a.", None),
        ("\N{CAT FACE} \n\t.jpg", "\N{CAT FACE} \n\t"),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_base_name(read, name, key):
    for form in FORMATS.values():
        items = read(by_tarfile(form, (name, b"x"), ("z.jpg", b"z")))
        assert [s.key for s in samples(items)] == ([key] if key else []) + ["z"]


def test_names_that_are_no_utf8_are_kept_apart(read):
    names = [b"\xff.jpg", b"\xfe.jpg", "é".encode("latin-1") + b".jpg", b"a\x80b.jpg"]
    data = by_hand(*((os.fsdecode(name), name) for name in names)) + END
    found = samples(read(data))
    assert [s.picture for s in found] == names
    assert [s.key for s in found] == [r"\xff", r"\xfe", r"\xe9", r"a\x80b"]
    assert all(s.key.encode() and s.sources["image"].place.member.encode() for s in found)
    pax = extended(b"x", record(b"path", b"\xff\xfe.jpg"))
    assert [s.key for s in samples(read(pax + by_hand(("y.jpg", b"Y")) + END))] == [r"\xff\xfe"]


def test_interleaved_keys_are_samples(read):
    data = by_hand(("a.jpg", b"A"), ("b.jpg", b"B"), ("a.txt", b"one"), ("b.txt", b"two")) + END
    assert [(s.key, s.captions) for s in read(data)] == [("a", ("one",)), ("b", ("two",))]


# --- sparse files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=posix", "--sparse-version=0.0"),
        ("--format=posix", "--sparse-version=0.1"),
        ("--format=posix", "--sparse-version=1.0"),
    ],
)
def test_sparse_files_are_read_whole(read, tmp_path_factory, options):
    folder = tmp_path_factory.mktemp("sparse")
    with open(folder / "a.jpg", "wb") as file:
        for piece in range(30):  # more than fit into one header
            file.seek(piece << 16)
            file.write(bytes([piece + 1]) * 5000)
        file.truncate(2_000_000)
    (folder / "b.jpg").write_bytes(b"B")
    data = gnu_tar(folder, "--sparse", *options)
    if len(data) > 1_000_000:
        pytest.skip("the file system makes no holes")
    first, second = samples(read(data))
    assert (
        first.picture == (folder / "a.jpg").read_bytes()
        and first.sources["image"].place.offset is None
    )
    assert (second.key, second.picture) == ("./b", b"B")


def sparse(*pieces: tuple[int, int], size: int, stored: bytes = b"x" * 512) -> bytes:
    """A member in GNU tar's old form."""
    block = bytearray(header("a.jpg", len(stored), kind=b"S", magic=b"ustar  \0"))
    for number, (start, length) in enumerate(pieces):
        block[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (start, length)
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + padded(stored)


def test_a_sparse_file_may_claim_what_it_likes(read):
    after = by_hand(("b.jpg", b"B")) + END
    items = read(sparse((0, 512), size=7 << 30) + after)  # one that is too large is not read
    assert dropped(items) == [("a", "member_too_large")] and samples(items)[0].key == "b"
    for pieces, size in (
        (((512, 256), (0, 256)), 1024),  # out of order
        (((0, 300), (200, 212)), 1024),  # one over the other
        (((0, 512),), 100),  # larger than the file
    ):
        assert dropped(read(sparse(*pieces, size=size) + after)) == [("a", "damaged")]
    assert dropped(read(sparse((0, 5000), size=5000) + after)[-1:]) == [("a", "truncated")]


def test_an_endless_map_of_pieces_is_refused(read):
    block = bytearray(sparse((0, 512), size=1024)[:512])
    block[482], block[148:156] = 1, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    more = (b"%011o\0%011o\0" % (1, 1)) * 21 + b"\1" + bytes(7)
    [drop] = read(bytes(block) + more * 5000)
    assert drop == Dropped(
        "", "read", "damaged", f"more than {MAX_HEADER} bytes of headers for one member"
    )
    assert dropped(read(bytes(block) + more * 3)) == [("", "truncated")]


# --- headers --------------------------------------------------------------------------------------


def record(name: bytes, value: bytes) -> bytes:
    """A pax record, which begins with its own length."""
    length = len(name) + len(value) + 3
    while len(b"%d" % length) + len(name) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, name, value)


def extended(kind: bytes, data: bytes) -> bytes:
    return header("x", len(data), kind=kind) + padded(data)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"g"])
def test_a_long_extended_header_is_read_up_to_the_limit(read, kind):
    """64 KB, all headers of a member together; a longer one is damage, with what it is."""
    before, after = by_hand(*PAIR), by_hand(("b.jpg", b"B"), ("b.txt", b"two")) + END
    name = b"d/" * 4000 + b"long.jpg"
    payloads = {b"x": record(b"path", name), b"L": name + b"\0", b"K": name + b"\0"}
    fits = extended(kind, payloads.get(kind, record(b"comment", name)))
    renamed = [name.decode()[:-4]] if kind in (b"x", b"L") else []
    assert [s.key for s in samples(read(before + fits + after))] == ["a", *renamed, "b"]
    for size in (MAX_HEADER + 1, 1 << 20):
        items = read(before + extended(kind, b"1" * size) + after)
        assert [s.key for s in samples(items)] == ["a"]
        detail = f"an extended header of {size} bytes"
        assert items[-1] == Dropped("", "read", "damaged", detail)


def test_headers_that_would_cost_memory_or_hours_are_refused(read):
    before, after = by_hand(*PAIR), by_hand(("b.jpg", b"B"), ("b.txt", b"two")) + END
    many = [extended(b"g", record(b"k%d" % n, b"v" * 900)) for n in range(100)]
    for headers, detail in (
        (b"".join(many[:30]), "more than 16384 bytes of global headers"),
        (extended(b"x", b"1" * 60_000), "a pax header with a number of 1000 digits"),
        (extended(b"x", record(b"path", b"p.jpg")) * 200, "bytes of headers for one member"),
        (extended(b"x", record(b"size", b"-512")), "a size of -512 bytes"),
        (extended(b"x", record(b"size", b"-99999")), "a size of -99999 bytes"),
    ):
        items = read(before + headers + after)
        assert [s.key for s in samples(items)] == ["a"]
        assert dropped(items) == [("", "damaged")] and items[-1].detail.endswith(detail)
    few = samples(read(before + b"".join(many[:5]) + after))
    assert [s.key for s in few] == ["a", "b"]


def test_a_member_of_exabytes_is_cut_short(read):
    data = by_hand(*PAIR) + extended(b"x", record(b"size", b"9" * 18))
    items = read(data + by_hand(("b.jpg", b"B")))
    assert [s.key for s in samples(items)] == ["a"]
    assert items[-1].reason == "truncated"


# --- many, and much -------------------------------------------------------------------------------


def test_ever_so_many_members_take_little_memory(tmp_path):
    """A million of them, measured once: 33 MB of the process beyond what it had before."""
    count, block = 30_000, padded(b"x")
    with open(tmp_path / "a.tar", "wb") as file:
        for n in range(count):
            file.write(header(f"{n:07d}.txt", 1) + block)
        file.write(END)
    [shard] = list_shards([str(tmp_path / "a.tar")])
    tracemalloc.start()
    try:
        found = sum(isinstance(item, Sample) for item in read_samples(shard, ReadSettings()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == count and peak < 6 << 20


def test_keys_are_known_again():
    seen = SeenKeys()
    for n in range(40_000):
        assert seen.add(f"key {n}")
    assert len(seen) == 40_000 and not any(seen.add(f"key {n}") for n in range(0, 40_000, 7))


def test_a_million_members_of_one_sample_are_told_in_few_notes(read, monkeypatch):
    monkeypatch.setattr(sample_builder, "_MAX_EXTENSIONS", 50)
    same = by_hand(("a.jpg", b"A"), ("a.txt", b"one"), *[("a.jpg", b"B")] * 150)
    others = by_hand(*((f"a.{n}", b"") for n in range(3000)))
    late = by_hand(("b.txt", b"two"), *[("a.jpg", b"C")] * 150)
    items = read(same + others + late + END)
    assert [(s.key, s.picture) for s in samples(items)] == [("a", b"A"), ("b", None)]
    found = notes(items)
    assert found.count(("a", "duplicate_member")) == 100
    assert found.count(("a", "late_member")) == 150  # of which a shard's tally keeps few
    assert Note("a", "many_notes", "50") in items


@pytest.mark.parametrize("pack", ["gzip", "zstd"])
def test_a_bomb_is_not_unpacked(read, pack, monkeypatch):
    monkeypatch.setattr(tar_bytes, "FREE_EXPANSION", 1 << 20)
    compress = {
        "gzip": gzip.compress,
        "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }[pack]
    bomb = by_hand(("a.jpg", b"A")) + header("b.jpg", 64 << 20) + bytes(64 << 20) + END
    items = read(compress(bomb), ReadSettings(max_member_bytes=1 << 20))
    assert [s.key for s in samples(items)] == ["a"]
    assert dropped(items) == [("b", "member_too_large"), ("", "bomb")]
    assert re.fullmatch(r"\d+ bytes of it unpack to more than \d+", items[-1].detail)
    behind = read(compress(by_hand(("a.jpg", b"A")) + END + bytes(64 << 20)))
    assert [s.key for s in samples(behind)] == ["a"] and dropped(behind) == []
    assert notes(behind)[-1] == ("", "data_after_end")
    with pytest.raises(SourceError, match="an empty tar"):
        read(compress(bytes(64 << 20)))


def test_what_lies_in_a_compressed_shard_is_found_again(read, tmp_path):
    [one] = samples(read(gzip.compress(by_hand(("a.jpg", b"A" * 700)) + END)))
    [shard] = list_shards([str(tmp_path / "a.tar")])
    assert (
        one.sources["image"].place.offset is None
        and read_member(shard.url, one.sources["image"].place) == b"A" * 700
    )


@settings(max_examples=300, deadline=None)
@given(
    name=st.text(min_size=1, max_size=120).filter(lambda text: "\0" not in text),
    size=st.integers(0, 8**12),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]),
    flip=st.none() | st.integers(0, 511),
)
def test_a_header_says_what_tarfile_makes_of_it(name, size, form, kind, flip):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    try:
        block = bytearray(info.tobuf(form, "utf-8", "surrogateescape"))[-512:]
    except (ValueError, UnicodeEncodeError):
        return  # no header of this dialect
    if flip is not None:
        block[flip] ^= 1
    try:
        expected = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        with pytest.raises(tarfile.ReadError):
            Header.frombuf(block, "utf-8", "backslashreplace")
        return
    found = Header.frombuf(block, "utf-8", "backslashreplace")
    fields = operator.attrgetter("name", "size", "type", "linkname", "sparse")
    assert fields(found) == fields(expected)
