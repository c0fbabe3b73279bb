"""caption, ask, translate, sentiment over shards: rows, reasons, copies with captions, crashes."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import jpeg, make_shard
from conftest import samples as kept_samples
from crash_points import Unflushed, recorded_runs_are_dead
from fake_answerer import FakeAnswerer, described
from recorded_disk import RecordedDisk, Tree, distinct, killed, using
from simulated_store import SimulatedStore, using_store
from tars import read_tar, write_tar
from tiny_answerers import blip_folder

from chiasm.jobs.answer_shards import AnswerRequest, answer_shards
from chiasm.jobs.cli.ask import ask
from chiasm.jobs.cli.caption import caption
from chiasm.jobs.cli.sentiment import sentiment
from chiasm.jobs.cli.translate import translate
from chiasm.jobs.config import compose
from chiasm.pipeline.answers import (
    AnswerSettings,
    answer_shard,
    answers_name,
    find_answers,
    identity,
)
from chiasm.pipeline.collection import runs
from chiasm.pipeline.encoders import ANSWERERS, GenerateSettings
from chiasm.pipeline.errors import CollectionError, EncoderError, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.storage import Folder, is_temporary

CAPTION = AnswerSettings("caption", "en")


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    made = FakeAnswerer()
    monkeypatch.setitem(ANSWERERS, "fake", lambda model, settings: made)
    return made


def picture(seed: int) -> bytes:
    return jpeg(random.Random(seed))


def said(data: bytes) -> str:
    """What the fake answerer says of an encoded picture."""
    return described(np.asarray(decode(data, DecodeSettings(), None).image))


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "s.tar", SAMPLES)


SAMPLES = {
    "bare": {"jpg": picture(0)},
    "captioned": {"jpg": picture(1), "txt": b"a boat",
                  "json": b'{"n": 1.0, "captions": ["x", "a boat"]}'},
    "blank": {"jpg": picture(2), "txt": b" \n", "cls": b"7"},
    "odd": {"jpg": picture(3), "json": b"[1]"},
    "broken": {"jpg": b"no picture", "txt": b"lost"},
    "blind": {"txt": "没有图".encode()},
    "plain": {"jpg": picture(4), "txt": b"a bat", "json": b"{}"},
}  # fmt: skip
PICTURES = ("bare", "captioned", "blank", "odd", "plain")


def request_for(shards, to, answers=CAPTION, assignments=(), **options):
    settings = compose("laptop", ["batch.size=2", *assignments])
    answers = replace(answers, batch=settings.batch)
    return AnswerRequest(shards, str(to), "fake", answers, settings, **options)


def rows_of(to, shard):
    return pq.read_table(to / answers_name(shard.id)).to_pylist()


def test_every_sample_has_a_row_with_its_answer_or_the_reason(shard, tmp_path):
    summary = answer_shards(request_for([shard], tmp_path / "to"))
    rows = {row["key"]: row for row in rows_of(tmp_path / "to", shard)}
    assert list(summary.reasons) and rows.keys() == SAMPLES.keys()
    assert {k: row["answer"] for k, row in rows.items() if row["answer"]} == {
        key: said(SAMPLES[key]["jpg"]) for key in PICTURES
    }
    assert {row["shard"] for row in rows.values()} == {shard.id}
    assert all(rows[key]["confidence"] == 0.5 and not rows[key]["reason"] for key in PICTURES)
    broken, blind = rows["broken"], rows["blind"]
    assert (broken["stage"], broken["reason"]) == ("decode", "not_a_picture") and broken["detail"]
    assert (blind["stage"], blind["reason"]) == (None, "no_picture")
    assert summary.as_json() == {
        "samples": 7, "answers": 5, "uncaptioned": 3, "dropped": 1, "lacking": 1,
        "reasons": {"no_picture": 1, "not_a_picture": 1},
        "shards": {"done": 1, "skipped": 0, "failed": [], "damaged": []},
    }  # fmt: skip
    assert summary.loss == 1 / 6
    assert "7" not in str(summary.error("caption", 0.2, allow_damaged=False))
    assert "1 of 6 (16.67%)" in str(summary.error("caption", 0.1, allow_damaged=False))


def test_translations_and_sentiments_are_of_every_caption_with_its_picture(shard, tmp_path):
    answer_shards(request_for([shard], tmp_path / "to", AnswerSettings("translate", "zh")))
    rows = rows_of(tmp_path / "to", shard)
    color = {key: said(SAMPLES[key]["jpg"]) for key in PICTURES}
    assert [(row["key"], row["text"], row["answer"]) for row in rows if row["answer"]] == [
        ("captioned", "a boat", f"translate zh a boat {color['captioned']}"),
        ("captioned", "x", f"translate zh x {color['captioned']}"),
        ("plain", "a bat", f"translate zh a bat {color['plain']}"),
    ]
    lacking = {row["key"]: row["reason"] for row in rows if not row["answer"]}
    assert lacking == {
        **dict.fromkeys(("bare", "blank", "odd"), "no_caption"),
        "broken": "not_a_picture",
        "blind": "no_picture",
    }
    same = AnswerSettings("translate", "en")
    summary = answer_shards(request_for([shard], tmp_path / "en", same))
    rows = {(row["key"], row["text"]): row for row in rows_of(tmp_path / "en", shard)}
    assert rows["captioned", "x"]["reason"] == rows["plain", "a bat"]["reason"] == "same_language"
    assert rows["plain", "a bat"]["stage"] is None and not any(r["answer"] for r in rows.values())
    assert (summary.lacking, summary.dropped, summary.reasons["same_language"]) == (7, 1, 3)
    mixed = write_tar(tmp_path / "m.tar", {
        "a": {"jpg": picture(5), "txt": "真好".encode()}, "b": {"jpg": picture(6), "txt": b"fine"},
    })  # fmt: skip
    answer_shards(request_for([mixed], tmp_path / "moods", AnswerSettings("sentiment")))
    answers = [row["answer"].split()[1] for row in rows_of(tmp_path / "moods", mixed)]
    assert answers == ["zh", "en"]


def test_a_question_is_asked_of_every_picture(shard, tmp_path, fake):
    question = AnswerSettings("ask", "en", "what?", GenerateSettings(beams=3, max_tokens=5))
    answer_shards(request_for([shard], tmp_path / "to", question))
    rows = [row for row in rows_of(tmp_path / "to", shard) if row["answer"]]
    assert [row["key"] for row in rows] == list(PICTURES)
    assert {row["text"] for row in rows} == {"what?"}
    assert fake.settings[1:] == [question.generate] * 3, "but for the trial"


def test_captions_are_added_and_nothing_is_overwritten(shard, tmp_path):
    answer_shards(request_for([shard], tmp_path / "to", write_shards=True))
    path = tmp_path / "to/shards" / f"{shard.id}.tar"
    left = read_tar(path)
    assert list(left) == list(SAMPLES)
    for key in ("broken", "blind"):
        assert left[key] == SAMPLES[key]
    for key in PICTURES:
        new = said(SAMPLES[key]["jpg"])
        assert left[key]["jpg"] == SAMPLES[key]["jpg"]
        assert left[key]["txt"] == SAMPLES[key].get("txt", b"").strip() or new.encode()
        if key != "odd":
            value = json.loads(left[key]["json"])["generated_caption_en"]
            assert value == {
                "text": new, "confidence": 0.5, "model": "fake", "fingerprint": "0" * 32
            }  # fmt: skip
    assert left["odd"]["json"] == b"[1]" and left["blank"]["cls"] == b"7"
    assert left["captioned"]["json"].startswith(b'{"n": 1.0, "captions": ["x", "a boat"], "gen')
    # What reads shards reads these: every picture has a caption now.
    (made,) = list_shards([str(path)])
    captions = {s.key: s.captions[0] for s in kept_samples(read_samples(made, ReadSettings()))}
    assert captions["bare"] == said(SAMPLES["bare"]["jpg"])
    assert captions["captioned"] == "a boat"


def test_a_second_language_leaves_the_captions_of_the_first(shard, tmp_path):
    answer_shards(request_for([shard], tmp_path / "en", write_shards=True))
    (english,) = list_shards([str(tmp_path / "en/shards")])
    chinese = replace(CAPTION, language="zh")
    for to in ("zh", "zh2"):
        answer_shards(request_for([english], tmp_path / to, chinese, write_shards=True))
        (english,) = list_shards([str(tmp_path / to / "shards")])
    first = read_tar(tmp_path / "en/shards" / f"{shard.id}.tar")
    second = next((tmp_path / "zh/shards").iterdir())
    third = next((tmp_path / "zh2/shards").iterdir())
    assert read_tar(second)["bare"]["txt"] == first["bare"]["txt"]
    table = json.loads(read_tar(second)["bare"]["json"])
    assert table.keys() == {"generated_caption_en", "generated_caption_zh"}
    assert read_tar(second) == read_tar(third)


def test_a_folder_that_is_a_sample_gets_its_caption_inside(tmp_path):
    members = {"0001/image": {"jpg": picture(0)}, "0001/metadata": {"json": b'{"a": 1}'}}
    folder = write_tar(tmp_path / "f.tar", members)
    answer_shards(request_for([folder], tmp_path / "to", write_shards=True))
    (made,) = list_shards([str(tmp_path / "to/shards")])
    (sample,) = kept_samples(read_samples(made, ReadSettings()))
    assert sample.captions == (said(picture(0)),) and sample.key == "0001"
    assert json.loads(sample.json or "").keys() == {"a", "generated_caption_en"}


def test_what_is_done_is_not_asked_again(tmp_path, fake):
    sources = list_shards([str(make_shard(tmp_path / f"{n}.tar", 3, seed=n)) for n in range(2)])
    first = answer_shards(request_for(sources, tmp_path / "to"))
    calls = len(fake.settings)
    again = answer_shards(request_for(sources, tmp_path / "to"))
    assert len(fake.settings) == calls and (again.done, again.skipped) == (0, 2)
    assert again.as_json() | {"shards": 0} == first.as_json() | {"shards": 0}
    # The shards are written from the answers that are there: only a trial is request.
    answer_shards(request_for(sources, tmp_path / "to", write_shards=True))
    assert len(fake.settings) <= calls + 1
    assert len(list((tmp_path / "to/shards").iterdir())) == 2
    # A shard that has changed is asked about again, and written again.
    make_shard(tmp_path / "0.tar", 4, seed=9)
    changed = list_shards([str(tmp_path / f"{n}.tar") for n in range(2)])
    summary = answer_shards(request_for(changed, tmp_path / "to", write_shards=True))
    assert (summary.done, summary.skipped, summary.samples) == (1, 1, 7)
    assert len(read_tar(tmp_path / "to/shards" / f"{changed[0].id}.tar")) == 4


def test_what_is_done_is_found_whatever_the_model_is_called(shard, tmp_path, fake, monkeypatch):
    answer_shards(request_for([shard], tmp_path / "to"))
    fake.name = "renamed"
    record = json.loads((tmp_path / "to/answers.json").read_text()) | {"model": "renamed"}
    (tmp_path / "to/answers.json").write_text(json.dumps(record))
    calls = len(fake.settings)
    again = answer_shards(request_for([shard], tmp_path / "to"))
    assert (again.done, again.skipped) == (0, 1)
    assert len(fake.settings) == calls + 1, "a trial"
    # A folder by a relative path, or behind a link, is the one that answered.
    blip_folder(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(tmp_path)
    short = replace(CAPTION, generate=GenerateSettings(max_tokens=4))
    for number, model in enumerate(("hf:model", "hf:./link", f"hf:{tmp_path / 'model'}")):
        request = replace(request_for([shard], "by", short), model=model)
        summary = answer_shards(request)
        assert (summary.done, summary.skipped) == (number == 0, number > 0)
    names = {run.settings["model"] for run in runs(Folder("by"))}
    assert names == {f"hf:{(tmp_path / 'model').resolve()}"}


def test_a_damaged_file_of_answers_is_made_again(shard, tmp_path):
    answer_shards(request_for([shard], tmp_path / "to"))
    path = tmp_path / "to" / answers_name(shard.id)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert find_answers(Folder(str(tmp_path / "to")), shard.id) is None
    answer_shards(request_for([shard], tmp_path / "to"))
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"question": "where?"}, r"question what\?, as before, found where\?"),
        ({"task": "caption", "question": None}, "task ask, as before, found caption"),
        ({"language": "zh"}, "language en, as before, found zh"),
        ({"generate": GenerateSettings(beams=2)}, "generate beams=1 .* found beams=2"),
        ({"read": ReadSettings(caption_field="alt")}, "read caption_field=.* caption_field=alt"),
        ({}, r"model fake \(000000000000\), found model fake \(another\)"),
    ],
)  # fmt: skip
def test_another_question_or_model_into_the_folder_is_refused_by_name(
    shard, tmp_path, fake, change, found
):
    question = AnswerSettings("ask", "en", "what?")
    answer_shards(request_for([shard], tmp_path / "to", question))
    before = Tree.read(tmp_path / "to").files()
    if not change:
        fake.fingerprint = "another"
        make_shard(tmp_path / "new.tar", 2)
    sources = [shard, *list_shards([str(path) for path in tmp_path.glob("new.tar")])]
    with pytest.raises(CollectionError, match=found):
        answer_shards(request_for(sources, tmp_path / "to", replace(question, **change)))
    assert Tree.read(tmp_path / "to").files() == before


def test_a_model_that_fails_on_a_sample_costs_no_other_its_answer(tmp_path, fake):
    samples = {f"{n}": {"jpg": picture(n), "txt": b"ok"} for n in range(5)}
    samples["2"]["txt"], samples["3"]["txt"] = b"crash", b"silence"
    source = write_tar(tmp_path / "s.tar", samples)
    answer_shards(request_for([source], tmp_path / "to", AnswerSettings("sentiment", "en")))
    rows = {row["key"]: row for row in rows_of(tmp_path / "to", source)}
    assert [key for key, row in rows.items() if row["answer"]] == ["0", "1", "4"]
    assert (rows["2"]["stage"], rows["2"]["reason"]) == ("answer", "refused")
    assert "no kernel" in rows["2"]["detail"] and rows["2"]["text"] == "crash"
    assert rows["3"]["reason"] == "no_words"


def test_a_model_that_answers_nothing_ends_the_run_with_nothing_written(shard, tmp_path, fake):
    fake.broken = True
    with pytest.raises(EncoderError, match="an answer for one of two inputs, as a trial of cap"):
        answer_shards(request_for([shard], tmp_path / "to"))
    assert not (tmp_path / "to").exists()
    with pytest.raises(EncoderError, match="an answer for one of two inputs"):
        answer_shard(shard, fake, Folder(str(tmp_path / "to")), CAPTION, "run")
    assert list((tmp_path / "to/answers").iterdir()) == []


class Unreadable(FakeAnswerer):
    @property
    def fingerprint(self):
        raise EncoderError("model fake", expected="weights that can be read")


def test_a_worker_that_is_never_ready_leaves_no_run(shard, tmp_path, monkeypatch):
    monkeypatch.setitem(ANSWERERS, "fake", lambda model, settings: Unreadable())
    with pytest.raises(EncoderError, match="weights that can be read"):
        answer_shards(request_for([shard], tmp_path / "to"))
    assert Tree.read(tmp_path / "to").files() == {}


def test_shards_that_cannot_be_read_or_are_cut_cost_no_other_its_answers(tmp_path):
    (tmp_path / "none.tar").write_bytes(b"no tar" * 1000)
    whole = make_shard(tmp_path / "whole.tar", 3)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:-12_000])
    sources = list_shards([str(tmp_path / f"{name}.tar") for name in ("none", "cut", "whole")])
    summary = answer_shards(request_for(sources, tmp_path / "to", write_shards=True))
    assert [entry["shard"] for entry in summary.failed] == [sources[0].url]
    assert [entry["shard"] for entry in summary.damaged] == [sources[1].url]
    assert "1 that could not be" in str(summary.error("caption", 1.0, allow_damaged=True))
    assert len(list((tmp_path / "to/shards").glob("*.tar"))) == 2
    again = answer_shards(request_for(sources, tmp_path / "to", write_shards=True))
    assert (again.skipped, len(again.failed), again.damaged) == (2, 1, summary.damaged)


def test_a_member_too_large_to_copy_is_named_and_nothing_is_written(tmp_path):
    source = write_tar(tmp_path / "s.tar", {"a": {"jpg": picture(0), "bin": bytes(5000)}})
    small = ReadSettings(max_member_bytes=4000)
    answers = replace(CAPTION, read=small)
    summary = answer_shards(request_for([source], tmp_path / "to", answers, write_shards=True))
    assert "sample a: expected members of at most 4,000 bytes" in summary.failed[0]["reason"]
    assert list((tmp_path / "to/shards").iterdir()) == []
    assert len(rows_of(tmp_path / "to", source)) == 1


def test_wrong_requests_are_refused_before_anything_is_written(shard, tmp_path):
    with pytest.raises(UsageError, match="another folder than that of the shards"):
        answer_shards(request_for([shard], tmp_path))
    with pytest.raises(UsageError, match="expected chiasm caption, found ask"):
        ask = AnswerSettings("ask", "en", "what?")
        answer_shards(request_for([shard], tmp_path / "to", ask, write_shards=True))
    with pytest.raises(UsageError, match=r"^task 'imagine' over shards: expected one of caption,"):
        AnswerSettings("imagine")
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


def test_a_kill_at_any_point_costs_nothing(tmp_path):
    sources = list_shards([str(make_shard(tmp_path / f"{n}.tar", 2, seed=n)) for n in range(2)])
    root = tmp_path / "to"
    root.mkdir()

    def command():
        return answer_shards(request_for(sources, root, write_shards=True)).samples

    def lasting():
        files = Tree.read(root).files()
        return {name: data for name, data in files.items() if not name.startswith("runs/")}

    disk = RecordedDisk(root)
    with using(disk):
        command()
    expected, states = lasting(), list(distinct(killed(disk.before, disk.log)))
    assert len(states) > 15 and len(expected) == 5
    with recorded_runs_are_dead(), using(Unflushed()):
        for state in states:
            state.write(root)
            for path in root.glob("runs/.*.tmp"):  # some time ago: no run is about to begin
                os.utime(path, (0, 0))
            named = {k: v for k, v in state.files().items() if k in expected}
            assert all(expected[name] == data for name, data in named.items()), "half-written"
            assert command() == 4
            assert lasting() == expected
            assert not [name for name in Tree.read(root).files() if is_temporary(name)]


def test_answers_are_the_same_on_ray(tmp_path, ray_session, monkeypatch):
    monkeypatch.chdir(tmp_path)  # workers work elsewhere
    sources = list_shards([str(make_shard(tmp_path / f"{n}.tar", 2, seed=n)) for n in range(2)])
    blip_folder(tmp_path / "model")
    made = []
    for name, more in (("here", []), ("ray", ["workers.count=2", "workers.cpus=1"])):
        request = request_for(sources, name, assignments=more, write_shards=True)
        answers = replace(CAPTION, generate=GenerateSettings(max_tokens=4))
        request = replace(request, model="hf:model", answers=answers)
        assert request.on_ray == (name == "ray")
        summary = answer_shards(request)
        assert (summary.samples, summary.done) == (4, 2) and summary.answers
        files = Tree.read(tmp_path / name).files()
        made.append({k: v for k, v in files.items() if k.startswith(("answers/", "shards/"))})
    assert made[0] == made[1] and len(made[0]) == 4


def test_a_store_gets_the_same_bytes(tmp_path):
    sources = list_shards([str(make_shard(tmp_path / "s.tar", 2))])
    answer_shards(request_for(sources, tmp_path / "to", write_shards=True))
    store = SimulatedStore()
    with using_store(store):
        to = "s3://bucket/c"
        answer_shards(request_for(sources, to, write_shards=True))
        again = answer_shards(request_for(sources, to, write_shards=True))
    assert (again.skipped, again.done) == (1, 0)
    local = Tree.read(tmp_path / "to").files()
    stored = {path.removeprefix("bucket/c/"): found.data for path, found in store.objects.items()}
    assert {name for name in stored if not name.startswith("runs/")} == {
        name for name in local if not name.startswith("runs/")
    }
    assert all(stored[n] == data for n, data in local.items() if n.startswith(("answers/", "sh")))


def test_the_program_captions_shards_by_a_model_of_transformers(chiasm, tmp_path, capsys):
    make_shard(tmp_path / "s.tar", 3, broken=1)
    model = f"hf:{blip_folder(tmp_path / 'model')}"
    command = ("caption", tmp_path / "s.tar", "--to", tmp_path / "to", "--shards", "--model", model)
    command = (*command, "--max-tokens", 4, "--json")
    ran = chiasm(*command)
    assert ran.returncode == 1, ran.stderr
    assert " 00000002: not_a_picture" in ran.stderr
    assert "caption: expected at most 1.00% of answers missing, found" in ran.stderr
    assert json.loads(ran.stdout)["shards"]["done"] == 1
    caption([str(tmp_path / "s.tar")], model, max_tokens=4, to=str(tmp_path / "to"), max_loss=1.0)
    assert "shards: 0 done, 1 were done already" in capsys.readouterr().out


def test_the_commands_take_shards_where_they_are_given_a_folder(tmp_path, capsys):
    source = str(make_shard(tmp_path / "s.tar", 2))
    caption([source], "fake", to=str(tmp_path / "a"))
    ask(source, [source, "这是什么?"], "fake", to=str(tmp_path / "b"))
    translate([source], str(tmp_path / "c"), model="fake", language="zh")
    sentiment([source], None, "fake", to=str(tmp_path / "d"), as_json=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"2 answers about 2 samples in {tmp_path / 'a'}, " + (
        "0 about samples without a caption"
    )
    assert json.loads(printed[-1])["answers"] == 2
    words = {}
    for name in "abcd":
        (path,) = (tmp_path / name / "answers").iterdir()
        answer = pq.read_table(path).to_pylist()[0]["answer"]
        words[name] = answer.partition(" means")[0].partition("means")[0]
    assert words == {
        "a": "", "b": "ask zh 这是什么?", "c": "translate zh picture 0 of 0",
        "d": "sentiment en picture 0 of 0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: caption(["a.png"], write_shards=True), "--shards: expected it with shards"),
        (lambda: ask("a.tar", ["x"], max_loss=0.5), "--max-loss: expected it with shards"),
        (lambda: ask("a.tar", [], to="b"), "ask: expected shards, then a question"),
        (lambda: ask("a.tar", ["b.tar"], to="b"), "ask: expected shards, then a question, found"),
        (lambda: ask("a.tar", ["s3://a/b.tgz"], to="b"), "ask: expected shards, then a question"),
        (lambda: ask("a.tar", [os.curdir], to="b"), "ask: expected shards, then a question, found"),
        (lambda: ask("a.tar", [" "], to="b"), "ask: expected shards, then a question, found ' '"),
        (lambda: ask("a.tar", ["-"], to="b"), "ask: expected shards, then a question, found '-'"),
        (lambda: translate(["x"], "zh", "a.png", language="en"), "--to zh: expected a folder"),
        (lambda: sentiment(["a.tar"], "a.png", to="b"), "--image: expected none with shards"),
        (
            lambda: caption(["a.tar"], language="fr", to="b"),
            "--language: expected one of en, zh, found fr",
        ),
    ],
)
def test_wrong_usage_is_one_line(call, line):
    with pytest.raises(UsageError) as refused:
        call()
    assert str(refused.value).startswith(line)


def test_answers_begun_before_pictures_had_candidates_go_on():
    """No task over shards draws, so what a folder says of its request is what it said before."""
    request = identity._request(AnswerSettings("caption"))
    assert request["generate"] == {"beams": 1, "max_tokens": None, "sampling": None}


def test_answers_by_older_decoding_go_on_and_exact_ones_are_others():
    """As `answers.json` was written when there was no `exact` and pictures were scaled."""
    before = {
        "max_megapixels": 100, "max_member_bytes": 64 << 20, "max_seconds": 20, "scaled": True,
    }  # fmt: skip
    assert identity._request(CAPTION)["decode"] == before
    scaled, exact = DecodeSettings(scaled=True), DecodeSettings(exact=True)
    assert identity._request(replace(CAPTION, decode=scaled))["decode"] == before
    assert identity._request(replace(CAPTION, decode=exact))["decode"] != before
