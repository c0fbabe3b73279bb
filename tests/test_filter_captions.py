"""Which captions `chiasm filter` judges; exactly those that reach the threshold are left."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from conftest import make_shard
from conftest import samples as kept_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_scores import Judge, filter_by_judge, odds, score_shard
from tars import json_of, read_tar, write_tar

from chiasm.pipeline.caption_filter import (
    PAIRS,
    Filtered,
    LogitCounts,
    Scored,
    read_scores,
)
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.shards import ReadSettings, every_caption, read_samples
from chiasm.pipeline.storage import Folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    shard = make_shard(tmp_path_factory.mktemp("picture") / "one.tar", 1)
    return read_tar(shard)["00000000"]["jpg"]


def test_every_caption_is_judged_once_and_taken_out_wherever_it_stands(picture, tmp_path):
    untouched = b'{"captions":[ "odds 3" ],  "n": 1.50}'
    members = {
        "both": {"txt": b"odds 1", "json": json_of(["odds 1", " odds -1 ", 5], caption="odds -1")},
        "list": {"txt": b"odds 1", "json": json_of(["odds -2"], zh=["odds -2"])},
        "txt": {"txt": b" odds -4\n", "json": untouched},
        "none": {"txt": b"odds -1", "json": json_of(["odds -2", "odds -1"])},
        "well": {"txt": b"odds 1\n", "json": json_of(["odds 2", ""], caption=["odds 1"])},
    }
    samples = {key: {"jpg": picture, **texts} for key, texts in members.items()}
    left, counts = filter_by_judge(
        write_tar(tmp_path / "s.tar", samples), tmp_path / "to", caption_field=""
    )
    assert counts == Filtered(samples=5, captions=10, noisy=5, left_out=1)
    assert list(left) == ["both", "list", "txt", "well"] and left["well"] == samples["well"]
    assert left["both"]["txt"] == b"odds 1" and left["list"]["txt"] == b"odds 1"
    assert json.loads(left["both"]["json"]) == {"captions": ["odds 1", 5], "caption": "odds 1"}
    assert json.loads(left["list"]["json"]) == {"captions": [], "zh": ["odds -2"]}
    assert left["txt"] == {"jpg": picture, "txt": b"odds 3", "json": untouched}


def test_with_a_field_its_captions_alone_are_judged(picture, tmp_path):
    members = {
        "field": {
            "txt": b"odds -9",
            "json": json_of(["odds -1", "odds -2"], alt=["odds -1", "odds 1"]),
        },
        "other": {"txt": b"odds -9", "json": json_of(["odds -2"], alt="odds 1")},
        "falls": {"txt": b"odds 9", "json": json_of(["odds 9"], alt="odds -1")},
        "lacks": {"txt": b"odds 2", "json": json_of(["odds -2"])},
    }
    samples = {key: {"jpg": picture, **texts} for key, texts in members.items()}
    left, counts = filter_by_judge(
        write_tar(tmp_path / "s.tar", samples), tmp_path / "to", caption_field="alt"
    )
    assert counts == Filtered(samples=4, captions=5, noisy=2, left_out=1)
    assert list(left) == ["field", "other", "lacks"]
    assert (left["other"], left["lacks"]) == (samples["other"], samples["lacks"])
    assert left["field"]["txt"] == b"odds -9"
    assert json.loads(left["field"]["json"]) == {"captions": ["odds -2"], "alt": ["odds 1"]}


def test_odd_json_keeps_what_is_no_caption_that_falls_short(picture, tmp_path):
    table = {
        "caption": "\ud800 odds 1",
        "captions": ["odds -1", ["odds -1"], {"odds -1": 0}],
        "": "odds -1",
    }
    samples = {"a": {"jpg": picture, "json": b"\xef\xbb\xbf" + json.dumps(table).encode()}}
    shard = write_tar(tmp_path / "s.tar", samples)
    left, counts = filter_by_judge(shard, tmp_path / "to", caption_field="")
    assert counts == Filtered(samples=1, captions=2, noisy=1)
    assert json.loads(left["a"]["json"]) == {**table, "captions": [["odds -1"], {"odds -1": 0}]}
    marked, _ = filter_by_judge(shard, tmp_path / "marked", caption_field="", flag=True)
    assert [m["caption"] for m in json.loads(marked["a"]["json"])["match"]] == [
        "? odds 1",
        "odds -1",
    ]


captions = st.integers(-3, 3).map(lambda odds: f"odds {odds}") | st.sampled_from(
    ["  odds -2\t", "odds 0 \n", "\u3000odds 1", "", " ", "a\ud800 odds -1", "a\udc00 odds 2"]
)
values = captions | st.lists(captions | st.none() | st.lists(captions, max_size=2), max_size=6)
tables = st.fixed_dictionaries(
    {"n": st.floats(allow_nan=False)},
    optional={"caption": values, "captions": values, "other": values},
)
texts = captions.map(lambda text: text.encode("utf-8", "replace"))


def texts_of(members):
    """The captions in a sample's members, as a reader that knows nothing of chiasm finds them."""
    table = json.loads(members.get("json", b"{}"))
    found = [members.get("txt", b"").decode()]
    for name in ("caption", "captions"):
        value = table.get(name)
        found += value if isinstance(value, list) else [value]
    stripped = [t.encode("utf-8", "replace").decode().strip() for t in found if isinstance(t, str)]
    return set(filter(None, stripped))


@settings(max_examples=60)
@given(
    drawn=st.lists(st.tuples(st.none() | texts, st.none() | tables), min_size=1, max_size=5),
    threshold=st.sampled_from([-1, 0, 0.5, 2]),
)
def test_the_captions_left_are_exactly_those_that_reach_the_threshold(
    picture, drawn, threshold, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("any")
    samples = {}
    for number, (text, table) in enumerate(drawn):
        members = {"jpg": picture, "txt": text, "json": table and json.dumps(table).encode()}
        samples[f"{number}"] = {name: data for name, data in members.items() if data is not None}
    before = {key: texts_of(members) for key, members in samples.items()}
    good = {key: {t for t in found if odds(t) >= threshold} for key, found in before.items()}
    stay = {key for key in samples if good[key] or not before[key]}
    shard = write_tar(folder / "s.tar", samples)
    left, counts = filter_by_judge(shard, folder / "to", caption_field="", threshold=threshold)
    assert {key: texts_of(members) for key, members in left.items()} == {
        key: good[key] for key in stay
    }
    assert counts.captions == sum(map(len, before.values()))
    assert counts.captions - counts.noisy == sum(map(len, good.values()))
    assert counts.left_out == len(samples) - len(stay)
    for key in stay:
        assert left[key] == samples[key] or good[key] < before[key]
    if stay:  # and what trains on the shard finds the same
        written = write_tar(folder / "left.tar", left)
        taken = kept_samples(read_samples(written, ReadSettings()))
        assert {s.key: set(every_caption(s, "")) for s in taken} == {key: good[key] for key in stay}


def test_json_that_the_reader_does_not_read_is_not_made_readable(picture, tmp_path):
    unread = json.dumps({"captions": ["odds -1"]}).encode("utf-16-le")
    samples = {"a": {"jpg": picture, "txt": b"odds 1", "json": unread}}
    shard = write_tar(tmp_path / "s.tar", samples)
    left, counts = filter_by_judge(shard, tmp_path / "to", caption_field="", flag=True)
    assert json.loads(left["a"].pop("match.json"))[0]["caption"] == "odds 1"
    assert left == samples and counts == Filtered(samples=1, captions=1)


def test_a_picture_with_very_many_captions_is_matched_in_blocks(picture, tmp_path):
    record = json_of([f"{n} odds {n % 7 - 3}" for n in range(3 * PAIRS + 5)])
    samples = {
        "first": {"jpg": picture, "txt": b"odds 1"},
        "many": {"jpg": picture, "txt": b"odds 2", "json": record},
        "last": {"jpg": picture, "txt": b"odds 3"},
    }
    shard, judge = write_tar(tmp_path / "s.tar", samples), Judge()
    scores = score_shard(shard, judge, ReadSettings(), Folder(str(tmp_path / "to")), "run")
    assert [each.key for each in scores] == ["first", "many", "last"]
    assert [len(each.captions) for each in scores] == [1, 3 * PAIRS + 6, 1]
    assert judge.pairs_scored == 3 * PAIRS + 8 and judge.most_pairs == PAIRS
    for each in scores:
        assert each.logits == tuple(map(odds, each.captions))


def test_a_score_that_is_the_threshold_does_not_fall_short(picture, tmp_path):
    samples = {f"{n}": {"jpg": picture, "txt": f"odds {n / 10}".encode()} for n in range(10)}
    shard = write_tar(tmp_path / "s.tar", samples)
    scores = score_shard(shard, Judge(), ReadSettings(), Folder(str(tmp_path / "to")), "run")
    counts = LogitCounts()
    counts.add(scores)
    for n in range(10):
        left, found = filter_by_judge(shard, tmp_path / "to", caption_field="", threshold=n / 10)
        assert len(left) == 10 - n and found.noisy == n == counts.below(n / 10)


def test_scores_of_the_older_rule_are_made_anew(picture, tmp_path):
    samples = {"a": {"jpg": picture, "txt": b"odds 1", "json": json_of(["odds -1", "odds 1"])}}
    shard = write_tar(tmp_path / "s.tar", samples)
    folder, judge = Folder(str(tmp_path / "to")), Judge()
    scores = score_shard(shard, judge, ReadSettings(), folder, "run")
    path = tmp_path / "to" / f"{shard.id}.scores.jsonl"
    head = json.loads(path.read_text().splitlines()[0])
    assert head.pop("format") == "scores 2"
    old = Scored("a", ("odds 1",), (1.0,))
    path.write_text(f"{json.dumps(head)}\n{json.dumps(asdict(old))}\n")
    assert list(read_scores(shard, folder)) == [old]
    assert score_shard(shard, judge, ReadSettings(), folder, "run") == scores
    assert judge.pairs_scored == 2 * 2


def test_a_sample_that_the_matcher_refuses_passes_unscored_and_is_named(picture, tmp_path, caplog):
    texts = ["odds 1", "odds none", "odds -1", "odds nan", "odds 2"]
    samples = {f"k{n}": {"jpg": picture, "txt": text.encode()} for n, text in enumerate(texts)}
    shard = write_tar(tmp_path / "s.tar", samples)
    left, counts = filter_by_judge(shard, tmp_path / "to", caption_field="")
    assert counts == Filtered(samples=5, unscored=2, captions=3, noisy=1, left_out=1)
    assert left == {key: samples[key] for key in ("k0", "k1", "k3", "k4")}
    assert caplog.messages == [
        f"not scored: sample k1 of {tmp_path / 's.tar'}: refused: match: ValueError: could not "
        "convert string to float: 'none'",
        f"not scored: sample k3 of {tmp_path / 's.tar'}: not_finite: match: NaN or infinity",
    ]


def test_a_matcher_that_is_broken_ends_the_filter(picture, tmp_path):
    class Dead(Judge):
        def match(self, a, b, pairs):
            raise RuntimeError("CUDA error: device-side assert triggered")

    shard = write_tar(tmp_path / "s.tar", {"k": {"jpg": picture, "txt": b"odds 1"}})
    with pytest.raises(EncoderError, match="as a trial, found RuntimeError: CUDA error"):
        score_shard(shard, Dead(), ReadSettings(), Folder(str(tmp_path / "to")), "run")
