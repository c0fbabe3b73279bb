"""Audits: some real queries are answered exactly, their recall is kept and compared with what was
promised, and more lists are scanned where the promise is broken."""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, Query, Term, build_index, open_collection, search_file
from chiasm.index.audit import ERROR, AuditedRecall, Promise, merged
from chiasm.index.build import (
    ByKey,
    add_to_index,
    compact_index,
    delete_from_index,
    roll_back_index,
)
from chiasm.index.query import RecentQueries, Search, auditing, recent_queries
from chiasm.index.segments import audit_files, numbers, read_audit, read_manifest
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.names import audit_name, manifest_name, report_file
from chiasm.index.verify import check
from chiasm.jobs.cli.app import application
from chiasm.jobs.cli.index import print_summary
from chiasm.jobs.status import read_status
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.storage import Folder

DIM, CLUSTERS, ROWS = 16, 32, 40
# A list a cluster, of which a query scans one.
LISTS = IndexSettings(tune=False, exact_below=1, nprobe=1, keep_seconds=0, keep_generations=1)
PROMISE = {"text": 0.95, "picture": 0.97, "filtered": 0.9}


def near(centers: np.ndarray, seed: int, noise: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = centers + noise * rng.normal(size=centers.shape)
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


CENTERS = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)
CENTERS = np.concatenate([CENTERS, -CENTERS])


def expected_queries(count: int, seed: int = 1) -> np.ndarray:
    """Near one cluster each: one list has the best rows."""
    return near(CENTERS[np.random.default_rng(seed).integers(CLUSTERS, size=count)], seed)


def drifted_queries(count: int, clusters: int = 2, seed: int = 1) -> np.ndarray:
    """Between several clusters each: one list has some of the best rows."""
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.permutation(DIM)[:clusters] for _ in range(count)])
    return near(CENTERS[chosen].sum(axis=1), seed, noise=0.02)


def make_index(path: Path, promise: dict[str, float] | None) -> np.ndarray:
    """An index by lists of whose text queries such a recall was promised; returns its rows."""
    if not (path / "collection.json").exists():
        make_collection(path, (0,), dim=DIM)
    rows = near(np.repeat(CENTERS, ROWS, axis=0), 0)
    stored = add_shard(Folder(str(path)), "s0", len(rows), dim=DIM, vectors=rows)["image"]
    build_index(str(path), columns=["image"], settings=LISTS)
    if promise is not None:
        folder = Folder(str(path))
        number = numbers(folder)[-1]
        run = read_manifest(folder, number).run
        report = json.dumps({"at": 10, "promise": promise, "more": [1]}).encode()
        folder.write_whole(report_file(run, "image"), report)
        file = path / manifest_name(number)
        manifest = json.loads(file.read_text())
        size = FileSum.of(report)
        shared = {"size": size.size, "blake2b": size.blake2b}
        manifest["reports"] = {"image": {"file": report_file(run, "image"), "checksum": shared}}
        file.write_text(json.dumps(manifest))
    return stored


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("made") / "c"
    return path, make_index(path, PROMISE)


@pytest.fixture
def drifting(made, tmp_path) -> tuple[Path, np.ndarray]:
    return Path(shutil.copytree(made[0], tmp_path / "c")), made[1]


def brute_recall(rows: np.ndarray, xq: np.ndarray, scores: np.ndarray, k: int = 10) -> float:
    exact = np.sort(xq @ rows.T, axis=1)[:, ::-1][:, :k]
    return float((scores[:, :k] >= exact[:, -1:] - 1e-6).sum(axis=1).mean() / k)


def of(recalls: Sequence[float] | np.ndarray, promise: float | None = 0.95) -> AuditedRecall:
    return AuditedRecall.of("image", "text", 8, 10, promise, np.asarray(recalls, float))


def draw_recalls(rng: np.random.Generator, mean: float, count: int) -> np.ndarray:
    """As those of queries are: most are 1, some far below; in the mean it is `mean`."""
    return rng.binomial(10, rng.beta(8 * mean, 8 * (1 - mean), count)) / 10


def test_a_promise_that_is_just_kept_is_not_called_broken_however_often_it_is_audited():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        audited = of([])
        for count in (1, 2, 5, 10, 20, 50, 100, 200, 400):
            audited = audited.with_more(of(draw_recalls(rng, 0.95, count)))
            assert not audited.broken, (seed, audited)
            assert audited.at_least <= 0.95 <= audited.at_most
    assert ERROR * 60 < 0.1  # of the runs above so many may fail by chance


def test_a_promise_that_is_broken_is_called_so_once_chance_is_excluded():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert not of(draw_recalls(rng, 0.9, 5)).broken
        assert of(draw_recalls(rng, 0.9, 600)).broken
        assert of(draw_recalls(rng, 0.8, 100)).broken
        assert not of(draw_recalls(rng, 0.8, 100), promise=None).broken


def test_limits_of_few_and_of_perfect_recalls_are_wide_and_finite():
    none, perfect, nothing = of([]), of([1.0] * 50), of([0.0] * 2)
    assert math.isnan(none.mean) and (none.at_least, none.at_most) == (0, 1)
    assert (perfect.mean, perfect.at_most) == (1, 1) and 0.7 < perfect.at_least < 0.95
    assert (nothing.mean, nothing.at_least) == (0, 0) and nothing.at_most > 0.95
    assert not nothing.broken and not none.broken
    thirds = of([1 / 3, 2 / 3, 1])
    assert thirds.recalls == {334: 1, 667: 1, 1000: 1} and thirds.queries == 3
    assert of([0.7, 0.1, 0.3]).recalls == {100: 1, 300: 1, 700: 1}  # no step up by rounding


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 10), max_size=12), st.lists(st.integers(0, 10), max_size=12))
def test_audits_together_are_as_one_of_all_their_queries(some, others):
    tenths = [np.array(part, float) / 10 for part in (some, others)]
    whole = of(np.concatenate(tenths))
    for parts in (tenths, tenths[::-1]):
        (both,) = merged([of(parts[0]), of(parts[1])])
        assert both == whole and both.at_most == whole.at_most
    other = AuditedRecall.of("image", "text", 9, 10, 0.95, tenths[0])
    assert len(merged([of(tenths[0]), other])) == 2  # of other lists


def test_what_is_promised_of_vectors_is_what_any_mixture_keeps():
    promise = Promise(10, PROMISE)
    kinds = ("text", "picture", "filtered", "vector", "mixed")
    assert [promise.of(kind) for kind in kinds] == [0.95, 0.97, 0.9, 0.95, None]
    assert Promise().of("vector") is None and Promise(10, {"text": 0.5}).of("vector") == 0.5


def test_a_query_is_of_the_kind_that_its_recall_is_promised_by():
    red, picture = Term("red"), Term(image=b"...")
    for kind, query in {
        "text": Query("a"),
        "picture": Query(image=b"..."),
        "vector": Query(vector=np.ones(4)),
    }.items():
        assert query.kind == kind and replace(query, where="row < 1").kind == "filtered"
    for query in (Query("a", b"..."), Query(terms=[red]), Query(terms=[red, picture])):
        assert query.kind == "mixed"


def test_all_queries_are_equally_likely_to_be_kept(monkeypatch):
    monkeypatch.setattr(recent_queries, "KEPT", 8)
    counts, total, runs = np.zeros(60), 60, 600
    for seed in range(runs):
        recent, rng, first = RecentQueries(1, seed), np.random.default_rng(seed), 0
        while first < total:
            size = min(int(rng.integers(1, 20)), total - first)
            xq = np.arange(first, first + size, dtype=np.float32)[:, None]
            recent.add(xq, "image", "text", 10)
            xq[:] = -1  # they are copied
            first += size
        assert recent.seen == total
        ((_, kept),) = recent.take(1.0)
        assert len(np.unique(kept)) == 8
        counts[kept[:, 0].astype(int)] += 1
    expected = runs * 8 / total
    assert (np.abs(counts - expected) < 5 * math.sqrt(expected)).all(), counts


def test_a_share_is_taken_of_the_queries_since_the_last_audit():
    recent, one, two = RecentQueries(2), Search("image", "text", 10), Search("text", "text", 5)
    assert recent.take(1.0) == []
    recent.add(np.zeros((30, 2), np.float32), *one)
    recent.add(np.ones((70, 2), np.float32), *two)
    taken = recent.take(0.5)
    assert sum(len(xq) for _, xq in taken) == 50 and {search for search, _ in taken} == {one, two}
    assert all((xq == (search == two)).all() for search, xq in taken)
    assert recent.take(1.0) == []
    recent.add(np.zeros((3, 2), np.float32), *one)
    assert [len(xq) for _, xq in recent.take(0.001)] == [1]


def test_the_recall_is_that_of_brute_force_with_filters_and_deletions(drifting):
    path, rows = drifting
    keys = [f"s0/{row:06d}" for row in range(0, len(rows), 7)]
    delete_from_index(str(path), lambda _: ByKey(keys), settings=LISTS)
    left = np.arange(len(rows)) % 7 > 0
    index = open_collection(path)
    plain, filtered = drifted_queries(90), drifted_queries(60, clusters=3, seed=2)
    scores, _ = index.search_vectors(plain, 10)
    own, _ = index.search_vectors(plain, 4, nprobe=2)
    where = "row % 2 = 0"
    passed, _ = index.search_vectors(filtered, 12, where)
    found = index.audit(1.0, raise_probes=False)["image"]
    even = left & (np.arange(len(rows)) % 2 == 0)
    assert found.keys() == {"vector", "filtered", "vector in 2 lists"}
    for kind, queries, promise, recall in [
        ("vector", 90, 0.95, brute_recall(rows[left], plain, scores)),
        ("vector in 2 lists", 90, 0.95, brute_recall(rows[left], plain, own, 4)),
        ("filtered", 60, 0.9, brute_recall(rows[even], filtered, passed)),
    ]:
        assert (found[kind].queries, found[kind].promise) == (queries, promise)
        assert found[kind].mean == pytest.approx(recall, abs=1e-3)
    assert found["vector"].mean < 0.8 and found["vector"].broken
    assert index.audited == {"image": found}
    assert index.audit(1.0) == index.audited  # no query came since


def test_queries_that_are_as_expected_keep_the_promise(drifting):
    index = open_collection(drifting[0])
    index.search_many([Query(vector=xq) for xq in expected_queries(60)])
    index.search_vectors(expected_queries(300, seed=2), 10)
    found = index.audit(1.0)["image"]["vector"]
    assert found.queries == 360 and found.mean > 0.97 and not found.broken
    assert index.lists_to_scan("image") == 1


def test_a_broken_promise_raises_the_lists_step_by_step_and_says_so(drifting, caplog):
    path, _ = drifting
    index, lists = open_collection(path), []
    for seed in range(6):
        xq = drifted_queries(150, clusters=6, seed=seed)
        index.search_vectors(xq, 10)
        index.audit(1.0)
        lists.append(index.lists_to_scan("image", kind="vector"))
    assert lists == [2, 3, 4, 4, 4, 4]  # four times the plan's at the most
    assert index.lists_to_scan("image", kind="text") == 1 and len(index.generation.manifest.columns)
    assert index.lists_to_scan("image", nprobe=9, kind="vector") == 9
    assert [*index.audited["image"]] == [
        "vector in 1 lists", "vector in 2 lists", "vector in 3 lists", "vector",
    ]  # fmt: skip
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6 and all("BELOW the promised 0.95" in line for line in lines)
    more = "from now on 2 lists are scanned instead of 1, which takes more time"
    assert f"{more}; chiasm index build {path} tunes anew" in lines[0]
    assert f"no more lists are scanned than 4: run chiasm index build {path}" in lines[-1]
    xq = drifted_queries(50, clusters=6, seed=9)
    assert np.array_equal(index.search_vectors(xq, 10), index.search_vectors(xq, 10, nprobe=4))


def test_more_lists_mend_the_recall_and_then_stay(drifting):
    index = open_collection(drifting[0])
    for seed in range(4):
        index.search_vectors(drifted_queries(150, seed=seed), 10)
        index.audit(1.0)
    found = index.audited["image"]["vector"]
    assert found.nprobe == index.lists_to_scan("image", kind="vector") == 2
    assert found.queries == 450 and not found.broken


def test_lists_stay_as_they_are_where_nobody_wants_them_raised(drifting, caplog):
    index = open_collection(drifting[0])
    index.search_vectors(drifted_queries(150), 10)
    assert index.audit(1.0, raise_probes=False)["image"]["vector"].broken
    assert index.lists_to_scan("image", kind="vector") == 1 and caplog.records == []


def test_an_edit_goes_on_with_the_audits_and_a_build_begins_anew(drifting):
    path, _ = drifting
    index, folder = open_collection(path), Folder(str(path))
    index.search_vectors(drifted_queries(150), 10)
    index.audit(1.0)
    add_shard(folder, "s1", 3, dim=DIM)
    add_to_index(str(path), settings=LISTS)
    index.search_vectors(drifted_queries(50), 10)
    assert index.refresh() and index.lists_to_scan("image", kind="vector") == 2
    # Those that were asked before are answered from what is open now.
    found = index.audit(1.0, raise_probes=False)["image"]
    assert {kind: one.queries for kind, one in found.items()} == {
        "vector in 1 lists": 150, "vector": 50,
    }  # fmt: skip
    index.search_vectors(drifted_queries(20), 10, "row < 9")
    make_index(path, None)
    assert index.refresh() and index.audited == {}
    assert index.lists_to_scan("image", kind="vector") == 1
    (found,) = index.audit(1.0)["image"].values()
    assert (found.kind, found.queries, found.promise, found.mean) == ("filtered", 20, None, 1)


def test_queries_whose_column_or_filter_is_gone_are_passed_over(drifting, caplog):
    caplog.set_level(logging.INFO)
    index = open_collection(drifting[0])
    xq = expected_queries(5)
    for search in [Search("text", "text", 10), Search("image", "filtered", 10, None, "no.such")]:
        index.audits.recent.add(xq, *search)
    index.audits.recent.add(xq, "image", "text", 0)
    index.search_vectors(xq, 10, "row < 0")
    assert index.audit(1.0) == {}
    assert "5 queries are not audited" in caplog.text


def test_an_exact_column_has_a_recall_of_1_and_nothing_is_scanned(tmp_path, monkeypatch):
    make_collection(tmp_path, (40,))
    build_index(str(tmp_path))
    index = open_collection(tmp_path)
    index.search_vectors(unit_rows(np.random.default_rng(0), 9, 8), 3, column="text")
    monkeypatch.setattr(auditing, "exact_top", None)
    (found,) = index.audit(1.0)["text"].values()
    assert (found.queries, found.mean, found.broken) == (9, 1.0, False)
    assert str(found).endswith("recall@10 1.000 of 9, every vector is scored")


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_an_audit_of_8_bit_vectors_says_that_it_compares_with_these(tmp_path, capfd, kind):
    make_collection(tmp_path, (400,), dim=DIM)
    wanted = replace(LISTS, kind=kind, vectors="int8")
    summary = build_index(tmp_path, columns=["image"], settings=wanted)
    index = open_collection(tmp_path)
    index.search_vectors(expected_queries(9), 3)
    (found,) = index.audit(1.0, save=True)["image"].values()
    says = "every 8-bit vector is scored"
    says = says if kind == "exact" else "without a promise; against a scan of its 8-bit vectors"
    assert found.vectors == "int8" and str(found).endswith(says)
    run("status", tmp_path)
    assert " (against its 8-bit vectors)" in capfd.readouterr().out
    # A build says that nothing was measured.
    print_summary(summary)
    line = "  image: rows are scored by 8-bit vectors; what these lose was not measured"
    assert line in capfd.readouterr().out
    print_summary(build_index(tmp_path, columns=["image"], settings=replace(LISTS, kind=kind)))
    assert "8-bit" not in capfd.readouterr().out


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_what_is_no_share_is_refused(drifting, share):
    with pytest.raises(UsageError, match="audit: expected a share above 0, up to 1, found"):
        open_collection(drifting[0]).audit(share)


def test_threads_that_search_and_audit_at_once_count_each_query_once(drifting):
    index = open_collection(drifting[0])
    xq = drifted_queries(200)
    expected = index.search_vectors(xq, 10, nprobe=1)
    index.audits.recent.take(1.0)
    begin, wrong = threading.Barrier(4), []

    def search(start: int) -> None:
        begin.wait()
        for query in range(start, len(xq), 2):
            found = index.search_vectors(xq[query, None], 10)
            if not np.array_equal(found[1][0], expected[1][query]):
                wrong.append(query)

    def audit() -> None:
        begin.wait()
        for _ in range(20):
            index.audit(1.0, raise_probes=False)

    threads = [threading.Thread(target=search, args=(start,)) for start in (0, 1)]
    threads += [threading.Thread(target=audit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = index.audit(1.0, raise_probes=False)["image"]["vector"]
    assert wrong == [] and found.queries == 200
    exact = brute_recall(index.vectors("image", range(len(index))), xq, expected[0])
    assert found.mean == pytest.approx(exact)


def write_queries(path: Path, xq: np.ndarray) -> Path:
    path.write_text("".join(json.dumps({"vector": one}) + "\n" for one in xq.tolist()))
    return path


def run(*arguments: object) -> None:
    application()([str(argument) for argument in arguments], standalone_mode=False)


def test_the_command_says_the_recall_and_keeps_it_for_status(drifting, tmp_path, capfd):
    path, _ = drifting
    to, file = tmp_path / "hits.parquet", write_queries(tmp_path / "q.jsonl", drifted_queries(90))
    options = ["search", path, "--queries", file, "--to", to]
    run(*options)
    answers = pq.read_table(to)
    assert "audited" not in capfd.readouterr().err
    for audits in (1, 2):
        run(*options, "--audit", "0.5")
        wrote, audited, advice = capfd.readouterr().err.splitlines()
        assert wrote == f"wrote {to}: 90 queries, 900 results"
        assert audited.startswith("audited: image, vector queries: recall@10 0.")
        assert audited.endswith(" of 45 in 1 lists, BELOW the promised 0.95")
        assert advice.startswith(f"  chiasm index build {path} tunes anew; until then search")
        assert advice.endswith("with --set index.nprobe=2")
        (stored,) = read_audit(Folder(str(path)), 1, read_manifest(Folder(str(path)), 1).run)
        assert stored.queries == 45 * audits and stored.broken
    assert pq.read_table(to).equals(answers)  # nothing is changed by an audit
    run("index", "status", path)
    lines = capfd.readouterr().out.splitlines()
    assert lines[1] == f"  {stored}" and f"chiasm index build {path} tunes anew" in lines[2]
    run("index", "status", path, "--json")
    (one,) = json.loads(capfd.readouterr().out)["generations"][0]["audited"]
    assert one == stored.as_json() and one["queries"] == 90 and one["broken"]
    run("status", path)
    line = capfd.readouterr().out
    assert f"audited recall image vector {stored.mean:.3f} BELOW the promised 0.95" in line
    status = read_status(str(path)).index
    assert status.do == f"run chiasm index build {path}" and status.audited == [one]
    run(*options, "--audit", "1", "--set", "index.nprobe=4")
    assert "BELOW" not in capfd.readouterr().err
    run("status", path)  # two recalls of one name differ in their lists
    line = capfd.readouterr().out
    assert f"recall image vector {stored.mean:.3f} in 1 lists BELOW the promised 0.95, " in line
    assert " in 4 lists" in line
    with pytest.raises(UsageError, match="audit: expected a share above 0, up to 1, found 2"):
        run(*options, "--audit", "2")


def test_all_queries_of_a_file_are_audited_however_many_are_kept(drifting, tmp_path, monkeypatch):
    monkeypatch.setattr(recent_queries, "KEPT", 64)
    path, _ = drifting
    file, index = write_queries(tmp_path / "q.jsonl", drifted_queries(200)), open_collection(path)
    search_file(index, file, tmp_path / "hits.parquet", audit=1.0)
    assert index.audited["image"]["vector"].queries == 200
    assert index.lists_to_scan("image", kind="vector") == 1  # answers of a file are of one kind
    (stored,) = read_audit(Folder(str(path)), 1, index.generation.manifest.run)
    assert stored == index.audited["image"]["vector"]


def test_a_collection_that_cannot_be_written_fails_no_search(drifting, monkeypatch, caplog):
    def refuse(folder: Folder, name: str, data: bytes, run_id: str = "") -> None:
        raise StorageError(name, expected="a folder to write", found="a read-only file system")

    index = open_collection(drifting[0])
    index.search_vectors(expected_queries(20), 10)
    monkeypatch.setattr(Folder, "write_whole", refuse)
    assert index.audit(1.0, save=True)["image"]["vector"].queries == 20
    (record,) = caplog.records
    assert record.getMessage() == (
        "the audit is not stored: index/generations/000001.audit: expected a folder to write, "
        "found a read-only file system"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "no valid JSON"),
        ('{"run": "x", "recalls": [{"column": 1}]}', "recalls.0"),
        ('{"schema": 2}', "schema version 2, of which"),
        ('{"run": "RUN", "recalls": [{"column": "image", "kind": "text", "nprobe": 1, "at": 10,'
         ' "promise": 0.9, "recalls": {"1001": 1}}]}', "recalls.0.recalls.1001"),
        ('{"run": "RUN", "recalls": [{"column": "image", "kind": "text", "nprobe": 1, "at": 10,'
         ' "promise": null, "recalls": {"9": -1}}]}', "recalls.0.recalls.9"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_line_and_is_written_anew(drifting, capfd, content, found):
    path, _ = drifting
    folder, name, index = Folder(str(path)), audit_name(1), open_collection(path)
    made_by = index.generation.manifest.run
    (path / name).write_text(content.replace("RUN", made_by))
    line = f"{name}: expected a record of audits, found {found}"
    with pytest.raises(CollectionError, match=line):
        read_audit(folder, 1, made_by)
    for command in (("status",), ("index", "status")):
        run(*command, path)
        assert line in capfd.readouterr().out
    (finding,) = check(path).findings
    assert line in str(finding)
    index.search_vectors(expected_queries(20), 10)
    index.audit(1.0, save=True)
    (warning,) = capfd.readouterr().err.splitlines()
    assert line in warning and warning.endswith("; it was written anew")
    assert read_audit(folder, 1, made_by)[0].queries == 20 and check(path).findings == []


def test_a_record_of_another_generation_of_the_same_number_does_not_count(drifting):
    path, _ = drifting
    folder = Folder(str(path))
    audit_files.add_to_audit(folder, 1, "another run", [of([1.0])])
    run_id = read_manifest(folder, 1).run
    assert read_audit(folder, 1, run_id) == ()
    audit_files.add_to_audit(folder, 1, run_id, [of([0.5])])
    assert [one.queries for one in read_audit(folder, 1, run_id)] == [1]


def test_audits_go_with_their_generation(drifting):
    path, _ = drifting
    index, folder = open_collection(path), Folder(str(path))
    index.search_vectors(expected_queries(20), 10)
    index.audit(1.0, save=True)
    audit_files.add_to_audit(folder, 99, "x", [of([1.0])])
    for key in ("s0/000000", "s0/000001"):
        delete_from_index(str(path), lambda _, key=key: ByKey([key]), settings=LISTS)
    assert numbers(folder) == [3] and not folder.exists(audit_name(1))
    assert not folder.exists(audit_name(99))


def test_stored_audits_outlive_every_edit_and_end_with_a_build(drifting, caplog):
    """As those of an open index do; with the generations that they were made of long gone."""
    path, _ = drifting
    folder, keep = Folder(str(path)), replace(LISTS, keep_generations=9, keep_seconds=3600)
    index = open_collection(path)

    def stored() -> dict[str, int]:
        index.refresh()
        live = index.generation
        found = read_audit(folder, live.number, live.manifest.run)
        assert [one.as_json() for one in found] == read_status(str(path)).index.audited
        assert found == index.audits.recalls(live)
        return {one.kind: one.queries for one in found}

    index.search_vectors(drifted_queries(150), 10)
    index.audit(1.0, raise_probes=False, save=True)
    delete_from_index(str(path), lambda _: ByKey(["s0/000000"]), settings=LISTS)
    add_shard(folder, "s1", 30, dim=DIM)
    add_to_index(str(path), settings=LISTS)
    compact_index(str(path), settings=LISTS)
    assert numbers(folder)[0] > 1 and stored() == {"vector": 150}
    assert read_status(str(path)).index.audited[0]["broken"]
    index.search_vectors(drifted_queries(20, seed=5), 10, "row < 900")
    index.audit(1.0, raise_probes=False, save=True)
    delete_from_index(str(path), lambda _: ByKey(["s0/000001"]), settings=keep)
    roll_back_index(str(path), settings=keep)
    assert stored() == {"filtered": 20, "vector": 150}  # none is counted twice
    before = index.generation.number
    build_index(str(path), columns=["image"], settings=keep)
    assert stored() == {}
    # Back to the other build: to the audits of that.
    roll_back_index(str(path), before, settings=keep)
    live = folder, numbers(folder)[-1], read_manifest(folder, numbers(folder)[-1]).run
    assert [one.queries for one in read_audit(*live)] == [20, 150]
    assert "not kept" not in caplog.text
    (path / audit_name(live[1])).write_text("{")
    delete_from_index(str(path), lambda _: ByKey(["s0/000002"]), settings=keep)
    assert "audits of generation" in caplog.text and not folder.exists(audit_name(live[1] + 1))
