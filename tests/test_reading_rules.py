"""Which members are a sample: wherever they lie, whatever lies beside them, however they are
named."""

import gzip
import io
import random
import tarfile
import unicodedata
from collections import Counter
from contextlib import nullcontext

import pyarrow as pa
import pytest
from conftest import dropped, notes, samples
from tars import tar_bytes

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Dropped, Note, Sample
from chiasm.pipeline.shards import NOTE_REASONS, ReadSettings, grouping, list_shards, read_samples
from chiasm.pipeline.shards.tar import Tar
from chiasm.pipeline.storage.local import LocalFiles
from chiasm.pipeline.storage.local_stream import LocalStream
from chiasm.pipeline.storage.object_store import ByteRange
from chiasm.pipeline.storage.retry import RETRIES
from chiasm.pipeline.storage.streams import PrefetchingReader, RemoteStream


@pytest.fixture
def read(tmp_path):
    """read(bytes of a shard) -> all that read_samples yields."""

    def run(data: bytes, settings: ReadSettings = ReadSettings()):  # noqa: B008  frozen
        (tmp_path / "a.tar").write_bytes(data)
        [shard] = list_shards([str(tmp_path / "a.tar")])
        items = list(read_samples(shard, settings))
        assert {i.reason for i in items if isinstance(i, Note)} <= set(NOTE_REASONS)
        return items

    return run


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def picture(key: str) -> bytes:
    return f"picture of {key}".encode()


def members(keys: list[str], extensions: str = "jpg txt json") -> dict[str, bytes]:
    contents = {"jpg": picture, "txt": lambda key: f"text of {key}".encode()}
    return {
        f"{key}.{ext}": contents.get(ext, lambda key: b'{"n": "%b"}' % key.encode())(key)
        for key in keys
        for ext in extensions.split()
    }


def table(items: list) -> list[tuple]:
    return [(s.key, s.picture, s.captions, s.json) for s in samples(items)]


# --- wherever they lie ----------------------------------------------------------------------------

KEYS = [f"d/{n:04d}" for n in range(30)]
WHOLE = members(KEYS)


def by_extension(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name.endswith(".json"), name.endswith(".txt")))


def shuffled(names: list[str]) -> list[str]:
    """No two members of a sample are neighbours."""
    rng = random.Random(0)
    order = {key: rng.random() for key in KEYS}
    kinds = [sorted((n for n in names if n.endswith(e)), key=lambda n: order[n.partition(".")[0]])
             for e in (".txt", ".jpg", ".json")]  # fmt: skip
    return [name for kind in kinds for name in kind]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize("order", [by_extension, shuffled])
def test_the_members_of_a_key_may_lie_anywhere(read, order, pack):
    items = read(pack(tar_bytes({name: WHOLE[name] for name in order(list(WHOLE))})))
    expected = {key: row for key, *row in table(read(tar_bytes(WHOLE)))}
    keys = dict.fromkeys(name.partition(".")[0] for name in order(list(WHOLE)))  # in their order
    assert table(items) == [(key, *expected[key]) for key in keys]
    assert len(items) == len(KEYS)  # no notes
    places = {s.key: s.sources["image"].place.member for s in samples(items)}
    assert places == {key: f"{key}.jpg" for key in KEYS}


@pytest.mark.parametrize("cut", ["", "header", "member"])
def test_a_scattered_shard_that_ends_early_keeps_what_is_there(read, cut):
    data = tar_bytes({name: WHOLE[name] for name in by_extension(list(WHOLE))})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        info = tar.getmember("d/0010.txt")
    end = {"": info.offset, "header": info.offset + 100, "member": info.offset_data + 3}[cut]
    for pack in (bytes, gzip.compress):
        items = read(pack(data[:end]))
        captions = [len(s.captions) for s in samples(items)]
        assert captions == [1] * 10 + [0] * len(captions[10:])
        # A stream has the sample whose caption is cut at hand, a file has read its picture before.
        half = cut == "member" and pack is gzip.compress
        assert len(captions) == 30 - half
        assert dropped(items) == [("d/0010" if half else "", "truncated")] * bool(cut)
        assert (("", "no_end_mark") in notes(items)) == (not cut)


def test_what_waits_in_a_stream_is_bounded_and_what_comes_late_is_noted(read, monkeypatch):
    monkeypatch.setattr(grouping, "WAITING_BYTES", 12 * 1100)
    names = by_extension(list(members(KEYS, "jpg txt")))
    data = tar_bytes({name: WHOLE[name] for name in names})
    assert all(s.captions for s in samples(read(data)))  # a file that can be sought in
    items = read(gzip.compress(data))
    found = Counter(reason for _, reason in notes(items))
    with_both = sum(bool(s.captions) for s in samples(items))
    assert len(samples(items)) == 30 and 10 <= with_both <= 13
    assert found == {"late_member": 30 - with_both, "no_caption": 30 - with_both}


def test_behind_many_samples_that_lack_nothing_a_stream_waits_no_more(read, monkeypatch):
    monkeypatch.setattr(grouping, "BEHIND_BYTES", 5 * 1100)
    names = list(members(KEYS, "jpg txt"))
    names.remove("d/0003.txt")
    first = [s.key for s in samples(read(gzip.compress(tar_bytes({n: WHOLE[n] for n in names}))))]
    assert first == KEYS
    for at, late in ((names.index("d/0006.jpg"), False), (len(names), True)):
        order = [*names[:at], "d/0003.txt", *names[at:]]
        items = read(gzip.compress(tar_bytes({name: WHOLE[name] for name in order})))
        assert [s.key for s in samples(items)] == KEYS
        assert (("d/0003", "late_member") in notes(items)) == late
        assert sum(bool(s.captions) for s in samples(items)) == 30 - late


def test_very_many_keys_wait_in_little_memory(tmp_path):
    import tracemalloc

    from test_hostile_tars import END, header, padded

    keys = [f"{n:05d}" for n in range(2500)]
    with open(tmp_path / "a.tar", "wb") as file:
        for extension in ("jpg", "txt"):
            for key in keys:
                file.write(header(f"{key}.{extension}", 5) + padded(key.encode()))
        file.write(END)
    [shard] = list_shards([str(tmp_path / "a.tar")])
    tracemalloc.start()
    try:
        found = [s.captions == (s.key,) for s in read_samples(shard, ReadSettings())]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [True] * len(keys) and peak < 3 << 20  # 16 bytes for each run of members


def test_keys_are_the_same_in_either_form_of_unicode(read):
    files = {}
    for word in ("café", "がり", "naïve"):
        files[unicodedata.normalize("NFD", word) + ".jpg"] = picture(word)
        files[unicodedata.normalize("NFC", word) + ".txt"] = word.encode()
    for pack in (bytes, gzip.compress):
        items = read(pack(tar_bytes(files)))
        assert [(s.key, s.captions) for s in items] == [
            (unicodedata.normalize("NFD", word), (word,)) for word in ("café", "がり", "naïve")
        ]


# --- what lies beside them ------------------------------------------------------------------------

JUNK = [
    *("._a.jpg", "d/._a.txt", "d/.DS_Store", ".DS_Store", "Thumbs.db", "d/ehthumbs.db"),
    *("Desktop.ini", "README.md", "readme.txt", "README", "LICENSE.txt", "metadata.csv"),
    *("__MACOSX/d/._a.jpg", "__MACOSX/a.jpg", "d/@eaDir/a.jpg", "$RECYCLE.BIN/a.jpg", ".git/a.txt"),
    *("captions.tsv", "metadata.json", "dataset_info.json", "classes.txt", "index.html", "a.b/.x"),
    *("d/.ipynb_checkpoints/a.jpg", "sub/metadata.csv", "files.parquet", "sums.md5"),
    *("metadata.jsonl", "train/metadata.jsonl", "annotations.xml", "labels.npy", "meta.npz"),
    *("a.zip", "shapes.geojson", "sizes.json", "thumb.jpg~", "d/~$foo.txt", "#a.txt#", "t.idx"),
    *("coco.names", "refs.bib", "all.ndjson", "train.txt", "instances_val2017.json", "x.csv.gz"),
]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", JUNK)
def test_files_of_desktops_and_about_the_data_set_are_no_samples(read, name, pack):
    clean = members(["d/x", "y"], "jpg txt")
    for files in ({name: b'{"a": 1}', **clean}, {**clean, name: b'{"a": 1}'}):
        items = read(pack(tar_bytes(files)))
        assert table(items) == table(read(tar_bytes(clean))) and dropped(items) == []
        assert {reason for _, reason in notes(items)} <= {"no_sample"}
    with pytest.raises(SourceError, match=r"found no member called key\.extension"):
        read(pack(tar_bytes({name: b'{"a": 1}'})))


@pytest.mark.parametrize("folder", ["photos/", "./", ""])
def test_a_tar_made_on_a_mac_is_the_same_samples(read, folder):
    twin = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02" + bytes(120)
    clean = members([f"{folder}{n:04d}" for n in range(5)], "jpg txt")
    files = {}
    for name, data in clean.items():
        place, _, base = name.rpartition("/")
        files |= {f"{place}/._{base}" if place else f"._{base}": twin, name: data}
    items = read(tar_bytes({f"{folder}.DS_Store": b"Bud1", **files}))
    assert table(items) == table(read(tar_bytes(clean))) and dropped(items) == []
    assert Counter(reason for _, reason in notes(items)) == {"no_sample": 11}


@pytest.mark.parametrize("name", ["0007.json", "0007.xml", "d/cat.npy"])
def test_what_is_left_of_a_sample_is_one_that_is_dropped(read, name):
    items = read(tar_bytes({**members(["x"], "jpg txt"), name: b"{}"}))
    assert dropped(items) == [(name.partition(".")[0], "empty")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "first, second", [("./", ""), ("", "./"), ("/d/", "d/"), (".//d/", "./d/"), ("d/", "/d/")]
)
def test_keys_are_the_same_wherever_the_tar_was_made(read, first, second, pack):
    for order in (list, by_extension):
        files = {}
        for n in range(3):
            files |= {f"{first}{n}.jpg": b"P%d" % n, f"{second}{n}.txt": b"text %d" % n}
        items = read(pack(tar_bytes({name: files[name] for name in order(list(files))})))
        assert [(s.key, s.picture, s.captions) for s in items] == [
            (f"{first}{n}", b"P%d" % n, (f"text {n}",)) for n in range(3)
        ]
    folders = {f"{first}0/image.jpg": b"P", f"{second}0/caption.txt": b"t"}
    assert [s.captions for s in read(pack(tar_bytes(folders)))] == [("t",)]


def test_a_picture_makes_a_sample_of_any_key(read):
    files = members(["metadata", "classes", "d/info"], "jpg txt")
    assert len(samples(read(tar_bytes(files)))) == 3


# --- a folder for each sample ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("image.jpg", "caption.txt"),
        ("caption.txt", "image.jpg"),
        ("0001.png", "label.cls", "metadata.json", "text.txt"),
        ("photo.jpg", "photo.json", "prompt.caption"),
        ("readme.txt", "Photo.jpg", "y.text"),
        ("cat.jpg", "caption_en.txt", "prompt.txt"),
        ("cat.jpg", "prompt.txt", "Caption.txt", "sizes.json"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_folder_whose_members_have_names_of_their_own_is_a_sample(read, names, pack):
    contents = {"jpg": b"P", "png": b"P", "json": b'{"n": 1}', "cls": b"7"}
    files = {
        f"set/{n}/{name}": contents.get(name.rpartition(".")[2], f"caption {n}".encode())
        for n in range(4)
        for name in names
    }
    items = read(pack(tar_bytes(files)))
    assert [(s.key, s.picture, s.captions) for s in samples(items)] == [
        (f"set/{n}", b"P", (f"caption {n}",)) for n in range(4)
    ]
    assert all(
        (s.json is not None) == any("json" in name for name in names) for s in samples(items)
    )


@pytest.mark.parametrize(
    "names, keys",
    [
        ("d/1.jpg d/1.txt d/2.jpg d/2.txt", "d/1 d/2"),
        ("d/1.jpg d/2.jpg d/3.txt", "d/1 d/2 d/3"),  # whose caption would it be?
        ("d/1.jpg d/1.txt d/2.jpg d/3.txt", "d/1 d/2 d/3"),  # a folder of keys
        ("1.jpg 2.txt", "1 2"),  # no folder
        ("./1.jpg ./2.txt", "./1 ./2"),
        ("d/1.jpg", "d/1"),
        ("d.jpg d.txt d/1.jpg d/2.txt", "d d/1 d/2"),  # its name is a key
        ("cat/1.jpg cat/2.jpg dog/1.jpg", "cat/1 cat/2 dog/1"),
        ("train/cat.jpg train/notes.txt", "train/cat train/notes"),  # names say what is on them
        ("a/cat.jpg a/dog.txt b/cat.jpg b/dog.txt", "a/cat a/dog b/cat b/dog"),
        ("a/cat.jpg a/meta.json a/dog.txt", "a/cat a/dog"),
        ("d/image.jpg d/mask.png d/caption.txt", "d/caption d/image d/mask"),  # which picture?
    ],
)
def test_other_folders_are_no_samples(read, names, keys):
    for pack in (bytes, gzip.compress):
        items = read(pack(tar_bytes(dict.fromkeys(names.split(), b"x"))))
        assert sorted(s.key for s in samples(items)) == keys.split() and dropped(items) == []


@pytest.mark.parametrize(
    "names",
    [("image.jpg", "caption.txt"), ("caption.txt", "image.jpg"), ("a.json", "img.jpg", "c.txt")],
)
def test_a_folder_that_is_cut_is_a_row_or_a_drop(read, names):
    """Wherever the cut is: every sample is whole or dropped, and none of them is both."""
    contents = {"jpg": b"P", "json": b"{}"}
    files = {
        f"{n}/{name}": contents.get(name.rpartition(".")[2], b"a text") for n in range(3)
        for name in names
    }  # fmt: skip
    whole = tar_bytes(files)
    kinds = set()
    for end in range(600, 1024 * len(files), 200):
        items = read(whole[:end])
        if ("", "no_end_mark") in notes(items):
            continue  # behind a whole member
        (drop,) = (item for item in items if isinstance(item, Dropped))
        if end < 1024 * len(names):  # the first of all: what belongs to it is not known
            assert len(samples(items)) + bool(drop.key) == 1
            continue
        assert all(s.picture and s.captions and "/" not in s.key for s in samples(items)), end
        assert drop.key in ("", str(len(samples(items)))) and drop.reason == "truncated"
        kinds.add(drop.key)
    assert kinds == {"", "1", "2"}


# --- captions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"caption": b"one"}, "one"),
        ({"text": b" one\n"}, "one"),
        ({"text": b"two", "caption": b"one"}, "one"),
        ({"caption": b"two", "txt": b"one"}, "one"),
        ({"txt": b" ", "text": b"one"}, "one"),
        ({"json": b'{"caption": "two"}', "text": b"one"}, "one"),
        ({"json": b'{"caption": "one"}', "text": b""}, "one"),
        ({"CAPTION": b"one", "seg.png": b"x", "cls": b"1"}, "one"),
    ],
)
def test_captions_stand_in_more_than_one_kind_of_member(read, files, expected):
    data = tar_bytes({"a.jpg": b"A", **{f"a.{name}": data for name, data in files.items()}})
    [sample] = read(data)
    assert sample.captions == (expected,)


def test_a_field_that_json_has_not_is_noted_with_those_that_it_has(read):
    data = tar_bytes(
        {"a.jpg": b"A", "a.json": b'{"caption": "x", "url": "u"}', "b.jpg": b"B", "b.txt": b"b"}
    )
    items = read(data, ReadSettings(caption_field="captoin"))
    found = [(n.key, n.detail) for n in items if isinstance(n, Note) and "field" in n.reason]
    assert found == [
        ("a", "captoin: the fields of json are caption, url"),
        ("b", "captoin: there is no json beside it"),
    ]
    assert not any("field" in r for _, r in notes(read(data, ReadSettings(caption_field=""))))


# --- what is not read through ---------------------------------------------------------------------


def test_a_large_member_is_sought_over(read, tmp_path, monkeypatch):
    info = tarfile.TarInfo("0001.mp4")
    info.size = 9 << 30
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(info.size, io.SEEK_CUR)
        file.write(tar_bytes({"0002.jpg": b"B", "0002.txt": b"two"}))
    count = 0

    class Counting(io.FileIO):
        def readinto(self, buffer, /):
            nonlocal count
            found = super().readinto(buffer)
            count += found or 0
            return found

    def open_stream(self, url):
        return LocalStream(Counting(str(tmp_path / "a.tar")), 1 << 20)

    monkeypatch.setattr(LocalFiles, "open_stream", open_stream)
    [shard] = list_shards([str(tmp_path / "a.tar")])
    first, second = read_samples(shard, ReadSettings())
    assert isinstance(first, Dropped) and isinstance(second, Sample)
    assert (first.reason, second.captions) == ("extension", ("two",)) and count < 4 << 20
    place = second.sources["image"].place
    assert place.offset is not None and place.offset > 9 << 30
    (tmp_path / "a.tar").unlink()


class Sparse:
    """A store with one object, of which only the beginning and the end are not zeros."""

    def __init__(self, head: bytes, size: int, tail: bytes) -> None:
        self.head, self.tail, self.total = head, tail, len(head) + size + len(tail)
        self.sent = 0

    def get(self, path: str, start: int, size: int) -> ByteRange:
        end = min(start + size, self.total)
        data = self.head[start:end].ljust(min(end, self.total - len(self.tail)) - start, b"\0")
        if end > self.total - len(self.tail):
            first = self.total - len(self.tail)
            data += self.tail[max(0, start - first) : end - first]
        self.sent += len(data)
        return ByteRange(start, data, self.total, "one")


def test_a_large_member_of_a_store_is_passed_over_by_ranges():
    info = tarfile.TarInfo("0001.mp4")
    info.size = 1 << 40
    tail = tar_bytes({"0002.jpg": b"B" * 700, "0002.txt": b"two"})
    store = Sparse(info.tobuf(tarfile.GNU_FORMAT), info.size, tail)
    reader = PrefetchingReader(store, "a", RETRIES, nullcontext)  # pyrefly: ignore
    with Tar("https://host/a.tar", stream=RemoteStream(reader)) as tar:
        found = {member.name: member.read() for member in tar if member.size < 1000}
    assert found == {"0002.jpg": b"B" * 700, "0002.txt": b"two"} and store.sent < 100 << 20


def test_a_compressed_shard_that_ends_early_is_truncated(read):
    data = tar_bytes({f"{n}.jpg": random.Random(n).randbytes(9000) for n in range(40)})
    for packed in (gzip.compress(data), zstd(data)):
        for cut in (len(packed) * 9 // 10, len(packed) - 200):
            assert dropped(read(packed[:cut]))[-1][1] == "truncated"
