"""Codes in memory after edits: what is the same is shared, answers are those of a fresh opening."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from crash_points import Unflushed
from recorded_disk import using
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build import ByKey, add_to_index, compact_index, delete_from_index
from chiasm.index.query import filter_plan
from chiasm.index.query.code_scan import CodeScan
from chiasm.index.query.fast_scan import FastScan
from chiasm.pipeline.storage import Folder

SETTINGS = IndexSettings(tune=False, exact_below=1, nprobe=4, segment_rows=200)
DIM = 8


@pytest.fixture(autouse=True)
def _no_flushes() -> Iterator[None]:
    with using(Unflushed()):
        yield


@pytest.fixture
def path(tmp_path) -> str:
    """150 rows in one segment, indexed by lists."""
    make_collection(tmp_path / "c", (90, 60), dim=DIM)
    build_index(str(tmp_path / "c"), columns=["image"], settings=SETTINGS)
    return str(tmp_path / "c")


def add(path: str, name: str, rows: int) -> None:
    vectors = unit_rows(np.random.default_rng(sum(name.encode())), rows, DIM)
    add_shard(Folder(path), name, rows, dim=DIM, vectors=vectors)
    add_to_index(path, settings=SETTINGS)


def delete(path: str, *keys: str) -> None:
    delete_from_index(path, lambda generation: ByKey(keys), settings=SETTINGS)


def scans(searcher) -> list:
    return [one.scan for one in searcher.column("image").merged]


def check_answers(searcher, path: str) -> None:
    """Equal to a fresh opening's and to numpy's, without a filter and with two."""
    fresh = open_collection(path, allow_stale=True)
    assert len(searcher) == len(fresh)
    xq = unit_rows(np.random.default_rng(1), 5, DIM)
    lists = searcher.column("image").plan.lists
    searcher.column("image").open()
    rows = np.concatenate([segment.raw("image").take(slice(None)) for segment in searcher.segments])
    gone = np.concatenate(
        [
            np.zeros(len(one), bool) if one.deleted() is None else one.deleted()
            for one in searcher.segments
        ]
    )
    found = [scan.codes.rows for scan in scans(searcher)]
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.flatnonzero(~gone))
    for where in (None, "key LIKE '%7'", "key NOT LIKE '%7'"):
        found = searcher.search_vectors(xq, 12, where, nprobe=lists)
        for one, other in zip(
            found, fresh.search_vectors(xq, 12, where, nprobe=lists), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        passes = ~gone
        if where is not None:
            passes &= np.concatenate(searcher.allowed(where))
        exact = np.where(passes, xq @ rows.astype(np.float32).T, -np.inf)
        best = -np.sort(-exact, axis=1)[:, :12]
        np.testing.assert_allclose(found[0], best, atol=1e-6)


@pytest.fixture(params=["copies", "selectors"])
def ways(request, monkeypatch) -> None:
    """Filtered searches by lists: of a copy of the codes that pass, and of a bitmap."""
    monkeypatch.setattr(filter_plan, "ALWAYS_EXACT", 0)
    monkeypatch.setattr(filter_plan, "MULTIPLY", 1e6)
    if request.param == "selectors":
        monkeypatch.setattr(filter_plan, "SUBSET_BYTES", 0)


def test_what_was_added_is_merged_alone(path, ways):
    searcher = open_collection(path)
    check_answers(searcher, path)
    (base,) = scans(searcher)
    add(path, "s5", 10)
    assert searcher.refresh()
    first, last = scans(searcher)
    assert first is base and len(last) == 10
    assert type(first) is FastScan and type(last) is CodeScan
    check_answers(searcher, path)
    add(path, "s6", 7)
    assert searcher.refresh()
    first, newer = scans(searcher)
    assert first is base and len(newer) == 17
    check_answers(searcher, path)
    assert len(last) == 10, "readers of the generation before keep theirs"


def test_small_segments_that_edits_merge_on_disk_do_not_have_all_codes_read_again(path):
    add(path, "s5", 2)
    searcher = open_collection(path)
    check_answers(searcher, path)
    assert [*map(len, scans(searcher))] == [152], "at first there is one part"
    bases = []
    for number in range(12):
        add(path, f"t{number}", 2)
        assert searcher.refresh()
        bases.append(scans(searcher)[0])
        check_answers(searcher, path)
    assert len(searcher.segments) < 8, "some were merged on disk"
    assert len({*map(id, bases)}) == 2 and len(bases[-1]) == 150


def test_many_added_rows_are_merged_with_the_others(path):
    searcher = open_collection(path)
    check_answers(searcher, path)
    add(path, "s5", 2500)  # some hundred a list: beyond what numpy keeps of freed arrays
    assert searcher.refresh() and [len(one) for one in scans(searcher)] == [2650]
    check_answers(searcher, path)


def test_deleted_rows_are_not_in_memory(path, ways):
    searcher = open_collection(path)
    check_answers(searcher, path)
    add(path, "s5", 10)
    assert searcher.refresh()
    base, _ = scans(searcher)
    delete(path, "s5/000003", "s5/000007")
    assert searcher.refresh()
    first, last = scans(searcher)
    assert first is base and len(last) == 8
    check_answers(searcher, path)
    delete(path, "s0/000007", "s1/000000")
    assert searcher.refresh()
    assert sum(map(len, scans(searcher))) == 156
    check_answers(searcher, path)
    delete(path, *(f"s{shard}/{row:06d}" for shard in (0, 1, 5) for row in range(1, 90) if row % 9))
    assert searcher.refresh()
    check_answers(searcher, path)
    compact_index(path, settings=SETTINGS)
    assert searcher.refresh()
    check_answers(searcher, path)


def test_another_training_shares_nothing(path):
    searcher = open_collection(path)
    check_answers(searcher, path)
    (base,) = scans(searcher)
    build_index(path, columns=["image"], settings=SETTINGS)
    assert searcher.refresh()
    (other,) = scans(searcher)
    assert other is not base
    check_answers(searcher, path)


def test_a_column_that_no_search_used_is_not_read(path):
    searcher = open_collection(path)
    searcher.column("image")
    add(path, "s5", 10)
    assert searcher.refresh() and len(scans(searcher)) == 1, "a refresh opens what was used"
    check_answers(searcher, path)
