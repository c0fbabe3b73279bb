"""ask, caption, translate, sentiment, imagine: what they read, what they print, how they fail."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from conftest import TESTS, make_shard
from PIL import Image
from tiny_answerers import blip_folder
from tiny_collection import make_collection

from chiasm.jobs.cli import answering
from chiasm.jobs.cli.ask import ask
from chiasm.jobs.cli.caption import caption
from chiasm.jobs.cli.embed import embed
from chiasm.jobs.cli.explain import explain
from chiasm.jobs.cli.filter import filter_
from chiasm.jobs.cli.imagine import imagine
from chiasm.jobs.cli.sentiment import sentiment
from chiasm.jobs.cli.translate import translate
from chiasm.pipeline.encoders import ANSWERERS, TASKS, Input, Reply
from chiasm.pipeline.errors import ChiasmError, UsageError

TOWERS = TESTS / "data/collection-schema-1/model"  # a model without a decoder

RED, BLUE = (255, 0, 0), (0, 0, 255)


class Parrot:
    """Repeats its requests: task, language, colour of the picture, text."""

    fingerprint, precision, device = "0" * 32, "float32", "cpu"
    tasks = dict.fromkeys(TASKS, ("en", "zh"))

    def __init__(self, name):
        self.name = name
        self.modalities = {"image": Input(), "text": Input()}
        self.batches = []

    def preprocess(self, modality, raw):
        return raw

    def cost(self, modality, item):
        return item.size

    def answer(self, requests, settings):
        self.batches.append([request.text for request in requests])
        if any(request.text == "crash" for request in requests):
            raise RuntimeError("no kernel")
        return [self.reply(request, settings) for request in requests]

    def reply(self, request, settings):
        if request.task == "imagine":
            return Reply("", image=np.full((4, 6, 3), len(request.text), np.uint8))
        colour = "red" if request.image[0, 0, 0] == 255 else "blue"
        words = [request.task, request.language, colour, request.text, f"{settings.beams}"]
        cut = max(len(request.text or "") - 20, 0)
        return Reply(
            "\n".join(filter(None, words)), confidence=0.5, scores={"x": 0.5}, truncated=cut
        )


@pytest.fixture
def parrot(monkeypatch):
    made = Parrot("parrot")
    monkeypatch.setitem(ANSWERERS, "parrot", lambda model, settings: made)
    return made


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 6), RED).save("red.png")
    Image.new("RGB", (8, 6), BLUE).save("blue.png")
    halves = Image.new("RGB", (8, 6), BLUE)
    halves.paste((255, 255, 255), (0, 0, 4, 6))
    halves.save("halves.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture
def stdin(monkeypatch):
    """Gives the process's standard input a text."""
    read, write = os.pipe()
    with os.fdopen(read) as source:
        monkeypatch.setattr("sys.stdin", source)

        def give(text):
            os.write(write, text.encode("utf-8", "surrogateescape"))
            os.close(write)

        yield give


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def objects(capsys):
    return list(map(json.loads, lines(capsys)))


def test_one_input_is_one_line(parrot, pictures, capsys):
    caption(["red.png"], "parrot")
    ask("blue.png", ["what is it?"], "parrot", beams=3)
    translate(["a crane"], "zh", "red.png", "parrot")
    sentiment(["so nice"], "blue.png", "parrot")
    assert lines(capsys) == [
        "caption en red 1",
        "ask en blue what is it? 3",
        "translate zh red a crane 1",
        "sentiment en blue so nice 1",
    ]


def test_the_language_is_that_of_the_text_unless_it_is_given(parrot, pictures, capsys):
    ask("red.png", ["这是什么"], "parrot")
    ask("red.png", ["这是什么"], "parrot", language="en")
    caption(["red.png"], "parrot", language="zh")
    assert lines(capsys) == ["ask zh red 这是什么 1", "ask en red 这是什么 1", "caption zh red 1"]


def test_json_has_the_input_the_answer_and_the_model(parrot, pictures, capsys):
    ask("red.png", ["这是什么"], "parrot", as_json=True)
    assert objects(capsys) == [
        {
            "image": "red.png",
            "question": "这是什么",
            "answer": "ask\nzh\nred\n这是什么\n1",
            "confidence": 0.5,
            "scores": {"x": 0.5},
            "truncated": 0,
            "endless": False,
            "model": "parrot",
        }
    ]


def test_several_pictures_are_a_line_each_and_one_batch(parrot, pictures, capsys):
    caption(["red.png", "blue.png"], "parrot")
    assert lines(capsys) == ["red.png\tcaption en red 1", "blue.png\tcaption en blue 1"]
    assert parrot.batches == [[None, None]]


@pytest.mark.parametrize(
    ("call", "given", "printed"),
    [
        (
            lambda: caption(["-"], "parrot"),
            "red.png\n\nblue.png\n",
            ["red.png\tcaption en red 1", "blue.png\tcaption en blue 1"],
        ),
        (
            lambda: ask("-", ["what?"], "parrot"),
            "red.png\nblue.png",
            ["red.png\task en red what? 1", "blue.png\task en blue what? 1"],
        ),
        (
            lambda: ask("red.png", ["-"], "parrot"),
            "what?\n在哪里\n",
            ["what?\task en red what? 1", "在哪里\task zh red 在哪里 1"],
        ),
        (
            lambda: ask("-", None, "parrot"),
            '{"image": "red.png", "question": "a"}\nblue.png\tb\n',
            ["red.png\ta\task en red a 1", "blue.png\tb\task en blue b 1"],
        ),
        (
            lambda: translate(["-"], "zh", "red.png", "parrot"),
            "bat\nbow\n",
            ["bat\ttranslate zh red bat 1", "bow\ttranslate zh red bow 1"],
        ),
        (
            lambda: translate(["bat"], "zh", "-", "parrot"),
            "red.png\nblue.png\n",
            ["red.png\ttranslate zh red bat 1", "blue.png\ttranslate zh blue bat 1"],
        ),
        (
            lambda: translate(["-"], "zh", "red.png", "parrot"),
            "a\tbow\n",
            ["a bow\ttranslate zh red a bow 1"],
        ),
        (
            lambda: ask("-", None, "parrot"),
            "red.png\ta\tb\n",
            ["red.png\ta b\task en red a b 1"],
        ),
        (
            lambda: sentiment(["-"], None, "parrot"),
            '{"image": "red.png", "text": "fine"}\n',
            ["red.png\tfine\tsentiment en red fine 1"],
        ),
    ],
)
def test_lines_of_stdin_are_what_a_dash_stands_for(
    parrot, pictures, stdin, capsys, call, given, printed
):
    stdin(given)
    call()
    assert lines(capsys) == printed


def test_what_cannot_be_answered_costs_no_other_its_answer(parrot, pictures, stdin, capsys):
    stdin(
        '{"image": "bad.png", "question": "a"}\n'
        '{"image": "red.png", "question": "b"}\n'
        '{"image": "none.png", "question": "c"}\n'
        '{"image": "red.png"}\n'
        "not json\n"
        '{"image": "red.png", "question": "crash"}\n'
        '{"image": "blue.png", "question": "d"}\n'
    )
    with pytest.raises(ChiasmError) as failed:
        ask("-", None, "parrot")
    assert (str(failed.value), failed.value.exit_code) == ("ask: expected 7 answers, found 2", 1)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "red.png\tb\task en red b 1",
        "blue.png\td\task en blue d 1",
    ]
    expected = 'a JSON object with "image" and "question", or the two with a tab between them'
    assert printed.err.splitlines() == [
        "bad.png: expected a picture, found not_a_picture: no decoder takes what begins with "
        "6e 6f 20 70 69 63 74 75",
        "none.png: expected a picture's file, found No such file or directory",
        f'line 4 of stdin: expected {expected}, found {{"image": "red.png"}}',
        f"line 5 of stdin: expected {expected}, found not json",
        "red.png crash: expected what parrot takes, found refused: ask: RuntimeError: "
        "no kernel; take other words or another picture",
    ]


def test_json_has_the_error_of_an_input_in_its_place(parrot, pictures, stdin, capsys):
    stdin("bad.png\nred.png\n")
    with pytest.raises(ChiasmError, match="expected 2 answers, found 1"):
        caption(["-"], "parrot", as_json=True)
    first, second = objects(capsys)
    assert first["image"] == "bad.png" and "expected a picture" in first["error"]
    assert second["answer"] == "caption\nen\nred\n1" and "error" not in second


def test_the_only_input_raises_its_own_error(parrot, pictures):
    with pytest.raises(UsageError, match=r"^bad.png: expected a picture"):
        caption(["bad.png"], "parrot")
    with pytest.raises(UsageError, match=r"^red.png: expected what parrot takes"):
        ask("red.png", ["crash"], "parrot")


def test_a_text_that_was_cut_is_said(parrot, pictures, capsys):
    ask("red.png", ["x" * 23], "parrot")
    assert capsys.readouterr().err == (
        "red.png: the last 3 tokens of the question were not read, as parrot takes no more\n"
    )
    ask("red.png", ["x" * 23], "parrot", as_json=True)
    assert objects(capsys)[0]["truncated"] == 3


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("what is " + "x" * 80, "what is " + "x" * 52 + "..."),
        ('{"image": "red.png", "question": "%s"}' % ("x" * 80), "red.png\\t" + "x" * 60 + "..."),
    ],
)
def test_of_a_long_text_a_message_has_the_beginning(parrot, pictures, stdin, capsys, given, name):
    stdin(given + "\n")
    ask("red.png" if given.startswith("what") else "-", ["-"] if given[0] == "w" else [], "parrot")
    assert capsys.readouterr().err.startswith(f"{name}: the last ")


def test_one_input_of_stdin_that_fails_is_one_answer(parrot, pictures, stdin):
    stdin("bad.png\n")
    with pytest.raises(ChiasmError, match="expected 1 answer, found 0"):
        caption(["-"], "parrot")


def test_batches_are_cut_by_inputs_and_by_the_bytes_of_pictures(
    parrot, pictures, stdin, capsys, monkeypatch
):
    stdin("red.png\nblue.png\nred.png\n" * 6)
    caption(["-"], "parrot")
    assert [len(batch) for batch in parrot.batches] == [16, 2]
    parrot.batches.clear()
    monkeypatch.setattr(answering, "BATCH_BYTES", 8 * 6 * 3)
    caption(["red.png", "blue.png", "red.png", "red.png", "blue.png"], "parrot")
    assert [len(batch) for batch in parrot.batches] == [2, 3]
    assert len(lines(capsys)) == 18 + 5


def test_pictures_are_drawn_into_a_file_or_a_folder(parrot, pictures, stdin, capsys):
    imagine(["four"], "drawn.png", "parrot")
    stdin("ab\nabcdef\n")
    imagine(["-"], "all/", "parrot")
    assert lines(capsys) == ["drawn.png", "ab\tall/000001.png", "abcdef\tall/000002.png"]
    shades = {}
    for path in ("drawn.png", "all/000001.png", "all/000002.png"):
        with Image.open(path) as image:
            shades[path] = image.size, image.getpixel((0, 0))[0]
    assert shades == {
        "drawn.png": ((6, 4), 4),
        "all/000001.png": ((6, 4), 2),
        "all/000002.png": ((6, 4), 6),
    }
    with pytest.raises(UsageError, match=r"boat.gif: expected a name that ends in .png"):
        imagine(["a boat"], "boat.gif", "parrot")
    with pytest.raises(UsageError, match=r"all.png: expected a folder, as there may be several"):
        imagine(["-"], "all.png", "parrot")
    with pytest.raises(UsageError, match="-o: expected a folder, found an empty name"):
        imagine(["-"], "", "parrot")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: ask("red.png", None, "parrot"), "ask: expected a question, or - to read stdin"),
        (
            lambda: sentiment(["fine"], None, "parrot"),
            "sentiment: expected a picture, or - to read stdin, found none",
        ),
        (
            lambda: ask("red.png", ["what", "is", "it"], "parrot"),
            "QUESTION: expected one text, found 3 words; put the words in quotes",
        ),
        *(
            (
                call,
                f"{name}: expected a {'question' if name == 'ask' else 'text'}, found a blank one",
            )
            for blank in ("", " \t")
            for name, call in (
                ("ask", lambda blank=blank: ask("red.png", [blank], "parrot")),
                ("ask", lambda blank=blank: ask("-", [blank], "parrot")),
                ("translate", lambda blank=blank: translate([blank], "zh", "red.png", "parrot")),
                ("sentiment", lambda blank=blank: sentiment([blank], "red.png", "parrot")),
                ("imagine", lambda blank=blank: imagine([blank], "drawn.png", "parrot")),
                ("explain", lambda blank=blank: explain("red.png", [blank])),
            )
        ),
        (
            lambda: caption([" "], "parrot"),
            "' ': expected a picture's path or URL, found an empty one",
        ),
        (
            lambda: caption(["red.png", "a.tar"], "parrot"),
            "a.tar: expected a picture, found a shard; for shards add --to FOLDER",
        ),
        (
            lambda: caption(["crawled/{0..9}.tar.zst"], "parrot"),
            "crawled/{0..9}.tar.zst: expected a picture, found a shard; for shards add --to FOLDER",
        ),
        (
            lambda: ask("a.tar", ["b.tar", "what?"], "parrot"),
            "a.tar: expected a picture and a question, found a shard; for shards add --to FOLDER",
        ),
        (
            lambda: ask("https://host/0.tgz?key=abc", ["what?"], "parrot"),
            "https://host/0.tgz?key=***: expected a picture and a question, found a shard",
        ),
        (
            lambda: ask("https://me:secret@host/0.tar", ["what?"], "parrot"),
            "https://host/0.tar: expected a URL that may be written into ledgers",
        ),
        (
            lambda: sentiment(["crawled/*.tar"], None, "parrot"),
            "crawled/*.tar: expected a text, found a shard; for shards add --to FOLDER",
        ),
        (
            lambda: translate(["./a.TAR"], "out", None, "parrot"),
            "./a.TAR: expected a text, found a shard; for shards add --language en or zh, and name "
            "a folder with --to",
        ),
        (
            lambda: caption(["."], "parrot"),
            ".: expected a picture, found a folder; name the pictures in it",
        ),
        (
            lambda: ask(".", ["what?"], "parrot"),
            ".: expected a picture or a collection, found a folder; name the pictures in it",
        ),
        (
            lambda: ask("red.png", ["blue.png", "halves.png", "what?"], "parrot"),
            "ask: expected one picture, then a question, found a file, halves.png; give several "
            "pictures on stdin, a line each: chiasm ask - QUESTION",
        ),
        (
            lambda: ask("red.png", ["blue.png"], "parrot"),
            "ask: expected one picture, then a question, found a file, blue.png; give several",
        ),
        (
            lambda: translate(["fine"], "zh", None, "parrot"),
            "translate: expected a picture, or - to read stdin, found none; name it with --image",
        ),
        (
            lambda: translate(["crawled/*.tar"], "out", None, "parrot", language="fr"),
            "--language: expected one of en, zh, found fr",
        ),
        (
            lambda: imagine(["fine"], "drawn.png", "parrot", 2, 0.0),
            "--temperature 0: expected one picture, of which nothing is drawn at random, found "
            "--candidates 2; leave out --temperature 0, or what stands beside it",
        ),
        (
            lambda: imagine(["fine"], "drawn.png", "parrot", temperature=1e-9),
            "temperature: expected a finite number, 0.001 or more, found 1e-09",
        ),
        (
            lambda: imagine(["fine"], "drawn.png", "parrot", 2, temperature=0.0, seed=3),
            "--temperature 0: expected one picture, of which nothing is drawn at random, found "
            "--seed 3 and --candidates 2; leave out --temperature 0, or what stands beside it",
        ),
        (
            lambda: imagine(["fine"], " ", "parrot"),
            "-o: expected a name that ends in .png",
        ),
        (
            lambda: imagine(["fine"], "https://host/drawn.png", "parrot"),
            "https://host/drawn.png: expected a URL that can be written to, found https://",
        ),
        (
            lambda: caption(["red.png"], "parrot", beams=257),
            "beams: expected at most 256, found 257",
        ),
        (
            lambda: caption(["red.png", "-"], "parrot"),
            "caption: expected pictures, or - alone, found both",
        ),
        (
            lambda: translate(["fine"], "fr", "red.png", "parrot"),
            "--to: expected one of en, zh, found fr",
        ),
        (
            lambda: caption(["red.png"], f"pocket:{TOWERS}"),
            f"model pocket:{TOWERS}: expected one with a decoder",
        ),
        (
            lambda: caption(["red.png"], "st:x"),
            "model 'st:x': expected one of pocket, hf:ID_OR_DIR",
        ),
    ],
)
def test_wrong_usage_is_one_line(parrot, pictures, call, line):
    with pytest.raises(UsageError) as refused:
        call()
    assert str(refused.value).startswith(line)
    assert refused.value.exit_code == 2 and not parrot.batches and not os.path.exists("drawn.png")


def test_a_text_may_end_like_a_shard(parrot, pictures, capsys):
    sentiment(["what a mess in a.tar"], "red.png", "parrot")
    for question in ("is it boat.tar?", "boat.tar?", "boat.tar", "打开a.tar"):
        ask("red.png", [question], "parrot")
    assert len(lines(capsys)) == 5


@pytest.mark.parametrize("name", ["a.tar", "crawled/a.tar", "a?.tar", "s3://crawled/a.tar?v=1"])
def test_a_text_that_names_shards_is_refused(parrot, pictures, name):
    make_shard(pictures / "a.tar", 1)
    for call in (lambda: ask("red.png", [name], "parrot"), lambda: sentiment([name], "red.png")):
        with pytest.raises(UsageError, match="found a shard; for shards add --to FOLDER"):
            call()


def test_what_to_do_with_a_folder_is_what_its_files_allow(parrot, pictures, tmp_path):
    make_shard(pictures / "crawled" / "a.tar", 1)
    for call, expected in (
        (lambda: caption(["crawled"], "parrot"), "a picture"),
        (lambda: ask("crawled", ["what?"], "parrot"), "a picture or a collection"),
    ):
        with pytest.raises(UsageError) as refused:
            call()
        assert str(refused.value) == (
            f"crawled: expected {expected}, found a folder; for the shards in it add --to FOLDER"
        )
    make_collection(tmp_path / "made", (1,))
    with pytest.raises(UsageError) as refused:
        caption(["made"], "parrot")
    assert str(refused.value) == (
        "made: expected a picture, found a collection; ask it by chiasm ask COLLECTION QUESTION"
    )


def test_a_blank_text_of_a_pair_is_that_pairs_error(parrot, pictures, stdin, capsys):
    stdin('{"image": "red.png", "question": " "}\n{"image": " ", "question": "a"}\nred.png\tb\n')
    with pytest.raises(ChiasmError, match="expected 3 answers, found 1"):
        ask("-", None, "parrot", as_json=True)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "line 1 of stdin: expected a question, found a blank one",
        "' ': expected a picture's path or URL, found an empty one",
    ]
    blank, _, answered = map(json.loads, printed.out.splitlines())
    assert blank == {
        "image": "red.png",
        "question": " ",
        "error": "line 1 of stdin: expected a question, found a blank one",
        "model": "parrot",
    }
    assert answered["answer"] == "ask\nen\nred\nb\n1"


def test_nothing_is_written_to_a_web_server_and_none_is_asked(parrot, pictures, stdin):
    """Where a request was made, ten attempts would fail."""
    make_shard(pictures / "a.tar", 1)
    to = "http://127.0.0.1:9/made"
    for call in (
        lambda: caption(["a.tar"], "parrot", to=to),
        lambda: ask("a.tar", ["what?"], "parrot", to=to),
        lambda: translate(["a.tar"], to, None, "parrot", language="zh"),
        lambda: sentiment(["a.tar"], None, "parrot", to=to),
        lambda: imagine(["-"], to, "parrot"),  # the pipe's other end is open
        lambda: explain("-", None, to),
        lambda: embed(["a.tar"], to, ["pocket"]),
        lambda: filter_(["a.tar"], to, "pocket"),
    ):
        with pytest.raises(UsageError) as refused:
            call()
        assert str(refused.value).startswith(to)
        assert str(refused.value).endswith(
            "expected a URL that can be written to, found http://; name a folder or "
            "s3://bucket/prefix"
        )


def test_a_task_or_a_language_that_the_model_lacks_is_said_before_stdin_is_read(
    parrot, pictures, stdin
):
    parrot.tasks = {"caption": ("en",)}
    with pytest.raises(UsageError, match="one that can ask, found one that can caption"):
        ask("-", ["what"], "parrot")  # the pipe's other end is open: reading would not end
    with pytest.raises(UsageError, match="can caption in zh, found one for en"):
        caption(["-"], "parrot", language="zh")


def test_a_question_in_another_language_than_the_model_answers_is_that_inputs_error(
    parrot, pictures, stdin, capsys
):
    parrot.tasks = {"ask": ("en",)}
    stdin("what\n什么\n")
    with pytest.raises(ChiasmError, match="expected 2 answers, found 1"):
        ask("red.png", ["-"], "parrot")
    assert lines(capsys) == ["what\task en red what 1"]


def test_the_program_answers_with_a_model_of_transformers(chiasm, pictures, tmp_path):
    folder = blip_folder(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("noise.png")
    ran = chiasm(
        *("caption", "noise.png", "bad.png", "halves.png", "red.png", "--model", f"hf:{folder}"),
        *("--precision", "float32", "--max-tokens", "5", "--json"),
    )
    first, second, third, silent = map(json.loads, ran.stdout.splitlines())
    assert ran.returncode == 1
    assert first["image"] == "noise.png" and first["answer"] and 0 < first["confidence"] <= 1
    assert "error" in second and third["confidence"] != first["confidence"]
    assert "no_words: the model ended its answer before the first word" in silent["error"]
    assert ran.stderr.splitlines()[-1] == "chiasm: caption: expected 4 answers, found 2"
    refused = chiasm("ask", "red.png", "what?", "--model", f"hf:{folder}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"chiasm: model hf:{folder}: expected one that can ask, found one that can caption; "
        "take another model\n"
    )
