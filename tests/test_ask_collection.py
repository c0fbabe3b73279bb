"""Questions about a collection: answered from the pictures found, refused where nothing matches."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
import token_encoder
from PIL import Image

from chiasm.index import AskSettings, ask_collection, build_index, open_collection
from chiasm.index import ask as ask_module
from chiasm.index.content_words import content_words
from chiasm.index.plan import IndexSettings
from chiasm.index.sheet.typeface import Typeface
from chiasm.jobs.cli import ask_collection as command
from chiasm.jobs.cli.ask import ask
from chiasm.pipeline import make_collection
from chiasm.pipeline.encoders import ANSWERERS, ENCODERS, Input, Reply
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.scenes.samples import samples
from chiasm.pipeline.scenes.world import stream
from chiasm.pipeline.shards import write_shard

ROWS = 240
ALWAYS = AskSettings(k=3, false_alarms=None)


class Brightness:
    """Answers with the mean of the picture's pixels, and fails on dark ones."""

    name, fingerprint, precision, device = "brightness", "0" * 32, "float32", "cpu"
    tasks = dict.fromkeys(["ask"], ("en", "zh"))

    def __init__(self, darkest=0.0):
        self.darkest, self.modalities, self.requests = darkest, {"image": Input(side=72)}, []

    def preprocess(self, modality, raw):
        return np.asarray(raw)

    def cost(self, modality, item):
        return item.size

    def answer(self, requests, settings):
        self.requests += [(request.text, request.language) for request in requests]
        means = [float(request.image.mean()) for request in requests]
        if min(means) < self.darkest:
            raise RuntimeError("too dark")
        cut = [max(0, len(request.text) - 60) for request in requests]
        return [
            Reply(f"{mean:.0f}", confidence=0.5, truncated=tokens)
            for mean, tokens in zip(means, cut, strict=True)
        ]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    shard = folder / "scenes-00000.tar"
    write_shard(shard, samples(itertools.islice(stream(3), ROWS), seed=3, side=72))
    make_collection(shard, folder / "c", "pocket")
    build_index(str(folder / "c"))
    return folder / "c"


def brightness_of(result):
    return f"{np.asarray(Image.open(io.BytesIO(result.picture())).convert('RGB')).mean():.0f}"


def test_the_answer_is_that_of_the_first_picture_and_all_are_named(collection):
    with_settings = open_collection(collection)
    answerer = Brightness()
    found = ask_collection(with_settings, answerer, "a red boat", ALWAYS)
    expected = with_settings.search("a red boat", k=3)
    assert found.found.query.words == "a red boat"
    assert [source.result.id for source in found.sources] == [result.id for result in expected]
    said = [brightness_of(result) for result in expected]
    assert [source.answer for source in found.sources] == said
    assert (found.answer, found.refused) == (said[0], False)
    assert answerer.requests == [("a red boat", "en")] * 3
    fields = json.loads(json.dumps(found.as_json()))
    assert fields["answer"] == said[0] and [s["answer"] for s in fields["sources"]] == said
    assert [s["id"] for s in fields["sources"]] == [result.id for result in expected]


def test_what_is_searched_for_need_not_be_the_question(collection):
    searcher, answerer = open_collection(collection), Brightness()
    houses = "caption ILIKE '%house%'"
    about = AskSettings(k=2, about="a blue house", false_alarms=None, where=houses)
    found = ask_collection(searcher, answerer, "is it dark?", about)
    expected = searcher.search("a blue house", k=2, where=houses)
    assert [source.result.id for source in found.sources] == [result.id for result in expected]
    assert answerer.requests == [("is it dark?", "en")] * 2


def test_a_source_that_fails_costs_no_other_its_answer(collection):
    searcher = open_collection(collection)
    means = [float(brightness_of(result)) for result in searcher.search("a boat", k=3)]
    found = ask_collection(searcher, Brightness(max(means[0], min(means)) + 1), "a boat", ALWAYS)
    answered = [mean > max(means[0], min(means)) + 1 for mean in means]
    assert not answered[0]
    assert [source.answer is not None for source in found.sources] == answered
    assert "too dark" in (found.sources[0].reason or "")
    first = next((source.answer for source in found.sources if source.answer), None)
    assert found.answer == first


@pytest.mark.parametrize(("most", "blocks"), [(1 << 30, [16, 4]), (20_000, [2, 1])])
def test_pictures_are_asked_in_blocks(collection, monkeypatch, most, blocks):
    searcher, answerer, sizes = open_collection(collection), Brightness(), []
    answer = answerer.answer
    monkeypatch.setattr(ask_module, "BATCH_BYTES", most)
    monkeypatch.setattr(
        answerer, "answer", lambda some, given: sizes.append(len(some)) or answer(some, given)
    )
    settings = AskSettings(k=sum(blocks), false_alarms=None)
    found = ask_collection(searcher, answerer, "a boat", settings)
    assert sizes == blocks
    assert [source.answer for source in found.sources] == [
        brightness_of(source.result) for source in found.sources
    ]


def test_nothing_is_answered_where_nothing_matches(collection):
    searcher, answerer = open_collection(collection), Brightness()
    there = searcher.search("a boat", k=1)[0].caption
    settings = AskSettings(false_alarms=0.05)
    found = ask_collection(searcher, answerer, there, settings)
    assert not found.refused and found.answer is not None
    before = len(answerer.requests)
    refused = ask_collection(searcher, answerer, "where is the zebra with violins?", settings)
    assert refused.refused and refused.answer is None and refused.sources == ()
    assert len(answerer.requests) == before and refused.as_json()["p_absent"] > 0.05


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("what colour is the boat?", "a boat"),
        ("Is the red boat to the left of the houses?", "red boat houses"),
        ("how many palm-trees can you see in these photos", "palm-trees"),
        ("how many things are there?", ""),
        ("Isn't there a boat?", "a boat"),
        ("can’t you see the dog's house", "a dog house"),
        ("what's happening here", ""),
        ("图里红色的船在猫的左边吗？", "红色 船 猫"),
        ("有没有爱心", "爱心"),
        ("酒吧外有几只狗吧", "酒吧外 狗"),
        ("房子里有什么？", "房子"),
        ("茶几上的花是什么颜色呢", "茶几 花"),
        ("早上有轨电车在哪里？", "早上有轨电车"),
        ("画面里的猫是不是红色的", "猫 红色"),
        ("照片中有几只狗", "狗"),
        ("画面里有多少个红色的东西", "红色"),
        ("正在睡觉的猫", "睡觉 猫"),
        ("照片里没有狗吗", "狗"),
        ("图片中间有几条船？", "船"),
        ("图中间的车", "车"),
        ("图片里面有多少人", "人"),
        ("画面上方是什么", ""),
        ("what is 这个", ""),
    ],
)
def test_a_question_is_searched_for_by_the_words_that_say_what_it_is_about(question, words):
    assert content_words(question) == words


def test_questions_are_answered_where_something_matches_and_refused_where_nothing_does(collection):
    searcher, settings = open_collection(collection), AskSettings(k=1, false_alarms=0.1)
    kinds, absent = ("moon", "house", "triangle", "cat"), ("zebra", "airplane", "trumpet", "violin")
    # Of absent words some one in ten is answered at this rate: of these none.
    forms = ("what colour is the {}?", "where is the {}", "is there a {} in the picture?")
    found = {
        (kind, form): ask_collection(searcher, Brightness(), form.format(kind), settings)
        for kind in (*kinds, *absent)
        for form in forms
    }
    refused = [key for key, answer in found.items() if answer.refused]
    assert refused == [(kind, form) for kind in absent for form in forms]
    # No near ties: another precision gives the same answers.
    assert all(abs(answer.found.p_absent - 0.1) > 0.04 for answer in found.values())


@pytest.mark.parametrize("question", ["船是什么颜色", "какого цвета лодка?", "πού είναι το πλοίο"])
def test_captions_in_another_script_do_not_judge_a_question(collection, question):
    settings = AskSettings(k=2, false_alarms=0.05)
    found = ask_collection(open_collection(collection), Brightness(), question, settings)
    assert (found.refused, found.not_judged, len(found.sources)) == (False, True, 2)
    assert found.as_json()["p_absent"] is None


def test_a_model_that_answers_no_questions_is_refused(collection):
    answerer = Brightness()
    answerer.tasks = {"caption": ("en",)}
    with pytest.raises(UsageError, match="expected one that can ask, found one that can caption"):
        ask_collection(open_collection(collection), answerer, "a boat", ALWAYS)


@pytest.fixture
def bright(monkeypatch):
    answerer = Brightness()
    monkeypatch.setitem(ANSWERERS, "bright", lambda model, settings: answerer)
    return answerer


@pytest.fixture
def give(monkeypatch, tmp_path):
    """Gives standard input some lines."""
    with (tmp_path / "stdin").open("w+", encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)

        def lines(text):
            file.write(text)
            file.flush()
            file.seek(0)

        yield lines


@pytest.fixture
def drawn(monkeypatch):
    """The lines that are drawn on sheets, in their order."""
    lines = []
    draw = Typeface.draw

    def remember(self, canvas, at, text, ink):
        lines.append(text)
        draw(self, canvas, at, text, ink)

    monkeypatch.setattr(Typeface, "draw", remember)
    return lines


def test_the_command_prints_the_answer_and_its_sources(collection, capsys, bright, tmp_path):
    sheet = tmp_path / "asked.png"
    ask(str(collection), ["what is the red boat?"], model="bright", k=2, sheet=str(sheet))
    lines = capsys.readouterr().out.splitlines()
    expected = open_collection(collection).search("a red boat", k=2)
    assert lines[0] == brightness_of(expected[0]) and len(lines) == 3
    for line, result in zip(lines[1:], expected, strict=True):
        assert f"{brightness_of(result)} (0.50)  {result.key}  {result.id}" in line
    assert sheet.read_bytes().startswith(b"\x89PNG")
    ask(str(collection), ["is it red?"], model="bright", about="a submarine with seven dragons")
    assert capsys.readouterr().out.startswith("nothing here matches (at a false-alarm rate of 5 %)")
    ask(str(collection), ["红色的船"], model="bright", as_json=True, false_alarms=1)
    fields = json.loads(capsys.readouterr().out)
    assert fields["model"] == "brightness" and len(fields["sources"]) == 5
    assert fields["searched"] == "红色 船"


def test_a_question_of_stdin_that_fails_costs_no_other_its_answer(
    collection, capsys, bright, give, drawn, tmp_path
):
    bright.tasks = {"ask": ("en",)}
    questions = [
        "what colour is the cat?",
        "船是什么颜色",
        "where is the zebra?",
        "where is the house?",
    ]
    give("\n".join(questions))
    sheet = str(tmp_path / "asked.png")
    with pytest.raises(ChiasmError, match=r"^ask: expected 4 answers, found 3$") as failed:
        ask(str(collection), ["-"], model="bright", k=2, sheet=sheet)
    assert failed.value.exit_code == 1
    printed = capsys.readouterr()
    searcher = open_collection(collection)
    cats, houses = searcher.search("a cat", k=2), searcher.search("a house", k=2)
    lines = printed.out.splitlines()
    assert [lines[i] for i in (0, 1, 4, 5, 6, 7)] == [
        questions[0],
        brightness_of(cats[0]),
        questions[2],
        "nothing here matches (at a false-alarm rate of 5 %)",
        questions[3],
        brightness_of(houses[0]),
    ]
    assert len(lines) == 10
    refused = "船是什么颜色: model brightness: expected one that can ask in zh, found one for en"
    assert printed.err.startswith(refused)
    titles = [questions[0], brightness_of(cats[0]), questions[2], "nothing here matches"]
    titles += [questions[3], brightness_of(houses[0])]
    places = [drawn.index(title) for title in (questions[0], questions[2], questions[3])]
    at = [drawn[place : place + 2] for place in places]
    assert [line for pair in at for line in pair] == titles
    assert places[2] - places[1] == 2  # no picture of what was refused
    for found, place in ((cats, places[0]), (houses, places[2])):
        said = [brightness_of(result) for result in found]
        assert [line for line in drawn[place + 2 :] if line in said][:2] == said


def test_json_has_the_error_of_a_question_in_its_place(collection, capsys, bright, give):
    bright.tasks = {"ask": ("en",)}
    give("船是什么颜色\nwhere is the house?\n")
    with pytest.raises(ChiasmError, match="expected 2 answers, found 1"):
        ask(str(collection), ["-"], model="bright", as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["question"] == "船是什么颜色" and "can ask in zh" in first["error"]
    assert second["answer"] is not None and "error" not in second


def test_what_of_a_question_was_not_read_is_one_line(collection, capsys, bright):
    question = "where is the boat " + "x" * 49
    ask(str(collection), [question], model="bright", false_alarms=1, k=2)
    assert capsys.readouterr().err == (
        f"{question[:60]}...: the last 7 tokens of the question were not read, as brightness takes "
        "no more\n"
    )
    ask(str(collection), [question], model="bright", false_alarms=1, as_json=True)
    assert json.loads(capsys.readouterr().out)["truncated"] == 7


def test_hits_are_explained_on_the_sheet(collection, bright, tmp_path):
    plain, explained = tmp_path / "plain.png", tmp_path / "explained.png"
    options = {"model": "bright", "k": 2}
    ask(str(collection), ["where is the house?"], **options, sheet=str(plain))
    ask(
        str(collection), ["where is the house?"], **options, sheet=str(explained), explain_hits=True
    )
    with Image.open(plain) as one, Image.open(explained) as other:
        assert one.size == other.size and one.tobytes() != other.tobytes()


def test_too_few_captions_to_judge_by_are_said_and_all_is_answered(collection, capsys, bright):
    few = "key < '000100'"
    ask(str(collection), ["where is the zebra?"], model="bright", where=few, k=1)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert printed.err.startswith("all is answered, whether anything matches or not: column image")
    assert "expected at least" in printed.err and "without a false-alarm rate" not in printed.err
    with pytest.raises(ChiasmError, match="captions to calibrate by"):
        ask(
            str(collection),
            ["where is it?"],
            "bright",
            about="a zebra",
            where=few,
            false_alarms=0.1,
        )


def test_a_column_that_is_ranked_by_tokens_is_answered_without_a_rate(
    tmp_path, monkeypatch, capsys, bright
):
    monkeypatch.setitem(ENCODERS, "tokens", token_encoder.load)
    shard = token_encoder.squares_shard(tmp_path / "s.tar", 40, seed=0)
    make_collection([shard], tmp_path / "c", "tokens")
    build_index(str(tmp_path / "c"), settings=IndexSettings(tune=False))
    ask(str(tmp_path / "c"), ["where is red?"], model="bright", k=1)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert printed.err.startswith("all is answered, whether anything matches or not: a rate of")
    assert "leave" not in printed.err
    with pytest.raises(UsageError, match="ranked by tokens; leave --false-alarms out"):
        ask(str(tmp_path / "c"), ["where is red?"], "bright", about="red", false_alarms=0.1)


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        (" ", {"sheet": "asked.png"}, "^ask: expected a question, found a blank one"),
        (" ", {"false_alarms": 1.0, "about": "a boat"}, "expected a question, found a blank one"),
        ("how many things are there?", {}, "found only words that ask; add what to search for"),
        ("where is the boat?", {"where": "no such field"}, "where: expected a condition"),
        ("where is the boat?", {"sheet": "asked.gif"}, "ends in .png"),
        ("where is the boat?", {"explain_hits": True}, "expected --sheet FILE"),
        ("where is the boat?", {"false_alarms": 7.0}, "false"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(
    collection, monkeypatch, question, options, message
):
    def load(model, settings):
        raise AssertionError("loaded")

    monkeypatch.setitem(ANSWERERS, "bright", load)
    with pytest.raises(ChiasmError, match=message):
        ask(str(collection), [question], model="bright", **options)


def test_options_of_a_collection_beside_a_picture_are_refused(tmp_path):
    with pytest.raises(UsageError, match="ask --about: expected a collection, found a picture"):
        ask("boat.png", ["what is it?"], about="a boat")
    assert not command.is_collection(str(tmp_path))
    assert not command.is_collection("s3://nowhere/boat.png")
    for url in ("https://127.0.0.1:1/boat", "HTTP://127.0.0.1:1/photos.chiasm"):
        assert not command.is_collection(url)  # nobody listens
