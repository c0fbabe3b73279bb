"""Queries from files, and their results as one Parquet file."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_shard
from fake_encoder import DIM, FakeEncoder

from chiasm.index import (
    HitCounts,
    Query,
    Term,
    build_index,
    hit_files,
    open_collection,
    query_files,
    read_queries,
    search_file,
)
from chiasm.index.hit_files import HitWriter
from chiasm.jobs.cli.app import application
from chiasm.pipeline.errors import SourceError, StorageError, UsageError
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.storage import Folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, encoder = tmp_path_factory.mktemp("queries"), FakeEncoder()
    make_collection(make_shard(root / "s.tar", 12, seed=0), root / "c", encoder)
    build_index(root / "c")
    return root / "c"


def rows_of(path):
    return pq.read_table(path).to_pylist(maps_as_pydicts="strict")


def test_the_results_are_those_of_the_queries(made, tmp_path):
    collection = open_collection(made)
    lines = [
        {"text": "a red boat"},
        {"vector": [1, 2, 3, 4, 5, 6, 7, 8.5], "column": "text", "k": 2},
        {"terms": [{"text": "boat", "weight": 2}, {"text": "night", "weight": -1}]},
        {"text": "a", "rerank": ["vectors:3"], "dedup": 0.1, "image": None},
    ]
    queries = [
        Query("a red boat", k=4),
        Query(vector=np.array(lines[1]["vector"]), column="text", k=2),
        Query(terms=[Term("boat", weight=2), Term("night", weight=-1)], k=4),
        Query("a", k=4, rerank="vectors:3", dedup=0.1),
    ]
    file = tmp_path / "queries.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    answers = collection.search_many(queries)
    counts = search_file(collection, file, tmp_path / "hits.parquet", k=4)
    rows = rows_of(tmp_path / "hits.parquet")
    assert counts == HitCounts(4, sum(map(len, answers))) and len(rows) == counts.hits
    expected = [(2 * n + 1, answer, r) for n, answer in enumerate(answers) for r in answer]
    for row, (line, answer, result) in zip(rows, expected, strict=True):
        plain = result.as_json()
        for name in ("rank", "id", "key", "shard", "score", "caption", "url", "member", "offset"):
            assert row[name] == plain[name], name
        assert (row["query"], row["text"], row["size"]) == (line, answer.query.text, plain["size"])
        assert row["scores"] == result.scores and json.loads(row["meta"]) == result.meta
        assert row["reranked"] == answer.is_reranked(result)
        assert row["duplicates"] == list(result.duplicates) and row["p_absent"] is None
    calibrated = dataclasses.replace(answers[1], p_absent=0.25)
    with HitWriter(Folder(str(tmp_path)), "p.parquet") as writer:
        writer.write([7], [calibrated])
        writer.commit({})
    found = [(row["query"], row["p_absent"]) for row in rows_of(tmp_path / "p.parquet")]
    assert found == [(7, 0.25)] * 2
    footer = json.loads(pq.read_metadata(tmp_path / "hits.parquet").metadata[b"chiasm"])
    assert footer["schema"] == 1 and (footer["queries"], footer["hits"]) == (4, counts.hits)
    assert footer["fingerprint"] == FakeEncoder().fingerprint


def test_texts_and_parquet_files_are_read(tmp_path):
    text = tmp_path / "a.TXT"
    text.write_bytes('\ufeff2: red boat\r\n\n {"text": 1} \n犬'.encode())
    found = list(read_queries(text, k=3))
    assert [number for number, _ in found] == [1, 3, 4]
    assert [query.text for _, query in found] == ["2: red boat", '{"text": 1}', "犬"]
    assert all(query.k == 3 and query.terms == () for _, query in found)
    pq.write_table(pa.table({"text": ["a", "b"], "other": [1, 2]}), tmp_path / "t.parquet")
    found = list(read_queries(tmp_path / "t.parquet"))
    assert [(n, q.text) for n, q in found] == [(1, "a"), (2, "b")]
    vectors = np.arange(6, dtype=np.float16).reshape(3, 2) + 1
    for kind in (pa.list_(pa.float16(), 2), pa.list_(pa.float32()), pa.large_list(pa.float64())):
        column = pa.array(vectors.tolist(), pa.list_(pa.float64())).cast(kind)
        pq.write_table(pa.table({"vector": column}), tmp_path / "v.parquet")
        read = np.stack([query.vector for _, query in read_queries(tmp_path / "v.parquet")])
        np.testing.assert_array_equal(read, vectors)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "a.jsonl: expected a JSON object, found a JSON list"),
        ("{", "a.jsonl: expected a JSON object, found Expecting property name"),
        ("[" * 100_000, "a.jsonl: expected a JSON object, found maximum recursion"),
        (
            '{"colour": 1}',
            "a.jsonl: expected only fields of a query: text, image, vector, column, k",
        ),
        ('{"text": 5}', "a.jsonl: text: expected str, found int"),
        ('{"text": "a", "column": []}', "a.jsonl: column: expected str, found list"),
        ('{"text": "a", "k": true}', "a.jsonl: k: expected a whole number from 1 up, found True"),
        ('{"text": "a", "nprobe": true}', "a.jsonl: nprobe: expected a whole number from 1 up, f"),
        ('{"text": "a", "calibrated": "no"}', "a.jsonl: calibrated: expected bool, found str"),
        ('{"text": "a", "hybrid": 1}', "a.jsonl: hybrid: expected bool, found int"),
        ('{"text": ["a"]}', "a.jsonl: text: expected str, found list"),
        ('{"vector": ["1", "2"]}', "a.jsonl: expected a vector as a list of numbers, found some"),
        ('{"vector": [true, 1]}', "a.jsonl: expected a vector as a list of numbers, found some"),
        ('{"text": "a", "k": 0}', "a.jsonl: k: expected a whole number from 1 up, found 0"),
        ('{"text": "a", "hybrid": "no"}', "a.jsonl: hybrid: expected bool, found str"),
        ('{"text": "a", "dedup": NaN}', "a.jsonl: dedup: expected a finite number from 0 to 1"),
        ('{"vector": "abc"}', "a.jsonl: expected a vector as a list of numbers, found something"),
        ('{"vector": [[1], [2, 3]]}', "a.jsonl: expected a vector as a list of numbers, found"),
        ('{"vector": []}', "a.jsonl: expected a vector as a list of numbers, found something"),
        (
            '{"vector": [1, 2]}',
            "a.jsonl: query vector: expected 8 finite numbers, not all zero, fo",
        ),
        (
            '{"terms": [1]}',
            "a.jsonl: terms: expected Term(text=..., weight=...) in a list, found i",
        ),
        ('{"terms": [{"text": "a", "wait": 1}]}', "a.jsonl: terms: expected only fields of a term"),
        (
            '{"terms": [{"text": "a", "weight": 1e999}]}',
            "a.jsonl: weight: expected a finite number",
        ),
        ('{"text": "a", "column": "x"}', "a.jsonl: column 'x': expected one of image, text, joint"),
        ('{"text": "a", "rerank": "no:5"}', "a.jsonl: rerank 'no:5': expected one of vectors:N"),
        ('{"image": "/nowhere.png"}', "a.jsonl: /nowhere.png: expected a picture's file, found"),
        ('{"text": "\\u0000"} \0', "a.jsonl: expected text in UTF-8, found a null character"),
        (b'{"text": "\xff"}', "a.jsonl: expected text in UTF-8, found invalid start byte"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_nothing_is_written(made, tmp_path, line, message):
    file, to = tmp_path / "a.jsonl", tmp_path / "hits.parquet"
    data = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(b'{"text": "fine"}\n\n' + data + b'\n{"text": "fine"}\n')
    to.write_bytes(b"as before")
    with pytest.raises(UsageError) as error:
        search_file(open_collection(made), file, to)
    text = str(error.value)
    assert text.startswith(f"line 3 of {tmp_path}/{message}"), text
    assert "\n" not in text and sorted(os.listdir(tmp_path)) == ["a.jsonl", "hits.parquet"]
    assert to.read_bytes() == b"as before"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", None]}, "row 2 of {}: expected a text, found null"),
        ({"text": ["a", " "]}, "row 2 of {}: query: expected some words or a picture, found the"),
        ({"text": [1, 2]}, "row 1 of {}: text: expected str, found int"),
        ({"vector": [[1.0] * DIM, [None] * DIM]}, "row 2 of {}: query vector: expected 8 finite"),
        ({"vector": [[1.0] * DIM, None]}, "row 2 of {}: expected a vector, found null"),
        ({"vector": [1.0, 2.0]}, "row 1 of {}: expected a vector as a list of numbers, found"),
        ({"words": ["a"]}, "{}: expected a column text or vector, found neither"),
        ({"text": ["a"], "vector": [[1.0]]}, "{}: expected a column text or vector, found both"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(made, tmp_path, columns, message):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(UsageError) as error:
        search_file(open_collection(made), file, tmp_path / "hits.parquet")
    assert str(error.value).startswith(message.format(file)), str(error.value)
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_files_that_cannot_be_used_are_one_line(made, tmp_path, monkeypatch):
    collection, text = open_collection(made), tmp_path / "a.txt"
    text.write_text("a\n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "folder.parquet").mkdir()
    to = tmp_path / "hits.parquet"
    for queries, target, kind, message in [
        (tmp_path / "a.csv", to, UsageError, "a.csv: expected a file of queries: .txt, .jsonl, .p"),
        (tmp_path / "no.txt", to, SourceError, "no.txt"),
        (tmp_path / "no.parquet", to, SourceError, "no.parquet: expected a file, found none"),
        (tmp_path / "a.parquet", to, UsageError, "a.parquet: expected a Parquet file, found Parq"),
        (
            text,
            tmp_path / "hits.csv",
            UsageError,
            "hits.csv: expected a name that ends in .parq",
        ),
        (text, tmp_path / "folder.parquet", StorageError, "expected a file to write, found someth"),
    ]:
        with pytest.raises(kind) as error:
            search_file(collection, queries, target)
        assert message in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(query_files, "MAX_LINE", 100)
    text.write_text("a\n" + "b" * 101)
    with pytest.raises(UsageError, match=r"^line 2 of .*: expected at most 100 B, found more$"):
        search_file(collection, text, to)
    assert not to.exists()


def test_queries_are_answered_and_written_a_batch_at_a_time(made, tmp_path, monkeypatch):
    """What is in memory does not grow with the file: no query is read before those of the batch
    before it are answered, no more results wait than make a row group."""
    monkeypatch.setattr(hit_files, "BATCH", 3)
    monkeypatch.setattr(hit_files, "ROW_GROUP", 5)
    events: list[object] = []
    read, collection = hit_files.read_queries, open_collection(made)

    def recorded(path, **defaults):
        for number, query in read(path, **defaults):
            events.append(number)
            yield number, query

    monkeypatch.setattr(hit_files, "read_queries", recorded)
    answer = collection.search_many
    monkeypatch.setattr(
        collection, "search_many", lambda queries: events.append("answered") or answer(queries)
    )
    file = tmp_path / "q.txt"
    file.write_text("".join(f"text {n}\n" for n in range(1, 9)))
    counts = search_file(collection, file, tmp_path / "hits.parquet", k=2)
    assert events[:8] == list(range(1, 9))  # all are queries
    assert events[8:] == [1, 2, 3, "answered", 4, 5, 6, "answered", 7, 8, "answered"]
    assert counts == HitCounts(8, 16)
    groups = pq.read_metadata(tmp_path / "hits.parquet")
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [5, 5, 5, 1]
    assert [row["query"] for row in rows_of(tmp_path / "hits.parquet")] == [
        n for n in range(1, 9) for _ in range(2)
    ]


def test_what_ends_the_search_midway_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setattr(hit_files, "BATCH", 1)
    monkeypatch.setattr(hit_files, "ROW_GROUP", 1)
    file, collection = tmp_path / "q.txt", open_collection(made)
    file.write_text("a\nb\nc\n")
    answer = collection.search_many
    names: list[list[str]] = []

    def interrupted(queries):
        names.append(os.listdir(tmp_path))
        if queries[0].text == "c":
            raise KeyboardInterrupt
        return answer(queries)

    monkeypatch.setattr(collection, "search_many", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search_file(collection, file, tmp_path / "hits.parquet")
    assert len(names) == 3 and not any("hits.parquet" in during for during in names)
    assert os.listdir(tmp_path) == ["q.txt"]


def test_no_query_gives_a_file_without_rows(made, tmp_path):
    (tmp_path / "q.jsonl").write_text("\n")
    to = tmp_path / "hits.parquet"
    assert search_file(open_collection(made), tmp_path / "q.jsonl", to) == HitCounts(0, 0)
    assert pq.read_table(to).schema.names == hit_files.HIT_COLUMNS.names


def test_the_command_writes_the_file_and_refuses_what_does_not_go_with_it(made, tmp_path, capfd):
    file, to = tmp_path / "q.jsonl", tmp_path / "hits.parquet"
    file.write_text('{"text": "a \\ud800"}\n{"text": "b", "k": 1}\n')
    options = ["search", str(made), "--queries", str(file), "--to", str(to), "-k", "3"]
    application()(options, standalone_mode=False)
    assert capfd.readouterr().err == f"wrote {to}: 2 queries, 4 results\n"
    assert [row["text"] for row in rows_of(to)] == ["a \\ud800"] * 3 + ["b"]
    for more, message in [
        (["words"], "--queries: expected no other query or output, found a query"),
        (["--minus", "a"], "--queries: expected no other query or output, found a query"),
        (["--json"], "--queries: expected no other query or output, found --json"),
    ]:
        with pytest.raises(UsageError, match=message):
            application()([*options, *more], standalone_mode=False)
    with pytest.raises(UsageError, match="expected --queries and --to together, found --to alone"):
        application()(["search", str(made), "--to", str(to)], standalone_mode=False)
