"""Publishing and sweeping: which generation stays live, what is removed, what is never touched."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from counting_store import CountingStore
from once import Once
from tiny_collection import add_shard, make_collection

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.segments import (
    SEGMENTS,
    TRAINED,
    FileSum,
    Manifest,
    current_number,
    deleted_file,
    numbers,
    open_current,
)
from chiasm.index.segments.generations import read_if_there
from chiasm.index.segments.names import CURRENT, GENERATIONS, replaced_name
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.verify import check
from chiasm.pipeline.collection import Run, runs
from chiasm.pipeline.collection.ledger import read_or_none
from chiasm.pipeline.collection.run_record import mark_name, run_of_record
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, LocalFiles, schemes
from chiasm.pipeline.storage.disk import Disk

NO_MERCY = IndexSettings(keep_generations=1, keep_seconds=0)
CELLS = IndexSettings(tune=False, exact_below=1)
DEAD = "20260101T000000-00000000"  # a run that has left no record


def below(path: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def on_disk(folder: Folder) -> list[str]:
    return folder.folders(SEGMENTS) + folder.folders(TRAINED)


@pytest.mark.parametrize(
    ("method", "name", "after"),
    [
        ("write_new", "index/generations", False),
        ("write_new", "index/generations", True),
        ("write_whole", CURRENT, False),
        ("write_whole", CURRENT, True),
    ],
    ids=["before its manifest", "after its manifest", "before CURRENT", "after CURRENT"],
)
def test_of_two_builds_the_one_that_covers_more_stays_live(
    tmp_path, monkeypatch, method, name, after
):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))

    def overtake() -> None:
        add_shard(folder, "s1", 30)
        assert build_index(str(tmp_path)).rows == 50

    Once(monkeypatch, method, name, overtake, after=after)
    summary = build_index(str(tmp_path))
    assert summary.generation == current_number(folder)
    assert len(open_collection(tmp_path)) == 50
    build_index(str(tmp_path), settings=NO_MERCY)
    assert len(on_disk(folder)) == 1 and check(str(tmp_path)).ok


def test_a_generation_is_kept_while_its_build_may_point_current_at_it(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))

    def overtake() -> None:
        assert build_index(str(tmp_path), settings=NO_MERCY).generation == 3
        assert 2 in numbers(folder)

    Once(monkeypatch, "write_whole", CURRENT, overtake)
    build_index(str(tmp_path))
    assert current_number(folder) in numbers(folder) and len(open_collection(tmp_path)) == 20


def test_a_generation_is_kept_from_when_it_was_last_live(tmp_path, monkeypatch):
    """A sweep may have marked it before it was live, while its build stood still."""
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))

    def mark() -> None:
        folder.write_whole(replaced_name(1), b"")
        os.utime(tmp_path / replaced_name(1), (1e9, 1e9))

    Once(monkeypatch, "write_new", "index/generations", mark)
    build_index(str(tmp_path), settings=IndexSettings(keep_generations=1))
    assert numbers(folder) == [1, 2]


def test_a_build_of_other_columns_replaces_the_one_before(tmp_path):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    assert build_index(str(tmp_path), columns=["text"]).generation == 2
    assert [*open_collection(tmp_path).generation.manifest.columns] == ["text"]


@pytest.mark.parametrize("after", [False, True], ids=["before its manifest", "after its manifest"])
def test_a_build_whose_segments_were_swept_fails_and_leaves_current_alone(
    tmp_path, monkeypatch, after
):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    (live,) = on_disk(folder)

    def swept() -> None:
        for name in set(folder.folders(SEGMENTS)) - {live}:
            folder.remove(f"{name}/rows.arrow")

    Once(monkeypatch, "write_new", "index/generations", swept, after=after)
    with pytest.raises(CollectionError) as error:
        build_index(str(tmp_path))
    assert "expected the segments that this build has written, found" in str(error.value)
    assert "\n" not in str(error.value) and current_number(folder) == 1
    assert len(open_collection(tmp_path)) == 20
    assert build_index(str(tmp_path), settings=NO_MERCY).generation == current_number(folder)
    assert len(on_disk(folder)) == 1


def test_nothing_is_removed_through_a_link(tmp_path, caplog):
    collection, precious = tmp_path / "c", tmp_path / "precious"
    make_collection(collection, (20,))
    (collection / SEGMENTS).mkdir(parents=True)
    (collection / TRAINED).mkdir()
    precious.mkdir()
    for name in ("id_ed25519", "rows.arrow", "segment.json", "image.lists", ".x.txt~2.tmp"):
        (precious / name).write_text("precious")
    links = [collection / SEGMENTS / f"{DEAD}-000", collection / TRAINED / DEAD]
    for link in links:
        link.symlink_to(precious)
    before = below(precious)
    for _ in range(2):
        build_index(str(collection), settings=NO_MERCY)
    assert below(precious) == before and all(link.is_symlink() for link in links)
    assert "a symbolic link in the path" in caplog.text


class FullDisk(Disk):
    """A disk without room as long as some files are there."""

    def __init__(self, *files: Path) -> None:
        self.files = files

    def create(self, path: str) -> io.FileIO:
        if any(file.exists() for file in self.files):
            raise OSError(errno.ENOSPC, "no space left", path)
        return super().create(path)


def test_a_disk_that_dead_runs_have_filled_is_swept_before_the_record_is_written(
    tmp_path, monkeypatch
):
    make_collection(tmp_path, (20,))
    left = [f"{SEGMENTS}/{DEAD}-000/rows.arrow", f"embeddings/.a.parquet.{DEAD}~0a0a0a0a.tmp"]
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    disk = FullDisk(*(tmp_path / name for name in left))
    monkeypatch.setitem(schemes.BACKENDS, "file", LocalFiles(disk))
    assert build_index(str(tmp_path)).rows == 20
    disk.files = (tmp_path / "CURRENT",)
    (tmp_path / "CURRENT").touch()
    with pytest.raises(StorageError, match="no space left on the disk; free some"):
        build_index(str(tmp_path))


def test_a_sweep_that_fails_after_publishing_fails_no_build(tmp_path, monkeypatch, caplog):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    real = Folder.write_whole

    def full(self: Folder, name: str, data: bytes, run_id: str = "") -> None:
        if name.endswith(".replaced"):
            raise StorageError(name, found="no space left on the disk")
        real(self, name, data, run_id)

    monkeypatch.setattr(Folder, "write_whole", full)
    assert build_index(str(tmp_path)).generation == current_number(Folder(str(tmp_path))) == 2
    assert "left for the next build to remove" in caplog.text
    assert [record.state for record in runs(Folder(str(tmp_path)))] == ["done", "done"]


def test_a_link_that_leads_back_to_itself_stops_nobody(tmp_path):
    make_collection(tmp_path, (20,))
    for folder in ("", "runs", "embeddings", "ledger", "index", SEGMENTS, GENERATIONS):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "loop").symlink_to("loop")
    build_index(str(tmp_path))
    assert len(open_collection(tmp_path)) == 20 and check(str(tmp_path)).ok


def test_an_index_made_anew_under_the_same_number_is_opened(tmp_path):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    searcher = open_collection(tmp_path)
    before = searcher.generation
    shutil.rmtree(tmp_path / "index")
    build_index(str(tmp_path))
    assert searcher.reopen(before) and searcher.generation is not before
    assert searcher.generation.number == before.number == 1


def test_only_names_that_chiasm_writes_are_removed(tmp_path):
    make_collection(tmp_path, (20,))
    foreign = [
        *(f"{SEGMENTS}/{name}/rows.arrow" for name in ("backup", f"{DEAD}-000 (copy)", DEAD)),
        *(f"{TRAINED}/{name}/image.safetensors" for name in ("backup", f"{DEAD}-000")),
        *(f"{SEGMENTS}/{DEAD}-001/{name}" for name in ("notes.txt", "backup.lists", "notes.f16")),
        f"{SEGMENTS}/{DEAD}-001/.x.txt~2.tmp",
        *("index/.report.txt~1.tmp", "runs/.report.txt~1.tmp"),
        "index/generations/000001.json.bak",
        "index/generations/7.json",
        "index/generations/000000.replaced",
    ]
    ours = [f"{SEGMENTS}/{DEAD}-001/rows.arrow", f"{SEGMENTS}/{DEAD}-002/image.f16"]
    for name in foreign + ours:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("precious")
    build_index(str(tmp_path), settings=NO_MERCY)
    assert [name for name in foreign if not (tmp_path / name).is_file()] == []
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert not (tmp_path / f"{SEGMENTS}/{DEAD}-002").exists()


@pytest.mark.parametrize("fails", [StorageError("disk", found="full"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(tmp_path, fails):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20, 30))
    settings = IndexSettings(tune=False, exact_below=1, segment_rows=20)

    def fail(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("fill", 50):  # one segment is whole, one is half-written
            raise fails

    with pytest.raises(type(fails)):
        build_index(str(tmp_path), settings=settings, progress=fail)
    assert on_disk(folder) == [] and folder.list("index") == []


def test_what_a_killed_build_left_is_removed_before_the_next_one_needs_the_room(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    left = [f"{SEGMENTS}/{DEAD}-000/image.f16", f"{TRAINED}/{DEAD}/image.safetensors"]
    for name in left:
        folder.write_whole(name, b"left")
    seen: list[bool] = []
    build_index(str(tmp_path), progress=lambda *step: seen.append(any(map(folder.exists, left))))
    assert seen and not any(seen)


def test_a_generation_is_kept_from_when_it_was_replaced_not_from_when_it_was_made(tmp_path):
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    settings = IndexSettings(keep_generations=1, keep_seconds=3600)
    build_index(str(tmp_path), settings=settings)
    manifest = tmp_path / "index/generations/000001.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(fields | {"created": 0.0}))
    os.utime(manifest, (0, 0))
    for _ in range(3):
        build_index(str(tmp_path), settings=settings)
    assert numbers(folder) == [1, 2, 3, 4] and len(on_disk(folder)) == 4
    # CURRENT is put 3,600 s by the store's clock after generation 2 was found replaced.
    replaced = tmp_path / replaced_name(2)
    os.utime(replaced, (replaced.stat().st_mtime - 3600,) * 2)
    build_index(str(tmp_path), settings=settings)
    assert numbers(folder) == [1, 3, 4, 5] and len(on_disk(folder)) == 4
    assert not replaced.exists() and not (tmp_path / replaced_name(5)).exists()


def test_an_open_searcher_answers_from_the_live_generation_when_its_own_is_swept(tmp_path):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    searcher = open_collection(tmp_path)
    text, image = (Query(vector=np.ones(8), column=column) for column in ("text", "image"))
    before = searcher.search_many([text])[0].results
    for _ in range(2):
        add_shard(Folder(str(tmp_path)), "s1", 30)
        build_index(str(tmp_path), settings=NO_MERCY)
    assert searcher.search_many([text])[0].results == before, "mapped already"
    answer = searcher.search_many([image])[0]
    assert answer.results == open_collection(tmp_path).search_many([image])[0].results
    assert len(searcher) == 50 and searcher.generation.number == 3


def test_a_searcher_whose_files_are_gone_without_another_generation_says_so(tmp_path):
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    searcher = open_collection(tmp_path)
    (file,) = tmp_path.glob(f"{SEGMENTS}/*/image.f16")
    file.unlink()
    with pytest.raises(CollectionError, match=r"image\.f16: expected a file of the index"):
        searcher.search_many([Query(vector=np.ones(8))])


def test_opening_waits_no_longer_for_many_segments(tmp_path):
    make_collection(tmp_path, (4,) * 7)
    build_index(str(tmp_path), columns=["image"], settings=IndexSettings(segment_rows=4))
    store = CountingStore()
    for name, content in below(tmp_path).items():
        store.keep(f"bucket/c/{Path(name).relative_to(tmp_path)}", content)
    generation = open_current(store.folder())
    assert generation is not None and len(generation.segments) == 7
    assert store.rounds == 2, "CURRENT with the manifest, and all that is asked of segments at once"
    assert store.total == 1 + 1 + 2 * 7


@pytest.mark.parametrize("read", [read_if_there, read_or_none])
def test_a_file_that_is_put_while_it_is_looked_for_is_read(monkeypatch, read):
    folder = CountingStore().folder()
    Once(monkeypatch, "exists", "a", lambda: folder.write_whole("a", b"content"))
    assert read(folder, "a") == b"content"
    assert read(folder, "b") is None


def test_deleted_positions_are_not_found(tmp_path):
    vectors = make_collection(tmp_path, (200,))["image"]
    xq = np.ones(8, np.float32)
    best = np.argsort(-(vectors @ xq), kind="stable")
    for settings in (IndexSettings(), CELLS):
        number = build_index(str(tmp_path), columns=["image"], settings=settings).generation
        manifest = tmp_path / f"index/generations/{number:06d}.json"
        fields = json.loads(manifest.read_text())
        segment = fields["segments"][0]["id"]
        deleted = np.zeros(200, bool)
        deleted[best[:150:2]] = True
        bits = np.packbits(deleted, bitorder="little").tobytes()
        name = deleted_file(DEAD, segment)
        Folder(str(tmp_path)).write_whole(name, bits)
        checksum = asdict(FileSum.of(bits))
        deletions = {"rows": 75, "file": name, "checksum": checksum}
        fields["segments"][0]["deletions"] = deletions
        manifest.write_text(json.dumps(fields))
        found = open_collection(tmp_path).search_many([Query(vector=xq, k=200, nprobe=1)])[0]
        assert len(found) == 125
        left = [*best[1:150:2], *best[150:]]
        assert [int(row.key[-6:]) for row in found] == [int(row) for row in left]


DELETIONS = {
    "rows": 1,
    "file": deleted_file(DEAD, f"{DEAD}-000"),
    "checksum": {"size": 1, "blake2b": "0" * 32},
}
HOSTILE = {
    "an id that leads out": {"segments": [{"id": "../../x"}]},
    "an id of another kind": {"segments": [{"id": f"{DEAD}-000/../../x"}]},
    "rows that are text": {"segments": [{"rows": "many"}]},
    "rows below 0": {"segments": [{"rows": -20}]},
    "other rows than the segment's": {"segments": [{"rows": 21}]},
    "a size below 0": {"segments": [{"checksum": {"size": -1}}]},
    "a checksum that is a path": {"segments": [{"checksum": {"blake2b": "../../x"}}]},
    "deletions that are no object": {"segments": [{"deletions": 7}]},
    "deletions that lead out": {"segments": [{"deletions": DELETIONS | {"file": "../../x.bits"}}]},
    "more deletions than rows": {"segments": [{"deletions": DELETIONS | {"rows": 21}}]},
    "a list without what it shares": {"trained": None},
    "a trained index that leads out": {"trained": {"image": {"file": "index/trained/../../x"}}},
    "a trained index of another name": {"trained": {"image": {"file": "collection.json"}}},
    "columns that are a list": {"columns": []},
    "a column that no segment has": {"columns": {"joint2": {}}},
    "lists below 0": {"columns": {"image": {"lists": -1}}},
    "a family that is none": {"columns": {"image": {"family": "tree"}}},
    "codes that are none": {"columns": {"image": {"codes": "PQ8"}}},
    "another width": {"dim": 3},
    "a newer schema": {"schema": 3},
}


def merged(old, new):
    """`old` with the values of `new` in their places."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: merged(old.get(name), value) for name, value in new.items()}
    if isinstance(old, list) and isinstance(new, list) and new:
        return [merged(one, other) for one, other in zip(old, new, strict=True)]
    return new


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A collection with an index; tests that change it take a copy, or change it back."""
    path = tmp_path_factory.mktemp("publish")
    make_collection(path, (20,))
    build_index(str(path), settings=CELLS)
    return path


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_one_line(made, change):
    manifest = made / "index/generations/000001.json"
    content = manifest.read_bytes()
    manifest.write_text(json.dumps(merged(json.loads(content), change)))
    try:
        with pytest.raises(CollectionError) as error:
            open_collection(made)
    finally:
        manifest.write_bytes(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["an id that leads out", "a trained index that leads out"])
def test_a_hostile_manifest_leads_nowhere(made, tmp_path, change):
    shutil.copytree(made, tmp_path / "c")
    precious = tmp_path / "x"
    precious.mkdir()
    (precious / "rows.arrow").write_text("precious")
    manifest = tmp_path / "c/index/generations/000001.json"
    manifest.write_text(json.dumps(merged(json.loads(manifest.read_text()), HOSTILE[change])))
    assert not check(str(tmp_path / "c")).ok
    for _ in range(2):
        build_index(str(tmp_path / "c"), settings=NO_MERCY)
    assert (precious / "rows.arrow").exists() and len(open_collection(tmp_path / "c")) == 20


HOSTILE_SEGMENTS = [
    {"id": "../x"},
    {"rows": 10**12},
    {"rows": -1},
    {"dim": 3},
    {"vectors": {"image": -1}},
    {"vectors": {"../x": 20}},
    {"files": {"../../x": {"size": 1, "blake2b": "0" * 32}}},
    {"files": {"image.f16": {"size": -320}}},
    {"shards": []},
    {"schema": 9},
]


@pytest.mark.parametrize("change", HOSTILE_SEGMENTS, ids=map(str, HOSTILE_SEGMENTS))
def test_a_hostile_segment_is_one_line(made, change):
    (file,) = made.glob(f"{SEGMENTS}/*/segment.json")
    content = json.dumps(merged(json.loads(file.read_text()), change)).encode()
    with pytest.raises(CollectionError) as error:
        SegmentRecord.from_json(content, Folder(str(made)), "index/segments/x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"\xff\xfe", b"null", b""])
def test_a_manifest_that_is_no_object_is_one_line(made, content):
    with pytest.raises(CollectionError, match="expected a generation, found"):
        Manifest.from_json(content, Folder(str(made)), "index/generations/000001.json")


@pytest.mark.parametrize("content", [b"-1", b"1" * 5000, b"1e3", "\u0661".encode(), b"1 2"])
def test_a_current_that_is_no_number_is_one_line(made, content):
    current = made / CURRENT
    before = current.read_bytes()
    current.write_bytes(content)
    try:
        with pytest.raises(CollectionError, match="expected a generation's number, found"):
            current_number(Folder(str(made)))
    finally:
        current.write_bytes(before)


def test_a_build_that_another_run_has_found_dead_leaves_current_alone(tmp_path, monkeypatch):
    """Its segments may be swept at this moment: it looks for a mark before it goes on."""
    folder = Folder(str(tmp_path))
    make_collection(tmp_path, (20,))
    build_index(str(tmp_path))
    monkeypatch.setattr(sys.modules[Run.__module__], "LAPSE_SECONDS", 0.0)

    def found_dead() -> None:
        (name,) = {name for name in folder.list("runs") if b'"running"' in folder.read_bytes(name)}
        folder.write_whole(mark_name(run_of_record(name)), b"")

    Once(monkeypatch, "write_new", "index/generations", found_dead, after=True)
    with pytest.raises(CollectionError, match="another run that has taken over its work"):
        build_index(str(tmp_path))
    assert current_number(folder) == 1 and len(open_collection(tmp_path)) == 20
