"""A json member with other values for some keys: all else of its text is as it came."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import make_shard
from hypothesis import given
from hypothesis import strategies as st
from shard_scores import filter_by_judge
from tars import read_tar, write_tar

from chiasm.pipeline.shards import with_values

AS_IT_CAME = [
    b'{"n": 1.0, "big": 123456789012345678901234567890, "far": 1e400, "e": 1E5, "z": -0}',
    b'{"a":1,"a":2}',
    b' {\n  "caption" : "x" ,\n "s": "\\u00e9\\ud800\\/"\n}\n',
    b'\xef\xbb\xbf{"a": [{"match": 1}, "}", "\\"]"]}',
    b'{"a": NaN, "b": [Infinity, -Infinity]}',
    "{}".encode("utf-16"),
    '{"字": "é"}'.encode("utf-16"),
]


@pytest.mark.parametrize("data", AS_IT_CAME)
def test_a_value_is_added_and_all_else_is_as_it_came(data):
    got = with_values(data, {"match": [1]})
    encoding = json.detect_encoding(data)
    text, before = got.decode(encoding), data.decode(encoding)
    added = '"match": [1]' if before.strip() == "{}" else ', "match": [1]'
    assert text.replace(added, "", 1) == before and text != before
    assert json.loads(got)["match"] == [1]
    assert data.startswith(b"\xef\xbb\xbf") == got.startswith(b"\xef\xbb\xbf")


def test_a_value_is_replaced_wherever_its_key_stands_at_the_top():
    data = b'{"\\u006datch": {"match": [1, "}"]}, "b": {"match": 2}, "match" :3, "n": 1.0 }'
    got = with_values(data, {"match": "\ud800é"})
    new = b'"\\ud800\\u00e9"'
    assert (
        got == b'{"\\u006datch": ' + new + b', "b": {"match": 2}, "match" :' + new + b', "n": 1.0 }'
    )


KEYS = st.text(max_size=3) | st.sampled_from(["match", "a", '"', "\\"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=3),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_the_object_is_the_one_that_parsing_gives(table, values, indent, plain):
    data = json.dumps(table, indent=indent, ensure_ascii=plain).encode("utf-8", "replace")
    table = json.loads(data)
    assert json.loads(with_values(data, values)) == table | values


def test_nesting_as_deep_as_is_read_is_no_matter():
    depth = sys.getrecursionlimit() * 10
    data = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
    assert with_values(data, {"b": 1}) == data[:-1] + b', "b": 1}'


@pytest.mark.parametrize("flag", [True, False])
def test_a_filtered_shard_keeps_the_numbers_of_its_json(flag, tmp_path):
    picture = read_tar(make_shard(tmp_path / "one.tar", 1))["00000000"]["jpg"]
    rest = b'"big": 123456789012345678901234567890, "far": 1e400, "one": 1.0, "d": 1, "d": 2'
    data = b'{"captions": ["odds 2", "odds -2"], ' + rest + b"}"
    shard = write_tar(tmp_path / "s.tar", {"a": {"jpg": picture, "json": data}})
    left, _ = filter_by_judge(shard, tmp_path / "to", flag=flag)
    assert rest in left["a"]["json"]
    assert json.loads(left["a"]["json"])["captions"] == ["odds 2", "odds -2"][: 2 if flag else 1]
