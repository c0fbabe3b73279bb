"""Conditions in SQL over the catalog: their values as SQL has them, their fields, their cache, and
searches that they narrow."""

from __future__ import annotations

import json
import math
import operator
import re
import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import add_shard, make_collection, unit_rows

from chiasm.index import IndexSettings, Query, build_index, open_collection
from chiasm.index.build.edit import add_to_index, delete_from_index
from chiasm.index.build.select_rows import ByKey
from chiasm.index.query import compile_filter, filter_rows
from chiasm.index.query.filter_fields import Fields
from chiasm.index.query.filter_rows import BitmapCache, evaluate
from chiasm.jobs.cli.app import application
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import Folder

ROWS = 60
# Row by row; None is SQL's NULL.
NUMBERS = [None if row % 7 == 0 else row % 5 - 2 for row in range(ROWS)]
FLOATS = [None if row % 5 == 1 else (row % 9 - 4) / 4 for row in range(ROWS)]
TEXTS = [None if row % 6 == 2 else "abA红%_\n"[row % 7 :][:3] for row in range(ROWS)]
FLAGS = [None if row % 4 == 3 else row % 3 == 0 for row in range(ROWS)]
TAGS = [None if row % 5 == 0 else ["x", "y", "红"][: row % 4] for row in range(ROWS)]
META = pa.struct(
    {
        "n": pa.int64(),
        "f": pa.float64(),
        "flag": pa.bool_(),
        "tags": pa.list_(pa.string()),
        "许可": pa.string(),
        "a b": pa.struct({"deep": pa.int64()}),
        "blob": pa.string(),
    }
)


def table_of(meta: list | None = None, kind: pa.DataType = META) -> pa.Table:
    """A catalog's table in several batches, as the product reads it."""
    metas = meta or [
        {"n": NUMBERS[row], "f": FLOATS[row], "flag": FLAGS[row], "tags": TAGS[row]}
        | {"许可": TEXTS[row], "a b": {"deep": row}, "blob": '{"x": 1}'}
        for row in range(ROWS)
    ]
    count = len(metas)
    codes = pa.array([row % 2 for row in range(count)], pa.int32())
    columns = {
        "key": pa.array([f"k{row}" for row in range(count)]),
        "caption": pa.array((TEXTS * count)[:count], pa.string()),
        "captions": pa.array([["x"]] * count),
        "width": pa.array([row * 100 for row in range(count)], pa.int32()),
        "height": pa.array([100] * count, pa.int32()),
        "meta": pa.array(metas, kind),
        "row": pa.array(range(count), pa.int32()),
        "shard": pa.DictionaryArray.from_arrays(codes, pa.array(["s0", "s1"])),
        "edition": pa.DictionaryArray.from_arrays(codes, pa.array(["e0", "e1"])),
        "url": pa.DictionaryArray.from_arrays(codes, pa.array(["file:///a", "file:///b"])),
    }
    return pa.Table.from_batches(pa.table(columns).to_batches(max_chunksize=17))


TABLE = table_of()


def passing(text: str, table: pa.Table = TABLE) -> list[int]:
    condition = compile_filter(text, [table.schema])
    assert compile_filter(condition.text, [table.schema]) == condition  # its own normal form
    passed = evaluate(condition, table)
    assert passed.dtype == bool and passed.shape == (len(table),)
    return np.flatnonzero(passed).tolist()


def test_no_thread_outlives_an_evaluation():
    before = set(threading.enumerate())
    passing("width > 100")
    assert set(threading.enumerate()) <= before


def refusal(text: str, table: pa.Table = TABLE) -> str:
    with pytest.raises(UsageError) as caught:
        compile_filter(text, [table.schema])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Conditions as pairs of their text and what they are of a row; None for NULL.


def null_if_any(function):
    return lambda *values: None if None in values else function(*values)


def three_valued(name, left, right):
    deciding = name == "OR"
    if deciding in (left, right):
        return deciding
    return None if None in (left, right) else not deciding


def like(value: str, pattern: str, flags: int) -> bool:
    parts = {"%": ".*", "_": "."}
    written = "".join(parts.get(letter) or re.escape(letter) for letter in pattern)
    return re.fullmatch(written, value, re.DOTALL | flags) is not None


ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else None,
    "%": lambda a, b: math.fmod(a, b) if b else None,
}
COMPARE = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
}


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def constant(value, text=None):
    return text or str(value), lambda row: value


def combine(function, template: str, *parts):
    text = template.format(*(part[0] for part in parts))
    return f"({text})", lambda row: function(*(part[1](row) for part in parts))


def binary(signs: dict, operands):
    return st.builds(
        lambda sign, left, right: combine(
            null_if_any(signs[sign]), f"{{}} {sign} {{}}", left, right
        ),
        st.sampled_from(sorted(signs)),
        operands,
        operands,
    )


numbers = st.recursive(
    st.one_of(
        st.just(("meta.n", lambda row: NUMBERS[row])),
        st.just(("meta.f", lambda row: FLOATS[row])),
        st.sampled_from([-2, 0, 1, 0.5]).map(constant),
    ),
    lambda inner: st.one_of(
        binary(ARITHMETIC, inner),
        st.builds(lambda part: combine(null_if_any(abs), "abs({})", part), inner),
        st.builds(
            lambda a, b: combine(lambda x, y: y if x is None else x, "coalesce({}, {})", a, b),
            inner,
            inner,
        ),
    ),
    max_leaves=4,
)
some_text = st.text("abA红%_'\n", max_size=3)
texts = st.one_of(
    st.just(('meta."许可"', lambda row: TEXTS[row])),
    some_text.map(lambda value: constant(value, quoted(value))),
)
patterns = st.builds(
    lambda value, pattern, sign: combine(
        null_if_any(
            lambda text: (
                like(text, pattern, re.IGNORECASE if "ILIKE" in sign else 0) is ("NOT" not in sign)
            )
        ),
        f"{{}} {sign} {quoted(pattern).replace('{', '{{')}",
        value,
    ),
    texts,
    some_text,
    st.sampled_from(["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]),
)
memberships = st.builds(
    lambda part, values: combine(
        null_if_any(lambda value: value in values), f"{{}} IN ({', '.join(map(str, values))})", part
    ),
    numbers,
    st.lists(st.sampled_from([-2, 0, 1, 0.5]), min_size=1, max_size=3),
)
leaves = st.one_of(
    st.just(("meta.flag", lambda row: FLAGS[row])),
    binary(COMPARE, numbers),
    binary(COMPARE, texts),
    patterns,
    memberships,
    st.builds(
        lambda part: combine(lambda value: value is None, "{} IS NULL", part),
        st.one_of(numbers, texts),
    ),
    st.builds(
        lambda a, b, c: combine(
            lambda x, y, z: three_valued(
                "AND",
                None if None in (x, y) else x >= y,
                None if None in (x, z) else x <= z,
            ),
            "{} BETWEEN {} AND {}",
            a,
            b,
            c,
        ),
        numbers,
        numbers,
        numbers,
    ),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(
            lambda name, a, b: combine(
                lambda x, y: three_valued(name, x, y), f"{{}} {name} {{}}", a, b
            ),
            st.sampled_from(["AND", "OR"]),
            inner,
            inner,
        ),
        st.builds(
            lambda part: combine(lambda x: None if x is None else not x, "NOT {}", part), inner
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(conditions)
def test_a_condition_is_what_sql_says_of_every_row(condition):
    text, value = condition
    assert passing(text) == [row for row in range(ROWS) if value(row) is True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CAPTION ilike '%A%'", [r for r in range(ROWS) if "a" in (TEXTS[r] or "").lower()]),
        ("meta.\"许可\" = '红%_'", [r for r in range(ROWS) if TEXTS[r] == "红%_"]),
        ("meta.许可 like '%红%'", [r for r in range(ROWS) if "红" in (TEXTS[r] or "")]),
        ("'y' in meta.tags", [r for r in range(ROWS) if "y" in (TAGS[r] or ())]),
        ("contains(meta.tags, '红')", [r for r in range(ROWS) if "红" in (TAGS[r] or ())]),
        ("length(meta.tags) = 2", [r for r in range(ROWS) if len(TAGS[r] or ()) == 2]),
        ("length(caption) = 3", [r for r in range(ROWS) if len(TEXTS[r] or "") == 3]),
        ('meta."a b".deep in (3, 5.0, 7.5)', [3, 5]),
        ('META."A B".DEEP = 4', [4]),
        ("id = 's1/3@e1' or key = 'k2'", [2, 3]),
        ("shard not in ('s0') and row < 4", [1, 3]),
        ("starts_with(url, 'file:///a') and row < 3", [0, 2]),
        ("upper(trim(' k2 ')) = upper(key) or ends_with(key, '59')", [2, 59]),
        ("width between 300 and 450.5", [3, 4]),
        ("round(width / 300, 1) = 0.3", [1]),
        ("round(width / 300) = 1", [2, 3, 4]),
        ("width * width * 1000000 > 3.4e13", [59]),  # beyond 32 bits, and then 64
        ("abs(-width) % 700 = 100", [1, 8, 15, 22, 29, 36, 43, 50, 57]),
        ("width / (row - 3) >= 400", [4]),  # of row 3 NULL
        ("meta is not null and meta.\"a b\" is null", []),
        ("not (meta.tags is null) and row < 3", [1, 2]),
        ("true and row = 1", [1]),
        ("1 = 2", []),
        ("row > 9223372036854775807 or row > -9223372036854775808 and row < 1", [0]),
        ("row < 99999999999999999999 and row >= 59", [59]),
        ("caption = 'ab''; DROP TABLE x; --' or row = 1", [1]),
    ],
)  # fmt: skip
def test_fields_functions_and_constants(text, expected):
    assert passing(text) == expected


def test_numbers_that_no_hit_has_are_null():
    kind = pa.struct({"f": pa.float64()})
    table = table_of([{"f": value} for value in (1.0, math.nan, math.inf, None, 5.0)], kind)
    assert passing("meta.f > 2", table) == [4]
    assert passing("meta.f is null", table) == [1, 2, 3]


def test_a_field_that_is_not_there_is_refused_with_those_that_are():
    assert refusal("widht > 3") == (
        "where: expected a field, one of key, shard, id, url, caption, captions, width, height, "
        'row, meta, meta."a b", meta."a b".deep, meta."许可", meta.blob, meta.f, meta.flag, '
        "meta.n, meta.tags, found 'widht' at character 1"
    )
    assert refusal('row = "\u202e"').endswith("found '\"\\u202e\"' at character 7")
    inside = refusal("caption = '红' and meta.blob.x = 1")
    assert "found 'meta.blob.x', where meta.blob is stored as JSON text, at character 19" in inside
    assert passing("meta.blob like '%\"x\": 1%' and row < 2") == [0, 1]
    many = pa.struct({f"field{number}": pa.int64() for number in range(100)})
    assert " and 70 more, found 'x'" in refusal("x = 1", table_of([{}], many))


def test_json_without_common_fields_is_a_text():
    table = table_of(['{"license": "cc0"}', None], pa.string())
    assert passing('meta like \'%"license": "cc0"%\'', table) == [0]
    assert "where meta is stored as JSON text" in refusal("meta.license = 'cc0'", table)


def test_fields_that_differ_in_case_alone_are_told_apart():
    table = table_of([{"a": 1, "A": 2}], pa.struct({"a": pa.int64(), "A": pa.int64()}))
    assert passing("meta.a = 1 and meta.A = 2", table) == [0]


def test_a_field_that_a_segment_lacks_is_null_there():
    one = table_of([{"n": 1}], pa.struct({"n": pa.int64()}))
    none = table_of([{"other": "x"}], pa.struct({"other": pa.string()}))
    unseen = table_of([{"n": None}], pa.struct({"n": pa.string()}))  # as a type without values is
    unseen_list = table_of([{"n": []}], pa.struct({"n": pa.list_(pa.string())}))
    for tables in ([one, none, unseen], [unseen, none, one]):
        condition = compile_filter("coalesce(meta.n, 5) = 5", [table.schema for table in tables])
        assert [evaluate(condition, table)[0] for table in tables] == [
            table is not one for table in tables
        ]
    lists = table_of([{"n": [1.5]}], pa.struct({"n": pa.list_(pa.float64())}))
    condition = compile_filter("list_contains(meta.n, 1.5)", [lists.schema, none.schema])
    assert [evaluate(condition, table)[0] for table in (lists, none, unseen_list)] == [
        True,
        False,
        False,
    ]


def test_a_field_of_different_kinds_is_refused_where_it_has_values():
    number = table_of([{"n": 1}], pa.struct({"n": pa.int64()}))
    text = table_of([{"n": "1"}], pa.struct({"n": pa.string()}))
    condition = compile_filter("meta.n = 1", [text.schema, number.schema])
    assert evaluate(condition, number).tolist() == [True]
    with pytest.raises(CollectionError, match=r"where: field meta\.n: expected a number in every"):
        evaluate(condition, text)


def test_spellings_of_one_condition_have_one_text():
    texts = ["ROW>1 and(caption like'a')", "(row > 1) AND (((caption LIKE 'a')))"]
    assert {compile_filter(text, [TABLE.schema]).text for text in texts} == {
        "((row > 1) AND (caption LIKE 'a'))"
    }


def test_the_cache_keeps_what_was_used_last():
    cache = BitmapCache(limit_bytes=250)
    bitmaps = {name: np.zeros(99, bool) for name in "abc"}
    for name in "ab":
        cache.put((name, "x"), bitmaps[name])
    assert cache.get(("a", "x")) is bitmaps["a"]
    cache.put(("c", "x"), bitmaps["c"])
    assert cache.get(("b", "x")) is None and cache.get(("a", "x")) is bitmaps["a"]
    cache.put(("a", "x"), bitmaps["b"])
    assert (len(cache), cache.bytes) == (2, 200) and cache.get(("a", "x")) is bitmaps["a"]
    cache.put(("d", "x"), np.zeros(1000, bool))  # larger than all of it
    assert (len(cache), cache.bytes) == (0, 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A collection of 3 shards and segments, its stored vectors, and the facts of its rows."""
    path = tmp_path_factory.mktemp("filters") / "c"
    licences = ["cc0", "by", "保留"]
    vectors = make_collection(
        path,
        (50, 30, 40),
        holes=0.1,
        json_of=lambda row: json.dumps({"n": row, "许可": licences[row % 3]}),
    )
    build_index(path, settings=IndexSettings(segment_rows=60))
    return path, vectors


def test_a_search_finds_the_best_of_the_rows_that_pass(made):
    path, vectors = made
    index = open_collection(path)
    assert len(index.segments) == 3
    xq = unit_rows(np.random.default_rng(5), 4, 8)
    rows = np.concatenate([np.arange(50), np.arange(30), np.arange(40)])
    for where, allowed in {
        "meta.n < 17 and meta.\"许可\" = 'cc0'": (rows < 17) & (rows % 3 == 0),
        "meta.n >= 49": rows >= 49,
        "meta.n > 1000": rows > 1000,
        "meta.n is not null": rows >= 0,
    }.items():
        exact = xq @ vectors["image"].T
        exact[:, ~(allowed & np.any(vectors["image"], axis=1))] = -np.inf
        order = np.argsort(-exact, axis=1, kind="stable")[:, :10]
        expected = np.take_along_axis(exact, order, 1)
        scores, ids = index.search_vectors(xq, 10, where)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert np.array_equal(ids, np.where(np.isinf(expected), -1, order))


def test_queries_of_a_batch_have_filters_of_their_own(made, monkeypatch):
    path, _ = made
    index = open_collection(path)
    vector = unit_rows(np.random.default_rng(6), 1, 8)[0]
    wheres = ["meta.n = 7", None, "meta.n=7", "shard like 's2%'"]
    answers = index.search_many([Query(vector=vector, where=where, k=30) for where in wheres])
    assert [answer.query.as_json()["where"] for answer in answers] == wheres
    assert {result.meta["n"] for result in answers[0]} == {7}
    assert {result.shard[:2] for result in answers[3]} == {"s2"}
    assert [hit.id for hit in answers[0]] == [hit.id for hit in answers[2]]
    assert answers[1].results == index.search_many([Query(vector=vector, k=30)])[0].results
    # Bitmaps are remembered by content: another opening of the same segments evaluates nothing.
    monkeypatch.setattr(filter_rows, "evaluate", None)
    again = open_collection(path).search_many([Query(vector=vector, where=wheres[3], k=30)])[0]
    assert again.results == answers[3].results
    passed = index.allowed(wheres[3])[2]
    assert not passed.flags.writeable


def test_a_condition_is_evaluated_once_a_segment_whatever_is_edited(tmp_path, monkeypatch):
    path, evaluated = tmp_path / "c", []
    make_collection(path, (30, 20))
    build_index(path, settings=IndexSettings(segment_rows=30))

    def counting(condition, table, seconds):
        evaluated.append(len(table))
        return evaluate(condition, table, seconds)

    monkeypatch.setattr(filter_rows, "evaluate", counting)
    where, vector = "meta.number between 3 and 8", unit_rows(np.random.default_rng(6), 1, 8)
    _, before = open_collection(path).search_vectors(vector, 20, where)
    assert evaluated == [30, 20]
    add_shard(Folder(str(path)), "s2", 10, dim=8, seed=2)
    add_to_index(path)
    delete_from_index(path, lambda _: ByKey(["s0/000005"]))
    index = open_collection(path)
    _, ids = index.search_vectors(vector, 20, where)
    assert evaluated[:2] == [30, 20] and sorted(evaluated[2:]) == [10]
    keys = [row.key for row in index.rows(ids[ids >= 0].tolist()).values()]
    assert len(before[before >= 0]) == 12 and len(keys) == 17 and "s0/000005" not in keys
    index.search_vectors(vector, 20, "meta.number>=3 and meta.number<=8")
    assert len(evaluated) == 6  # another condition to this parser, if the same to people
    index.search_vectors(vector, 20, "(meta.number BETWEEN 3 AND (8))")
    assert len(evaluated) == 6


def test_the_segments_of_a_condition_have_one_deadline(made, monkeypatch):
    index, given = open_collection(made[0]), []
    ticks = iter([100.0, 100.0, 112.0, 129.0])
    monkeypatch.setattr(filter_rows, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(filter_rows, "BITMAPS", BitmapCache(0))
    monkeypatch.setattr(
        filter_rows,
        "evaluate",
        lambda _, table, seconds: given.append(seconds) or np.ones(len(table), bool),
    )
    index.allowed("meta.n > 1")
    assert given == [30.0, 18.0, 1.0]


def test_a_filter_is_refused_before_the_encoder_is_loaded(made):
    path, _ = made
    with pytest.raises(UsageError, match="found 'widht' at character 1"):
        open_collection(path).search_many(["a boat", Query("a boat", where="widht > 3")])
    with pytest.raises(TypeError, match="where: expected str, found int"):
        Query("a boat", where=3)
    with pytest.raises(UsageError, match="found a subquery at character 1"):
        application()(["search", str(path), "a boat", "--where", "(select 1)"])


def test_a_generation_keeps_its_fields(made):
    index = open_collection(made[0])
    assert index.filter("meta.n = 1") is index.filter("meta.n = 1")
    assert ("meta", "许可") in Fields(s.catalog.schema for s in index.segments).kinds
