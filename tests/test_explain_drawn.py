"""Explanations as pictures, as a command, and on the contact sheet of a search."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageColor

from chiasm.index import Answer, Hit, Query, Result
from chiasm.index.results import CatalogRow
from chiasm.index.sheet import Heading, contact_sheet, explanation_sheet, heat_over
from chiasm.index.sheet.heat import COLD, PAPER, WARM
from chiasm.jobs.cli.explain import explain
from chiasm.jobs.cli.search_outputs import Output, check_output
from chiasm.pipeline.encoders import ENCODERS, Explanation, Word, load_encoder, require_explainer
from chiasm.pipeline.errors import ChiasmError, Undecodable, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Place
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.world import Scene, Thing
from chiasm.pipeline.shards import write_shard
from chiasm.pipeline.storage import canonical_url

SCENE = Scene(
    (
        Thing("boat", "red", "big", "plain", "bottom left"),
        Thing("star", "yellow", "small", "plain", "top right"),
    ),
    "snow",
)
GREY = (120, 120, 120)


def explanation(text="a red boat", relevances=(0.0, 1.0, -1.0), *, box=(0.0, 0.0, 1.0, 1.0)):
    patches = np.zeros((4, 4), np.float32)
    patches[3, 0] = 2
    words, at = [], 0
    for word, relevance in zip(text.split(), relevances, strict=True):
        at = text.index(word, at)
        words.append(Word(at, at + len(word), word, relevance))
    return Explanation(patches, box, tuple(words), len(text), 0.5, 1.5, "grad-eclip", "erasure")


def distance(image, at, colour):
    wanted = np.array(ImageColor.getrgb(colour) if isinstance(colour, str) else colour)
    return np.abs(np.array(image.getpixel(at)) - wanted).max()


def test_heat_lies_on_the_hottest_patch_alone():
    drawn = heat_over(Image.new("RGB", (80, 40), GREY), explanation())
    assert drawn.size == (80, 40)
    assert distance(drawn, (5, 36), WARM) < 45
    assert distance(drawn, (70, 5), GREY) <= 1


def test_heat_is_drawn_where_the_model_sees_the_picture():
    middle = explanation(box=(0.25, 0.0, 0.75, 1.0))
    drawn = heat_over(Image.new("RGB", (160, 80), GREY), middle)
    assert distance(drawn, (45, 75), WARM) < 45
    assert distance(drawn, (5, 75), PAPER) < 60 < distance(drawn, (5, 75), WARM)
    # A model that adds a margin: the hottest patch lies outside of the picture for the most part.
    around = explanation(box=(-0.5, 0.0, 1.5, 1.0))
    assert distance(heat_over(Image.new("RGB", (80, 80), GREY), around), (40, 40), GREY) <= 1


def test_words_have_warm_and_cold_shades(tmp_path):
    image = Image.new("RGB", (60, 40), GREY)
    drawn = explanation_sheet(image, "a red boat", explanation())
    plain = explanation_sheet(image, "a red boat", explanation(relevances=(0, 0, 0)))
    assert drawn.size == plain.size
    differ = np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max(-1) > 8
    colours = {tuple(pixel) for pixel in np.asarray(drawn)[differ].tolist()}
    for shade in (WARM, COLD):
        wanted = np.array(ImageColor.getrgb(shade))
        paper = np.array(ImageColor.getrgb(PAPER))
        assert tuple((paper + 0.75 * (wanted - paper)).round().astype(int).tolist()) in colours


def test_a_text_in_chinese_or_of_many_words_can_be_drawn():
    image = Image.new("RGB", (60, 40), GREY)
    chinese = explanation("夕阳下， 一只 猫")
    assert explanation_sheet(image, "夕阳下， 一只 猫", chinese).height > 0
    many = " ".join(["boat"] * 60)
    taller = explanation_sheet(image, many, explanation(many, [0.5] * 60))
    assert taller.height > explanation_sheet(image, "a red boat", explanation()).height


@pytest.fixture
def boat(tmp_path):
    path = tmp_path / "boat.png"
    picture(SCENE).save(path)
    return path


def test_the_command_draws_and_prints(boat, tmp_path, capsys):
    explain(str(boat), ["a green boat"], str(tmp_path / "out" / "why.png"))
    printed = capsys.readouterr()
    assert printed.err == f"drew {tmp_path / 'out' / 'why.png'}\n"
    assert printed.out.count("\n") == 1 and "against: green" in printed.out
    with Image.open(tmp_path / "out" / "why.png") as drawn:
        assert drawn.format == "PNG" and drawn.width > 800
    explain(str(boat), ["一艘红色的船"], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert np.array(found["patches"]).shape == (6, 6) and found["box"] == [0, 0, 1, 1]
    assert "".join(word["text"] for word in found["words"]) == "一艘红色的船"
    assert (found["patches_by"], found["words_by"]) == ("grad-eclip", "erasure")
    assert found["logit"] > 0 and sorted(path.name for path in tmp_path.iterdir()) == [
        "boat.png",
        "out",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.png", "a boat"), "nowhere.png: expected a picture's file, found No such file"),
        (("text.png", "a boat"), "text.png: expected a picture, found not_a_picture"),
        (("boat.png", "a boat", "boat.png"), "boat.png: expected a file of its own, found that of"),
        (("boat.png", "a boat", "a.gif"), "-o a.gif: expected a name that ends in .png"),
        (("boat.png", "a boat and " * 30), 'found more: it would not read "'),
        (("boat.png", "a boat", None, "pocket", "rollout"), "expected one of default, grad-eclip"),
        (("boat.png", " "), "explain: expected a text, found a blank one"),
    ],
)
def test_what_cannot_be_explained_is_one_line_and_nothing_is_written(
    boat, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if len(arguments) == 2:
        arguments = (*arguments, "why.png")
    with pytest.raises(UsageError) as raised:
        explain(arguments[0], [arguments[1]], *arguments[2:])
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250  # of a long text the beginning
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert capsys.readouterr().out == ""


def test_pairs_of_stdin_are_drawn_into_a_folder(boat, tmp_path, monkeypatch, capsys):
    """JSON or a tab; one that fails costs no other its drawing."""
    monkeypatch.chdir(tmp_path)
    given = '{"image": "boat.png", "text": "a red boat"}\nnowhere.png\ta boat\nboat.png\t一艘船\n'
    (tmp_path / "pairs").write_text(given, "utf-8")
    with (tmp_path / "pairs").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(ChiasmError, match=r"^explain: expected 3 pairs, found 2$"):
            explain("-", None, "maps")
        printed = capsys.readouterr()
    (tmp_path / "pairs").write_text(given + "[1]\n", "utf-8")
    with (tmp_path / "pairs").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(ChiasmError, match="expected 4 pairs, found 2"):
            explain("-", None, None, as_json=True)
    assert [line.split("\t")[:2] for line in printed.out.splitlines()] == [
        ["boat.png", "a red boat"],
        ["boat.png", "一艘船"],
    ]
    assert printed.err.splitlines() == [
        "drew maps/000001.png",
        "nowhere.png: expected a picture's file, found No such file or directory",
        "drew maps/000002.png",
    ]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "000001.png",
        "000002.png",
    ]
    first, second, third, fourth = map(json.loads, capsys.readouterr().out.splitlines())
    explain("boat.png", ["a red boat"], as_json=True)
    assert first == json.loads(capsys.readouterr().out)
    assert (second["image"], "No such file" in second["error"]) == ("nowhere.png", True)
    assert third["text"] == "一艘船"
    assert fourth.keys() == {"error"} and "line 4" in fourth["error"]


@pytest.fixture
def stdin(tmp_path, monkeypatch):
    """A function that makes text the standard input."""
    with ExitStack() as files:

        def give(text):
            (tmp_path / "lines").write_text(text, "utf-8")
            monkeypatch.setattr("sys.stdin", files.enter_context((tmp_path / "lines").open()))

        yield give


@pytest.mark.parametrize("name", ["000001.png", "000002.png"])  # of its own line, of another
@pytest.mark.parametrize("linked", [False, True])
def test_no_drawing_takes_the_place_of_a_picture_to_explain(
    boat, tmp_path, monkeypatch, stdin, name, linked
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    picture = tmp_path / "pics" / name
    if linked:
        picture.symlink_to(tmp_path / "boat.png")
        lines = "nowhere.png\ta\nboat.png\ta boat\n"
    else:
        picture.write_bytes((tmp_path / "boat.png").read_bytes())
        lines = f"./pics/../pics/{name}\ta boat\nboat.png\ta boat\n"
    before = picture.read_bytes()
    stdin(lines)
    with pytest.raises(UsageError, match=r"^-o pics: .* found \S+; name another folder$"):
        explain("-", None, "pics")
    assert picture.read_bytes() == before
    assert [path.name for path in (tmp_path / "pics").iterdir()] == [name]
    stdin(lines)
    with pytest.raises(UsageError, match="name another folder"):
        explain("-", None, str(tmp_path / "pics"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("~nosuchuser/x.png", "No such file or directory"),
        ("a\0.png", "embedded null byte"),
        ("\ud800.png", "surrogates not allowed"),
        ("http://h:99999/x.png", "no URL (its port is no number from 0 to 65535)"),
        ("http://h:abc/x.png", "no URL (its port is no number from 0 to 65535)"),
    ],
)
def test_a_name_that_no_picture_has_costs_no_other_pair_its_explanation(
    boat, tmp_path, monkeypatch, capsys, stdin, name, found
):
    monkeypatch.chdir(tmp_path)
    pairs = [{"image": name, "text": "a boat"}, {"image": "boat.png", "text": "a boat"}]
    stdin("\n".join(map(json.dumps, pairs)))
    with pytest.raises(ChiasmError, match="expected 2 pairs, found 1"):
        explain("-", None, as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert found in first["error"] and "fault of chiasm" not in first["error"]
    assert second["text"] == "a boat" and "error" not in second
    with pytest.raises(UsageError) as raised:
        explain(name, ["a boat"])
    assert found in str(raised.value)


def test_words_without_quotes_and_a_folder_named_like_a_picture_are_one_line(
    chiasm, boat, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("a boat"))
    ran = chiasm("explain", str(boat), "a", "red", "car", "-o", "x.png")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "chiasm: TEXT: expected one text, found 3 words; put the words in quotes\n"
    with pytest.raises(UsageError, match=r"^x.png: expected a folder, as there may be several"):
        explain(str(boat), ["-"], "x.png")


def test_a_picture_is_read_once(boat, tmp_path, capsys):
    """A pipe has nothing left to read the second time."""
    pipe, drawn = tmp_path / "pipe", tmp_path / "why.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(boat.read_bytes(),))
    writer.start()
    explain(str(pipe), ["a red boat"], str(drawn))
    writer.join()
    again = tmp_path / "again.png"
    explain(str(boat), ["a red boat"], str(again))
    assert drawn.read_bytes() == again.read_bytes()


class Fails:
    """The encoder pocket, which fails for one text, or at its first call."""

    def __init__(self, error, text=None):
        self.pocket = load_encoder("pocket", EncoderSettings(device="cpu"))
        self.error, self.text = error, text
        self.calls = []

    def __getattr__(self, name):
        return getattr(self.pocket, name)

    def explain(self, pictures, texts, method="default"):
        self.calls.append(len(pictures))
        if self.text in texts or (self.text is None and len(self.calls) == 1):
            raise self.error
        return self.pocket.explain(pictures, texts, method)


def test_what_a_model_raises_costs_no_other_pair_its_explanation(
    boat, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    failing = Fails(RuntimeError("CUDA out of memory"), text="a boat")
    monkeypatch.setitem(ENCODERS, "failing", lambda model, settings: failing)
    with pytest.raises(UsageError, match=r'^boat.png "a boat": expected what pocket takes, found '):
        explain("boat.png", ["a boat"], encoder="failing")
    (tmp_path / "pairs").write_text("boat.png\ta boat\nboat.png\ta red boat\n")
    with (tmp_path / "pairs").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        with pytest.raises(ChiasmError, match="expected 2 pairs, found 1"):
            explain("-", None, None, encoder="failing")
    printed = capsys.readouterr()
    assert printed.out.startswith("boat.png\ta red boat\tcosine")
    assert "out_of_memory: explain" in printed.err and "free memory" in printed.err


def test_a_hit_that_cannot_be_explained_is_drawn_plain(answer):
    refused = Fails(Undecodable("refused", "too odd"))
    two = Answer(answer.query, (answer[0], replace(answer[0], rank=2)))
    drawn = contact_sheet([two], explainer=cast(Any, refused))
    assert refused.calls == [1, 1], "one picture at a time"
    changed = np.asarray(drawn) != np.asarray(contact_sheet([two]))
    columns = np.flatnonzero(changed.any((0, 2)))
    assert columns.min() > drawn.width // 2, "only the second tile"


def test_an_encoder_that_does_not_explain_is_refused(boat):
    message = "one that explains its scores, .*; take pocket, .* the encoder below a joint:DIR$"
    with pytest.raises(UsageError, match=message):
        explain(str(boat), ["a boat"], encoder="fake")


@pytest.fixture
def answer(tmp_path) -> Answer:
    """Two hits, the second without a picture."""
    file = io.BytesIO()
    picture(SCENE, 240).save(file, "PNG")
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": "k", "png": file.getvalue()}])
    with tarfile.open(shard) as tar:
        (offset,) = (member.offset_data for member in tar)
    place = Place("k.png", offset, len(file.getvalue()))
    rows = [
        CatalogRow(
            id=f"a/{number}@0", key="k", shard="a", url=canonical_url(str(shard)), caption=None,
            captions=(), meta={}, width=None, height=None, place=found,
            sha256=hashlib.sha256(file.getvalue()).hexdigest(),
        )
        for number, found in enumerate((place, None))
    ]  # fmt: skip
    results = tuple(
        Result(rank=n + 1, hit=Hit(n, {"search": 0.5}), row=row) for n, row in enumerate(rows)
    )
    return Answer(Query("a red boat"), results)


def test_a_sheet_has_the_heat_of_each_picture(answer):
    explainer = require_explainer(load_encoder("pocket", EncoderSettings(device="cpu")))
    plain, drawn = contact_sheet([answer]), contact_sheet([answer], explainer=explainer)
    assert plain.size == drawn.size
    changed = np.abs(np.asarray(plain, int) - np.asarray(drawn, int)).max(-1) > 8
    columns = np.flatnonzero(changed.any(0))
    assert columns.max() < plain.width // 2, "only the tile of the picture"
    warm = np.asarray(drawn, int)[..., 0] - np.asarray(drawn, int)[..., 2] > 120
    rows, columns = np.nonzero(warm & changed)
    tile = np.flatnonzero(changed.any(1))
    assert np.median(rows) > np.mean([tile.min(), tile.max()]) and np.median(columns) < 24 + 120


def test_a_heading_without_words_leaves_its_place_empty(answer):
    blank = contact_sheet([answer], headings=[Heading(" ", "", ("", ""))])
    assert blank.size == contact_sheet([answer]).size


def test_a_query_without_a_text_is_refused(answer):
    explainer = require_explainer(load_encoder("pocket", EncoderSettings(device="cpu")))
    other = Answer(Query(image=answer[0].picture()), answer.results)
    with pytest.raises(UsageError, match="expected a query by one text"):
        contact_sheet([other], explainer=explainer)


def test_hits_are_explained_on_a_sheet_only():
    output = Output(False, None, None, True, False, None, None)
    with pytest.raises(UsageError, match="--explain-hits: expected --sheet FILE"):
        check_output(output, "photos.chiasm", {})
