"""`chiasm filter`: every caption scored, what falls short left out or marked, all else kept."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_shard
from conftest import samples as kept_samples
from fake_encoder import FakeEncoder, FakeMatcher
from recorded_disk import Tree
from shard_scores import Judge, filter_by_judge, score_shard
from tars import json_of, read_tar, write_tar
from tiny_llava import cross_encoder_folder

from chiasm.jobs.answer_shards import AnswerRequest, answer_shards
from chiasm.jobs.config import compose
from chiasm.jobs.filter_shards import USES, FilterRequest, filter_shards
from chiasm.pipeline.answers import AnswerSettings
from chiasm.pipeline.caption_filter import (
    Filtered,
    FilterSettings,
    LogitCounts,
    Scored,
    read_scores,
    require_some_left,
    store_scores,
    write_filtered,
)
from chiasm.pipeline.collection import runs
from chiasm.pipeline.encoders import ENCODERS, Input, load_matcher
from chiasm.pipeline.errors import ChiasmError, CollectionError, EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.storage import Folder


@pytest.fixture
def samples(tmp_path):
    picture = read_tar(make_shard(tmp_path / "one.tar", 1))["00000000"]["jpg"]
    return {
        "good": {"jpg": picture, "txt": b"odds 2", "cls": b"7"},
        "bad": {"jpg": picture, "txt": b"odds -2", "json": b'{"n": 1}'},
        "some": {"jpg": picture, "txt": b"odds -3",
                 "json": json_of(["odds -3", "odds 1", "odds -1", "odds 4"], zh=["..."])},
        "blind": {"txt": b"odds 9"},
        "mute": {"jpg": picture, "cls": b"1"},
        "broken": {"jpg": b"no picture", "txt": b"odds 5"},
    }  # fmt: skip


def test_what_falls_short_is_left_out_and_all_else_is_as_it_was(samples, tmp_path):
    shard = write_tar(tmp_path / "s.tar", samples)
    left, counts = filter_by_judge(shard, tmp_path / "to")
    assert list(left) == ["good", "some", "blind", "mute", "broken"]
    for key in ("good", "blind", "mute", "broken"):
        assert left[key] == samples[key]
    assert left["some"]["txt"] == b"odds 1" and left["some"]["jpg"] == samples["some"]["jpg"]
    assert json.loads(left["some"]["json"]) == {"captions": ["odds 1", "odds 4"], "zh": ["..."]}
    assert counts == Filtered(samples=6, unscored=3, captions=6, noisy=3, left_out=1)


def test_marked_samples_keep_everything(samples, tmp_path):
    shard = write_tar(tmp_path / "s.tar", samples)
    left, counts = filter_by_judge(shard, tmp_path / "to", flag=True, threshold=1.5)
    assert list(left) == list(samples) and counts.left_out == 0 and counts.noisy == 4
    record = json.loads(left["some"]["json"])
    assert record["captions"] == json.loads(samples["some"]["json"])["captions"]
    assert [m["noisy"] for m in record["match"]] == [True, True, True, False]
    assert [m["logit"] for m in record["match"]] == [-3, 1, -1, 4]
    assert json.loads(left["good"].pop("match.json")) == [
        {"caption": "odds 2", "logit": 2.0, "noisy": False}
    ]
    assert left["good"] == samples["good"]


def test_what_was_scored_is_not_scored_again(samples, tmp_path):
    shard = write_tar(tmp_path / "s.tar", samples)
    folder, judge, settings = Folder(str(tmp_path / "to")), Judge(), ReadSettings()
    first = score_shard(shard, judge, settings, folder, "run")
    scored = judge.pairs_scored
    assert scored == 6 and score_shard(shard, judge, settings, folder, "run") == first
    assert judge.pairs_scored == scored
    other = ReadSettings(caption_field="captions")
    assert len(score_shard(shard, judge, other, folder, "run")[2].logits) == 4
    assert judge.pairs_scored == scored + 6
    judge.fingerprint = "another"
    score_shard(shard, judge, other, folder, "run")
    assert judge.pairs_scored == scored + 12


def test_a_share_is_a_threshold(samples, tmp_path):
    shard = write_tar(tmp_path / "s.tar", samples)
    scores = score_shard(
        shard, Judge(), ReadSettings(caption_field="captions"), Folder(str(tmp_path / "to")), "run"
    )
    logits = sorted(logit for each in scores for logit in each.logits)
    counts = LogitCounts()
    counts.add(scores)
    assert counts.captions == len(logits) == 6
    for share in (0.0, 0.3, 0.5, 1.0):
        threshold = counts.quantile(share)
        assert threshold == pytest.approx(np.quantile(logits, share), abs=1e-9)
        assert counts.below(threshold) == sum(x < threshold for x in logits)
    assert LogitCounts().quantile(0.5) == 0


def test_a_shard_that_is_cut_gives_what_was_read_of_it(samples, tmp_path):
    shard = write_tar(tmp_path / "s.tar", samples)
    data = (tmp_path / "s.tar").read_bytes()
    with tarfile.open(tmp_path / "s.tar") as tar:
        inside = tar.getmember("some.json").offset_data + 3
    (tmp_path / "s.tar").write_bytes(data[:inside])
    shard = list_shards([str(tmp_path / "s.tar")], None)[0]
    left, counts = filter_by_judge(shard, tmp_path / "to")
    assert next(iter(left)) == "good" and counts.samples >= 2 and "blind" not in left


def test_a_member_that_is_too_large_is_left_out_and_counted(samples, tmp_path):
    samples["good"]["bin"] = bytes(5000)
    shard = write_tar(tmp_path / "s.tar", samples)
    settings = FilterSettings(
        read=ReadSettings(caption_field="captions", max_member_bytes=4000), threshold=-100
    )
    folder = Folder(str(tmp_path / "to"))
    scores = score_shard(shard, Judge(), settings.read, folder, "run")
    counts = write_filtered(shard, scores, settings, folder, "run")
    left = read_tar(tmp_path / "to" / f"{shard.id}.tar")
    assert counts.oversized == 1 and counts.left_out == 0
    assert left["good"] == {k: v for k, v in samples["good"].items() if k != "bin"}
    assert left["some"] == samples["some"]


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"\xff\xfe\n", b"7\n", b'{"key": "a"}\n', b"[" * 100_000,
        b'{"key": "a", "captions": ["b"], "logits": [NaN]}\n',
        b'{"key": "a", "captions": ["b"], "logits": [1' + b"0" * 400 + b"]}\n",
        b'{"key": "a", "captions": ["b"], "logits": []}\n',
        b'{"key": "a", "captions": "b", "logits": [1]}\n',
    ],
)  # fmt: skip
def test_scores_that_cannot_be_read_are_named_by_file_and_line(samples, tmp_path, line):
    shard = write_tar(tmp_path / "s.tar", samples)
    folder, settings = Folder(str(tmp_path / "to")), ReadSettings(caption_field="captions")
    scores = score_shard(shard, Judge(), settings, folder, "run")
    (path,) = (tmp_path / "to").glob("*.scores.jsonl")
    head, *lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(line + b"".join(lines))
    assert score_shard(shard, Judge(), settings, folder, "run") == scores, "they are made anew"
    assert path.read_bytes().splitlines(keepends=True)[0] == head
    if line:
        path.write_bytes(head + lines[0] + line)
        with pytest.raises(CollectionError) as error:
            score_shard(shard, Judge(), settings, folder, "run")
        assert str(error.value).startswith(f"{path}, line 3: expected a score for each caption")
        assert "remove that file" in str(error.value) and "\n" not in str(error.value)


def test_scores_of_another_decoding_are_made_anew(samples, tmp_path):
    shard = write_tar(tmp_path / "s.tar", samples)
    folder, judge, read_settings = Folder(str(tmp_path / "to")), Judge(), ReadSettings()
    small = DecodeSettings(max_megapixels=0.0001)  # none of the pictures is decoded
    assert len(score_shard(shard, judge, read_settings, folder, "run")) == 3
    assert score_shard(shard, judge, read_settings, folder, "run", decode=small) == []


def test_scores_and_shards_are_the_same_on_ray(shards, tmp_path, ray_session, monkeypatch):
    monkeypatch.chdir(tmp_path)  # workers work elsewhere
    sources = list_shards([str(shard) for shard in shards])
    summaries = []
    for name, assignments in (("here", []), ("ray", ["workers.count=2", "workers.cpus=1"])):
        settings = compose("laptop", [*assignments, "filter.drop=0.4"])
        request = FilterRequest(sources, name, "fake:matcher", settings)
        assert request.on_ray == (name == "ray")
        summaries.append(filter_shards(request))
    assert summaries[0] == summaries[1] and summaries[0].counts.captions == 60
    made = [
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.is_file()}
        for name in ("here", "ray")
    ]
    assert made[0] == made[1] and len(made[0]) == 6


def test_a_cross_encoder_for_pictures_filters(tmp_path):
    captions = ["red", "a boat at sea, and a bird above it", "7", "?", "blue blue blue", "an oak"]
    make_shard(tmp_path / "s.tar", 6, captions=captions)
    (shard,) = list_shards([str(tmp_path / "s.tar")])
    name = f"st:{cross_encoder_folder(tmp_path)}"
    settings = compose("laptop", ["encoder.device=cpu", "encoder.precision=float32"])
    matcher = load_matcher(name, settings.encoder)
    expected = {}
    for sample in kept_samples(read_samples(shard, ReadSettings())):
        pixels = matcher.preprocess(
            "image", np.asarray(decode(sample.picture, DecodeSettings(), None).image)
        )
        (score,) = matcher.match(("image", [pixels]), ("text", sample.captions), np.array([[0, 0]]))
        expected[sample.key] = float(score)
    ordered = sorted(expected.values())
    noisy = 2 + int(np.diff(ordered)[1:4].argmax())
    threshold = (ordered[noisy - 1] + ordered[noisy]) / 2
    assert ordered[noisy] - ordered[noisy - 1] > 1e-3, "no near ties"
    settings = replace(settings, filter=replace(settings.filter, threshold=threshold))
    summary = filter_shards(FilterRequest([shard], str(tmp_path / "to"), name, settings))
    assert summary.counts == Filtered(samples=6, captions=6, noisy=noisy, left_out=noisy)
    for scored in read_scores(shard, Folder(str(tmp_path / "to"))):
        assert scored.logits == (pytest.approx(expected[scored.key], abs=2e-4),)
    (written,) = (tmp_path / "to").glob("*.tar")
    assert set(read_tar(written)) == {key for key, score in expected.items() if score > threshold}


def test_the_precision_of_scores_is_recorded_and_makes_none_of_them_anew(tmp_path):
    make_shard(tmp_path / "s.tar", 4)
    (shard,) = list_shards([str(tmp_path / "s.tar")])
    folder, read = Folder(str(tmp_path / "to")), ReadSettings()
    path = tmp_path / "to" / f"{shard.id}.scores.jsonl"
    first = FakeMatcher("matcher", "bfloat16")
    assert store_scores(shard, first, read, folder, "run")
    written = path.read_bytes()
    head = json.loads(written.partition(b"\n")[0])
    assert head["precision"] == "bfloat16" and head["format"] == "scores 2"
    assert not store_scores(shard, FakeMatcher("matcher"), read, folder, "run")
    # Of before precision was recorded.
    del head["precision"]
    path.write_bytes(json.dumps(head).encode() + written[written.index(b"\n") :])
    assert not store_scores(shard, first, read, folder, "run")
    assert store_scores(shard, FakeMatcher("other"), read, folder, "run")


class OnlyMatches:
    """A matcher that is no encoder: a caption is as true as it is long."""

    name, fingerprint = "long", "0"
    cost = FakeEncoder.cost

    def __init__(self, *modalities):
        self.modalities = dict.fromkeys(modalities, Input())

    def preprocess(self, modality, raw):
        return raw

    def match(self, a, b, pairs):
        return np.array([len(b[1][j]) for _, j in pairs], np.float32)


def test_a_registered_matcher_that_is_no_encoder_filters(tmp_path, monkeypatch):
    make_shard(tmp_path / "s.tar", 4, captions=["ab", "abcd", "a", "abc"])
    shards = list_shards([str(tmp_path / "s.tar")], None)
    monkeypatch.setitem(ENCODERS, "long", lambda model, _: OnlyMatches(*model.split("+")))
    settings = compose("laptop", ["filter.threshold=2.5"])
    request = FilterRequest(shards, str(tmp_path / "to"), "long:image+text", settings)
    assert filter_shards(request).counts == Filtered(samples=4, captions=4, noisy=2, left_out=2)
    (run,) = runs(Folder(request.to))
    assert run.settings["matcher"] == "long:image+text"
    assert {"encoder", *USES} <= run.settings.keys()
    message = (
        "takes image, found one for text; filter with a matcher that takes pictures and texts$"
    )
    with pytest.raises(UsageError, match=message):
        filter_shards(replace(request, encoder="long:text", to=str(tmp_path / "other")))


def test_a_model_that_cannot_be_loaded_ends_a_filter_on_ray(shards, tmp_path, ray_session):
    sources = list_shards([str(shard) for shard in shards])
    settings = compose("laptop", ["workers.count=2", "workers.cpus=1"])
    request = FilterRequest(sources, str(tmp_path / "to"), f"pocket:{tmp_path}", settings)
    with pytest.raises(EncoderError):
        filter_shards(request)


def test_what_would_leave_nearly_nothing_is_not_written(tmp_path, chiasm):
    make_shard(tmp_path / "s.tar", 6, seed=1)
    command = ("filter", tmp_path / "s.tar", "--to", tmp_path / "to", "--encoder", "fake:matcher")
    ran = chiasm(*command, "--threshold", 1000)
    assert ran.returncode == 1 and ran.stderr.splitlines()[-2].startswith(
        "chiasm: filter: expected at most 95% of captions below 1000, found 6 of 6, and wrote no"
    )
    assert list((tmp_path / "to").glob("*.tar")) == []
    assert chiasm(*command, "--threshold", 1000, "--flag").returncode == 0
    assert chiasm(*command, "--threshold", 1000, "--set", "filter.max_noisy=1").returncode == 0


def test_a_share_of_captions_up_to_the_limit_may_fall_short():
    counts = LogitCounts()
    counts.add([Scored(str(odds), ("a caption",), (odds,)) for odds in (-2.0, -1.0, 0.0, 1.0)])
    require_some_left(counts, 0.0, 0.5, "an encoder")
    require_some_left(counts, -3.0, 0.0, "an encoder")  # none falls short
    require_some_left(LogitCounts(), 0.0, 0.0, "an encoder")
    with pytest.raises(ChiasmError, match="at most 50% of captions below 1, found 3 of 4, and"):
        require_some_left(counts, 1.0, 0.5, "an encoder")


def test_the_folder_of_the_shards_is_no_target(tmp_path, chiasm):
    make_shard(tmp_path / "s.tar", 2)
    ran = chiasm("filter", tmp_path / "s.tar", "--to", tmp_path, "--encoder", "fake:matcher")
    assert ran.returncode == 2
    assert "expected another folder than that of the shards" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


def test_a_collection_is_no_target(tmp_path, chiasm):
    """`filter` and `caption` do not write into a collection, nor others into answers."""
    shard = make_shard(tmp_path / "s.tar", 2)
    make_collection(shard, tmp_path / "c", "pocket")
    before = Tree.read(tmp_path / "c").files()
    for command in (("filter", "--encoder", "fake:matcher"), ("caption",)):
        ran = chiasm(command[0], shard, "--to", tmp_path / "c", *command[1:])
        assert ran.returncode == 2 and "found a collection; name another folder" in ran.stderr
    assert Tree.read(tmp_path / "c").files() == before
    (tmp_path / "answers").mkdir()
    source = list_shards([str(shard)])
    to = str(tmp_path / "answers")
    answers = AnswerSettings("caption", "en")
    answer_shards(AnswerRequest(source, to, "pocket", answers, compose("laptop")))
    before = Tree.read(tmp_path / "answers").files()
    with pytest.raises(UsageError, match="found answers about shards; name another folder"):
        make_collection(shard, to, "pocket")
    for command in (("embed",), ("filter", "--encoder", "fake:matcher")):
        ran = chiasm(command[0], shard, "--to", to, *command[1:])
        assert ran.returncode == 2 and "found answers about shards; name another" in ran.stderr
    assert Tree.read(tmp_path / "answers").files() == before


def test_a_filter_that_is_stopped_goes_on_from_its_scores(tmp_path):
    first = make_shard(tmp_path / "first.tar", 6)
    second = make_shard(tmp_path / "second.tar", 6, seed=1)
    sources = list_shards([str(first), str(second)])
    request = FilterRequest(sources, str(tmp_path / "to"), "fake:matcher", compose("laptop"))

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_shards(request, stop)
    (scores,) = (tmp_path / "to").glob("*.scores.jsonl")
    made = scores.stat().st_mtime_ns
    filter_shards(request)
    assert scores.stat().st_mtime_ns == made
    left = sorted(path.name for path in (tmp_path / "to").iterdir() if path.is_file())
    assert left == sorted(
        f"{shard.id}.{end}" for shard in sources for end in ("scores.jsonl", "tar")
    )


def test_at_the_prompt(chiasm, tmp_path):
    make_shard(tmp_path / "s.tar", 6, seed=1)
    without = chiasm("filter", tmp_path / "s.tar", "--to", tmp_path / "to")
    assert without.returncode == 2 and "--encoder" in without.stderr
    vectors_only = chiasm(
        "filter", tmp_path / "s.tar", "--to", tmp_path / "to", "--encoder", "fake"
    )
    assert vectors_only.returncode == 2 and "makes vectors only" in vectors_only.stderr
    both = chiasm(
        "filter", tmp_path / "s.tar", "--to", tmp_path / "to", "--encoder", "fake:matcher",
        "--drop", 0.5, "--threshold", 1,
    )  # fmt: skip
    assert both.returncode == 2 and "one of them, found both" in both.stderr
    done = chiasm(
        "filter", tmp_path / "s.tar", "--to", tmp_path / "to", "--encoder", "fake:matcher",
        "--drop", 0.5, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["captions"], record["noisy"], record["left_out"]) == (6, 3, 3)
    again = chiasm(
        "filter", tmp_path / "s.tar", "--to", tmp_path / "to", "--encoder", "fake:matcher",
        "--threshold", -100,
    )  # fmt: skip
    assert again.stdout.splitlines()[1] == f"6 of 6 samples in {tmp_path / 'to'}"
    (shard,) = (tmp_path / "to").glob("*.tar")
    assert read_tar(shard) == read_tar(tmp_path / "s.tar")


def test_a_shard_that_is_cut_is_counted_and_told(tmp_path, samples, chiasm):
    shard = write_tar(tmp_path / "in.tar", samples)
    whole = (tmp_path / "in.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 - 100])
    cut = list_shards([str(tmp_path / "cut.tar")], None)[0]
    folder, read_settings = Folder(str(tmp_path / "out")), ReadSettings(caption_field="captions")
    settings = FilterSettings(read=read_settings)
    for each, damaged in ((shard, 0), (cut, 1)):
        scores = score_shard(each, Judge(), read_settings, folder, "run")
        assert write_filtered(each, scores, settings, folder, "run").damaged == damaged
    ran = chiasm(
        "filter", tmp_path / "cut.tar", "--to", tmp_path / "new", "--encoder", "pocket", "--flag"
    )
    assert ran.returncode == 1 and "1 of 1 shards: expected whole tar files" in ran.stderr
