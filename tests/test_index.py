"""Indexes built and searched, compared with brute force by numpy, for all kinds and segments."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from conftest import environment
from fake_encoder import FakeEncoder
from overlap import overlap_at
from tiny_collection import SHARDS, add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.samples import CollectionView
from chiasm.index.query import ColumnIndex, fast_scan, search
from chiasm.index.query.scan import Scan
from chiasm.index.segments import open_current
from chiasm.index.segments.catalog import Catalog
from chiasm.index.verify import check
from chiasm.pipeline.collection import Collection, Identity, create_or_check, embeddings
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.records import COLUMNS
from chiasm.pipeline.storage import Folder

CELLS = IndexSettings(tune=False, exact_below=1, nprobe=4)
SMALL_SEGMENTS = IndexSettings(segment_rows=100)


def brute_force(vectors: np.ndarray, xq: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and positions of the k best, over the rows that have a vector."""
    scores = xq.astype(np.float32) @ vectors.T
    scores[:, ~vectors.any(axis=1)] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : k + 1]
    best = np.take_along_axis(scores, order, 1)
    assert (best[:, :-1] - best[:, 1:] > 5e-6)[np.isfinite(best[:, 1:])].all(), "no near ties"
    return best[:, :k], order[:, :k]


def search_index(path, column: str, xq: np.ndarray, k: int, nprobe: int = 0):
    return search(column_index(path, column), xq, k, nprobe)


def column_index(path, column: str) -> ColumnIndex:
    generation = open_current(Folder(str(path)))
    assert generation is not None
    plan = generation.manifest.columns[column]
    return ColumnIndex(generation.segments, column, plan, generation.trained(column))


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("settings", [IndexSettings(), SMALL_SEGMENTS], ids=["one", "many"])
def test_an_exact_index_finds_what_numpy_finds(tmp_path, column, settings):
    vectors = make_collection(tmp_path / "c", (150, 0, 90, 60, 7), holes=0.2)[column]
    summary = build_index(str(tmp_path / "c"), settings=settings)
    assert summary.segments == (1 if settings is not SMALL_SEGMENTS else 3)
    assert summary.vectors[column] == vectors.any(axis=1).sum() and summary.rows == 307
    xq = unit_rows(np.random.default_rng(7), 40, 8)
    scores, positions = search_index(tmp_path / "c", column, xq, 12)
    expected_scores, expected = brute_force(vectors, xq, 12)
    assert np.array_equal(positions, expected)
    assert np.allclose(scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize("segment_rows", [10_000, 900])
def test_an_ivf_index_finds_the_same_as_numpy_when_all_cells_are_searched(tmp_path, segment_rows):
    vectors = make_collection(tmp_path / "c", (1200, 700, 800), dim=16, holes=0.1)["image"]
    settings = IndexSettings(tune=False, exact_below=1000, segment_rows=segment_rows)
    summary = build_index(str(tmp_path / "c"), columns=["image"], settings=settings)
    assert summary.columns == {"image": "ivf 32 x SQ8"}
    xq = unit_rows(np.random.default_rng(7), 40, 16)
    truth_scores, truth = brute_force(vectors, xq, 10)
    scores, positions = search_index(tmp_path / "c", "image", xq, 10, nprobe=32)
    assert np.array_equal(positions, truth), "8-bit codes propose, raw vectors decide"
    assert np.allclose(scores, truth_scores, atol=1e-6)
    recall = [
        overlap_at(search_index(tmp_path / "c", "image", xq, 10, nprobe)[1], truth, 10)
        for nprobe in (1, 4, 16)
    ]
    assert recall == sorted(recall) and recall[0] < 0.7 < recall[2] < 1


def test_exact_and_ivf_indexes_give_the_same_scores(tmp_path):
    make_collection(tmp_path / "c", (400, 300))
    xq = unit_rows(np.random.default_rng(7), 20, 8)
    build_index(str(tmp_path / "c"))
    exact = search_index(tmp_path / "c", "image", xq, 10)
    build_index(
        str(tmp_path / "c"), settings=IndexSettings(tune=False, exact_below=1, segment_rows=300)
    )
    cells = search_index(tmp_path / "c", "image", xq, 10, nprobe=16)
    assert np.array_equal(exact[0], cells[0]) and np.array_equal(exact[1], cells[1])


def test_equal_scores_are_ordered_by_position(tmp_path):
    path = tmp_path / "c"
    make_collection(path, ())
    one, other = unit_rows(np.random.default_rng(0), 2, 8)
    folder = Folder(str(path))
    for name in ("a", "b", "c"):
        add_shard(folder, name, 30, vectors=np.stack([one, other] * 15))
    for settings in (IndexSettings(), IndexSettings(segment_rows=30), CELLS):
        build_index(str(path), columns=["image"], settings=settings)
        nprobe = 2 if settings is CELLS else 0
        scores, positions = search_index(path, "image", one[None], 20, nprobe)
        assert positions[0].tolist() == list(range(0, 40, 2))
        assert len(set(scores[0].tolist())) == 1


def test_a_batch_gives_the_answers_of_its_queries_alone(tmp_path):
    make_collection(tmp_path / "c", (500,), dim=24)
    build_index(str(tmp_path / "c"), settings=CELLS)
    xq = unit_rows(np.random.default_rng(7), 30, 24)
    together = search_index(tmp_path / "c", "image", xq, 5, nprobe=3)
    for number, query in enumerate(xq):
        alone = search_index(tmp_path / "c", "image", query[None], 5, nprobe=3)
        assert np.array_equal(together[0][number], alone[0][0])
        assert np.array_equal(together[1][number], alone[1][0])


def test_fewer_rows_than_wanted(tmp_path):
    make_collection(tmp_path / "c", (8,), holes=0.3)
    build_index(str(tmp_path / "c"))
    scores, positions = search_index(tmp_path / "c", "joint", np.ones((1, 8), np.float32), 7)
    found = positions[0] >= 0
    assert 0 < found.sum() < 7 and found.tolist() == sorted(found, reverse=True)
    assert np.isneginf(scores[0][~found]).all() and np.isfinite(scores[0][found]).all()
    answer = open_collection(tmp_path / "c").search_many(
        [Query(vector=np.ones(8), column="joint", k=10**9)]
    )[0]
    assert len(answer) == found.sum()


@pytest.mark.parametrize("segment_rows", [10_000, 400])
def test_more_cells_are_searched_where_those_asked_for_hold_fewer_than_k(tmp_path, segment_rows):
    vectors = make_collection(tmp_path / "c", (400, 300, 300), holes=0.1)["image"]
    settings = IndexSettings(tune=False, exact_below=1, segment_rows=segment_rows)
    build_index(str(tmp_path / "c"), columns=["image"], settings=settings)
    xq = unit_rows(np.random.default_rng(7), 6, 8)
    there = int(vectors.any(axis=1).sum())
    few, all_cells = (search_index(tmp_path / "c", "image", xq, there, n) for n in (1, 16))
    assert np.array_equal(few[1], all_cells[1]) and (few[1] >= 0).all()
    assert all(set(row) == set(np.flatnonzero(vectors.any(axis=1))) for row in few[1])
    for k in (5, 200, 600):
        positions = search_index(tmp_path / "c", "image", xq, k, 1)[1]
        assert (positions >= 0).all() and all(len(set(row)) == k for row in positions.tolist())
        for number, query in enumerate(xq):
            alone = search_index(tmp_path / "c", "image", query[None], k, 1)
            assert np.array_equal(alone[1][0], positions[number])
    assert (search_index(tmp_path / "c", "image", xq, 1001, 1)[1][:, there:] == -1).all()


def last_of_equal(scan: Scan, xq: np.ndarray, wanted: int, nprobe: int):
    """Candidates of a scan that keeps the last of equal ones: FAISS promises none."""
    vectors = [segment.raw(scan.index.column).take(slice(None)) for segment in scan.index.segments]
    scores = xq @ np.concatenate(vectors).astype(np.float32).T
    order = np.lexsort((-np.arange(scores.shape[1])[None].repeat(len(xq), 0), -scores))[:, :wanted]
    return np.take_along_axis(scores, order, 1), order


def test_equal_scores_are_ordered_by_position_however_many_there_are(tmp_path, monkeypatch):
    """A placeholder that a fifth of all rows have."""
    rng, dim = np.random.default_rng(3), 8
    same = unit_rows(rng, 1, dim)
    make_collection(tmp_path, ())
    for name in ("a", "b"):
        vectors = unit_rows(rng, 500, dim)
        vectors[::5] = same
        add_shard(Folder(str(tmp_path)), name, 500, vectors=vectors)
    batch = np.concatenate((same, unit_rows(rng, 40, dim)))
    for settings in (IndexSettings(), IndexSettings(tune=False, exact_below=1, segment_rows=500)):
        build_index(str(tmp_path), columns=["image"], settings=settings)
        nprobe = 0 if settings.tune else 2
        for k in (10, 60, 150):
            for xq in (same, batch):
                positions = search_index(tmp_path, "image", xq, k, nprobe)[1]
                assert positions[0].tolist() == list(range(0, 5 * k, 5))
    monkeypatch.setattr(Scan, "candidates", last_of_equal)
    for k in (10, 150):
        positions = search_index(tmp_path, "image", batch, k)[1]
        assert positions[0].tolist() == list(range(0, 5 * k, 5))


def test_memory_is_bounded_however_many_results_are_wanted(tmp_path, monkeypatch):
    vectors = make_collection(tmp_path, (6000,), dim=64)["image"]
    build_index(str(tmp_path), columns=["image"], settings=CELLS)
    xq = unit_rows(np.random.default_rng(7), 8, 64)
    truth = search_index(tmp_path, "image", xq, 6000, 4)
    module = sys.modules[search.__module__]
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 1 << 14)
    monkeypatch.setattr(module, "MAX_CANDIDATES", 1 << 12)
    monkeypatch.setattr(fast_scan, "GATHERED", 1 << 14)
    index = column_index(tmp_path, "image")
    index.open()
    tracemalloc.start()
    found = search(index, xq, 6000, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found[0], truth[0]) and np.array_equal(found[1], truth[1])
    results = sum(part.nbytes for part in found)
    assert peak - results < vectors.nbytes, "the vectors of one query are not in memory at once"


def test_no_query_changes_the_shared_index(tmp_path):
    make_collection(tmp_path / "c", (600,))
    build_index(str(tmp_path / "c"), columns=["image"], settings=CELLS)
    collection = open_collection(tmp_path / "c")
    xq = unit_rows(np.random.default_rng(7), 8, 8)
    truth = {
        nprobe: collection.search_many([Query(vector=q, nprobe=nprobe) for q in xq])
        for nprobe in (1, 2, 8)
    }
    wrong: list[int] = []

    def ask(nprobe: int) -> None:
        for _ in range(20):
            found = collection.search_many([Query(vector=q, nprobe=nprobe) for q in xq])
            if [a.results for a in found] != [a.results for a in truth[nprobe]]:
                wrong.append(nprobe)

    threads = [threading.Thread(target=ask, args=(nprobe,)) for nprobe in (1, 2, 8, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    (scan,) = collection.column("image").scan(None).memory
    assert scan._index.nprobe == 1, "FAISS's own default"
    assert truth[1][0].results != truth[8][0].results


def test_the_catalog_has_each_row_as_it_was_embedded(tmp_path):
    path = tmp_path / "c"
    json_of = {0: None, 1: '{"a": 1}', 2: '{"a": 1.5, "b": {"c": ["x"]}}', 3: "[]"}.get
    rows = (5000, 4200)  # more than one batch of the catalog, and batches that span two shards
    make_collection(path, rows, json_of=lambda row: json_of(row % 4), holes=0.1)
    summary = build_index(str(path), columns=["image"])
    assert summary.meta == [
        {"field": "meta.a", "seen": ["float", "int"], "kept_as": "float"},
        {"field": "meta", "seen": ["not an object"], "rows": 2300},
    ]
    collection = open_collection(path)
    wanted = [0, 1, 2, 3, 4095, 4096, 4999, 5000, 5001, 8191, 8192, 9199]
    found = collection.rows(reversed([*wanted, *wanted]))
    assert sorted(found) == wanted
    cells = [row for file in embeddings(Folder(str(path))) for row in file.read().to_pylist()]
    metas = {0: {}, 1: {"a": 1.0}, 2: {"a": 1.5, "b": {"c": ["x"]}}, 3: {}}
    for position in wanted:
        row, cell = found[position], cells[position]
        local = position % 5000
        assert row.id == f"{cell['shard']}/{local}@0000000a"
        assert (row.key, row.shard, row.caption) == (cell["key"], cell["shard"], cell["caption"])
        assert row.captions == tuple(cell["captions"] or ())
        assert row.meta == metas[local % 4]
        assert row.url == (SHARDS / f"{cell['key'][:2]}.tar").as_uri()
        if cell["member"] is None:
            assert row.place is row.width is row.sha256 is None
        else:
            place = row.place
            assert place is not None
            found_place = (place.member, place.offset, place.size)
            assert found_place == (cell["member"], cell["offset"], cell["size"])
            assert (row.width, row.sha256) == (64, "ab" * 32)


def test_the_catalog_is_an_arrow_file_that_others_can_read(tmp_path):
    make_collection(tmp_path / "c", (30, 20))
    build_index(str(tmp_path / "c"))
    (file,) = (tmp_path / "c").glob("index/segments/*/rows.arrow")
    with pa.memory_map(str(file)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    assert table.schema.field("meta").type == pa.struct({"number": pa.int64(), "odd": pa.bool_()})
    assert table["shard"].to_pylist() == ["s0-0123456789"] * 30 + ["s1-0123456789"] * 20
    assert table["row"].to_pylist() == [*range(30), *range(20)]
    assert table.column_names == [
        "key", "caption", "captions", "width", "height", "sha256", "member", "offset", "size",
        "meta", "row", "shard", "edition", "url",
    ]  # fmt: skip


def large_rows(row: int) -> str:
    return json.dumps({"n": row, "text": "x" * (9000 if row % 100 < 40 else 10)})


def test_a_batch_of_the_catalog_is_bounded_in_bytes(tmp_path):
    """A text column of one batch ends at 2 GiB; what would be beyond goes to batches of its own."""
    make_collection(tmp_path, (300, 700), json_of=large_rows)
    small = IndexSettings(catalog_bytes=100_000)
    build_index(str(tmp_path), columns=["image"], settings=small)
    collection = open_collection(tmp_path)
    (segment,) = collection.segments
    with pa.memory_map(str(next(tmp_path.glob("index/segments/*/rows.arrow")))) as mapped:
        reader = pa.ipc.open_file(mapped)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        texts = [batch["meta"].field("text").nbytes for batch in batches]
    assert len({batch.num_rows for batch in batches}) > 2 and max(texts) <= 100_000
    assert len(segment.catalog) == 1000
    rows = collection.rows(range(1000))
    for position, row in rows.items():
        number = position if position < 300 else position - 300
        assert row.meta["n"] == number and row.id.endswith(f"/{number}@0000000a")


def test_a_catalog_whose_batches_were_split_by_an_earlier_version_shows_the_right_rows(tmp_path):
    make_collection(tmp_path, (9000,))
    build_index(str(tmp_path), columns=["image"])
    (file,) = tmp_path.glob("index/segments/*/rows.arrow")
    with pa.memory_map(str(file)) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
    split = tmp_path / "split.arrow"
    with pa.ipc.new_file(split, table.schema) as writer:
        for first, last in ((0, 4000), (4000, 4096), (4096, 8192), (8192, 9000)):
            writer.write_table(table.slice(first, last - first))
    with split.open("rb") as opened:
        catalog = Catalog(opened, str(split), "", 9000)
    wanted = (0, 3999, 4000, 4095, 4096, 5000, 8191, 8192, 8999)
    assert len(catalog) == 9000
    assert [catalog.rows([n])[n].meta["number"] for n in wanted] == list(wanted)


def test_a_copy_of_a_parquet_file_under_another_name_is_left_out(tmp_path, caplog):
    make_collection(tmp_path, (50, 30))
    for folder, suffix in (("embeddings", "parquet"), ("ledger", "json")):
        source = tmp_path / folder / f"s0-0123456789.{suffix}"
        shutil.copy(source, tmp_path / folder / f"s0-0123456789.backup.{suffix}")
    assert build_index(str(tmp_path)).rows == 80
    said = "s0-0123456789.backup.parquet is left out: it holds the rows of shard s0-0123456789"
    assert said in caplog.text
    answer = open_collection(tmp_path).search_many([Query(vector=np.ones(8), k=200)])[0]
    assert len(answer) == len({row.id for row in answer}) == 80
    assert any("backup" in str(finding) for finding in check(str(tmp_path)).findings)


def test_only_columns_with_rows_are_indexed(tmp_path):
    path = str(tmp_path / "c")
    make_collection(tmp_path / "c", (20,), holes=1.0)  # no pictures, no captions
    with pytest.raises(UsageError, match="column image: expected one with rows: , found none"):
        build_index(path, columns=["image"])
    make_collection(tmp_path / "d", (20,))
    assert build_index(str(tmp_path / "d")).columns == dict.fromkeys(COLUMNS, "exact")
    assert build_index(str(tmp_path / "d"), columns=["joint", "image"]).columns == {
        "image": "exact",
        "joint": "exact",
    }
    with pytest.raises(UsageError, match="column 'audio': expected one of image, text, joint"):
        build_index(path, columns=["audio"])


def test_nothing_to_index_says_what_to_do(tmp_path):
    with pytest.raises(CollectionError, match=r"collection\.json\), found none; make one: chiasm"):
        build_index(str(tmp_path / "none"))
    create_or_check(Folder(str(tmp_path / "c")), Identity.of(FakeEncoder()), "test")
    with pytest.raises(CollectionError, match="expected embedded rows, found none in 0 shards"):
        build_index(str(tmp_path / "c"))
    add_shard(Folder(str(tmp_path / "c")), "empty", 0)
    with pytest.raises(CollectionError, match="found none in 1 shards; run chiasm embed first"):
        build_index(str(tmp_path / "c"))
    assert not list((tmp_path / "c").glob("index/segments/*"))


def test_training_vectors_are_sampled_from_the_whole_collection_reproducibly(tmp_path):
    vectors = make_collection(tmp_path / "c", (3000, 10, 2000), holes=0.3)["image"]
    covered = CoveredShards(Collection.open(str(tmp_path / "c")))
    view = CollectionView(covered, "image", len(vectors), FakeEncoder)
    drawn = view.sample(900)
    assert np.array_equal(drawn, view.sample(900))
    assert 600 < len(drawn) <= 1200 and drawn.dtype == np.float32
    where = {tuple(row): position for position, row in enumerate(vectors)}
    places = [where[tuple(row)] for row in drawn]
    assert len(set(places)) == len(places), "no vector twice"
    assert min(places) < 1000 and max(places) > 4000


def test_progress_counts_rows(tmp_path):
    make_collection(tmp_path / "c", (1500, 300))
    steps: list[tuple[str, int, int]] = []
    build_index(
        str(tmp_path / "c"),
        columns=["image"],
        settings=CELLS,
        progress=lambda *step: steps.append(step),
    )
    assert [step for step in steps if step[0] == "fill"] == [
        ("fill", 1500, 1800),
        ("fill", 1800, 1800),
    ]
    assert {stage for stage, _, _ in steps} == {"survey", "tune image", "fill", "measure"}
    run = json.loads(next((tmp_path / "c" / "runs").glob("*.json")).read_text())
    assert (run["command"], run["state"]) == ("index build", "done")


def test_importing_the_face_of_the_index_loads_neither_faiss_nor_torch():
    program = "import sys, chiasm.index; print(*{'faiss', 'torch'} & set(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == []


def test_settings_of_a_build_are_given_by_keyword(tmp_path):
    make_collection(tmp_path / "c", (20,))
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        build_index(tmp_path / "c", ["image"])
    assert build_index(tmp_path / "c", columns=["image"]).columns == {"image": "exact"}
