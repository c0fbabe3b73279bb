"""Schema inference over json: nothing is lost by widening, and no json raises an error."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiasm.index.segments import SchemaInference, json_columns
from chiasm.index.segments.json_columns import MAX_DEPTH, MAX_LEAVES, parse

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
objects = st.lists(st.none() | st.dictionaries(st.sampled_from("abc"), values), max_size=6)


def infer(cells: list[str | None]) -> SchemaInference:
    inference = SchemaInference()
    inference.add(cells)
    inference.finish()
    return inference


def column(*values: object) -> tuple[list, pa.DataType]:
    """What the field `x` of rows {"x": value} is stored as, and its type."""
    cells = [json.dumps({"x": value}) for value in values]
    inference = infer(cells)
    return [row["x"] for row in inference.column(cells).to_pylist()], inference.arrow_type()[0].type


def keeps(kept: object, value: object) -> bool:
    """Whether `kept` has all of `value`: as itself, as an equal number, or as JSON text."""
    if isinstance(kept, str) and not isinstance(value, str):
        return json.loads(kept) == value
    if isinstance(value, dict) and isinstance(kept, dict):
        names = {name: part for name, part in kept.items() if name in value or part is not None}
        return names.keys() == value.keys() and all(
            keeps(names[name], value[name]) for name in value
        )
    if isinstance(value, list) and isinstance(kept, list):
        return len(kept) == len(value) and all(map(keeps, kept, value))
    return kept == value


@settings(deadline=None, max_examples=60)
@given(objects)
def test_nothing_is_lost_by_widening(rows):
    cells = [None if row is None else json.dumps(row) for row in rows]
    inference = infer(cells)
    stored = inference.column(cells).to_pylist()
    assert len(stored) == len(rows) and inference.invalid == {}
    for kept, row in zip(stored, rows, strict=True):
        value = json.loads(json.dumps(row).encode("utf-8", "replace"))
        assert keeps(kept, value), (kept, value)


@settings(deadline=None, max_examples=60)
@given(objects, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, dice):
    cells = [None if row is None else json.dumps(row) for row in rows]
    shuffled = list(cells)
    dice.shuffle(shuffled)
    one, other = infer(cells), infer(shuffled)
    assert one.arrow_type() == other.arrow_type() and one.report() == other.report()


@pytest.mark.parametrize(
    ("values", "kept", "kind"),
    [
        ([1, 2, None], [1, 2, None], pa.int64()),
        ([1, 2.5], [1.0, 2.5], pa.float64()),
        ([1, "a", 2.5], ["1", "a", "2.5"], pa.string()),
        ([True, False], [True, False], pa.bool_()),
        ([True, 1], ["true", "1"], pa.string()),
        ([2**53 + 1], [2**53 + 1], pa.int64()),
        ([2**53 + 1, 0.5], [str(2**53 + 1), "0.5"], pa.string()),
        ([2**63], [str(2**63)], pa.string()),
        ([-(2**63)], [-(2**63)], pa.int64()),
        ([None], [None], pa.string()),
        ([{}], [{}], pa.struct([])),
        ([{}, None], [{}, None], pa.struct([])),
        ([[{}], []], [[{}], []], pa.list_(pa.struct([]))),
        ([{"a": {}}, {}], [{"a": {}}, {"a": None}], pa.struct({"a": pa.struct([])})),
        ([{}, "a"], ["{}", "a"], pa.string()),
        ([[], [1]], [[], [1]], pa.list_(pa.int64())),
        ([[], None], [[], None], pa.list_(pa.string())),
        ([[1, "a"]], [["1", "a"]], pa.list_(pa.string())),
        ([{"a": 1}, [1]], ['{"a": 1}', "[1]"], pa.string()),
        (
            [{"a": 1}, {"b": "é"}],
            [{"a": 1, "b": None}, {"a": None, "b": "é"}],
            pa.struct({"a": pa.int64(), "b": pa.string()}),
        ),
    ],
)
def test_different_types_in_one_field_become_one_type(values, kept, kind):
    assert column(*values) == (kept, kind)


def test_objects_without_fields_are_objects_in_an_answer(tmp_path):
    """They come back from the Arrow file as they were."""
    cells = ['{"x": {}, "n": 1}', None, "{}"]
    kept = infer(cells).column(cells)
    with pa.OSFile(str(tmp_path / "rows"), "wb") as file:
        table = pa.table({"meta": kept})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    read = pa.ipc.open_file(pa.memory_map(str(tmp_path / "rows"))).read_all()["meta"].to_pylist()
    assert read == [{"n": 1, "x": {}}, None, {"n": None, "x": None}]
    assert infer(["{}"]).arrow_type() == pa.string()


def test_each_widening_is_reported():
    inference = infer(
        [
            '{"price": 1, "tags": [1], "place": {"x": true}, "same": 1}',
            '{"price": 1.5, "tags": ["a"], "place": {"x": "left"}, "same": 2}',
            "[]",
            "{",
            "7",
        ]
    )
    assert inference.report() == [
        {"field": "meta.place.x", "seen": ["bool", "string"], "kept_as": "string"},
        {"field": "meta.price", "seen": ["float", "int"], "kept_as": "float"},
        {"field": "meta.tags[]", "seen": ["int", "string"], "kept_as": "string"},
        {"field": "meta", "seen": ["not an object"], "rows": 2},
        {"field": "meta", "seen": ["not json"], "rows": 1},
    ]


def test_an_object_of_too_many_fields_stays_text():
    cells = [json.dumps({"by_id": {f"k{row}": row}, "n": row}) for row in range(MAX_LEAVES + 1)]
    inference = infer(cells)
    assert inference.arrow_type() == pa.struct({"by_id": pa.string(), "n": pa.int64()})
    assert inference.column(cells[:1]).to_pylist() == [{"by_id": '{"k0": 0}', "n": 0}]
    assert inference.report()[0] == {
        "field": "meta.by_id",
        "seen": ["object", "wide"],
        "kept_as": "string",
    }
    wide = [json.dumps({f"k{n}": n for n in range(MAX_LEAVES + 1)})]
    assert infer(wide).column(wide).to_pylist() == wide


def leaves(kind: pa.DataType) -> int:
    if pa.types.is_struct(kind):
        return sum(leaves(part.type) for part in kind)
    return leaves(kind.value_type) if pa.types.is_list(kind) else 1


def two_levels(outer: int, inner: int) -> dict:
    return {f"d{a}": {f"u{b}": a + b for b in range(inner)} for a in range(outer)}


@pytest.mark.parametrize(
    "value",
    [
        two_levels(250, 25),
        two_levels(2, 250),
        {"in": two_levels(250, 250)},
        [[two_levels(200, 30)]],
        {"a": {"b": {"c": {"d": two_levels(100, 100)}}}},
    ],
    ids=["wide", "two large", "below the root", "in lists", "far below"],
)
def test_the_whole_type_has_one_budget_of_leaves(value):
    rows = [{"n": 1, "place": {"x": 1.5}, "odd": value}, *({"n": n} for n in range(50))]
    cells = [json.dumps(row) for row in rows]
    inference = infer(cells)
    assert leaves(inference.arrow_type()) <= MAX_LEAVES
    stored = inference.column(cells)
    assert stored.nbytes < 2 * len(cells[0]) + len(cells) * MAX_LEAVES * 9
    assert [row["n"] for row in stored.to_pylist()] == [row["n"] for row in rows]
    assert stored.to_pylist()[0]["place"] == {"x": 1.5} and keeps(stored.to_pylist()[0], rows[0])
    wide = [line for line in inference.report() if "wide" in line["seen"]]
    assert wide and all(line["kept_as"] == "string" for line in wide)
    assert all(line["field"].startswith("meta.odd") for line in wide)
    shuffled = infer(cells[::-1])
    assert (shuffled.arrow_type(), shuffled.report()) == (
        inference.arrow_type(),
        inference.report(),
    )


def test_objects_of_few_fields_get_room_first():
    row = {"big": {f"k{n}": n for n in range(MAX_LEAVES - 1)}, "small": {"a": 1, "b": {"c": True}}}
    kind = infer([json.dumps(row)]).arrow_type()
    assert kind.field("big").type == pa.string()
    small = pa.struct({"a": pa.int64(), "b": pa.struct({"c": pa.bool_()})})
    assert kind.field("small").type == small


def test_memory_is_bounded_while_json_is_read(monkeypatch):
    monkeypatch.setattr(json_columns, "MAX_SEEN", 500)
    inference = SchemaInference()
    for number in range(200):
        inference.add([json.dumps({f"d{number}": {f"u{n}": 1 for n in range(100)}})])
        assert inference.room.seen == inference.root.size() <= 500 + MAX_LEAVES
    inference.finish()
    assert leaves(inference.arrow_type()) <= MAX_LEAVES


def test_a_type_covers_cells_that_do_not_change_it():
    inference = infer(['{"a": 1, "b": {"c": "x"}}'])
    assert inference.covers(['{"a": 2}', None, "{}"]) and inference.covers([])
    assert not inference.covers(['{"a": 1.5}']) and not inference.covers(['{"d": 1}'])


def test_a_deep_value_stays_text():
    deep: object = 1
    for _ in range(MAX_DEPTH + 3):
        deep = {"in": deep}
    cells = [json.dumps({"x": deep})]
    inference = infer(cells)
    kept = inference.column(cells).to_pylist()[0]["x"]
    for _ in range(MAX_DEPTH - 1):
        kept = kept["in"]
    assert kept == json.dumps({"in": {"in": {"in": {"in": 1}}}})


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (None, ""),
        ("", "not json"),
        ("[1]", "not an object"),
        ("9" * 5000, "not json"),
        ('{"x": ' + "[" * 100_000, "not json"),
        ('{"x": ' + "[" * 300 + "]" * 300 + "}", "nested too deep"),
    ],
)
def test_cells_without_an_object_are_null_and_counted(cell, problem):
    assert parse(cell) == (None, problem)
    inference = infer([cell, '{"a": 1}'])
    assert inference.column([cell, '{"a": 1}']).to_pylist() == [None, {"a": 1}]
    assert dict(inference.invalid) == ({problem: 1} if problem else {})


def test_what_utf8_cannot_hold_is_replaced():
    cells = ['{"a\\ud800": "b\\udfff", "c": "\\ud83d\\ude00"}']
    assert infer(cells).column(cells).to_pylist() == [{"a?": "b?", "c": "😀"}]


def test_numbers_that_json_should_not_have():
    (kept, kind) = column(math.inf, 1)
    assert kept == [math.inf, 1.0] and kind == pa.float64()


def test_no_json_at_all_is_a_column_of_nulls():
    assert infer([None, None]).column([None, None]).to_pylist() == [None, None]
