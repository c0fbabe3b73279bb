"""Vectors of 8 bits, of Parquet files alone, and of fewer numbers: answers, edits and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from counting_store import CountingStore
from crash_points import Unflushed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from recorded_disk import using
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.build import (
    ByKey,
    add_to_index,
    columns,
    compact_index,
    delete_from_index,
)
from chiasm.index.build.columns import TunedColumns
from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.drift import measure_drift
from chiasm.index.build.exact_rows import ExactRows
from chiasm.index.build.measure import recalls
from chiasm.index.build.samples import Queries, QuerySets
from chiasm.index.build.trials import plan_bytes
from chiasm.index.build.tune import TunedColumn
from chiasm.index.plan import Plan
from chiasm.index.query import search_filtered
from chiasm.index.query.truth import recall_of
from chiasm.index.segments import (
    CACHED_BYTES,
    Manifest,
    Segment,
    SegmentGone,
    dequantised,
    open_current,
    parquet_vectors,
    quantised,
)
from chiasm.index.verify import check
from chiasm.pipeline.collection import Collection, embeddings, parquet_name, read_footer
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.storage.schemes import S3_STORE

ROWS, DIM, HOLES, URL = (600, 300, 120), 16, 0.1, "s3://bucket/c"
LISTS = IndexSettings(kind="ivf", tune=False, segment_rows=700, keep_seconds=0)
EXACT = IndexSettings(kind="exact", tune=False, segment_rows=700)
FORMS = {
    "float16": LISTS,
    "int8": replace(LISTS, vectors="int8"),
    "none": replace(LISTS, vectors="none"),
    "exact int8": replace(EXACT, vectors="int8"),
}
BY_LISTS = ("float16", "int8", "none")
SUFFIX = "-0123456789"


@pytest.fixture(autouse=True)
def _no_flushes(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(parquet_vectors, "_cache", parquet_vectors.Cache(CACHED_BYTES))
    with using(Unflushed()):
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The same rows, indexed in every form."""
    made = {name: tmp_path_factory.mktemp("small") / "c" for name in FORMS}
    with using(Unflushed()):
        first, *others = made.values()
        make_collection(first, ROWS, dim=DIM, holes=HOLES)
        for path in others:
            shutil.copytree(first, path)
        for name, path in made.items():
            build_index(str(path), columns=["image", "joint"], settings=FORMS[name])
    return made


@pytest.fixture
def copied(built, tmp_path):
    def copy(name: str) -> str:
        shutil.copytree(built[name], tmp_path / "c")
        return str(tmp_path / "c")

    return copy


def scored(path: str | Path, name: str, column: str = "image") -> np.ndarray:
    """The vectors that an index of this form scores by, in the order of the shards."""
    stored = [file.vectors(column)[0] for file in embeddings(Folder(str(path)))]
    vectors = np.concatenate([np.zeros((0, DIM), np.float16), *stored])
    return dequantised(quantised(vectors)) if "int8" in name else vectors.astype(np.float32)


def queries(count: int = 20, seed: int = 7) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed), count, DIM)


def best(xq: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By brute force."""
    scores = np.where(vectors.any(axis=1), xq @ vectors.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


def answers(path: str, seed: int = 3) -> list[list[tuple[str, float]]]:
    """The ids and scores of all rows, for three queries."""
    index = open_collection(path, allow_stale=True)
    scores, positions = index.search_vectors(queries(3, seed), len(index))
    rows = index.rows({int(one) for one in positions.ravel() if one >= 0})
    return [
        [(rows[int(one)].id, float(score)) for one, score in zip(found, near, strict=True)
         if one >= 0]
        for found, near in zip(positions, scores, strict=True)
    ]  # fmt: skip


halves = st.floats(-1, 1, width=16)


@given(arrays(np.float16, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=halves))
def test_a_number_of_8_bits_is_off_by_half_a_step_at_most(vectors):
    stored = quantised(vectors)
    x, found = vectors.astype(np.float32), dequantised(stored)
    step = stored[:, 2:4].copy().view("<f2").astype(np.float32)
    assert stored.shape == (len(vectors), 4 + vectors.shape[1])
    assert (np.abs(x - found) <= step * 0.5001 + 1e-7).all()
    q = np.linspace(-1, 1, vectors.shape[1], dtype=np.float32)
    assert (np.abs(x @ q - found @ q) <= step[:, 0] / 2 * np.abs(q).sum() + 1e-5).all()
    assert np.array_equal(quantised(np.zeros_like(vectors)), np.zeros_like(stored))
    assert (step[:, 0] <= (x.max(axis=1, initial=-2) - x.min(axis=1, initial=2)) / 254 + 6e-8).all()


@pytest.mark.parametrize("name", FORMS)
def test_answers_are_those_of_brute_force(built, name):
    index = open_collection(built[name])
    suffixes = {file.suffix for segment in built[name].glob("index/segments/*")
                for file in segment.glob("image.*")}  # fmt: skip
    own = {"float16": ".f16", "int8": ".i8", "none": ".source", "exact int8": ".i8"}[name]
    assert suffixes & {".f16", ".i8", ".source"} == {own}
    for column in ("image", "joint"):
        vectors, xq = scored(built[name], name, column), queries()
        scores, positions = index.search_vectors(xq, 10, column=column, nprobe=10_000)
        expected, truth = best(xq, vectors, 10)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert np.array_equal(positions, truth)
        some = [900, 0, 3, 611, 1019]
        assert np.array_equal(index.vectors(column, some), vectors[some])
    hit = index.search_many([Query(vector=xq[0], dedup=0.9, diversity=0.3, k=5)])[0]
    assert len(hit.results) == 5


@pytest.mark.parametrize("name", FORMS)
def test_filtered_answers_are_those_of_brute_force(built, name):
    index = open_collection(built[name])
    column, vectors, xq = index.column("image"), scored(built[name], name), queries()
    for share in (0.01, 0.3, 0.97):
        passing = np.random.default_rng(1).random(len(vectors)) < share
        allowed = [passing[a:b] for a, b in zip(column.starts, column.starts[1:], strict=False)]
        nprobe = 0 if column.plan.exact else column.plan.lists
        scores, positions = search_filtered(column, xq, 8, nprobe, allowed)
        expected, truth = best(xq, np.where(passing[:, None], vectors, 0), 8)
        found = expected > -np.inf
        assert np.array_equal(positions[found], truth[found]) and (positions[~found] == -1).all()
        np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_an_edited_index_answers_as_one_that_is_built_anew(copied, name):
    path, form = copied(name), FORMS[name]
    folder = Folder(path)
    add_shard(folder, "s1", 280, dim=DIM, seed=50, edition="0000000b", holes=HOLES)
    add_shard(folder, "s9", 150, dim=DIM, seed=51, holes=HOLES)
    added = add_to_index(path, settings=form)
    assert added.changed and ("exact" in name) == (not added.drift)
    gone = [f"s0/{row:06d}" for row in range(0, 600, 3)] + [f"s9/{row:06d}" for row in range(9)]
    delete_from_index(path, lambda _: ByKey(gone), settings=form)
    before = answers(path)
    compacted = compact_index(path, settings=form)
    assert compacted.counts["removed"] > 200
    delete_from_index(path, lambda _: ByKey(["s1/000007"]), settings=form)
    compact_index(path, settings=replace(form, segment_rows=5000))
    after = answers(path)
    left = [[one for one in answer if not one[0].startswith(f"s1{SUFFIX}/7@")] for answer in before]
    assert after == left and all(after)
    assert check(path).findings == []
    build_index(path, columns=["image"], settings=form)
    delete_from_index(path, lambda _: ByKey([*gone, "s1/000007"]), settings=form)
    for ours, scratch in zip(after, answers(path), strict=True):
        assert {*ours} == {*scratch}


def rewrite(path: str, name: str, seed: int, rows: int, edition: str = "0000000a") -> None:
    add_shard(Folder(path), name, rows, dim=DIM, seed=seed, edition=edition, holes=HOLES)


def test_vectors_that_are_not_those_of_the_build_are_noticed(copied, monkeypatch):
    path = copied("none")
    index = open_collection(path)
    rewrite(path, "s0", 0, 600)  # the same rows in a new file
    assert index.search_vectors(queries(), 10)[1].min() >= 0
    one_line = r"embeddings/s2-0123456789.parquet: expected the image vectors .* built from"
    for change in ("other vectors", "fewer rows", "none"):
        if change == "none":
            (Path(path) / parquet_name(f"s2{SUFFIX}")).unlink()
        else:
            rewrite(path, "s2", 99, 120 if change == "other vectors" else 80)
        index = open_collection(path, allow_stale=True)
        monkeypatch.setattr(parquet_vectors, "_cache", parquet_vectors.Cache(CACHED_BYTES))
        with pytest.raises(SegmentGone, match=one_line) as caught:
            index.search_vectors(queries(), 500, nprobe=10_000)
        assert "\n" not in str(caught.value) and "chiasm index build" in str(caught.value)
        found = "".join(str(finding) for finding in check(path).findings)
        assert found and (change != "other vectors" or "not those of the build" in found)


def test_a_file_that_is_damaged_is_named(copied):
    path = copied("none")
    name = Path(path) / parquet_name(f"s1{SUFFIX}")
    name.write_bytes(name.read_bytes()[:-200] + bytes(200))
    index = open_collection(path, allow_stale=True)
    with pytest.raises(CollectionError, match="expected a whole Parquet file"):
        index.vectors("image", [700])
    assert index.vectors("image", [5, 1000]).any(axis=1).all(), "those of other shards"


def test_a_searcher_moves_on_to_the_generation_that_knows_the_new_vectors(copied):
    path = copied("none")
    index = open_collection(path)
    rewrite(path, "s0", 70, 600, edition="0000000c")
    add_to_index(path, settings=FORMS["none"])
    assert index.generation.number == 1
    scores, positions = index.search_vectors(queries(), 10, nprobe=10_000)
    assert index.generation.number == 2 and positions.min() >= 0
    ids = index.rows(positions.ravel().tolist())
    assert any(row.id.endswith("@0000000c") for row in ids.values())
    expected, _ = best(queries(), scored(path, "none"), 10)
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_drift_is_of_rows_whose_vectors_can_be_read(copied):
    path = copied("none")
    (Path(path) / parquet_name(f"s1{SUFFIX}")).unlink()
    base = open_current(Folder(path))
    assert measure_drift(base, base.segments[:0], {f"s1{SUFFIX}"})["image"].limit > 0
    with pytest.raises(SegmentGone, match="found none"):
        measure_drift(base, ())


@pytest.fixture(scope="module")
def unread(built) -> tuple[Segment, np.ndarray]:
    """A segment without vectors, and those that it has none of."""
    (segment, *_) = open_current(Folder(str(built["none"]))).segments
    return segment, scored(built["none"], "none")[: len(segment)]


@settings(max_examples=20)
@given(st.data())
def test_any_rows_are_read_whatever_the_groups_and_the_memory(unread, data):
    segment, stored = unread
    with pytest.MonkeyPatch.context() as patch:
        limit = data.draw(st.sampled_from([0, 20_000, CACHED_BYTES]))
        patch.setattr(parquet_vectors, "_cache", parquet_vectors.Cache(limit))
        patch.setattr(parquet_vectors, "READ_GROUPS", data.draw(st.integers(1, 3)))
        vectors = segment.raw("image")
        numbers = st.lists(st.integers(0, len(segment) - 1), max_size=9)
        for rows in (data.draw(numbers), data.draw(numbers)):
            some = np.array(rows, np.int64)
            assert np.array_equal(vectors.take(some), stored[some])
        assert np.array_equal(vectors.take(slice(250, 520)), stored[250:520])
        assert np.array_equal(vectors.present(), stored.any(axis=1))
        assert parquet_vectors._cache.used <= max(limit, 256 * DIM * 2 + 100_000)


def test_a_column_whose_shard_is_embedded_anew_before_it_is_measured(copied, monkeypatch, caplog):
    path = copied("none")
    generation = open_current(Folder(path))
    tuned = TunedColumns(CoveredShards(Collection.open(path)), FORMS["none"])
    kinds = {"text": Queries(queries(8), np.full(8, np.nan, np.float32))}
    plan, sets = generation.manifest.columns["image"], QuerySets(queries(8), kinds, kinds, "")
    tuned.tuned["image"] = before = TunedColumn(plan, generation.trained("image"), sets)
    rewrite(path, "s2", 98, 120)
    tuned.fit(generation.manifest, {})
    assert tuned.tuned["image"] is before and "image is not measured" in caplog.text


def test_row_groups_of_another_size_are_read_right(copied):
    path = copied("none")
    name = Path(path) / parquet_name(f"s0{SUFFIX}")
    table = pq.read_table(name)
    footer = read_footer(Folder(path), f"s0{SUFFIX}").to_json()
    with pq.ParquetWriter(name, table.schema) as writer:
        writer.write_table(table, row_group_size=100)
        writer.add_key_value_metadata({"chiasm": footer})
    index = open_collection(path, allow_stale=True)
    some = [0, 99, 100, 255, 256, 511, 599]
    assert np.array_equal(index.vectors("image", some), scored(path, "none")[some])


@pytest.mark.parametrize("name", ["int8", "none"])
def test_answers_of_a_store_equal_those_of_a_folder(built, name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = CountingStore()
    for path in built[name].rglob("*"):
        if path.is_file():
            store.keep(f"bucket/c/{path.relative_to(built[name])}", path.read_bytes())
    S3_STORE.replace(store)
    try:
        here, there = open_collection(built[name]), open_collection(URL, allow_stale=True)
        for xq in (queries(1), queries(9)):
            expected = here.search_vectors(xq, 7)
            np.testing.assert_array_equal(there.search_vectors(xq, 7), expected)
            store.reset()
            np.testing.assert_array_equal(there.search_vectors(xq, 7), expected)
            assert store.total == 0, "all of it is here"
        some = [1000, 3, 605]
        assert np.array_equal(there.vectors("joint", some), here.vectors("joint", some))
        compact = replace(FORMS[name], segment_rows=5000)
        assert compact_index(URL, settings=compact).segments == 1
        there = open_collection(URL, allow_stale=True)
        np.testing.assert_array_equal(there.search_vectors(xq, 7), here.search_vectors(xq, 7))
        assert [one for one in check(URL).findings if "stale" not in one.what] == []
    finally:
        S3_STORE.replace(None)


def test_recall_is_of_the_vectors_of_parquet_where_copies_have_8_bits(built):
    folder = Folder(str(built["int8"]))
    index = open_collection(built["int8"]).column("image")
    xq, exact, copies = queries(60), *(scored(built["int8"], one) for one in ("none", "int8"))
    groups = [Queries(some, np.full(len(some), np.nan, np.float32)) for some in (xq[:40], xq[40:])]
    passing = np.random.default_rng(0).random(len(exact)) < 0.5
    by_segment = [passing[a:b] for a, b in zip(index.starts, index.starts[1:], strict=False)]
    for allowed, mask in ((None, np.ones(len(exact), bool)), (by_segment, passing)):
        cases = list(ExactRows(index, folder).cases(groups, 100, allowed))
        for case in cases:
            xq_part = case.queries.vectors
            truth, _ = best(xq_part, np.where(mask[:, None], exact, 0), 100)
            np.testing.assert_allclose(case.exact, truth, atol=1e-6)
            _, found = best(xq_part, np.where(mask[:, None], copies, 0), 10)
            scores = np.take_along_axis(xq_part @ exact.T, found, 1)
            expected = recall_of(-np.sort(-scores, axis=1), case.exact, 10)
            np.testing.assert_allclose(recalls(index, case, 10, index.plan.lists), expected)
        assert len(cases) == 2
    plain = replace(index, plan=replace(index.plan, vectors="float16"))
    assert [case.ranked for case in ExactRows(plain, folder).cases(groups, 9)] == [None, None]


def test_the_first_numbers_of_vectors(tmp_path):
    make_collection(tmp_path / "c", ROWS, dim=DIM, holes=HOLES)
    prefix = replace(LISTS, dims=8, vectors="int8")
    summary = build_index(str(tmp_path / "c"), columns=["image"], settings=prefix)
    assert summary.columns["image"] == "ivf 16 x SQ8, first 8 numbers, 8-bit vectors"
    index = open_collection(tmp_path / "c")
    plan, xq = index.column("image").plan, queries()
    assert (plan.dims, plan.code_size, plan.space) == (8, 8, "projected")
    column = index.column("image")
    column.plan = replace(plan, oversample=200)
    _, positions = index.search_vectors(xq, 10, nprobe=16)
    expected, truth = best(xq, scored(tmp_path / "c", "int8"), 10)
    assert np.array_equal(positions, truth)
    column.plan = replace(plan, oversample=8)
    few = index.search_vectors(xq, 10, nprobe=16)[0]
    assert recall_of(few, expected, 10).mean() > 0.4
    assert check(str(tmp_path / "c")).findings == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vectors": "int4"}, "index.vectors: expected one of float16, int8, none, found 'int4'"),
        ({"vectors": "none", "kind": "exact"}, "column image: expected an index with lists, found"),
        ({"vectors": "none", "kind": ""}, "an exact one of 921 rows.*; take int8, or --index ivf"),
        (
            {"at": 922},
            "index.at=922 of column image: expected 921 or less, .*; take a smaller --at",
        ),
        (
            {"dims": 4},
            "index.dims=4 of column image: .* an exact one of 921 rows, which has no codes; leave "
            "--dims out, or take --index ivf or projected",
        ),
        (
            {"dims": 17, "kind": "ivf"},
            "index.dims: expected 16 or less, of an index with lists, found 17",
        ),
        ({"dims": 4, "kind": "exact"}, "index.dims: expected 16 or less"),
    ],
)
def test_what_cannot_be_built_is_one_line(copied, fields, message):
    path = copied("float16")
    with pytest.raises(UsageError, match=message):
        build_index(path, columns=["image"], settings=IndexSettings(tune=False, **fields))
    assert open_collection(path).generation.number == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ivf"}, "index.kind=ivf of column image.*, found an exact one of 38 rows, too "
         "few for lists, which need 39; leave --index out"),
        ({"kind": "projected", "dims": 4}, "index.kind=projected of column image: .*--index out"),
        ({"vectors": "none"}, "index.vectors=none of column image.*; take int8"),
        ({"vectors": "none", "kind": "ivf"}, "index.kind=ivf .*; leave --index out"),
        ({"dims": 4}, "index.dims=4 .*, too few for lists, .*; leave --dims out"),
        ({"at": 39}, "index.at=39 of column image: expected 38 or less, .*; take a smaller --at"),
    ],
)  # fmt: skip
def test_what_so_few_rows_cannot_have_is_one_line_and_no_advice_is_vain(tmp_path, fields, message):
    make_collection(tmp_path, (38,), dim=8)
    with pytest.raises(UsageError, match=f"{message}$") as error:
        build_index(tmp_path, columns=["image"], settings=IndexSettings(**fields))
    assert "--index ivf" not in str(error.value) and not (tmp_path / "index/CURRENT").exists()


def test_of_a_column_that_is_smaller_than_others_it_is_said_what_it_has_not(tmp_path, caplog):
    make_collection(tmp_path, (60,), dim=8)
    few = {"image": 60, "text": 12}
    covered = CoveredShards(Collection.open(str(tmp_path)))
    for fields in ({"kind": "ivf"}, {"dims": 4, "exact_below": 20}, {"at": 20}):
        TunedColumns(covered, IndexSettings(**fields)).require_possible(few)
        (name,), (record,) = [*fields][:1], caplog.records
        assert record.getMessage().startswith(
            f"index.{name}={fields[name]} of column text: left out"
        )
        caplog.clear()
    with pytest.raises(UsageError, match=r"index.vectors=none of column text"):
        without = IndexSettings(vectors="none", exact_below=20)
        TunedColumns(covered, without).require_possible(few)
    TunedColumns(covered, IndexSettings()).require_possible({"image": 60, "text": 2})
    assert caplog.records == []


def test_dims_of_a_column_for_which_tuning_takes_an_exact_index_are_refused(tmp_path, monkeypatch):
    make_collection(tmp_path, (60,), dim=8)
    monkeypatch.setattr(columns, "tune_column", lambda view, settings: TunedColumn(Plan()))
    with pytest.raises(UsageError, match=r"index.dims=4 of column image: .* promises the recall"):
        build_index(tmp_path, columns=["image"], settings=IndexSettings(dims=4, exact_below=1))


def test_a_manifest_that_says_nothing_of_vectors_has_float16(built):
    folder = Folder(str(built["float16"]))
    manifest = open_current(folder).manifest
    fields = json.loads(manifest.to_json())
    for column in fields["columns"].values():
        assert column.pop("vectors") == "float16"
    assert Manifest.from_json(json.dumps(fields).encode(), folder, "x") == manifest


def test_memory_of_an_open_column():
    plan = Plan("ivf", 100, 4, "full", 64, "SQ8")
    copies = plan_bytes(plan, 10_000, 64)
    assert plan_bytes(replace(plan, vectors="int8"), 10_000, 64) == copies
    assert plan_bytes(replace(plan, vectors="none"), 10_000, 64) == copies + 10_000 * 128
    prefix = replace(plan, space="projected", dims=16)
    assert plan_bytes(prefix, 10_000, 64) == 10_000 * 40 + 100 * (4 * 16 + 4)
    large = plan_bytes(replace(plan, vectors="none"), 10**8, 64) - plan_bytes(plan, 10**8, 64)
    assert large == CACHED_BYTES
    assert plan_bytes(Plan(vectors="int8"), 10, 64) == 680 and plan_bytes(Plan(), 10, 64) == 1280
