"""Edits of a live index: add, delete, compact, roll back; beside each other and beside builds."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from crash_points import Unflushed
from once import Once
from recorded_disk import using
from tiny_collection import SHARDS, add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build import (
    ById,
    ByKey,
    add_to_index,
    compact,
    compact_index,
    delete_from_index,
    roll_back_index,
    shards_named,
)
from chiasm.index.build.compact import last_to_merge
from chiasm.index.build.stored_columns import StoredColumns
from chiasm.index.segments import (
    DELETED,
    SEGMENTS,
    TRAINED,
    FileSum,
    SegmentEntry,
    current_number,
    exact_columns,
    numbers,
    open_current,
    open_generation,
    read_manifest,
)
from chiasm.index.segments.names import CURRENT, manifest_name
from chiasm.index.verify import check
from chiasm.jobs.cli import index_edit, reports
from chiasm.jobs.cli.app import application
from chiasm.jobs.cli.status import format_index
from chiasm.jobs.status import read_status
from chiasm.pipeline.collection import Collection, embeddings, parquet_name
from chiasm.pipeline.collection.ledger import ledger_name
from chiasm.pipeline.errors import CollectionError, StaleIndexError, UsageError
from chiasm.pipeline.storage import Folder

LISTS = IndexSettings(tune=False, exact_below=1, nprobe=8, segment_rows=200)
EXACT = IndexSettings(tune=False, segment_rows=200)
NO_MERCY = IndexSettings(tune=False, exact_below=1, keep_generations=1, keep_seconds=0)
SUFFIX = "-0123456789"  # of the ids of shards


@pytest.fixture(autouse=True)
def _no_flushes() -> Iterator[None]:
    with using(Unflushed()):
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """Collections of the shards s0 (60 rows) and s1 (50), indexed by lists and exactly."""
    made: dict[str, Path] = {}
    with using(Unflushed()):
        for name, settings in (("lists", LISTS), ("exact", EXACT)):
            made[name] = tmp_path_factory.mktemp(name)
            make_collection(made[name], (60, 50))
            build_index(str(made[name]), settings=settings)
    return made


@pytest.fixture(params=["lists", "exact"])
def path(request, built, tmp_path) -> str:
    """A copy of each."""
    shutil.copytree(built[request.param], tmp_path / "c")
    return str(tmp_path / "c")


@pytest.fixture
def lists(built, tmp_path) -> str:
    shutil.copytree(built["lists"], tmp_path / "c")
    return str(tmp_path / "c")


def found(path: str, column: str = "image", seed: int = 5) -> list[list[str]]:
    """The ids of all rows, best first, for three queries."""
    index = open_collection(path, allow_stale=True)
    xq = unit_rows(np.random.default_rng(seed), 3, 8)
    _, positions = index.search_vectors(xq, max(1, len(index)), column=column)
    rows = index.rows({int(one) for one in positions.ravel() if one >= 0})
    return [[rows[int(one)].id for one in row if one >= 0] for row in positions]


def embedded(path: str, column: str = "image", seed: int = 5, without=()) -> list[list[str]]:
    """The same by numpy over the Parquet files."""
    ids, vectors = [], []
    for file in embeddings(Folder(path)):
        stored, has = file.vectors(column)
        for row in np.flatnonzero(has):
            name = f"{file.shard_id}/{row}@{file.edition}"
            if name not in without:
                ids.append(name)
                vectors.append(stored[row].astype(np.float32))
    xq = unit_rows(np.random.default_rng(seed), 3, 8)
    order = np.argsort(-(xq @ np.array(vectors).T), axis=1, kind="stable")
    return [[ids[number] for number in row] for row in order]


def ids_of(shard: str, *rows: int, edition: str = "0000000a") -> list[str]:
    return [f"{shard}{SUFFIX}/{row}@{edition}" for row in rows]


def delete(path: str, *ids: str, settings: IndexSettings = LISTS):
    return delete_from_index(path, lambda generation: ById(ids), settings=settings)


def forget(path: str, shard: str) -> None:
    for name in (parquet_name(shard), ledger_name(shard)):
        Folder(path).remove(name)


def manifest(path: str):
    generation = open_current(Folder(path))
    assert generation is not None
    return generation.manifest


def test_new_changed_and_vanished_shards(path):
    folder, plans = Folder(path), manifest(path).columns
    add_shard(folder, "s2", 30, seed=7)
    add_shard(folder, "s1", 40, seed=8, edition="0000000b")
    with pytest.raises(StaleIndexError):
        open_collection(path)
    summary = add_to_index(path, settings=LISTS)
    assert summary.counts == {"rows": 70, "new": 1, "changed": 1} and summary.rows == 130
    assert [one.retired for one in manifest(path).segments] == [(f"s1{SUFFIX}",), ()]
    forget(path, f"s0{SUFFIX}")
    summary = add_to_index(path, settings=LISTS)
    assert summary.counts == {"rows": 0, "gone": 1} and summary.rows == 70
    assert found(path) == embedded(path) and found(path, "joint") == embedded(path, "joint")
    assert manifest(path).columns == plans, "nothing is trained or planned"
    assert check(path).ok and len(open_collection(path)) == 70
    assert [len(one.retired) for one in manifest(path).segments] == [0], (
        "a segment of which nothing is left is not named any more"
    )
    assert not add_to_index(path, settings=LISTS).changed
    assert current_number(folder) == 3


def test_a_shard_that_comes_back(path):
    one, other = f"s0{SUFFIX}", Folder(path)
    before = found(path)
    names = (parquet_name(one), ledger_name(one))
    kept = [other.read_bytes(name) for name in names]
    forget(path, one)
    assert add_to_index(path, settings=LISTS).rows == 50
    for name, content in zip(names, kept, strict=True):
        other.write_whole(name, content)
    assert add_to_index(path, settings=LISTS).rows == 110
    assert found(path) == before and check(path).ok


def test_added_json_has_a_type_of_its_own(lists):
    """The catalog reads each segment by its own type, and a compaction finds a common one."""
    add_shard(Folder(lists), "s2", 5, seed=7, json_of=lambda row: f'{{"number": "n{row}", "q": 1}}')
    add_shard(Folder(lists), "s3", 5, seed=8, json_of=lambda row: None)
    add_to_index(lists, settings=LISTS)

    def metas() -> dict[str, dict]:
        index = open_collection(lists)
        rows = index.rows(range(index.generation.manifest.positions)).values()
        return {row.key: row.meta for row in rows if row.key.startswith(("s2", "s3", "s0/000001"))}

    expected = {f"s2/00000{row}": {"number": f"n{row}", "q": 1} for row in range(5)}
    expected |= {f"s3/00000{row}": {} for row in range(5)}
    assert metas() == {"s0/000001": {"number": 1, "odd": True}} | expected
    compact_index(lists, settings=IndexSettings(tune=False))
    assert metas() == {"s0/000001": {"number": "1", "odd": True}} | expected
    assert check(lists).ok


def test_empty_shards_are_covered(lists):
    add_shard(Folder(lists), "s2", 0)
    assert add_to_index(lists, settings=LISTS).counts == {"rows": 0, "new": 1}
    assert len(open_collection(lists)) == 110 and check(lists).ok
    assert not add_to_index(lists, settings=LISTS).changed
    add_shard(Folder(lists), "s2", 3, edition="0000000b")
    assert add_to_index(lists, settings=LISTS).rows == 113
    assert manifest(lists).without_rows == () and check(lists).ok
    add_shard(Folder(lists), "s2", 0, edition="0000000c")
    add_shard(Folder(lists), "s3", 2)
    assert add_to_index(lists, settings=LISTS).rows == 112, "an empty one beside another"
    assert check(lists).ok and not add_to_index(lists, settings=LISTS).changed


def test_an_add_reads_no_footer_but_those_of_new_shards(lists, monkeypatch):
    reading = sys.modules["chiasm.pipeline.collection.embeddings"]
    add_shard(Folder(lists), "s2", 5)
    real, read = reading.read_footer, list[str]()
    monkeypatch.setattr(
        reading, "read_footer", lambda folder, shard: (read.append(shard), real(folder, shard))[1]
    )
    add_to_index(lists, settings=LISTS)
    assert set(read) == {f"s2{SUFFIX}"}


def test_deleting_by_key_by_shard_and_by_id(path):
    add_shard(Folder(path), "s2", 5, seed=3)
    add_to_index(path, settings=LISTS)
    generation = open_current(Folder(path))
    assert generation is not None
    assert shards_named(generation, f"s0{SUFFIX}") == {f"s0{SUFFIX}"}
    assert shards_named(generation, str(SHARDS / "s2.tar")) == {f"s2{SUFFIX}"}
    assert shards_named(generation, "s?-*") == {f"s{n}{SUFFIX}" for n in range(3)}
    assert shards_named(generation, "s7") == frozenset()

    gone = ids_of("s0", 3, 59) + ids_of("s1", 0) + ids_of("s2", 4)
    keys = ["s0/000003", "s1/000000", "nothing"]
    summary = delete_from_index(path, lambda one: ByKey(keys))
    assert summary.counts == {"deleted": 2, "deleted_before": 0, "shards": 2, "missing": 1}
    only = frozenset({f"s0{SUFFIX}"})
    assert delete_from_index(path, lambda one: ByKey(["s0/000059"], only)).counts["deleted"] == 1
    with pytest.raises(CollectionError, match="rows of key s1/000007 in shard s0"):
        delete_from_index(path, lambda one: ByKey(["s1/000007"], only))
    counts = {"deleted": 1, "deleted_before": 3, "shards": 3, "missing": 0}
    assert delete(path, *gone).counts == counts
    assert found(path) == embedded(path, without=gone)
    again = delete(path, *gone, *ids_of("s0", 60), *ids_of("s1", 1, edition="0000000b"))
    assert not again.changed and again.counts["deleted_before"] == 4
    assert again.counts["missing"] == 2
    assert len(open_collection(path)) == again.rows == 111 and again.deleted == 4
    assert check(path).ok


def test_what_is_not_there_is_one_line_and_changes_nothing(lists):
    folder = Folder(lists)
    before = folder.folders(DELETED), folder.list("index"), current_number(folder)
    for ids in (ids_of("s0", 60), ids_of("s0", 1, edition="0000000b"), ids_of("s9", 1)):
        with pytest.raises(CollectionError) as error:
            delete(lists, *ids)
        assert f"expected rows of id {ids[0]}, found none among 110 rows" in str(error.value)
        assert "\n" not in str(error.value) and error.value.exit_code == 1
    for text in (
        "",
        "s0/1",
        "s0/1@xyz",
        "/1@0000000a",
        "s0/-1@0000000a",
        f"s0/{'1' * 12}@0000000a",
    ):
        with pytest.raises(UsageError, match=r"id 1: expected SHARD/ROW@EDITION"):
            ById([text])
    assert (folder.folders(DELETED), folder.list("index"), current_number(folder)) == before


def test_deleted_rows_stay_so_until_a_build(path):
    gone = ids_of("s0", *range(0, 60, 2)) + ids_of("s1", 7)
    delete(path, *gone)
    add_shard(Folder(path), "s2", 30, seed=7)
    add_to_index(path, settings=LISTS)
    assert found(path) == embedded(path, without=gone)
    compact_index(path, settings=LISTS)
    add_to_index(path, settings=LISTS)
    assert found(path) == embedded(path, without=gone) and check(path).ok
    assert manifest(path).deleted == 0
    delete(path, *ids_of("s0", 1), *ids_of("s2", 29))
    gone += ids_of("s0", 1) + ids_of("s2", 29)
    assert found(path) == embedded(path, without=gone), "ids are as before the compaction"
    build_index(path, settings=LISTS)
    assert found(path) == embedded(path) and manifest(path).deleted == 0


def test_compacting_leaves_every_answer_as_it_was(path):
    for number in range(2, 5):
        add_shard(Folder(path), f"s{number}", 20, seed=number, holes=0.3)
        add_to_index(path, settings=LISTS)
    gone = ids_of("s1", *range(50)) + ids_of("s3", 0, 5, 19)
    delete(path, *gone)
    index = open_collection(path)
    rows = index.rows(range(index.generation.manifest.positions))
    before = {row.id: row for row in rows.values() if row.id not in gone}
    answers = [found(path, column) for column in ("image", "text")]
    summary = compact_index(path, settings=LISTS)
    assert summary.counts == {"read": 4, "written": 1, "rows": 117, "removed": 53}
    assert summary.segments == 1 and summary.deleted == 0
    assert [found(path, column) for column in ("image", "text")] == answers
    index = open_collection(path)
    assert {row.id: row for row in index.rows(range(len(index))).values()} == before
    assert [shard.shard for shard in manifest(path).without_rows] == [f"s1{SUFFIX}"]
    assert check(path).ok and not compact_index(path, settings=LISTS).changed
    assert not add_to_index(path, settings=LISTS).changed, "the shard is covered, without rows"


def test_a_compaction_keeps_to_the_memory_of_a_build(tmp_path, monkeypatch):
    """It writes segments of as many rows as fit, and has the codes of one that it reads."""
    path = str(tmp_path / "c")
    make_collection(tmp_path / "c", (600,) * 5)
    build_index(path, settings=replace(LISTS, segment_rows=600))
    delete(path, *ids_of("s3", *range(100, 400)))
    answers, alive = found(path), []

    class Recorded(StoredColumns):
        def __init__(self, *arguments) -> None:
            assert not any(ref() for ref in alive)
            super().__init__(*arguments)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(compact, "StoredColumns", Recorded)
    small = replace(LISTS, segment_rows=10**6, build_memory_mb=1)
    most = small.rows_of_segment(manifest(path).columns)
    assert compact_index(path, settings=small).counts["read"] == len(alive) == 5
    assert [entry.rows for entry in manifest(path).segments] == [2100, 600] and 2100 <= most < 2700
    assert found(path) == answers and check(path).ok
    assert replace(small, segment_rows=9).rows_of_segment(manifest(path).columns) == 9


def test_adding_keeps_the_number_of_segments_small(path):
    entries = [SegmentEntry("", rows, FileSum(0, "")) for rows in (900, 30, 10, 10, 10, 10)]
    assert last_to_merge(entries, 1, 1000) == [1, 2, 3, 4, 5]
    assert last_to_merge(entries, 0, 1000) == last_to_merge(entries, 1, 60) == []
    assert last_to_merge(entries[:-1], 1, 1000) == [], "they are few"
    gone = ids_of("s0", 0) + ids_of("s3", 1)
    for number in range(2, 12):
        add_shard(Folder(path), f"s{number}", 5, seed=number)
        add_to_index(path, settings=LISTS)
        if number == 3:
            delete(path, *gone)
    assert len(manifest(path).segments) <= 6
    assert found(path) == embedded(path, without=gone) and check(path).ok


def test_compacting_what_is_deleted_altogether(lists):
    delete(lists, *ids_of("s0", *range(60)), *ids_of("s1", *range(50)))
    assert found(lists) == [[], [], []]
    assert compact_index(lists, settings=LISTS).segments == 0
    assert found(lists) == [[], [], []] and len(open_collection(lists)) == 0 and check(lists).ok
    add_shard(Folder(lists), "s2", 30, seed=7)
    assert add_to_index(lists, settings=LISTS).rows == 30
    assert found(lists) == [[one for one in row if one.startswith("s2")] for row in embedded(lists)]


def test_rolling_back(lists):
    folder = Folder(lists)
    delete(lists, *ids_of("s0", 1))
    delete(lists, *ids_of("s0", 2))
    assert roll_back_index(lists, settings=LISTS).counts == {"restored": 2}
    assert found(lists) == embedded(lists, without=ids_of("s0", 1)) and current_number(folder) == 4
    assert roll_back_index(lists, settings=LISTS).counts == {"restored": 1}
    assert found(lists) == embedded(lists)
    assert not roll_back_index(lists, 1, settings=LISTS).changed
    roll_back_index(lists, 3, settings=LISTS)
    assert found(lists) == embedded(lists, without=ids_of("s0", 1, 2)) and check(lists).ok
    with pytest.raises(UsageError, match="generation 9: expected one of 1, 2, 3, 4, 5, 6, found"):
        roll_back_index(lists, 9)
    roll_back_index(lists, 1, settings=LISTS)
    with pytest.raises(CollectionError, match="expected a whole generation before 1, found none"):
        roll_back_index(lists)


def test_an_edit_after_a_rollback_is_undone_like_any_other(lists):
    delete(lists, *ids_of("s0", 1))
    roll_back_index(lists, settings=LISTS)
    delete(lists, *ids_of("s0", 2))
    assert manifest(lists).restores is None
    assert roll_back_index(lists, settings=LISTS).counts == {"restored": 3}
    assert found(lists) == embedded(lists)
    delete(lists, *ids_of("s0", 3))
    assert roll_back_index(lists, 3, settings=LISTS).changed
    assert found(lists) == embedded(lists)


def test_rolling_back_again_goes_back_further_and_redoes_nothing(lists):
    """What was undone stays so: neither deletion comes back by undoing the other one."""
    add_shard(Folder(lists), "s2", 20, seed=2)
    add_to_index(lists, settings=LISTS)  # 2
    for row in (1, 2):
        delete(lists, *ids_of("s0", row))  # 3, 5
        assert roll_back_index(lists, settings=LISTS).counts["restored"] in (2, 4)  # 4, 6
    assert found(lists) == embedded(lists)
    assert roll_back_index(lists, settings=LISTS).counts == {"restored": 1}
    assert all(not one.startswith("s2") for row in found(lists) for one in row)
    with pytest.raises(CollectionError, match="expected a whole generation before 1, found none"):
        roll_back_index(lists, settings=LISTS)
    # Of a build, and where the one that was restored is not there any more: the newest before.
    build_index(lists, settings=LISTS)  # 8
    assert roll_back_index(lists, settings=LISTS).counts == {"restored": 7}
    roll_back_index(lists, 6, settings=LISTS)
    Folder(lists).remove(manifest_name(6))
    assert roll_back_index(lists, settings=LISTS).counts == {"restored": 5}


def test_no_index_and_another_encoder_are_refused(lists, tmp_path):
    make_collection(tmp_path / "bare", (5,))
    for edit in (add_to_index, compact_index, roll_back_index):
        with pytest.raises(
            CollectionError, match="expected an index, found none; run chiasm index"
        ):
            edit(str(tmp_path / "bare"))
    file = Path(lists) / "collection.json"
    identity = json.loads(file.read_text())
    file.write_text(json.dumps(identity | {"fingerprint": "0" * 32}))
    with pytest.raises(CollectionError, match="expected an index of encoder fake"):
        add_to_index(lists)
    assert current_number(Folder(lists)) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before its manifest", "after its manifest"])
@pytest.mark.parametrize("first", ["add", "delete", "compact", "rollback"])
def test_of_two_edits_at_once_none_is_dropped(lists, monkeypatch, first, after):
    """The second is made while the first is about to publish, or has not moved CURRENT yet."""
    add_shard(Folder(lists), "s2", 20, seed=2)
    add_to_index(lists, settings=LISTS)
    gone = ids_of("s2", *range(0, 20, 2))
    delete(lists, *gone)
    if first == "add":
        add_shard(Folder(lists), "s3", 20, seed=3)
        add_shard(Folder(lists), "s0", 50, seed=4, edition="0000000b")
    more = ids_of("s1", 4) + ids_of("s2", 5)
    edits = {
        "add": lambda: add_to_index(lists, settings=LISTS),
        "delete": lambda: delete(lists, *ids_of("s1", 9)),
        "compact": lambda: compact_index(lists, settings=LISTS),
        "rollback": lambda: roll_back_index(lists, 2, settings=LISTS),
    }
    hook = Once(
        monkeypatch, "write_new", "index/generations", lambda: delete(lists, *more), after=after
    )
    edits[first]()
    assert not hook.left
    gone += more
    if first == "delete":
        gone += ids_of("s1", 9)
    if first == "rollback":
        gone = more if after else []
    assert found(lists) == embedded(lists, without=gone)
    assert current_number(Folder(lists)) == numbers(Folder(lists))[-1] and check(lists).ok


def test_a_shard_that_is_retired_while_it_is_compacted(lists, monkeypatch):
    delete(lists, *ids_of("s0", *range(40)), *ids_of("s1", *range(50)))

    def change() -> None:
        add_shard(Folder(lists), "s0", 10, seed=4, edition="0000000b")
        forget(lists, f"s1{SUFFIX}")
        add_to_index(lists, settings=LISTS)

    Once(monkeypatch, "write_new", "index/generations", change)
    compact_index(lists, settings=LISTS)
    assert found(lists) == embedded(lists) and check(lists).ok
    assert manifest(lists).without_rows == ()


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
def test_a_build_and_an_edit_at_once_lose_nothing(lists, monkeypatch, method, name, after):
    """What is deleted while a build runs stays deleted, and the build's newer rows stay too; what
    was deleted before it began is there again."""
    delete(lists, *ids_of("s0", 7))
    add_shard(Folder(lists), "s2", 20, seed=2)
    gone = ids_of("s0", 8) + ids_of("s1", *range(20))

    def edit() -> None:
        delete(lists, *gone)
        if not after:
            compact_index(lists, settings=LISTS)

    hook = Once(monkeypatch, method, name, edit, after=after)
    build_index(lists, settings=LISTS)
    published_first = (method, after) != ("write_new", False)
    assert not hook.left
    assert found(lists) == embedded(lists, without=gone)
    assert check(lists).ok
    assert current_number(Folder(lists)) == numbers(Folder(lists))[-1]
    assert (manifest(lists).command == "index build") is not published_first


def test_an_edit_is_made_upon_what_answers_though_another_covers_the_shards_better_now(
    lists, monkeypatch
):
    """A build replaces the deletion that was published while it ran, as it covers more. That the
    shard which it covers is gone later does not bring the other back."""
    delete(lists, *ids_of("s0", 7))
    add_shard(Folder(lists), "s2", 20, seed=2)
    gone = ids_of("s1", 3)
    hook = Once(monkeypatch, "write_new", manifest_name(3), lambda: delete(lists, *gone))
    build_index(lists, settings=LISTS)
    assert not hook.left and manifest(lists).command == "index build"
    forget(lists, "s2" + SUFFIX)
    add_to_index(lists, settings=LISTS)
    assert found(lists) == embedded(lists, without=gone), "row 7 of s0 is there since the build"
    assert check(lists).ok


def test_an_edit_is_made_upon_a_build_that_was_killed_before_current(lists, monkeypatch):
    """Its manifest is there, so others may have seen it; the edit must not drop its rows."""
    add_shard(Folder(lists), "s2", 20, seed=2)

    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Once(patch, "write_whole", CURRENT, die)
        build_index(lists, settings=LISTS)
    assert current_number(Folder(lists)) == 1 and len(numbers(Folder(lists))) == 2
    delete(lists, *ids_of("s2", 1))
    assert found(lists) == embedded(lists, without=ids_of("s2", 1)) and check(lists).ok


def test_an_edit_that_was_killed_before_current_is_finished_by_the_next(lists, monkeypatch):
    def die() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Once(patch, "write_whole", CURRENT, die)
        delete(lists, *ids_of("s0", 1))
    assert current_number(Folder(lists)) == 1
    assert not delete(lists, *ids_of("s0", 1)).changed
    assert current_number(Folder(lists)) == 2
    assert found(lists) == embedded(lists, without=ids_of("s0", 1))


def test_files_that_a_kept_generation_names_stay(lists):
    folder = Folder(lists)
    kept = IndexSettings(tune=False, exact_below=1, keep_generations=3, keep_seconds=0)
    for row in range(4):
        delete(lists, *ids_of("s0", *range(12 * row, 12 * row + 12)), settings=kept)
    assert numbers(folder) == [3, 4, 5]
    assert len(folder.folders(DELETED)) == 3 and len(folder.folders(TRAINED)) == 1
    for number in numbers(folder):
        generation = open_generation(folder, number)
        deleted = generation.segments[0].deleted()
        assert deleted is not None and np.flatnonzero(deleted).tolist() == [
            *range(12 * (number - 1))
        ]
    roll_back_index(lists, 3, settings=NO_MERCY)
    assert numbers(folder) == [6] and len(folder.folders(DELETED)) == 1
    assert found(lists) == embedded(lists, without=ids_of("s0", *range(24))) and check(lists).ok
    compact_index(lists, settings=NO_MERCY)
    assert len(folder.folders(SEGMENTS)) == 1 and len(folder.folders(TRAINED)) == 1
    assert len(folder.folders(DELETED)) == 0 and check(lists).ok


def test_an_open_searcher_moves_on_without_a_pause(lists):
    searcher = open_collection(lists)
    xq = unit_rows(np.random.default_rng(5), 3, 8)
    before = searcher.search_vectors(xq, 110)
    view, generation = searcher.view(), searcher.generation
    assert not searcher.refresh()
    add_shard(Folder(lists), "s2", 20, seed=2)
    add_to_index(lists, settings=LISTS)
    delete(lists, *ids_of("s0", 1))
    assert searcher.refresh() and not searcher.refresh()
    assert searcher.generation.number == 3 and len(searcher) == 129
    assert searcher.generation.segments[0]._files is generation.segments[0]._files, "mapped once"
    assert searcher.column("image").trained is generation.opened["image"].trained
    for folder in (SEGMENTS, DELETED, TRAINED):
        shutil.rmtree(Path(lists) / folder)
    _, positions = searcher.search_vectors(xq, 129)
    rows = searcher.rows(positions.ravel().tolist())
    ids = [[rows[one].id for one in row] for row in positions.tolist()]
    assert ids == embedded(lists, without=ids_of("s0", 1)), "all that it needs is open"
    again = view.search_vectors(xq, 110)
    assert all(map(np.array_equal, again, before)), "queries under way keep their generation"
    assert not view.refresh() and not view.reopen(view.generation)


def test_a_searcher_whose_files_were_swept_goes_on(lists):
    searcher = open_collection(lists)
    xq = unit_rows(np.random.default_rng(5), 3, 8)
    delete(lists, *ids_of("s0", *range(40)), settings=NO_MERCY)
    compact_index(lists, settings=NO_MERCY)
    _, positions = searcher.search_vectors(xq, 70, column="text")
    assert searcher.generation.number == 3
    rows = searcher.rows(positions.ravel().tolist())
    ids = [[rows[one].id for one in row] for row in positions.tolist()]
    assert ids == embedded(lists, "text", without=ids_of("s0", *range(40)))


def test_a_searcher_goes_on_where_what_its_segments_share_was_swept(lists):
    searcher = open_collection(lists)
    xq = unit_rows(np.random.default_rng(5), 3, 8)
    build_index(lists, settings=NO_MERCY)
    assert (searcher.search_vectors(xq, 110)[1] >= 0).all() and searcher.generation.number == 2


def test_check_knows_deletions_and_retired_shards(lists):
    add_shard(Folder(lists), "s1", 40, seed=8, edition="0000000b")
    add_to_index(lists, settings=LISTS)
    delete(lists, *ids_of("s0", 1))
    assert check(lists).ok
    number = current_number(Folder(lists))
    assert number is not None
    file = Path(lists) / manifest_name(number)
    text = file.read_text()
    entry = read_manifest(Folder(lists), number).segments[0]
    assert entry.deletions is not None

    def findings(change: dict) -> str:
        fields = json.loads(text)
        fields["segments"][0] |= change
        file.write_text(json.dumps(fields))
        return " ".join(map(str, check(lists).findings))

    assert "s1-0123456789 is in 2 segments" in findings({"retired": []})
    assert f"shard s0{SUFFIX} are found, though it is retired" in findings(
        {"retired": [f"s0{SUFFIX}", f"s1{SUFFIX}"]}
    )
    assert "expected 7 deleted of 110 rows, found 51" in findings(
        {"deletions": asdict(entry.deletions) | {"rows": 7}}
    )
    file.write_text(text)
    bits = Path(lists) / entry.deletions.file
    bits.write_bytes(bytes(len(bits.read_bytes())))
    assert "expected checksum" in " ".join(map(str, check(lists).findings))
    bits.unlink()
    assert "missing" in " ".join(map(str, check(lists).findings))


def test_rows_unlike_those_of_the_build_are_noticed(lists):
    add_shard(Folder(lists), "s2", 200, seed=2)
    summary = add_to_index(lists, settings=LISTS)
    assert summary.drift["image"].rows == 200
    assert all(one.share < 0.1 for one in summary.drift.values())
    opposite = -np.repeat(unit_rows(np.random.default_rng(3), 1, 8), 200, axis=0)
    limit = summary.drift["image"].limit
    add_shard(Folder(lists), "s3", 200, seed=3, vectors=3 * opposite)
    summary = add_to_index(lists, settings=LISTS)
    image = summary.drift["image"]
    assert (image.limit, image.rows) == (limit, 400) and image.share > 0.5
    lines = index_edit.drift_lines(summary.drift)
    assert lines[0].startswith("image: 5"), lines
    delete(lists, *ids_of("s0", 0))
    index = read_status(lists).index
    assert index.deleted == 1 and index.drift["image"] > 0.5
    line = format_index(index)
    assert "509 rows (1 deleted)" in line and "drift of added rows image 5" in line
    build_index(lists, settings=LISTS)
    assert read_status(lists).index.drift == {} and manifest(lists).drift == {}


def test_an_add_names_the_shards_that_it_cannot_read(lists, tmp_path, capsys):
    """It adds all others, leaves what the index has of these, and fails."""
    before = len(found(lists)[0])
    folder = tmp_path / "c/embeddings"
    (old,) = folder.glob("s1-*.parquet")
    whole = old.read_bytes()
    old.write_bytes(whole[:-9])
    add_shard(Folder(lists), "s2", 20, seed=2)
    add_shard(Folder(lists), "s3", 20, seed=3)
    (new,) = folder.glob("s3-*.parquet")
    new.write_bytes(b"PAR1")
    for added, line in (
        (20, "20 rows added, of shards: 1 new; "),
        (20, "nothing to do, the index covers all other shards; "),
    ):
        with pytest.raises(CollectionError, match=r"^index add: .* found 2 that cannot, named ab"):
            index_edit.add(lists)
        printed = capsys.readouterr()
        assert line in printed.out and len(found(lists)[0]) == before + added
        assert [line.split(":")[0] for line in printed.err.splitlines() if "damaged" in line] == [
            f"damaged shard {old.stem}",
            f"damaged shard {new.stem}",
        ]
        assert printed.err.count("expected a whole Parquet file, found ") == 2
    with pytest.raises(CollectionError):
        index_edit.add(lists, as_json=True)
    stems = {old.stem, new.stem}
    assert json.loads(capsys.readouterr().out)["damaged"].keys() == stems
    with pytest.raises(StaleIndexError, match="shards: 2 damaged"):
        open_collection(lists)
    old.write_bytes(whole)
    new.unlink()
    assert add_to_index(lists).damaged == {}


def test_the_commands(lists, tmp_path, capsys, monkeypatch):
    def printed(command, *arguments, **options) -> str:
        command(lists, *arguments, **options)
        return capsys.readouterr().out.strip()

    add_shard(Folder(lists), "s2", 20, seed=2)
    line = printed(index_edit.add)
    assert line.startswith("generation 2 is live: 20 rows added, of shards: 1 new; 130 rows in 2")
    assert "generation 2 is live: nothing to do, the index covers all" in printed(index_edit.add)
    line = printed(index_edit.delete, ["s0/000001"], f"s0{SUFFIX}")
    assert "generation 3 is live: 1 rows deleted in 1 shards; 129 rows in 2 segments" in line
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(["", *ids_of("s0", *range(40)), ""]))
    line = printed(index_edit.delete, ids_from=str(file))
    assert "39 rows deleted in 1 shards (1 were before); 90 rows" in line
    line = printed(index_edit.delete, ["s0/000001", "nowhere", "nothing"])
    assert "nothing to do, 1 rows were deleted before, 2 not found" in line
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    line = printed(index_edit.compact)
    assert "2 segments written as 1, 40 deleted rows removed" in line
    assert "generation 6 is live: it is generation 3 again" in printed(index_edit.rollback, 3)
    lines = printed(index_edit.status).splitlines()
    assert lines[2] == "       3  index delete of 2: 129 rows (1 deleted), 2 segments"
    assert lines[5] == "*      6  index rollback to 3: 129 rows (1 deleted), 2 segments"
    assert sum("of 20 added rows are farther" in line for line in lines[6:]) == 3
    listing = json.loads(printed(index_edit.status, as_json=True))["generations"]
    assert [one["number"] for one in listing if one["live"]] == [6]
    refused = [
        ({}, "expected one of --key, --ids-from, --where, found none of them"),
        ({"key": ["a"], "ids_from": "b"}, "found --key and --ids-from"),
        ({"where": ["meta.nothing = 1"]}, "meta.nothing"),
        ({"shard": "a", "ids_from": str(file)}, "expected it beside --key"),
        ({"key": ["a"], "shard": "nowhere"}, "expected an id, path, URL or glob of indexed shards"),
        ({"ids_from": str(tmp_path / "none")}, "expected a file of ids, found No such file"),
        ({"ids_from": str(empty)}, "expected ids, one a line, found none"),
    ]
    for options, message in refused:
        with pytest.raises(UsageError, match=message):
            index_edit.delete(lists, **options)
    assert Collection.open(lists) and current_number(Folder(lists)) == 6
    where = "meta.number BETWEEN 10 AND 19 AND key LIKE 's0/%'"
    line = printed(index_edit.delete, where=[where])
    assert "generation 7 is live: 10 rows deleted in 1 shards" in line
    with pytest.raises(CollectionError, match=r"rows of the filter .*, found none among 119 rows"):
        index_edit.delete(lists, where=["meta.number > 10000"])


def test_an_exact_column_that_has_grown_is_named_with_what_to_do(tmp_path, capsys, monkeypatch):
    path = str(tmp_path / "c")
    make_collection(tmp_path / "c", (30,), holes=0.2)
    build_index(path)
    vectors = exact_columns(open_current(Folder(path)))
    assert max(vectors.values()) < 50
    few = ["index.exact_below=50"]
    index_edit.add(path, assignments=few)
    assert "exact, of" not in capsys.readouterr().out
    add_shard(Folder(path), "s1", 40, seed=1)
    index_edit.add(path, assignments=few)
    line = f"chiasm index build {path} tries faster plans from 50 rows on"
    says = [one for one in capsys.readouterr().out.splitlines() if line in one]
    rows = vectors["image"] + 40
    assert says[0] == f"  image: exact, of {rows} rows, all of which a query scans; {line}"
    index_edit.status(path)
    assert "exact, of" not in capsys.readouterr().out  # below 10,000
    monkeypatch.setattr(reports.exact_lines, "__defaults__", (50,))
    index_edit.status(path)
    assert says[0] in capsys.readouterr().out.splitlines()


def test_help_says_of_a_running_ray_what_a_build_does_without_one(capsys):
    with pytest.raises(SystemExit):
        application()(["index", "build", "--help"], prog_name="chiasm")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "(default: none, this process does; with workers.count above 1, one started here)" in text
    )
