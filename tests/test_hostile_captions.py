"""Captions and json of every unusual kind, through embed, Parquet, index and search: each is a row,
or a drop with its reason."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from conftest import jpeg
from fake_encoder import FakeEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import write_tar

from chiasm.index import build_index, open_collection
from chiasm.index.verify import check
from chiasm.pipeline.collection import Identity, create_or_check, find_embedding
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.records import Dropped, Sample
from chiasm.pipeline.shards import ReadSettings, read_samples
from chiasm.pipeline.storage import Folder

LIMIT = ReadSettings().max_text_bytes
DEEP = 100_000
RIGHT_TO_LEFT = "\u202eقطة على السرير\u202c \u2067חתול\u2069"
GBK = "红色的猫".encode("gbk")

TEXTS = {  # key -> (txt, the caption of its row, what is noted)
    "empty": (b"", None, ["no_caption"]),
    "blank": (b" \r\n\t\xe2\x80\xa8", None, ["no_caption"]),
    "megabyte": (b"ab " * (LIMIT // 3), ("ab " * (LIMIT // 3)).strip(), []),
    "larger": (b"a" * (LIMIT + 1), None, ["member_too_large", "no_caption"]),
    "larger as text": (b"\xff" * LIMIT, None, ["bad_text", "member_too_large", "no_caption"]),
    "nul": (b"a\0b\0", "a\0b\0", ["bad_text"]),
    "raw surrogate": (b"a\xed\xa0\x80b", "a\ufffd\ufffd\ufffdb", ["bad_text"]),
    "raw pair": (b"\xed\xa0\xbd\xed\xb8\x80", "\ufffd" * 6, ["bad_text"]),
    "right to left": (RIGHT_TO_LEFT.encode(), RIGHT_TO_LEFT, []),
    "utf-16": ("cat".encode("utf-16"), "cat", []),
    "utf-16, big end first": ("\ufeffcät 猫".encode("utf-16-be"), "cät 猫", []),
    "utf-16, cut": ("cow".encode("utf-16")[:-1], "co\ufffd", ["bad_text"]),
    "utf-32": ("hund".encode("utf-32"), "hund", []),
    "gbk": (GBK, GBK.decode("utf-8", "replace"), ["bad_text"]),
    "escapes": (b"\x1b[31mred\x1b[0m\x07", "\x1b[31mred\x1b[0m\x07", []),
    "combining": ("a\u0301".encode() * 500, "a\u0301" * 500, []),
}

JSONS = {  # key -> (json, whether it is kept, the caption of its row, what is noted)
    "list": (b"[1, 2]", False, "said", ["bad_json"]),
    "text": (b'"caption"', False, "said", ["bad_json"]),
    "number": (b"1e999", False, "said", ["bad_json"]),
    "not json": (b"{'caption': 1}", False, "said", ["bad_json"]),
    "nothing": (b"", False, "said", ["bad_json"]),
    "nul": (b'{"a": 1}\0', False, "said", ["bad_json"]),
    "deep list": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", False, "said", ["bad_json"]),
    "deep object": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, False, "said", ["bad_json"]),
    "rather deep": (b'{"b": ' + b"[" * 400 + b"]" * 400 + b"}", True, "said", []),
    "nested": (b'{"c": {"d": {"e": [1, {"f": null}]}}}', True, "said", []),
    "huge int": (b'{"n": ' + b"9" * 5000 + b"}", False, "said", ["bad_json"]),
    "large int": (b'{"n": ' + b"9" * 400 + b"}", True, "said", []),
    "int as elsewhere": (b'{"n": 7}', True, "said", []),
    "odd floats": (b'{"x": [NaN, Infinity, -Infinity, 1e999, -0.0]}', True, "said", []),
    "huge": (b'{"a": "' + b"x" * LIMIT + b'"}', False, "said", ["member_too_large"]),
    "many fields": (json.dumps(dict.fromkeys(map(str, range(9999)))).encode(), True, "said", []),
    "many values": (b'{"v": [' + b"[]," * 99_999 + b"{}]}", True, "said", []),
    "surrogate": (rb'{"caption": "a\ud800b", "k\udfff": 1}', True, "said", []),
    "nul in a text": (rb'{"s": "a\u0000b", "\u0000": 1}', True, "said", []),
    "same name twice": (b'{"t": 1, "t": "two", "": 3}', True, "said", []),
    "with a mark": (b'\xef\xbb\xbf{"z": 1}', True, "said", []),
    "utf-16": ('{"z": 1}'.encode("utf-16"), True, "said", []),
    "utf-16 without a mark": ('{"z": 1}'.encode("utf-16-le"), False, "said", ["bad_json"]),
}


def embedded(root: Path, samples: dict[str, dict[str, bytes]]):
    """The shard's ledger entry and its Parquet rows, by key."""
    shard = write_tar(root / "a.tar", samples)
    folder, encoder = Folder(str(root / "c")), FakeEncoder()
    create_or_check(folder, Identity.of(encoder), "r1")
    entry = embed_shard(shard, encoder, folder, EmbedSettings(), run_id="r1")
    table = find_embedding(folder, shard.id).read()
    return entry, {row["key"]: row for row in table.to_pylist()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("captions"), random.Random(0)
    pairs = {f"t {key}": {"jpg": jpeg(rng), "txt": text} for key, (text, *_) in TEXTS.items()}
    tables = {
        f"j {key}": {"jpg": jpeg(rng), "txt": b"said", "json": text}
        for key, (text, *_) in JSONS.items()
    }
    alone = {f"a {key}": {"txt": text} for key, (text, *_) in TEXTS.items()}
    entry, rows = embedded(root, pairs | tables | alone)
    build_index(str(root / "c"))
    return root / "c", entry, rows


def notes_of(entry, key: str) -> list[str]:
    return [note.reason for note in entry.notes if note.key == key]


@pytest.mark.parametrize("key", TEXTS)
def test_any_text_with_a_picture_is_a_row_and_unusual_text_has_a_note(made, key):
    _, entry, rows = made
    _, caption, notes = TEXTS[key]
    row = rows[f"t {key}"]
    assert row["caption"] == caption and row["captions"] == ([caption] if caption else [])
    assert notes_of(entry, f"t {key}") == notes
    assert (row["text"] is None) == (row["joint"] is None) == (caption is None)
    assert row["image"] is not None


@pytest.mark.parametrize("key", TEXTS)
def test_text_without_a_picture_is_a_row_or_a_drop(made, key):
    _, entry, rows = made
    _, caption, notes = TEXTS[key]
    if caption is not None:
        assert rows[f"a {key}"]["caption"] == caption and rows[f"a {key}"]["image"] is None
        return
    [drop] = [drop for drop in entry.dropped if drop.key == f"a {key}"]
    large = "member_too_large" in notes
    assert (drop.stage, drop.reason) == ("read", "member_too_large" if large else "empty")


@pytest.mark.parametrize("key", JSONS)
def test_any_json_is_kept_verbatim_or_has_a_note(made, key):
    _, entry, rows = made
    text, kept, caption, notes = JSONS[key]
    row = rows[f"j {key}"]
    encoding = "utf-16" if key == "utf-16" else "utf-8-sig"
    assert row["json"] == (text.decode(encoding) if kept else None)
    assert (row["caption"], notes_of(entry, f"j {key}")) == (caption, notes)


def test_every_sample_is_a_row_or_a_drop(made):
    path, entry, rows = made
    assert entry.samples == 2 * len(TEXTS) + len(JSONS) == len(rows) + len(entry.dropped)
    assert check(str(path)).findings == []


def test_each_row_is_found_by_its_own_caption(made):
    path, _, rows = made
    collection = open_collection(path)
    for key, row in rows.items():
        if not key.startswith("t ") or row["caption"] is None:
            continue
        best, second = collection.search(row["caption"], column="text", k=2)
        assert {best.key, second.key} == {key, f"a {key[2:]}"}
        assert best.score > 0.99 and best.caption == row["caption"]
        line = json.dumps(best.as_json(), ensure_ascii=False)
        assert json.loads(line)["caption"] == row["caption"]


def test_results_have_the_metadata_of_their_json(made):
    path, _, _ = made
    answer = open_collection(path).search("said", column="text", k=len(JSONS))
    metas = {result.key: result.as_json()["meta"] for result in answer}
    assert set(metas) == {f"j {key}" for key in JSONS}
    assert str(metas["j large int"]["n"]) == "9" * 400
    assert metas["j nul in a text"]["s"] == "a\0b"
    json.dumps(metas, ensure_ascii=False).encode()  # no lone surrogate is left


def test_a_lone_surrogate_in_a_caption_is_replaced(tmp_path):
    texts = {
        "a": {"json": rb'{"caption": "a\ud800b"}'},
        "b": {"json": rb'{"captions": ["\udc00", "ok", "\ud83d\ude00"]}'},
        "c": {"json": rb'{"captions": ["", [], {}, 1, null]}'},
        "d": {"json": rb'{"caption": {"caption": "deeper"}}'},
    }
    entry, rows = embedded(tmp_path, texts)
    assert rows["a"]["captions"] == ["a?b"]
    assert rows["b"]["captions"] == ["?", "ok", "\N{GRINNING FACE}"]
    assert [(drop.key, drop.reason) for drop in entry.dropped] == [("c", "empty"), ("d", "empty")]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    txt=st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
    json_bytes=st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()),
)
def test_any_bytes_are_a_sample_or_a_drop(txt, json_bytes, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    shard = write_tar(
        path,
        {"a": {"txt": txt, "json": json_bytes}, "b": {"jpg": b"x", "txt": txt, "json": json_bytes}},
    )
    found = [i for i in read_samples(shard, ReadSettings()) if isinstance(i, Sample | Dropped)]
    assert [item.key for item in found] == ["a", "b"]
    assert isinstance(found[1], Sample)
    for item in found:
        if isinstance(item, Sample):
            assert all(caption == caption.strip() != "" for caption in item.captions)
            assert "".join(item.captions).encode() or not item.captions  # no lone surrogate
        else:
            assert item.reason == "empty"
