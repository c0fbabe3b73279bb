"""Grouping against webdataset, what a sample is made of, what is lost and what is noted."""

import gzip
import io
import itertools
import tarfile
import tracemalloc

import pytest
from conftest import notes, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.handlers import ignore_and_continue
from webdataset.tariterators import group_by_keys, tar_file_expander

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped, Note, Sample
from chiasm.pipeline.shards import (
    DROP_REASONS,
    NOTE_REASONS,
    PICTURE_EXTENSIONS,
    ReadSettings,
    list_shards,
    read_member,
    read_samples,
)

DEFAULT = ReadSettings()


def tar_of(*members, **options) -> bytes:
    """(name, content) pairs or TarInfo objects -> the bytes of a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """read(bytes of a shard) -> all that read_samples yields."""
    path = tmp_path_factory.mktemp("shards") / "a.tar"

    def run(data: bytes, settings: ReadSettings = DEFAULT, name: str = "a.tar"):
        path.with_name(name).write_bytes(data)
        [shard] = list_shards([str(path.with_name(name))])
        items = list(read_samples(shard, settings))
        assert {i.reason for i in items if isinstance(i, Dropped)} <= set(DROP_REASONS)
        assert {i.reason for i in items if isinstance(i, Note)} <= set(NOTE_REASONS)
        return items

    return run


PLAIN = [("a.jpg", b"A"), ("a.txt", b"one"), ("b.jpg", b"BB"), ("b.txt", b"two")]

# --- grouping -------------------------------------------------------------------------------------

NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "", "", "./", "__m__/"]),
    st.sampled_from(["a", "b", "c", "__x__", "__y", ""]),
    st.sampled_from([".jpg", ".JPG", ".png", ".txt", ".json", ".cls", ".v2.jpg", ".jxl", "", "."]),
)


def by_webdataset(data: bytes) -> dict[str, dict[str, bytes]]:
    """key -> extension -> bytes as webdataset groups neighbours, the groups of one key, with `./`
    or without, together; the first of duplicates stands. Hidden files are none of a sample."""
    stream = tar_file_expander([{"url": "a", "stream": io.BytesIO(data)}])
    found: dict[str, dict[str, bytes]] = {}
    for group in group_by_keys(stream, handler=ignore_and_continue):
        members = {k: v for k, v in group.items() if k[:2] != "__"}
        if not group["__key__"].endswith("/"):
            key = group["__key__"].removeprefix("./")
            found[key] = members | found.get(key, {})
    return found


@settings(max_examples=300, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=14), st.booleans())
def test_samples_are_those_of_webdataset_wherever_their_members_lie(read, names, packed):
    data = tar_of(*((name, f"{n} {name}".encode()) for n, name in enumerate(names)))
    expected = by_webdataset(data)
    if not expected:
        with pytest.raises(SourceError, match=r"found no member called key\.extension"):
            read(data)
        return
    items = read(gzip.compress(data, 1) if packed else data)
    found = {item.key.removeprefix("./"): item for item in items if not isinstance(item, Note)}
    assert len(found) == sum(not isinstance(item, Note) for item in items)
    assert sorted(found) == sorted(expected)
    late = {key.removeprefix("./") for key, reason in notes(items) if reason == "late_member"}
    for key, item in found.items():
        members = expected[key]
        picture = next((members[e] for e in PICTURE_EXTENSIONS if e in members), None)
        if isinstance(item, Sample):
            # A sample with picture and caption does not wait for another picture.
            assert item.picture == picture or (key in late and item.picture in members.values())
            assert item.captions == ((members["txt"].decode(),) if "txt" in members else ())
            assert picture is not None or item.captions
        else:
            assert picture is None or key in late
            assert (item.reason == "extension") == bool({"jxl", "v2.jpg"} & set(members))
            assert item.reason == "extension" or "txt" not in members


def test_names_that_are_no_utf8_can_be_written_anywhere(read):
    data = tar_of(
        ("\udcff.jpg", b"A"), ("\udcfe.jpg", b"B"), encoding="utf-8", errors="surrogateescape"
    )
    keys = [sample.key for sample in samples(read(data))]
    assert keys == ["\\xff", "\\xfe"] and "".join(keys).encode("utf-8")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_lead_to_the_bytes(read, form):
    long = "d" * 90 + "/" + "k" * (60 if form == tarfile.USTAR_FORMAT else 300)
    data = tar_of(
        (f"{long}.jpg", b"A" * 700), ("图.jpg", b"B" * 3), ("图.txt", "猫".encode()), format=form
    )
    read_plain, read_gz = samples(read(data)), samples(read(gzip.compress(data)))
    assert [(s.key, s.captions) for s in read_plain] == [(long, ()), ("图", ("猫",))]
    for plain, zipped in zip(read_plain, read_gz, strict=True):
        place = plain.sources["image"].place
        assert data[place.offset : place.offset + place.size] == plain.picture == zipped.picture
        assert (zipped.sources["image"].place.member, zipped.sources["image"].place.offset) == (
            place.member,
            None,
        )


def test_a_sparse_member_has_no_range(read, tmp_path):
    # GNU tar's old sparse form: 512 real bytes at 1024 of a file of 2048.
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398], block[398:410], block[483:495] = (
        b"%011o\0" % 1024,
        b"%011o\0" % 512,
        b"%011o\0" % 2048,
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "s.tar").write_bytes(bytes(block) + b"x" * 512 + bytes(1024))
    [shard] = list_shards([str(tmp_path / "s.tar")])
    [sample] = samples(read_samples(shard, DEFAULT))
    assert sample.picture == bytes(1024) + b"x" * 512 + bytes(512)
    assert sample.sources["image"].place.offset is None
    assert read_member(shard.url, sample.sources["image"].place) == sample.picture


# --- what a sample is made of ---------------------------------------------------------------------


def one(read, settings=DEFAULT, **members):
    """Read a sample `k` of these members (`_` in a name is a dot)."""
    return read(
        tar_of(*((f"k.{e.replace('_', '.')}", data) for e, data in members.items())), settings
    )


@pytest.mark.parametrize(
    "members, reason",
    [
        ({"jxl": b"x", "txt": b"a"}, "extension"),
        ({"mp4": b"x"}, "extension"),
        ({"seg_png": b"x", "txt": b"a"}, "extension"),
        ({"cls": b"3"}, "empty"),
        ({"txt": b" \n"}, "empty"),
        ({"json": b'{"caption": null}'}, "empty"),
        ({"jpg": b"x" * 101, "txt": b"a"}, "member_too_large"),
        ({"txt": b"x" * 101}, "member_too_large"),
        ({"png": b"x", "jpg": b"x" * 101}, "member_too_large"),
    ],
)
def test_samples_that_are_dropped(read, members, reason):
    [item] = one(read, ReadSettings(max_member_bytes=100), **members)
    assert (item.key, item.stage, item.reason) == ("k", "read", reason)


@pytest.mark.parametrize(
    "members, expected",
    [
        ({"jpg": b"x"}, ["no_caption"]),
        ({"txt": b"a"}, ["no_picture"]),
        ({"mp3": b"x", "txt": b"a"}, ["no_picture"]),
        ({"jpg": b"x", "txt": b"a", "cls": b"1", "seg_png": b"y"}, []),
        ({"jpg": b"x", "JPG": b"y", "txt": b"a"}, ["duplicate_member"]),
        ({"png": b"y", "jpg": b"x", "txt": b"a"}, ["several_pictures"]),
        ({"jpg": b"x", "txt": b"caf\xe9"}, ["bad_text"]),
        ({"jpg": b"x", "txt": b"a", "json": b"{"}, ["bad_json"]),
        ({"jpg": b"x", "txt": b"a", "json": b"[1]"}, ["bad_json"]),
        ({"jpg": b"x", "txt": b"a", "json": b"\xff"}, ["bad_json"]),
        ({"jpg": b"x", "txt": b"a", "json": b"[" * 100_000}, ["bad_json"]),
        ({"jpg": b"x", "txt": b"a" * 100_001}, ["member_too_large", "no_caption"]),
    ],
)
def test_rows_that_are_kept_with_a_note(read, members, expected):
    sample, *rest = one(read, ReadSettings(max_member_bytes=100_000), **members)
    assert isinstance(sample, Sample) and [note.reason for note in rest] == expected
    assert sample.picture == members.get("jpg")
    assert sample.json is None


@pytest.mark.parametrize("better, worse", list(itertools.pairwise(PICTURE_EXTENSIONS)))
def test_of_several_pictures_the_first_of_the_list_stands(read, better, worse):
    for order in ((better, worse), (worse, better)):
        sample, note, _ = one(read, **{extension: extension.encode() for extension in order})
        assert sample.picture == better.encode()
        assert (
            sample.sources["image"].place.member == f"k.{better}"
            and note.detail == f"k.{better} stands"
        )


TEXT, CAPTION, CAPTIONS = (
    b" one\n",
    b'{"caption": "two"}',
    b'{"captions": ["three", " ", 4, "four "]}',
)
BOTH = b'{"caption": "two", "captions": ["three"], "alt": "five"}'


@pytest.mark.parametrize(
    "field, members, expected",
    [
        ("", {"txt": TEXT}, ("one",)),
        ("", {"txt": TEXT, "json": BOTH}, ("one",)),
        ("", {"txt": b"", "json": BOTH}, ("two",)),
        ("", {"json": CAPTION}, ("two",)),
        ("", {"json": CAPTIONS}, ("three", "four")),
        ("", {"json": b'{"caption": "", "captions": ["three"]}'}, ("three",)),
        ("", {"json": b'{"caption": ["a", "a"]}'}, ("a", "a")),
        ("", {"json": b'{"caption": 5, "captions": {"a": 1}}'}, ()),
        ("", {"txt": "\ufeff猫\n".encode()}, ("猫",)),
        ("", {"txt": b"caf\xe9"}, ("caf\ufffd",)),
        ("", {"json": rb'{"caption": "a\ud800b"}'}, ("a?b",)),
        ("", {"json": rb'{"caption": "\ud83d\ude00"}'}, ("\N{GRINNING FACE}",)),
        ("caption", {"txt": TEXT, "json": BOTH}, ("two",)),
        ("captions", {"txt": TEXT, "json": CAPTIONS}, ("three", "four")),
        ("alt", {"txt": TEXT, "json": BOTH}, ("five",)),
        ("alt", {"txt": TEXT, "json": CAPTION}, ("one",)),
        ("alt", {"json": CAPTION}, ()),
    ],
)
def test_where_captions_come_from(read, field, members, expected):
    [sample] = samples(one(read, ReadSettings(caption_field=field), jpg=b"x", **members))
    assert sample.captions == expected


def test_json_is_kept_verbatim(read):
    text = '{ "b": 1,\t"a": [NaN, "é"], "b": 2 }'
    [sample] = samples(one(read, jpg=b"x", json=text.encode()))
    assert sample.json == text


def test_a_late_member_changes_nothing(read):
    data = tar_of(
        *PLAIN, ("a.json", b"{}"), ("a.txt", b"other"), ("c.jpg", b"C"), ("b.png", b"late")
    )
    items = read(data)
    assert [(s.key, s.picture, s.captions, s.json) for s in samples(items)] == [
        ("a", b"A", ("one",), None),
        ("b", b"BB", ("two",), None),
        ("c", b"C", (), None),
    ]
    assert notes(items) == [
        ("a", "late_member"),
        ("a", "late_member"),
        ("c", "no_caption"),
        ("b", "late_member"),
    ]


# --- streaming ------------------------------------------------------------------------------------


def test_only_the_sample_in_progress_is_in_memory(tmp_path):
    size, count = 1 << 20, 40
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(count):
            for extension in ("webp", "png", "jpg", "npy"):
                info = tarfile.TarInfo(f"{n}.{extension}")
                info.size = size
                tar.addfile(info, io.BytesIO(bytes([n]) * size))
    [shard] = list_shards([str(tmp_path / "a.tar")])
    tracemalloc.start()
    try:
        for n, item in enumerate(i for i in read_samples(shard, DEFAULT) if isinstance(i, Sample)):
            assert item.picture == bytes([n]) * size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == count - 1 and peak < 8 * size


def test_a_generator_that_is_left_closes_its_file(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(*PLAIN))
    [shard] = list_shards([str(tmp_path / "a.tar")])
    items = read_samples(shard, DEFAULT)
    next(items)
    items.close()  # a file left open is a ResourceWarning, and warnings are errors
