"""The door to bytes: names for places, whole files or none, errors of one line."""

import errno
import os
import re
import resource
import socket
import threading
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st

from chiasm.pipeline.errors import SourceError, StorageError, UsageError
from chiasm.pipeline.storage import (
    Folder,
    canonical_url,
    disk,
    display_name,
    glob,
    is_folder,
    is_temporary,
    open_stream,
    read_range,
    stat,
)
from chiasm.pipeline.storage.temporaries import run_of_temporary, target_of_temporary, temporary_of

RUN = "20260101T000000-0123abcd"
AWKWARD = ["a b", "100%", "%20", "a#b?c", "图片", "a[1]", "a:b@c", "-", "a\nb"]


@pytest.mark.parametrize("name", AWKWARD)
def test_a_url_leads_back_to_its_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"hello")
    url = canonical_url(str(tmp_path / name))
    assert url.startswith("file:///") and url.isascii() and " " not in url
    assert canonical_url(url) == url
    assert display_name(url) == str(tmp_path / name)
    with open_stream(url) as stream:
        assert stream.read() == read_range(url, 0, 5) == b"hello"
    assert stat(url).size == 5


def test_names_of_undecodable_bytes_survive(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.tar")
    with open(path, "wb") as file:
        file.write(b"x")
    for url in (os.fsdecode(path), f"file://{os.fsdecode(path)}"):
        assert stat(canonical_url(url)).size == 1


def test_one_place_has_one_url(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.tar").write_bytes(b"x")
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = ["data/a.tar", "./link/a.tar", "data/../data//a.tar", "~/data/a.tar"]
    ways += [f"file://{tmp_path}/data/a.tar", f"FILE://localhost{tmp_path}/link/a.tar"]
    assert {canonical_url(way) for way in ways} == {f"file://{tmp_path}/data/a.tar"}


def test_an_unknown_scheme_lists_the_valid_ones():
    with pytest.raises(UsageError) as caught:
        canonical_url("ftp://ann:hush@host/a.tar?token=hush")
    assert str(caught.value) == (
        "ftp://***: expected a path or one of file://, s3://, gs://, hf://, http://, https://,"
        " found another"
    )
    with pytest.raises(UsageError, match="expected a path, found a null byte in it"):
        canonical_url("file:///data/%00.tar")
    with pytest.raises(UsageError, match="expected file:///path, found the host 'data'"):
        canonical_url("file://data/a.tar")


def test_a_changed_file_has_another_version(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"x")
    url, before = canonical_url(str(path)), stat(canonical_url(str(path)))
    assert before.version == str(path.stat().st_mtime_ns)
    os.utime(path, ns=(0, 1))
    assert stat(url).version == "1" != before.version


def test_what_cannot_be_read_says_why(tmp_path):
    missing, folder = canonical_url(str(tmp_path / "no.tar")), canonical_url(str(tmp_path))
    for read in (stat, open_stream, lambda url: read_range(url, 0, 1)):
        with pytest.raises(SourceError, match=r"no\.tar: expected a file to read, found nothing"):
            read(missing)
        with pytest.raises(SourceError, match="found a folder"):
            read(folder)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="expected a file, found a device or a pipe"):
        stat(canonical_url(str(tmp_path / "pipe")))


def test_a_range_past_the_end_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    url = canonical_url(str(tmp_path / "a"))
    assert read_range(url, 3, 4) == b"3456"
    with pytest.raises(SourceError, match="expected 4 bytes from byte 8 on, found 2"):
        read_range(url, 8, 4)


def test_only_regular_files_are_read_and_no_more_than_they_hold(tmp_path):
    """A catalog that others wrote may name any path and any size."""
    (tmp_path / "a").write_bytes(b"0123456789")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
    for read in (open_stream, lambda url: read_range(url, 0, 1_500_000_000)):
        for path in (str(tmp_path / "pipe"), "/dev/zero", "/dev/null"):
            with pytest.raises(SourceError) as caught:
                read(f"file://{path}")
            assert str(caught.value) == (
                f"{path}: expected a file to read, found a device or a pipe"
            )
        with pytest.raises(SourceError, match="found No such device"):
            read(f"file://{tmp_path}/socket")
        with pytest.raises(SourceError, match="expected a file to read, found a folder; name a"):
            read(f"file://{tmp_path}")
    opened = len(os.listdir("/proc/self/fd"))
    tracemalloc.start()
    for offset, size, found in ((0, 1 << 40, 10), (4, 10**15, 6), (99, 1 << 30, 0)):
        message = f"expected {size} bytes from byte {offset} on, found {found}; it is shorter"
        with pytest.raises(SourceError, match=message):
            read_range(f"file://{tmp_path}/a", offset, size)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    for offset, size in ((-5, 5), (5, -5)):
        with pytest.raises(SourceError, match=f"a range of bytes, found {size} from byte {offset}"):
            read_range(f"file://{tmp_path}/a", offset, size)
    assert read_range(f"file://{tmp_path}/a", 10, 0) == b""
    assert len(os.listdir("/proc/self/fd")) == opened


def test_find_is_sorted_and_canonical(tmp_path):
    for name in ("b.tar", "a.tar", "sub/c.tar", ".hidden.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    base = f"file://{tmp_path}"
    assert glob(f"{tmp_path}/*.tar") == [f"{base}/a.tar", f"{base}/b.tar"]
    assert f"{base}/sub/c.tar" in glob(f"{tmp_path}/**/*.tar")
    assert glob(f"{tmp_path}/x*") == []
    assert is_folder(base) and not is_folder(f"{base}/a.tar") and not is_folder(f"{base}/no")


def test_a_folder_lists_writes_and_removes(tmp_path):
    folder = Folder(str(tmp_path / "made on demand"))
    assert folder.local == tmp_path / "made on demand"
    assert folder.list() == folder.list("ledger") == []
    folder.write_whole("ledger/b.json", b"1", "run")
    folder.write_whole("ledger/a.json", b"2", "run")
    folder.write_whole("ledger/a.json", b"3", "run")
    folder.write_whole("collection.json", b"4")
    assert folder.list("ledger") == ["ledger/a.json", "ledger/b.json"]
    assert folder.list() == ["collection.json"]
    assert folder.read_bytes("ledger/a.json") == folder.path("ledger/a.json").read_bytes() == b"3"
    assert folder.exists("ledger/a.json") and not folder.exists("ledger/c.json")
    folder.remove("ledger/a.json")
    folder.remove("ledger/a.json")
    assert folder.list("ledger") == ["ledger/b.json"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x"])
def test_a_name_stays_inside_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="inside the folder"):
        Folder(str(tmp_path)).read_bytes(name)


def test_a_file_without_commit_never_was(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_whole("a", b"old")
    with folder.create("a", RUN) as file:
        file.write(b"new")
        file.flush()
        temporary, final = folder.list()
        assert final == "a" and is_temporary(temporary) and run_of_temporary(temporary) == RUN
    with pytest.raises(KeyError), folder.create("a", "run") as file:
        file.write(b"new")
        raise KeyError
    assert folder.list() == ["a"] and folder.read_bytes("a") == b"old"


def test_readers_see_the_whole_old_file_or_the_whole_new_one(tmp_path):
    folder, contents, seen = Folder(str(tmp_path)), [b"a" * 100_000, b"b" * 150_000], set()
    folder.write_whole("x", contents[0])
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(folder.read_bytes("x"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        folder.write_whole("x", contents[turn % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_parquet_goes_through_the_door(tmp_path):
    folder, table = Folder(str(tmp_path)), pa.table({"a": [1, 2, 3]})
    with folder.create("rows.parquet", "run") as file:
        pq.write_table(table, file)
        file.commit()
    assert pq.read_table(folder.path("rows.parquet")).equals(table)


@given(st.text("ab.-_é", min_size=1).filter(lambda s: s.strip(".")), st.sampled_from(["", RUN]))
def test_a_temporary_tells_its_run(base, run_id):
    name = temporary_of(f"ledger/{base}", run_id, "00ff12ab")
    assert is_temporary(name) and run_of_temporary(name) == run_id
    assert target_of_temporary(name) == f"ledger/{base}"
    earlier = f"ledger/.{base}.20260101T000000-0123abcd.tmp"
    assert is_temporary(earlier) and run_of_temporary(earlier) == "20260101T000000-0123abcd"
    assert target_of_temporary(earlier) == f"ledger/{base}"
    assert name.startswith("ledger/.") and not is_temporary(f"ledger/{base}")


def test_other_names_are_no_temporaries():
    others = ["a.json", "x.tmp", ".hidden", ".tmp", ".a.tmp/b", ".notes.swp.tmp"]
    others += [".report.txt~1.tmp", ".a.txt~0a0a0a0a.tmp", f".a.{RUN}~0a.tmp"]
    assert not any(map(is_temporary, others))
    with pytest.raises(ValueError, match=r"name of a temporary, found 'x\.tmp'"):
        run_of_temporary("x.tmp")
    with pytest.raises(ValueError, match="run id without dots"):
        temporary_of("a", "1.5", "0a")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    folder = Folder(str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError) as caught:
            folder.write_whole("e/a.parquet", b"x" * 3_000_000)
        with pytest.raises(StorageError), folder.create("e/b.parquet", "run") as file:
            pq.write_table(pa.table({"a": [noise(3_000_000)]}), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(
        f"{tmp_path}/e/a.parquet: expected a usable file, found the"
    )
    assert folder.list("e") == []


@pytest.mark.parametrize(
    "number, text",
    [
        (errno.ENOSPC, "found no space left on the disk; free some and run the same command again"),
        (errno.EROFS, "found a read-only file system; choose another target"),
        (errno.EACCES, "found no permission; check its owner and mode"),
        (errno.EIO, "found Input/output error"),
    ],
)
def test_errors_of_the_system_become_one_line(tmp_path, monkeypatch, number, text):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        Folder(str(tmp_path)).write_whole("a", b"x")
    assert str(caught.value) == f"{tmp_path}/a: expected a usable file, {text}"
    assert list(tmp_path.iterdir()) == []


def test_a_commit_flushes_the_file_its_folder_and_every_folder_that_it_made(tmp_path, monkeypatch):
    flushed: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(disk.os, "fsync", record)
    Folder(str(tmp_path / "c")).write_whole("ledger/a.json", b"x", "r1")
    flushed[2] = re.sub("~[0-9a-f]{8}", "~attempt", flushed[2])
    assert flushed == [
        str(tmp_path),
        str(tmp_path / "c"),
        str(tmp_path / "c" / "ledger" / ".a.json.r1~attempt.tmp"),
        str(tmp_path / "c" / "ledger"),
    ]
    flushed.clear()
    assert Folder(str(tmp_path / "c")).write_new("ledger/b.json", b"x", "r1")
    assert len(flushed) == 2 and flushed[1] == str(tmp_path / "c" / "ledger")


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path):
    (tmp_path / "c").write_bytes(b"")
    with pytest.raises(StorageError, match="found a file where a folder should be"):
        Folder(str(tmp_path / "c")).write_whole("ledger/a.json", b"")
    with pytest.raises(StorageError, match="found a file where a folder should be"):
        Folder(str(tmp_path / "c")).write_whole("a.json", b"")
    with pytest.raises(StorageError, match="found a file where a folder should be"):
        Folder(str(tmp_path / "c")).list()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_no_failure_unless_the_disk_fails(
    tmp_path, monkeypatch, number
):
    fsync = os.fsync

    def refuse_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(disk.os, "fsync", refuse_folders)
    opened = len(os.listdir("/proc/self/fd"))
    if number == errno.EIO:
        with pytest.raises(StorageError, match="Input/output error"):
            Folder(str(tmp_path)).write_whole("a", b"1")
    else:
        Folder(str(tmp_path)).write_whole("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize("refusal", [0, errno.EPERM, errno.EIO, errno.EACCES])
def test_of_many_writers_of_a_new_name_one_stays_whole(tmp_path, monkeypatch, refusal):
    def no_links(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    links = not refusal
    if not links:
        monkeypatch.setattr(disk.os, "link", no_links)
    folder = Folder(str(tmp_path))
    won: list[bytes] = []

    def race(mine: bytes) -> None:
        if folder.write_new("g/000001.json", mine, mine[:2].decode()):
            won.append(mine)

    threads = [threading.Thread(target=race, args=(b"%02d" % n * 5000,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read_bytes("g/000001.json") in won
    assert len(won) == 1 or not links  # without links two of the same moment may both think so
    assert folder.list("g") == ["g/000001.json"]


def test_folders_are_listed_and_removed_with_their_files(tmp_path):
    folder = Folder(str(tmp_path))
    for name in ("s/b/x", "s/b/.y.run.tmp", "s/a/é ?", "s/file"):
        folder.write_whole(name, b"1")
    assert folder.folders("s") == ["s/a", "s/b"] and folder.folders("none") == []
    folder.write_whole("s/c/x", b"1")
    folder.write_whole("s/c/notes", b"a person's own")
    for name in ("s/b", "s/a", "s/gone", "s/c"):
        folder.remove_folder(name, lambda base: base != "notes")
    assert folder.folders("s") == ["s/c"] and folder.list("s") == ["s/file"]
    assert folder.list("s/c") == ["s/c/notes"]


@pytest.mark.parametrize("link", ["index/segments/a", "index/segments", "index"])
def test_nothing_is_removed_through_a_symbolic_link(tmp_path, link):
    behind = tmp_path / "elsewhere" / "segments" / "a"
    behind.mkdir(parents=True)
    (behind / "rows.arrow").write_bytes(b"precious")
    target = {"index": behind.parent.parent, "index/segments": behind.parent}.get(link, behind)
    (tmp_path / "c" / link).parent.mkdir(parents=True)
    (tmp_path / "c" / link).symlink_to(target)
    folder = Folder(str(tmp_path / "c"))
    message = "found a symbolic link in the path; remove what is behind it by hand"
    with pytest.raises(StorageError, match=message):
        folder.remove_folder("index/segments/a", lambda base: True)
    with pytest.raises(StorageError, match=message):
        folder.remove("index/segments/a/rows.arrow")
    assert (behind / "rows.arrow").read_bytes() == b"precious"


def test_a_link_that_is_itself_removed_leaves_its_target(tmp_path):
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "name").symlink_to(tmp_path / "target")
    Folder(str(tmp_path / "c")).remove("name")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c", "target"]


def test_two_attempts_of_one_run_never_share_a_temporary(tmp_path):
    folder = Folder(str(tmp_path))
    with folder.create("a", "r1") as first, folder.create("a", "r1") as second:
        first.write(b"whole")
        second.write(b"ha")
        first.commit()
        assert folder.read_bytes("a") == b"whole"
    assert folder.read_bytes("a") == b"whole" and folder.list() == ["a"]


def test_a_link_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    real = os.link

    def twice(old: str, new: str) -> None:
        real(old, new)
        real(old, new)

    monkeypatch.setattr(disk.os, "link", twice)
    folder = Folder(str(tmp_path))
    assert folder.write_new("a", b"1", "r1") and not folder.write_new("a", b"2", "r2")
    assert folder.read_bytes("a") == b"1" and folder.list() == ["a"]


def test_a_name_that_is_taken_is_lost_without_hard_links_too(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(disk.os, "link", no_links)
    folder = Folder(str(tmp_path))
    assert folder.write_new("a", b"1", "r1") is True
    assert folder.write_new("a", b"2", "r2") is False
    assert folder.read_bytes("a") == b"1" and folder.list() == ["a"]
    assert repr(folder) == f"Folder('file://{tmp_path}')"
