"""Receipts of searches: the same bytes later, or what changed; which way was searched, and why."""

from __future__ import annotations

import json
import shutil
from unittest.mock import patch

import fake_encoder
import numpy as np
import pytest
from conftest import make_shard
from fake_encoder import DIM, FakeMatcher
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, Query, Recorder, Term, build_index, open_collection, replay
from chiasm.index.build import ByKey, add_to_index, delete_from_index
from chiasm.index.query import OpenIndex, filter_plan
from chiasm.index.query.scan import ColumnIndex
from chiasm.index.receipts import read_receipt, recorder, stored_query
from chiasm.index.receipts.differences import differences
from chiasm.index.receipts.record import Receipt, checksum_of
from chiasm.index.segments import manifest_name
from chiasm.jobs.cli.app import application
from chiasm.pipeline.encoders import ENCODERS, Encoded
from chiasm.pipeline.errors import ChiasmError, CollectionError, SourceError, UsageError
from chiasm.pipeline.make import make_collection as embed
from chiasm.pipeline.storage import Folder

ENCODER = "fake:matcher"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Two shards of 12; tests take a copy."""
    root = tmp_path_factory.mktemp("receipts")
    with pytest.MonkeyPatch.context() as known:
        known.setitem(ENCODERS, "fake", fake_encoder.load)
        yield make_index(root)


def make_index(root):
    shards = [make_shard(root / f"s{n}.tar", 12, seed=n) for n in range(2)]
    embed(shards, root / "c", FakeMatcher("matcher"))
    build_index(root / "c")
    return root / "c"


@pytest.fixture
def made(first, tmp_path):
    return shutil.copytree(first, tmp_path / "c")


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "query.png"
    pixels = np.random.default_rng(7).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def record(collection, queries, to, **options):
    """Search and write a receipt; returns the answers."""
    made = Recorder(open_collection(collection, allow_stale=True), **options)
    answers = [answer for batch in queries for answer in made.search(batch)]
    made.write(str(to))
    return answers


def lines_of(answers):
    """The answers as `search --json` prints them, without seconds."""
    plain = [answer.as_json() for answer in answers]
    return [json.dumps({k: v for k, v in one.items() if k != "seconds"}) for one in plain]


def forge(path, change):
    """Change a receipt and make its checksum right again."""
    fields = json.loads(path.read_text())
    change(fields)
    fields.pop("checksum", None)
    path.write_text(json.dumps({**fields, "checksum": checksum_of(fields)}))


def queries_of(picture):
    return [
        [
            Query("a red boat", k=4, rerank=["match:6", "vectors:3"], hybrid=True),
            Query("picture 3 of 1", column="text", k=3, where="width > 16"),
            Query(vector=np.arange(1, DIM + 1, dtype=np.float32), k=30),
        ],
        [Query("a", picture, column="joint", dedup=0.4, diversity=0.3, k=5)],
        [Query(terms=[Term("boat", weight=2), Term(image=picture, weight=-0.5)], nprobe=3)],
        [Query(image=picture.read_bytes(), k=2, rerank="match:5")],
        [Query(image=Image.open(picture), k=2), Query("\ud83d 犬", k=1)],
    ]


def edit(collection):
    """Rows go, rows come, and the index is built again: three generations more."""
    delete_from_index(collection, lambda generation: ByKey(["00000003", "00000007"]))
    embed(
        [make_shard(collection.parent / "s9.tar", 12, seed=9)], collection, FakeMatcher("matcher")
    )
    add_to_index(collection)
    build_index(collection)


def test_a_replay_gives_the_bytes_of_then_after_edits(made, picture, tmp_path):
    to = tmp_path / "r.json"
    answers = record(made, queries_of(picture), to, explain=False)
    picture.unlink()  # it is in the receipt
    edit(made)
    now = open_collection(made).search_many([Query("a red boat", k=30)])[0]
    assert len(now) == 30 and now.trace.generation == 4
    found = replay(str(to))
    assert (found.changes, found.notes, found.same) == ([], [], True)
    assert found.lines == lines_of(answers)
    receipt = read_receipt(str(to))
    assert Receipt.from_bytes(receipt.to_bytes(), "again") == receipt
    assert receipt.generation.number == 1 and [one.batch for one in receipt.queries] == [
        *(0, 0, 0), 1, 2, 3, 4, 4
    ]  # fmt: skip
    for kept, answer in zip(receipt.queries, answers, strict=True):
        assert kept.decoded().tobytes() == answer.trace.vector.tobytes()
        assert [one.position for one in kept.candidates] == [
            hit.position for hit in answer.trace.candidates
        ]
        assert len(answer) <= kept.seen == len(kept.candidates)
        best = [hit.position for hit in answer.trace.candidates[: len(answer)]]
        assert best == [result.hit.position for result in answer]
    assert receipt.rerankers == {"match": FakeMatcher("matcher").fingerprint}


def test_the_command_prints_what_replay_prints(made, tmp_path, capsys):
    to = tmp_path / "r.json"
    words = ["search", str(made), "a 犬", "-k", "3", "--json", "--receipt", str(to), "--explain"]
    application()(words, standalone_mode=False)
    searched = capsys.readouterr()
    assert searched.err == f"wrote {to}\n" and searched.out.isascii()
    [line] = map(json.loads, searched.out.splitlines())
    assert [*line] == ["query", "results", "explain"]
    edit(made)
    application()(["replay", str(to)], standalone_mode=False)
    replayed = capsys.readouterr()
    assert (replayed.out, replayed.err) == (searched.out, "")
    moved = made.rename(tmp_path / "moved")
    with pytest.raises(CollectionError, match="expected a collection"):
        application()(["replay", str(to)], standalone_mode=False)
    words = ["replay", str(to), "--collection", str(moved), "--no-encode"]
    application()(words, standalone_mode=False)
    assert capsys.readouterr().out == searched.out


def test_a_search_for_people_is_explained_on_stderr_and_keeps_a_receipt(made, tmp_path, capsys):
    to = tmp_path / "r.json"
    words = [*("search", str(made), "a", "-k", "2", "--explain", "--receipt", str(to))]
    application()([*words, "--where", "width < 0"], standalone_mode=False)
    found = capsys.readouterr()
    assert found.err.splitlines() == [
        "column image (exact): nothing is scanned: 0 of 24 rows pass (0 %)",
        f"wrote {to}",
    ]
    assert found.out.startswith('"a" in image: ')
    application()(
        ["search", str(made), "a", "-k", "2", "--explain", "--json"], standalone_mode=False
    )
    [search] = json.loads(capsys.readouterr().out)["explain"]
    assert (search["way"], search["rows"], search["passing"], search["share"]) == (
        *("exact", 24, None, None),
    )


def test_what_a_receipt_cannot_be_written_for_is_refused(made, tmp_path, monkeypatch):
    queries = tmp_path / "q.txt"
    queries.write_text("a\n")
    words = ["search", str(made), "--queries", str(queries), "--to", str(tmp_path / "h.parquet")]
    with pytest.raises(UsageError, match="--receipt: expected a query, or lines of stdin, found"):
        application()([*words, "--receipt", "r.json"], standalone_mode=False)
    with pytest.raises(UsageError, match="--queries: expected no other query or output, found --e"):
        application()([*words, "--explain"], standalone_mode=False)
    with pytest.raises(ChiasmError, match="expected a file to write, found something else there"):
        application()(["search", str(made), "a", "--receipt", str(tmp_path)], standalone_mode=False)
    monkeypatch.setattr(recorder, "MAX_BYTES", 2000)
    with pytest.raises(UsageError, match="--receipt: expected answers of at most 1 KB"):
        record(made, [[Query("a")]], tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_all_answers_of_a_receipt_are_of_one_generation(made):
    searcher = open_collection(made)
    made_by = Recorder(searcher)
    made_by.search([Query("a")])
    delete_from_index(made, lambda generation: ByKey(["00000003"]))
    searcher.refresh()
    with pytest.raises(CollectionError, match="expected one that answers all queries of a receipt"):
        made_by.search([Query("b")])


def test_a_receipt_of_a_refreshed_searcher_is_replayed_the_same(tmp_path):
    """What a refresh leaves in memory in parts finds other candidates than a fresh open."""
    path, to = tmp_path / "c", tmp_path / "r.json"
    make_collection(path, (1200,), dim=16)
    plan = IndexSettings(kind="ivf", dims=4, tune=False, exact_below=1, keep_generations=1)
    build_index(path, columns=["image"], settings=plan)
    searcher = open_collection(path)
    searcher.column("image").open()
    add_shard(Folder(str(path)), "s2", 150, dim=16, seed=77)
    add_to_index(path, settings=plan)
    assert searcher.refresh()
    xq = unit_rows(np.random.default_rng(3), 600, 16)
    fresh, queries = open_collection(path), [Query(vector=one, k=1) for one in xq]
    apart = searcher.search_vectors(xq, 1)[1] != fresh.search_vectors(xq, 1)[1]
    some = np.flatnonzero(apart)[:3].tolist()
    assert some
    made_by = Recorder(searcher)
    answers = made_by.search([queries[n] for n in some] + queries[:3])
    made_by.write(str(to))
    found = replay(str(to), encode=False)
    assert found.same and found.changes == []
    assert found.lines == [json.dumps(json.loads(line)) for line in lines_of(answers)]
    # The searcher itself goes on, and has the queries for its audits.
    assert searcher.audits.recent.seen == 603 + len(some)
    delete_from_index(path, lambda _: ByKey(["s2/000000"]), settings=plan)
    assert searcher.refresh()
    assert lines_of(made_by.search(queries[:1])) == lines_of(answers[len(some) : len(some) + 1])


def test_a_changed_encoder_is_said_beside_the_same_answers(made, tmp_path, monkeypatch, capsys):
    to = tmp_path / "r.json"
    answers = record(made, [[Query("a red boat")]], to)

    class Other(FakeMatcher):
        def __init__(self):
            super().__init__("matcher")
            self.fingerprint = "f" * 32

    monkeypatch.setitem(ENCODERS, "fake", lambda model, settings: Other())
    found = replay(str(to))
    assert found.lines == lines_of(answers)
    [change] = found.changes
    assert change.startswith("the encoder is another: ") and "another of that name (ffff" in change
    with pytest.raises(CollectionError, match="1 change, listed above; the answers are the same"):
        application()(["replay", str(to)], standalone_mode=False)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == found.lines and printed.err.splitlines() == [change]
    monkeypatch.delitem(ENCODERS, "fake")
    found = replay(str(to))
    assert found.lines == lines_of(answers) and found.changes == []
    assert found.notes[0].startswith("the queries were not encoded again: encoder 'fake:matcher'")


def test_vectors_that_are_encoded_otherwise_are_said(made, tmp_path, monkeypatch):
    to = tmp_path / "r.json"
    record(made, [[Query("a"), Query("b")], [Query("c")]], to)
    real = FakeMatcher._vector
    for apart, expected in ((1e-4, ([], 1)), (0.1, ([3], 0))):

        def vector(self, data, apart=apart):
            found = real(self, data) + (apart if data == b"c" else 0) * np.eye(DIM)[0]
            return (found / np.linalg.norm(found)).astype(np.float32)

        monkeypatch.setattr(FakeMatcher, "_vector", vector)
        found = replay(str(to))
        numbers = [int(change.split(":")[0].removeprefix("query ")) for change in found.changes]
        assert found.same and (numbers, len(found.notes)) == expected


def test_a_vector_that_depends_on_its_batch_is_replayed_as_it_was(made, tmp_path, monkeypatch):
    """As models of bfloat16 round; stages that match are answered in the same batches again."""
    real = FakeMatcher.encode

    def encode(self, modality, items):
        vectors = real(self, modality, items).vectors + 1e-4 * len(items) * np.eye(DIM)[0]
        return Encoded((vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float32))

    monkeypatch.setattr(FakeMatcher, "encode", encode)
    queries = [Query(text, rerank=["match:6"]) for text in ("a red boat", "b", "c")]
    to = tmp_path / "r.json"
    answers = record(made, [queries, queries[:1]], to)
    alone, beside = answers[3].trace.vector, answers[0].trace.vector
    assert 0 < np.abs(alone - beside).max() < 1e-3
    found = replay(str(to))
    assert found.lines == lines_of(answers) and (found.changes, found.notes) == ([], [])


def test_pictures_that_are_too_large_are_read_again(made, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_query, "EMBEDDED_BYTES", 0)
    monkeypatch.chdir(tmp_path)
    to = tmp_path / "r.json"
    queries = [[Query(image=picture.name, k=2), Query("a", k=2)]]
    answers = record(made, queries, to)
    monkeypatch.chdir("/")
    found = replay(str(to))
    assert found.changes == [] and found.lines == lines_of(answers)
    assert json.loads(found.lines[0])["query"]["image"] == "query.png"
    Image.new("RGB", (8, 8)).save(picture)
    found = replay(str(to))
    assert found.lines == lines_of(answers)  # by the stored vector
    assert found.changes[0].startswith("query 1: picture query.png: sha256 was ")
    picture.unlink()
    assert "query 1: picture query.png: it cannot be read any more" in replay(str(to)).changes[0]
    by_match = [[Query(image=Image.new("RGB", (8, 8)), k=2, rerank="match:3")]]
    record(made, by_match, to)
    found = replay(str(to))
    assert found.changes[0].startswith("query 1: picture (given as pixels): too large for a rec")
    assert found.changes[1].startswith("the search cannot be done again: (given as pixels): expe")
    assert found.lines == []


def test_a_receipt_has_no_signature_of_a_signed_url():
    secret = "https://example.com/a.png?X-Amz-Signature=abc&format=png"
    name, place = stored_query._name_and_place(secret)
    assert name == place and "abc" not in name and name.startswith("https://example.com/a.png?")


def test_a_damaged_file_of_the_generation_is_said(made, tmp_path):
    to = tmp_path / "r.json"
    record(made, [[Query("a")]], to)
    [vectors] = made.glob("index/segments/*/image.f16")
    data = bytearray(vectors.read_bytes())
    data[3] ^= 1
    vectors.write_bytes(data)
    found = replay(str(to))
    assert not found.same and found.lines == []
    assert found.changes[0].startswith(
        f"the search cannot be done again: {vectors}: expected check"
    )
    vectors.unlink()
    found = replay(str(to))
    assert found.changes == [
        f"generation 000001: {vectors}: expected a file of the index, "
        "found no such file, or one of another size"
    ]


def test_a_generation_that_is_gone_is_said_with_those_that_are_there(made, tmp_path, capsys):
    to = tmp_path / "r.json"
    record(made, [[Query("a")]], to)
    soon = IndexSettings(keep_seconds=0, keep_generations=1)
    delete_from_index(made, lambda generation: ByKey(["00000003"]), settings=soon)
    found = replay(str(to))
    assert found.changes == [
        "generation 000001 is gone (there are: 000002); one that is not live is kept for "
        "index.keep_seconds, and longer among the last index.keep_generations"
    ]
    with pytest.raises(CollectionError, match="expected everything as it was, found 1 change"):
        application()(["replay", str(to)], standalone_mode=False)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.splitlines() == found.changes


def test_another_generation_of_the_same_number_is_said(made, tmp_path):
    to = tmp_path / "r.json"
    record(made, [[Query("a")]], to)
    folder = Folder(str(made))
    before = json.loads((made / manifest_name(1)).read_text())
    delete_from_index(made, lambda generation: ByKey(["00000003"]))
    (made / manifest_name(2)).rename(made / manifest_name(1))
    found = replay(str(to)).changes
    segment = before["segments"][0]["id"]
    assert found[0].startswith("generation 000001: its manifest was ")
    assert found[1:] == [f"segment {segment}: other rows are deleted"]
    build_index(made)
    numbers = sorted(made.glob("index/generations/*.json"))
    numbers[-1].rename(made / manifest_name(1))
    after = json.loads((made / manifest_name(1)).read_text())["segments"][0]["id"]
    assert replay(str(to)).changes[1:] == [
        f"segment {segment} is not in it any more", f"segment {after} was not in it"
    ]  # fmt: skip
    folder.write_whole(manifest_name(1), b"{")
    assert "found no valid JSON" in replay(str(to)).changes[0]


def test_versions_and_processors_are_noted_and_another_encoder_is_a_change(made, tmp_path):
    to = tmp_path / "r.json"
    answers = record(made, [[Query("a")]], to)
    forge(to, lambda fields: fields["environment"].update(numpy="1.0", processor="abacus"))
    found = replay(str(to))
    assert found.lines == lines_of(answers) and found.changes == []
    assert found.notes[0] == f"numpy was 1.0, is {np.__version__}"
    assert found.notes[1].startswith("processor was abacus, is ")
    forge(to, lambda fields: fields["encoder"].update(name="hf:x", ran="float16 on cuda"))
    found = replay(str(to))
    [change] = found.changes
    assert change.startswith("the collection's encoder was hf:x (") and ENCODER in change
    assert "the encoder ran float16 on cuda, now float32 on cpu" in found.notes


def test_an_answer_that_differs_is_said_row_by_row(made, tmp_path):
    """A receipt of the same generation whose answers are others stands for another processor."""
    to = tmp_path / "r.json"
    record(made, [[Query("a", k=4)]], to)

    def change(fields):
        results = fields["queries"][0]["answer"]["results"]
        results[0]["id"], results[1]["rank"] = "gone", 9
        results[2]["score"] += 0.25
        fields["printed"]["blake2b"] = "0" * 32

    forge(to, change)
    found = replay(str(to))
    kinds = ["gone went, from rank 1", "came, at rank 1", "moved from rank 9 to 2", "by 0.25 at"]
    assert len(found.changes) == 4 and not found.same and found.lines == []
    assert all(kind in line for kind, line in zip(kinds, found.changes, strict=True))
    forge(to, lambda fields: fields["queries"][0].update(answer=json.loads(lines_of(
        open_collection(made).search_many([Query("a", k=4)]))[0])))  # fmt: skip
    assert replay(str(to)).changes == ["the bytes of the answers differ"]


def test_differences_are_bounded_and_name_other_fields():
    def answer(ids, **fields):
        results = [
            {"id": one, "rank": rank, "score": 0.5, "url": "a", **fields}
            for rank, one in enumerate(ids, 1)
        ]
        return {"query": {"k": 1}, "p_absent": 0.5, "results": results}

    same = answer("abc")
    assert differences(1, same, answer("abc")) == []
    assert differences(2, same, answer("abc", url="b")) == ["query 2: url of 3 rows differs"]
    other = {**same, "p_absent": 0.25, "query": {"k": 2}}
    assert differences(1, same, other) == [
        "query 1: query differs", "query 1: p_absent differs: was 0.5, is 0.25"
    ]  # fmt: skip
    many = differences(1, answer([str(n) for n in range(30)]), answer("ab"))
    assert many[10] == "query 1: ... and 20 more" and len(many) == 13


NOT_RECEIPTS = [b"", b"\x89PNG\r\n", b"{}", b"[1]", b"null", b"[" * 100_000, b'{"schema": 9}']


@pytest.mark.parametrize("data", NOT_RECEIPTS, ids=range(len(NOT_RECEIPTS)))
def test_a_foreign_file_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(CollectionError) as error:
        replay(str(tmp_path / "r.json"))
    assert "expected a receipt of chiasm search, found" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(SourceError):
        replay(str(tmp_path / "none.json"))


@pytest.fixture(scope="module")
def receipt(first, tmp_path_factory):
    root = tmp_path_factory.mktemp("receipt")
    record(
        first, [[Query("a", k=2, hybrid=True), Query("b", np.zeros((4, 4), np.uint8))]], root / "r"
    )
    return json.loads((root / "r").read_text()), root


def places(value, place=()):
    """The way to every value of nested lists and objects."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*place, key)
            yield from places(value[key], (*place, key))


OTHER = [None, True, -1, 0, 7, 1.5, 10**30, "", "x", "AAAA", [], {}, [[]], {"x": 1}, ["match:1"]]


@given(st.data())
@settings(max_examples=150)
def test_a_receipt_with_any_field_damaged_is_refused(receipt, data):
    """Without its checksum it is refused; with one that fits it is refused or replayed."""
    fields, root = json.loads(json.dumps(receipt[0])), receipt[1]
    place = data.draw(st.sampled_from(list(places(fields))))
    outer = fields
    for key in place[:-1]:
        outer = outer[key]
    other = data.draw(st.sampled_from([*OTHER, "remove"]))
    if other == "remove":
        del outer[place[-1]]
    elif json.dumps(outer[place[-1]]) == json.dumps(other):
        return
    else:
        outer[place[-1]] = other
    file = root / "damaged"
    file.write_text(json.dumps(fields))
    with pytest.raises(CollectionError) as refused:
        read_receipt(str(file))
    assert "\n" not in str(refused.value)
    forge(file, lambda fields: None)
    try:
        found = replay(str(file))
    except ChiasmError as error:
        assert "\n" not in str(error)
    else:
        assert found.same or found.changes
        assert not any("\n" in line for line in found.changes)


@given(st.data())
@settings(max_examples=60)
def test_a_receipt_with_any_byte_changed_is_refused_or_the_same(receipt, data):
    fields, _ = receipt
    content = bytearray(json.dumps(fields, indent=1).encode())
    expected = Receipt.from_bytes(bytes(content), "r")
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        assert Receipt.from_bytes(bytes(content), "r") == expected
    except CollectionError as error:
        assert "\n" not in str(error)


LISTS = IndexSettings(kind="ivf", tune=False, exact_below=1)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Three shards of rows whose json has their number, by lists, some of them deleted."""
    path = tmp_path_factory.mktemp("numbered") / "c"
    vectors = make_collection(path, (150, 150, 150))["image"]
    build_index(path, columns=["image"], settings=LISTS)
    keys = [f"s0/{row:06d}" for row in range(40, 60)]
    delete_from_index(path, lambda generation: ByKey(keys))
    return path, vectors


def numbers_of(vectors):
    """The row number in its shard of each position, and whether the row is deleted."""
    numbers = np.tile(np.arange(150), 3)
    positions = np.arange(len(vectors))
    return numbers, (positions >= 40) & (positions < 60)


@pytest.mark.parametrize(
    ("way", "where", "costs"),
    [
        ("lists", None, {}),
        ("nothing", "meta.number < 0", {}),
        ("all", "meta.number >= 0", {}),
        ("exact", "meta.number < 30", {}),
        ("exact", "meta.number < 30", {"ALWAYS_EXACT": -1, "MULTIPLY": 0.0}),
        ("subset", "meta.number % 3 = 0", {"ALWAYS_EXACT": -1, "MULTIPLY": 1e9}),
        ("selector", "meta.odd", {"ALWAYS_EXACT": -1, "MULTIPLY": 1e9, "SUBSET_BYTES": 0}),
    ],
)
def test_an_explanation_has_the_measured_selectivity_and_the_way_taken(
    numbered, tmp_path, monkeypatch, way, where, costs
):
    path, vectors = numbered
    for name, value in costs.items():
        monkeypatch.setattr(filter_plan, name, value)
    numbers, deleted = numbers_of(vectors)
    passes = {
        "meta.number < 0": numbers < 0,
        "meta.number >= 0": numbers >= 0,
        "meta.number < 30": numbers < 30,
        "meta.number % 3 = 0": numbers % 3 == 0,
        "meta.odd": numbers % 2 == 1,
    }
    alive = int((~deleted).sum())
    xq = unit_rows(np.random.default_rng(5), 3, vectors.shape[1])
    queries = [Query(vector=x, k=4, where=where) for x in xq]
    searcher = open_collection(path)
    taken = []
    with (
        patch.object(ColumnIndex, "scan", spy(ColumnIndex.scan, "lists", taken)),
        patch.object(ColumnIndex, "exact_scan", spy(ColumnIndex.exact_scan, "exact", taken)),
    ):
        answers = searcher.search_many(queries)
    [explanation] = {answer.trace.searches[0] for answer in answers}
    assert explanation.way == way and explanation.queries == 3
    scanned = [name for name, allowed in taken if allowed is not None or where is None]
    assert scanned == {"exact": ["exact"], "nothing": ["exact"], "all": []}.get(
        way, ["lists"] * len(scanned)
    )
    plan = searcher.generation.manifest.columns["image"]
    assert (explanation.rows, explanation.of_lists) == (alive, plan.lists)
    said = explanation.as_json()
    if where is None:
        assert explanation.passing is None and said["share"] is None
        expected = f"lists: {plan.nprobe} of {plan.lists} are scanned, as its recall needs"
        assert explanation.reason == expected and explanation.candidates == 4 * plan.oversample
    else:
        passing = int((passes[where] & ~deleted).sum())
        assert explanation.passing == passing
        assert said["share"] == pytest.approx(passing / alive)
        assert f"{passing} of {alive} rows pass" in explanation.reason
    assert str(explanation) == f"column image ({plan}): {explanation.reason}"
    assert explanation.reason.startswith(
        {"nothing": "nothing is scanned", "all": "as without a filter"}.get(way, way)
    )
    record(path, [queries[:2], queries[2:]], tmp_path / "r.json", explain=True)
    found = replay(str(tmp_path / "r.json"))
    assert found.same and not found.changes
    explained = [json.loads(line)["explain"] for line in found.lines]
    assert [[one["queries"] for one in ways] for ways in explained] == [[2], [2], [1]]
    assert explained[0] == [said | {"queries": 2}] or way not in ("lists", "nothing", "all")


def spy(real, name, taken):
    def call(self, allowed, *rest):
        taken.append((name, allowed))
        return real(self, allowed, *rest)

    return call


def test_more_lists_than_the_plans_are_said_and_so_is_each_search_for_folding(numbered):
    path, _ = numbered
    searcher = open_collection(path)
    plan = searcher.generation.manifest.columns["image"]
    more = min(plan.lists, plan.nprobe + 1)
    [answer] = searcher.search_many([Query(vector=np.ones(8), nprobe=more, dedup=0.5, k=8)])
    first, *others = answer.trace.searches
    assert first.lists == first.nprobe == more
    assert ("as the query wants" in first.reason) == (more != plan.nprobe)
    counts = [search.candidates for search in (first, *others)]
    assert others and counts == sorted(set(counts))


def test_lists_are_scanned_as_then_even_where_a_search_would_scan_others_now(
    numbered, tmp_path, monkeypatch
):
    path, vectors = numbered
    queries = [Query(vector=x) for x in unit_rows(np.random.default_rng(8), 9, vectors.shape[1])]
    with monkeypatch.context() as patched:
        patched.setattr(OpenIndex, "lists_to_scan", lambda self, column, wanted, *kind: 1)
        answers = record(path, [queries], tmp_path / "r.json")
    now = open_collection(path).search_many(queries)
    assert {answer.trace.searches[0].nprobe for answer in now} != {1}
    assert [answer.results for answer in now] != [answer.results for answer in answers]
    assert replay(str(tmp_path / "r.json")).lines == lines_of(answers)


def test_an_answer_of_a_filter_is_that_of_any_batch(numbered, tmp_path, monkeypatch):
    path, vectors = numbered
    monkeypatch.setattr(filter_plan, "ALWAYS_EXACT", -1)
    monkeypatch.setattr(filter_plan, "MULTIPLY", 1e6)
    xq = unit_rows(np.random.default_rng(6), 70, vectors.shape[1])
    queries = [Query(vector=x, k=3, where="meta.number < 100") for x in xq]
    answers = record(path, [queries[:1], queries], tmp_path / "r.json")
    assert {answer.trace.searches[0].way for answer in answers} == {"subset"}
    assert answers[0].results == answers[1].results
    found = replay(str(tmp_path / "r.json"), encode=False)
    assert found.lines == lines_of(answers) and found.changes == []


QUERIES = st.builds(
    Query,
    text=st.text(min_size=1).filter(str.strip),
    k=st.integers(1, 30),
    column=st.sampled_from(["image", "text", "joint"]),
    rerank=st.lists(st.sampled_from(["match:5", "vectors:9"]), max_size=2),
    dedup=st.none() | st.floats(0, 1),
    diversity=st.floats(0, 1),
    nprobe=st.none() | st.integers(1, 9),
    where=st.none() | st.sampled_from(["width > 1", "meta.even", "caption LIKE '%1%'"]),
)


@given(st.lists(st.lists(QUERIES, min_size=1, max_size=4), min_size=1, max_size=2))
@settings(max_examples=10)
def test_whatever_was_searched_is_found_again(receipt, first, batches):
    to = receipt[1] / "any.json"
    answers = record(first, batches, to)
    found = replay(str(to))
    assert found.lines == lines_of(answers) and (found.changes, found.notes) == ([], [])
