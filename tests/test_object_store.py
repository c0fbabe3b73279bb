"""Object stores: an S3 that the tests start, behind a server that fails as networks do."""

from __future__ import annotations

import gzip
import importlib.util
import io
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from conftest import noise
from faulty_server import FAULTS, Faults
from test_storage import AWKWARD
from test_tars import PLAIN, tar_of, zstd

from chiasm.jobs.signals import Stopped
from chiasm.pipeline.attempts import record_failure
from chiasm.pipeline.collection import Run, RunRecord
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.errors import SourceError, StorageError, UnreachableError, UsageError
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples, shard_id
from chiasm.pipeline.storage import (
    Folder,
    canonical_url,
    display_name,
    glob,
    is_folder,
    open_stream,
    read_range,
    retry,
    schemes,
    stat,
    streams,
    uploads,
)
from chiasm.pipeline.storage import s3 as s3_store
from chiasm.pipeline.storage.fsspec_store import FsspecStore
from chiasm.pipeline.storage.remote import ObjectFiles
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import WorkList

PARTS = 5 << 20  # S3 takes no smaller ones but the last


@pytest.fixture
def in_parts(monkeypatch):
    """Objects of more than a part go up in parts."""
    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", PARTS)
    monkeypatch.setattr(s3_store, "PART", PARTS)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streams, "FIRST_BLOCK", 1000)
    monkeypatch.setattr(streams, "BLOCK", 4000)
    monkeypatch.setattr(streams, "TAIL", 1000)


def test_urls_are_as_people_write_them():
    for url in ("s3://b/a b%20//c?d#e.tar", "gs://b/图.tar", "hf://datasets/u/n/a.tar"):
        assert canonical_url(url) == display_name(url) == url
    assert canonical_url("S3://b/k") == "s3://b/k"
    with pytest.raises(UsageError, match=r"s3:///k: expected s3://bucket/key, found no bucket"):
        canonical_url("s3:///k")
    with pytest.raises(UsageError) as caught:
        canonical_url("s3://b/\udcff")
    assert str(caught.value) == (
        "'s3://b/\\udcff': expected a URL in UTF-8, found bytes that are none"
    )
    assert shard_id("s3://b/x/a%20b.tar").startswith("a_20b-")
    assert Folder("s3://b/c/").url_of("a/b 1") == "s3://b/c/a/b 1"


@pytest.mark.parametrize("name", [*AWKWARD[:-1], "a//b", "é/ü"])  # moto takes no newline
def test_a_name_leads_back_to_its_object(s3, name):
    folder = Folder(s3.root)
    folder.write_whole(name, b"hello")
    url = folder.url_of(name)
    assert s3.keys() == {name: b"hello"}
    with open_stream(canonical_url(url)) as stream:
        assert stream.read() == read_range(url, 0, 5) == b"hello"
    assert stat(url).size == 5
    folder.remove(name)
    assert s3.keys() == {}


def test_a_folder_lists_writes_and_removes(s3):
    folder = Folder(s3.root)
    assert folder.local is None and folder.list() == folder.list("ledger") == []
    for name, data in {"l/b": b"1", "l/a": b"2", "l/c/d": b"3", "top": b"", "l/": b""}.items():
        s3.direct.put_object(Bucket="bucket", Key=f"{s3.root[12:]}/{name}", Body=data)
    assert folder.list("l") == ["l/a", "l/b"] and folder.list() == ["top"]
    assert folder.folders("l") == ["l/c"] and folder.folders("none") == []
    assert folder.read_bytes("l/a") == b"2" and folder.read_bytes("top") == b""
    assert folder.exists("l/a") and not folder.exists("l/x") and folder.stat("l/x") is None
    assert folder.stat("top").size == 0
    folder.write_whole("l/a", b"new")
    assert folder.read_bytes("l/a") == b"new"
    folder.remove_folder("l/c", lambda base: True)
    folder.remove("l/gone")
    folder.remove_folder("gone", lambda base: True)
    assert sorted(s3.keys()) == ["l/", "l/a", "l/b", "top"]
    with pytest.raises(StorageError, match=r"l/x: expected a usable file, found nothing there"):
        folder.read_bytes("l/x")
    with pytest.raises(StorageError, match="expected a file of this machine"):
        folder.path("l/a")


def test_a_version_changes_with_the_content(s3):
    folder = Folder(s3.root)
    folder.write_whole("a", b"1")
    before = stat(folder.url_of("a"))
    folder.write_whole("a", b"2")
    assert stat(folder.url_of("a")).version != before.version
    folder.write_whole("a", b"1")
    assert stat(folder.url_of("a")) == before


def test_long_listings_come_in_pages(s3):
    prefix = s3.root.removeprefix("s3://bucket/")
    names = [f"n{number:04d}" for number in range(203)]
    with ThreadPoolExecutor(8) as putting:
        for name in names:
            putting.submit(s3.direct.put_object, Bucket="bucket", Key=f"{prefix}/e/{name}")
    s3.server.faults = Faults(once=[("list", "503")])
    assert Folder(s3.root).list("e") == [f"e/{name}" for name in names]
    assert s3.server.seen["list"] == 3 + 1


def test_shards_are_found_by_ranges_globs_and_folders(s3):
    folder = Folder(s3.root)
    names = [f"x/{n}.tar" for n in range(3)] + ["x/y/4.tar", "x/y/5.tar", "x/[odd].tar", "x/t.txt"]
    for name in names:
        folder.write_whole(name, tar_of(*PLAIN))
    at = {name: folder.url_of(name) for name in names}

    def urls_of(spec):
        return [shard.url for shard in list_shards([f"{s3.root}/{spec}"])]

    first = [at["x/0.tar"], at["x/1.tar"], at["x/2.tar"]]
    assert urls_of("x/{0..2}.tar") == urls_of("x/[0-9].tar") == first
    assert urls_of("x") == urls_of("x/*.tar") == [*first, at["x/[odd].tar"]]
    assert urls_of("x/[odd].tar") == [at["x/[odd].tar"]]
    assert set(urls_of("x/**/*.tar")) == set(at.values()) - {at["x/t.txt"]}
    assert glob(f"{s3.root}/*/y/?.tar") == [at["x/y/4.tar"], at["x/y/5.tar"]]
    assert is_folder(f"{s3.root}/x") and not is_folder(at["x/0.tar"])
    with pytest.raises(SourceError, match="expected shards that match, found none"):
        urls_of("x/no*.tar")
    with pytest.raises(SourceError, match=r"9\.tar: expected a file to read, found nothing there"):
        urls_of("x/9.tar")


def test_a_glob_takes_one_listing_however_many_match(s3):
    folder = Folder(s3.root)
    for name in [*(f"x/{n:02d}.tar" for n in range(30)), "x/a.tar/"]:
        key = f"{s3.root[12:]}/{name}"
        s3.direct.put_object(Bucket="bucket", Key=key, Body=tar_of(*PLAIN))
    assert len(list_shards([folder.url_of("x/**")])) == 30
    assert s3.server.seen["list"] == 1 + 1, (
        "whether the pattern itself is a folder, and what matches"
    )


def test_a_pattern_that_is_none_is_told_in_one_line(s3):
    with pytest.raises(UsageError) as caught:
        list_shards([f"{s3.root}/a**.tar"])
    line = f"{s3.root}/a**.tar: expected a pattern such as folder/**/*.tar, found "
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


def test_of_many_writers_of_a_new_name_one_wins(s3):
    folder, start = Folder(s3.root), threading.Barrier(8)

    def race(number):
        start.wait()
        return folder.write_new("g/1.json", b"%d" % number * 5000, f"r{number}")

    with ThreadPoolExecutor(8) as racing:
        won = list(racing.map(race, range(8)))
    assert won.count(True) == 1
    assert folder.read_bytes("g/1.json") == b"%d" % won.index(True) * 5000


def test_a_new_name_that_was_put_though_no_answer_came_is_won(s3):
    folder = Folder(s3.root)
    for fault in ("lost", "500"):
        s3.server.faults = Faults(once=[("put", fault)])
        assert folder.write_new(fault, b"mine", "r1")
        assert not folder.write_new(fault, b"other", "r2")
        assert folder.read_bytes(fault) == b"mine"


@pytest.mark.parametrize("kind", ["put", "complete"])
def test_a_store_without_conditional_requests_is_asked_for_the_name_first(s3, in_parts, kind):
    folder, size = Folder(s3.root), 9 if kind == "put" else PARTS + 9
    mine = noise(size)
    s3.server.faults = Faults(always={kind: "501"})
    assert folder.write_new("a", mine, "r1")
    assert s3.server.failed["501"] > 0
    assert not folder.write_new("a", bytes(size), "r2")
    assert folder.read_bytes("a") == mine and s3.uploads() == []
    before = s3.server.seen["head"]
    folder.write_whole("a", b"2" * size)
    assert folder.read_bytes("a") == b"2" * size and s3.server.seen["head"] == before


def test_without_conditional_requests_a_put_whose_answer_was_lost_is_won(s3):
    folder = Folder(s3.root)
    s3.server.faults = Faults(once=[("put", "501"), ("put", "lost"), ("put", "501")])
    assert folder.write_new("a", b"mine", "r1")
    assert s3.server.faults.once == [] and s3.server.seen["put"] == 3
    assert folder.read_bytes("a") == b"mine"


def request_of(kind, folder, data):
    """Make a request of this kind at least; what is to be found afterwards is asserted."""
    if kind in ("range", "head"):
        with open_stream(folder.url_of("a" if kind == "range" else "empty")) as stream:
            assert stream.read() == (b"hello" if kind == "range" else b"")
        assert stat(folder.url_of("empty")).size == 0
    elif kind == "list":
        assert "l/a" in folder.list("l")
    elif kind == "put":
        folder.write_whole("p", b"put")
        assert folder.read_bytes("p") == b"put"
    elif kind == "delete":
        folder.write_whole("d", b"")
        folder.remove("d")
        assert not folder.exists("d")
    elif kind in ("uploads", "abort"):
        folder.abort_uploads(lambda url: True)
    else:
        folder.write_whole("big", data)
        assert folder.read_bytes("big") == data


@pytest.mark.parametrize(
    "kind",
    [*("range", "head", "list", "put", "delete", "begin", "part", "complete", "uploads", "abort")],
)
def test_each_fault_of_each_kind_of_request_is_overcome(s3, kind, in_parts):
    folder, data = Folder(s3.root), noise(PARTS + 9)
    for name, content in {"a": b"hello", "empty": b"", "l/a": b""}.items():
        folder.write_whole(name, content)
    for fault in FAULTS:
        if kind == "abort":
            key = f"{s3.root[12:]}/left"
            s3.direct.create_multipart_upload(Bucket="bucket", Key=key)
        s3.server.faults = Faults(once=[(kind, fault)])
        request_of(kind, folder, data)
        # An answer to HEAD has no body whose length could be wrong.
        wrong_length = kind == "head" and fault in ("long", "short")
        assert s3.server.faults.once == [] or wrong_length, f"{fault} was not met"
    if kind == "abort":
        assert s3.uploads() == []


def test_faults_at_random_change_no_byte(s3, in_parts, small_blocks):
    folder = Folder(s3.root)
    contents = {f"f/{n}": noise(size, n) for n, size in enumerate((0, 1, 999, 1000, 30_000))}
    contents["f/big"] = noise(PARTS + 100)
    s3.server.faults = Faults(share=0.1, seed=7)

    def round_trip(name):
        folder.write_whole(name, contents[name])
        with open_stream(folder.url_of(name)) as stream:
            return stream.read(50_000)

    with ThreadPoolExecutor(4) as working:
        read = list(working.map(round_trip, contents))
    assert read == [content[:50_000] for content in contents.values()]
    assert sum(s3.server.failed.values()) > 5
    s3.server.faults = Faults()
    assert s3.keys() == contents


def test_a_broken_connection_goes_on_where_it_broke(s3, small_blocks):
    folder, data = Folder(s3.root), noise(30_000)
    folder.write_whole("a", data)
    with open_stream(folder.url_of("a")) as stream:
        start = stream.read(10)
        s3.server.faults = Faults(once=[("range", "cut"), ("range", "truncated")])
        assert start + stream.read() == data
    requested = Counter(s3.server.ranges)
    blocks = [f"bytes={at}-{min(at + 3999, 29_999)}" for at in range(1000, 30_000, 4000)]
    assert set(requested) == {"bytes=0-999", *blocks}
    assert sorted(requested.values()) == [1] * 7 + [2] * 2
    assert requested["bytes=0-999"] == 1, "what was read before is not asked for again"


def test_the_next_blocks_are_on_their_way_while_one_is_read(s3, small_blocks):
    folder = Folder(s3.root)
    folder.write_whole("a", bytes(200_000))
    with open_stream(folder.url_of("a")):
        while len(s3.server.ranges) < 1 + streams.PREFETCH_BLOCKS:
            time.sleep(0.01)
    assert set(s3.server.ranges) == {
        *("bytes=0-999", "bytes=1000-4999", "bytes=5000-8999", "bytes=9000-12999")
    }


def test_a_store_that_falls_silent_is_asked_again(s3, monkeypatch):
    monkeypatch.setattr(schemes.S3_STORE, "_stores", {})
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(4, first_wait=0.005, timeout=1))
    folder, data = Folder(s3.root), noise(30_000)
    folder.write_whole("a", data)
    s3.server.faults = Faults(once=[("range", "stall")])
    assert folder.read_bytes("a") == data
    assert s3.server.faults.once == []


def test_what_would_be_met_again_is_not_tried_again(s3):
    for read in (stat, open_stream, lambda url: read_range(url, 0, 1)):
        s3.server.seen.clear()
        with pytest.raises(SourceError, match="found nothing there"):
            read(f"{s3.root}/no.tar")
        assert s3.server.seen["range"] == 1
    Folder(s3.root).write_whole("a", b"0123456789")
    with pytest.raises(SourceError, match="expected 4 bytes from byte 8 on, found 2"):
        read_range(f"{s3.root}/a", 8, 4)
    with pytest.raises(SourceError, match="expected 4 bytes from byte 80 on, found 0"):
        read_range(f"{s3.root}/a", 80, 4)


def test_a_store_without_an_answer_is_told_in_one_line(s3):
    folder = Folder(s3.root)
    folder.write_whole("a", b"1")
    s3.server.faults = Faults(always={"range": "503", "put": "reset"})
    message = r"expected an answer, found 5 attempts failed, the last one: 503 SlowDown; check the"
    for read in (stat, open_stream, lambda url: list_shards([url])):
        with pytest.raises(UnreachableError, match=message):
            read(f"{s3.root}/a")
    s3.server.faults.always["list"] = "500"
    for use in (lambda: folder.read_bytes("a"), lambda: folder.stat("a"), lambda: folder.list()):
        with pytest.raises(StorageError, match="5 attempts failed"):
            use()
    with pytest.raises(StorageError, match="5 attempts failed"):
        folder.write_whole("b", b"")


def test_an_object_that_changes_while_it_is_read_is_told(s3, small_blocks):
    folder = Folder(s3.root)
    for after in (noise(90_000, 1), noise(100, 1)):
        folder.write_whole("a", noise(90_000))
        with open_stream(folder.url_of("a")) as stream:
            stream.read(10)
            folder.write_whole("a", after)
            with pytest.raises(SourceError, match="it changed while it was read"):
                stream.read()


@pytest.mark.parametrize("pack", [bytes, zstd, gzip.compress], ids=["tar", "zstd", "gz"])
def test_a_network_that_fails_is_never_told_as_damage(s3, pack, small_blocks):
    pairs = (((f"{n}.jpg", noise(30_000, n)), (f"{n}.txt", b"text")) for n in range(20))
    members = [member for pair in pairs for member in pair]
    folder = Folder(s3.root)
    folder.write_whole("a.tar", pack(tar_of(*members)))
    [shard] = list_shards([folder.url_of("a.tar")])
    read = []
    with pytest.raises(UnreachableError, match="5 attempts failed"):
        for item in read_samples(shard, ReadSettings()):
            s3.server.faults = Faults(always={"range": "truncated"})
            read.append(item)
    assert 0 < len(read) < 40 and not any(isinstance(item, Dropped) for item in read)


def test_a_stream_that_is_left_early_ends_its_reading(s3, small_blocks):
    Folder(s3.root).write_whole("a", bytes(200_000))
    s3.server.faults = Faults(always={"range": "slow"})
    with open_stream(f"{s3.root}/a") as stream:
        assert stream.read(5) == bytes(5)
    assert s3.server.seen["range"] <= 1 + streams.PREFETCH_BLOCKS


def test_many_threads_share_a_store(s3, small_blocks):
    folder = Folder(s3.root)
    contents = {str(n): noise(20_000, n) for n in range(12)}
    for name, content in contents.items():
        folder.write_whole(name, content)

    def read(name):
        with open_stream(folder.url_of(name)) as stream:
            return stream.read()

    with ThreadPoolExecutor(12) as reading:
        assert list(reading.map(read, contents)) == list(contents.values())


class Stops(io.BytesIO):
    """A file at whose second part a signal arrives."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(noise(3 * PARTS))
        self.error, self.reads = error, 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads == 2:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(15), RuntimeError("a bug")])
def test_an_upload_that_is_interrupted_is_aborted(s3, in_parts, error):
    path = f"{s3.root[5:]}/big"
    with pytest.raises(type(error)):
        schemes.S3_STORE().upload(path, Stops(error), 3 * PARTS)
    assert s3.uploads() == [] and s3.keys() == {}
    assert s3.server.seen["abort"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(15)])
def test_a_store_that_cannot_abort_does_not_hide_a_signal(s3, in_parts, error):
    s3.server.faults = Faults(always={"abort": "500"})
    with pytest.raises(type(error)):
        schemes.S3_STORE().upload(f"{s3.root[5:]}/big", Stops(error), 3 * PARTS)
    s3.server.faults = Faults()
    assert s3.uploads() == [f"{s3.root[12:]}/big"]
    assert len(Folder(s3.root).abort_uploads(lambda url: True)) == 1


def test_an_upload_that_cannot_go_on_is_aborted(s3, in_parts):
    folder = Folder(s3.root)
    s3.server.faults = Faults(always={"part": "500"})
    with pytest.raises(StorageError, match="5 attempts failed"):
        folder.write_whole("big", noise(2 * PARTS))
    assert s3.uploads() == [] and s3.keys() == {}


def test_of_two_uploads_in_parts_of_a_new_name_one_wins(s3, in_parts):
    folder, data = Folder(s3.root), noise(PARTS + 1)
    s3.server.faults = Faults(once=[("complete", "lost")])
    assert folder.write_new("big", data, "r1")
    assert not folder.write_new("big", bytes(PARTS + 1), "r2")
    assert folder.read_bytes("big") == data
    assert s3.uploads() == []


def test_an_object_without_commit_never_was(s3):
    folder = Folder(s3.root)
    folder.write_whole("a", b"old")
    with folder.create("a", "run") as file:
        file.write(b"new")
        assert file.tell() == 3
        file.flush()
    assert file.closed
    with pytest.raises(KeyError), folder.create("a", "run") as file:
        file.write(b"new")
        raise KeyError
    assert s3.keys() == {"a": b"old"}


def test_a_large_object_waits_in_a_file_without_a_name(s3, monkeypatch, tmp_path):
    monkeypatch.setattr(uploads, "MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Folder(s3.root).create("a", "run") as file:
        file.write(bytes(5000))
        assert list(tmp_path.iterdir()) == []
        file.commit()
    assert s3.keys() == {"a": bytes(5000)}


def test_a_sweep_ends_the_uploads_of_dead_runs_alone(s3):
    prefix, folder = s3.root.removeprefix("s3://bucket/"), Folder(s3.root)
    gone = "20250101T000000-0123abcd"
    claimed = ("left-0123456789", "_x-0123456789")
    record = RunRecord(gone, "embed", "host", 1, 0.0, 0.0, state="killed", claimed=claimed)
    folder.write_whole(f"runs/{gone}.json", record.to_json())
    with Run(folder, "embed", {}) as other, Run(folder, "embed", {}) as run:
        other.claim(["held-0123456789"])
        names = ["embeddings/held-0123456789.parquet", f"index/segments/{other.id}-000/rows.arrow"]
        left = [
            *("embeddings/left-0123456789.parquet", "embeddings/s~_x-0123456789.parquet"),
            f"index/segments/{gone}-000/rows.arrow",
        ]
        foreign = [
            *("backup.parquet", "embeddings/backup.parquet", "embeddings/a/b-0123456789.parquet"),
            *("index/segments/backup/rows.arrow", f"index/segments/{gone}-000/notes.txt"),
            *("x/embeddings/left-0123456789.parquet", "index/generations/000001.json", "a.tar"),
            # By their names a shard's or a run's; but none that is known here.
            *("embeddings/events-1764360000.parquet", "logs-2026112820.tar"),
            "index/segments/20250101T000000-ffffffff-000/rows.arrow",
            "left-0123456789.tar",  # another run lives, and may write such
        ]
        for name in names + left + foreign:
            s3.direct.create_multipart_upload(Bucket="bucket", Key=f"{prefix}/{name}")
        assert run.sweep(["embeddings"]) == [folder.url_of(name) for name in left]
        assert set(s3.uploads()) == {f"{prefix}/{name}" for name in names + foreign}
    s3.direct.create_multipart_upload(Bucket="bucket", Key=f"{prefix}x/a-0123456789.tar")
    with Run(folder, "embed", {}) as run:
        run.claim(["held-0123456789"])
        assert run.sweep([]) == [folder.url_of(names[1])], (
            "what this run itself holds goes only at its end"
        )
        assert run.sweep([], own=True) == [folder.url_of(names[0])]
    with Run(folder, "relocate", {}), Run(folder, "embed", {}) as run:
        again = f"{prefix}/{left[0]}"
        s3.direct.create_multipart_upload(Bucket="bucket", Key=again)
        assert run.sweep([]) == [], "who relocates may write any shard"
    with Run(folder, "filter", {}) as run:
        assert run.sweep([]) == [folder.url_of(left[0])]
        assert run.sweep([], unclaimed=["left-0123456789"]) == [folder.url_of(foreign[-1])]
    assert set(s3.uploads()) == {
        f"{prefix}x/a-0123456789.tar",
        *(f"{prefix}/{name}" for name in foreign[:-1]),
    }


def test_a_shard_out_of_reach_is_tried_again_and_a_bad_one_is_not(s3, tmp_path):
    shard = Shard("s3://bucket/a.tar", "a-0123456789", 1, "1")
    with Run(Folder(str(tmp_path)), "embed", {}) as run:
        work = WorkList([shard], run, EmbedSettings())
        for attempt in (1, 2, 3):
            task: Task = work.take()
            record_failure(work, task, UnreachableError("a", found="no answer"), attempts=3)
            assert bool(work.quarantined) == (attempt == 3)
        message = "3 attempts failed, the last one: a: found no answer"
        assert work.quarantined == {shard.id: message}
        work = WorkList([shard], run, EmbedSettings())
        record_failure(work, work.take(), SourceError("a", found="no tar"), attempts=3)
        assert work.quarantined == {shard.id: "a: found no tar"}


def test_a_store_that_its_package_is_missing_for_says_what_to_install():
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed here")
    with pytest.raises(UsageError) as caught:
        stat("gs://bucket/a.tar")
    assert str(caught.value) == (
        "package gcsfs: expected it for gs:// URLs, found none; pip install 'chiasm[gcs]'"
    )


def test_hf_urls_name_repositories():
    with pytest.raises(UsageError, match="expected hf://bucket/key, found no bucket"):
        canonical_url("hf://")
    for name in (
        "datasets/ann/pairs@v1.0/a.tar",
        "datasets/ann/pairs@refs%2Fpr%2F1/a.tar",
        "b@1/a",
    ):
        assert canonical_url(f"hf://{name}") == f"hf://{name}"


@pytest.fixture
def memory(monkeypatch):
    """The files of a store that is any fsspec filesystem, as those of gs:// and hf:// are."""
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    monkeypatch.setattr(schemes, "GS_STORE", schemes.PerProcess(lambda: FsspecStore(filesystem)))
    monkeypatch.setitem(schemes.BACKENDS, "gs", ObjectFiles("gs", schemes.GS_STORE))
    monkeypatch.setattr(retry, "RETRIES", RetrySettings(attempts=2, first_wait=0.01))
    yield
    filesystem.store.clear()


def test_any_filesystem_of_fsspec_can_be_a_store(memory, monkeypatch, small_blocks):
    folder, data = Folder("gs://bucket/c"), noise(20_000)
    folder.write_whole("e/a", data)
    folder.write_whole("e/b", b"")
    folder.write_whole("e/f/c", b"3")
    assert folder.list("e") == ["e/a", "e/b"] and folder.folders("e") == ["e/f"]
    assert folder.write_new("n", b"1", "r") and not folder.write_new("n", b"2", "r")
    with open_stream(folder.url_of("e/a")) as stream:
        assert stream.read() == folder.read_bytes("e/a") == data
    assert stat(folder.url_of("e/a")).size == 20_000
    assert glob("gs://bucket/c/e/?") == ["gs://bucket/c/e/a", "gs://bucket/c/e/b"]
    assert is_folder("gs://bucket/c/e") and not is_folder("gs://bucket/c/e/a")
    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", 1000)
    folder.write_whole("big", data)
    assert folder.read_bytes("big") == data
    folder.remove("big")
    folder.remove("big")
    assert not folder.exists("big") and not folder.abort_uploads(lambda url: True)
    with open_stream(folder.url_of("e/a")) as stream:
        stream.read(10)
        folder.write_whole("e/a", data[::-1])
        with pytest.raises(SourceError, match="it changed while it was read"):
            stream.read()


def test_a_new_name_that_a_filesystem_put_though_no_answer_came_is_won(memory, monkeypatch):
    class PreconditionFailed(OSError):
        code = 412

    store, taken = schemes.GS_STORE(), False
    assert isinstance(store, FsspecStore)
    put = store.fs.pipe_file

    def pipe_file(path: str, data: bytes, mode: str) -> None:
        nonlocal taken
        assert mode == "create"
        if taken:
            raise PreconditionFailed
        taken = True
        put(path, data)
        raise ConnectionResetError

    monkeypatch.setattr(store.fs, "pipe_file", pipe_file)
    folder = Folder("gs://bucket/c")
    assert folder.write_new("n", b"1", "r") and not folder.write_new("n", b"2", "r")
    assert folder.read_bytes("n") == b"1"


def test_an_object_of_a_filesystem_that_knows_no_size_is_not_read_as_empty(memory, monkeypatch):
    store, folder = schemes.GS_STORE(), Folder("gs://bucket/c")
    assert isinstance(store, FsspecStore)
    folder.write_whole("n", b"1")
    info = store.fs.info
    monkeypatch.setattr(store.fs, "info", lambda path: info(path) | {"size": None})
    assert stat(folder.url_of("n")).size == -1
    with pytest.raises(SourceError, match="found an object whose size is not known"):
        open_stream(folder.url_of("n"))


def test_a_filesystem_that_refuses_a_look_is_told_in_one_line(memory, monkeypatch):
    def refuse(path: str) -> bool:
        raise PermissionError("not yours")

    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", 1000)
    store = schemes.GS_STORE()
    assert isinstance(store, FsspecStore)
    monkeypatch.setattr(store.fs, "exists", refuse)
    with pytest.raises(StorageError, match=r"gs://bucket/c/big: .* found not yours"):
        Folder("gs://bucket/c").write_new("big", bytes(2000), "r")


def test_the_wait_between_attempts_doubles_and_is_drawn():
    settings = RetrySettings(first_wait=1.0, longest_wait=5.0)
    for failed, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        waits = [settings.wait(failed) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_a_process_makes_one_store_of_a_scheme_and_a_forked_one_its_own(monkeypatch):
    made: list[object] = []
    get_store = schemes.PerProcess(lambda: made.append(object()) or made[-1])
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: get_store(), range(50)))) == 1
    monkeypatch.setattr(schemes.os, "getpid", lambda: -1)
    assert get_store() is made[1] and get_store() is made[1]
    get_store.replace(None)
    assert get_store() is made[2]
