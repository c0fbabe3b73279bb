"""Records read back: types are checked, unknown fields pass, later versions and damage are told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from chiasm.index.segments import IndexedShard, Manifest
from chiasm.index.segments.record import SegmentRecord
from chiasm.pipeline.collection import Identity, LedgerEntry, RunRecord
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.stored_records import read_record


@dataclass(frozen=True)
class Example:
    rows: int
    claimed: Annotated[tuple[str, ...], Field(alias="holds")] = ()
    span: tuple[float, float] | None = None


def read(data: bytes) -> Example:
    return read_record(data, "a.json", Example, what="an example", do="delete it", schema=2)


def test_fields_have_their_types_and_unknown_ones_are_passed_over():
    data = b'{"schema": 2, "rows": 3, "holds": ["a"], "span": [1, 2.5], "of_tomorrow": {}}'
    assert read(data) == Example(3, ("a",), (1.0, 2.5))


def test_a_path_that_is_no_utf8_comes_back():
    data = '{"rows": 1, "holds": ["\udcff"]}'.encode("utf-8", "surrogatepass")
    assert read(data).claimed == ("\udcff",)


def test_a_later_version_is_refused_by_its_number():
    with pytest.raises(CollectionError) as caught:
        read(b'{"schema": 3, "renamed": 1}')
    assert str(caught.value) == (
        "a.json: expected an example, found schema version 3, of which this chiasm reads 2 at most;"
        " read it with the version of chiasm that wrote it, or a later one"
    )


@pytest.mark.parametrize(
    "data, found",
    [
        (b"", "no valid JSON"),
        (b"\xff", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"rows": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b'{"rows": 1, "extra": ' + b"[" * 200 + b"]" * 200 + b"}", "values nested too deeply"),
        (b"[1]", "a JSON list where an object belongs"),
        (b'{"schema": "1", "rows": 1}', "schema version '1'"),
        (b'{"schema": true, "rows": 1}', "schema version True"),
        (b"{}", "rows: Field required"),
        (b'{"rows": 1e400}', "rows: Input should be a finite number"),
        (b'{"rows": 1, "holds": [1]}', "holds.0: Input should be a valid string"),
        (b'{"rows": 1, "span": [1]}', "span.1: Field required"),
    ],
)
def test_damage_is_one_line(data, found):
    with pytest.raises(CollectionError) as caught:
        read(data)
    assert str(caught.value).startswith(f"a.json: expected an example, found {found}")
    assert str(caught.value).endswith("; delete it") and "\n" not in str(caught.value)


def test_a_path_that_is_no_utf8_is_written_into_every_record():
    """An encoder's name holds the path of its folder, as a command line gave it."""
    encoder = "st:/models/\udcff"
    identity = Identity(encoder, "f", 8, None, "float32", {}, "cpu", {})
    manifest = Manifest("run", 1.0, encoder, "f", 8, {}, {}, ())
    segment = SegmentRecord("a", 0, 8, {}, (IndexedShard("\udcff", "", "", 0, 0, ""),), {})
    for record in (identity, manifest, segment):
        again = read_record(record.to_json(), "a.json", type(record), what="a record", schema=2)
        assert again == record


@pytest.mark.parametrize("number", ["NaN", "1e999", '"nan"'])
def test_times_are_finite(number):
    """They would be printed as JSON, which has no such numbers."""
    run = RunRecord("a", "embed", "host", 1, 123.5, 2.0)
    entry = LedgerEntry(Shard("file:///a.tar", "a", 1, "1"), "", 0, span=(123.5, 2.0))
    for record, name in ((run, "runs/a.json"), (entry, "ledger/a.json")):
        data = record.to_json().replace(b"123.5", number.encode())
        with pytest.raises(CollectionError, match="finite number"):
            type(record).from_json(data, name)


@given(st.binary() | st.text().map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["rows", "holds"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_is_in_it_is_an_example_or_one_printable_line(data):
    try:
        assert isinstance(read(data), Example)
    except CollectionError as error:
        assert str(error).isprintable()
