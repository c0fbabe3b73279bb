"""`chiasm train`, from nothing to an encoder that matches; a few steps of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from encoding import match_rows, preprocess
from PIL import Image
from typer.main import get_command

from chiasm.jobs.cli import embed, options
from chiasm.jobs.cli import filter as filter_command
from chiasm.jobs.cli.ask import ask
from chiasm.jobs.cli.caption import caption
from chiasm.jobs.cli.sentiment import sentiment
from chiasm.jobs.cli.train import print_use
from chiasm.jobs.cli.train_pocket import train_settings
from chiasm.jobs.cli.train_two_tower import train_two_tower, two_tower_settings
from chiasm.jobs.cli.translate import translate
from chiasm.jobs.config import compose
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.config import DecoderConfig, ModelConfig
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.training.curves import draw_curves, figure_of, read_log
from chiasm.pipeline.training.joint import settings as joint_settings
from chiasm.pipeline.training.pocket import settings as pocket_settings
from chiasm.pipeline.training.progress_lines import format_progress
from chiasm.pipeline.training.two_tower import trainer as two_tower_trainer

# A recipe of seconds.
SMALL = (
    *("--set", "train.batch=8", "--set", "train.corpus=100", "--set", "train.calibrated=8"),
    *("--workers", 0, "--gallery", 30, "--image-token-steps", 0, "--decoder-steps", 0),
)


@pytest.mark.timeout(300)
def test_a_model_from_nothing_is_an_encoder_that_matches(chiasm, tmp_path):
    ran = chiasm(
        "train", "pocket", "--to", tmp_path, "--steps", 1, "--fusion-steps", 1,
        "--device", "cpu", "--precision", "float32", *SMALL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *report, last = ran.stdout.splitlines()
    assert last == f"{tmp_path}: trained; use it with --encoder pocket:{tmp_path}"
    assert report[0].startswith("on 30 scenes of a fresh seed")
    found = json.loads((tmp_path / "report.json").read_text())
    recall = found["recall"]["text_to_image"]
    assert any(f"{recall['en']['r1']:8.3f}{recall['zh']['r1']:8.3f}" in line for line in report)
    assert {"withheld", "hard_twins", "matching_accuracy", "joint"} <= found.keys()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 1, 2]
    assert "contrast" in lines[0] and "recall" in lines[1] and "match" in lines[2]
    displayed = ran.stderr.splitlines()
    assert [line for line in lines if format_progress(line) not in displayed] == []
    assert displayed[0].startswith("towers  step 1 of 1  loss ") and displayed[0].endswith(" left")
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.format == "PNG" and len(curves.convert("L").getcolors() or []) > 10
    picture = tmp_path / "curves.png"
    matched = chiasm("match", picture, "a red boat", "--encoder", f"pocket:{tmp_path}", "--json")
    assert matched.returncode == 0 and "logit" in json.loads(matched.stdout)
    before = (tmp_path / "model.safetensors").read_bytes()
    again = chiasm(
        "train", "pocket", "--to", tmp_path, "--steps", 1, "--fusion-steps", 1,
        "--device", "cpu", "--precision", "float32", *SMALL,
    )  # fmt: skip
    assert again.returncode == 0 and (tmp_path / "model.safetensors").read_bytes() == before
    other = chiasm(
        "train", "pocket", "--to", tmp_path, "--steps", 7, "--device", "cpu",
        "--precision", "float32", *SMALL,
    )  # fmt: skip
    assert other.returncode == 2
    assert "expected steps 1, " in other.stderr and "found steps 7, " in other.stderr
    assert "Traceback" not in other.stderr


def test_what_cannot_be_trained_is_told_in_one_line(chiasm, tmp_path):
    unknown = chiasm("train", "pockets", "--to", tmp_path)
    assert unknown.returncode == 2 and "Did you mean 'pocket'?" in unknown.stderr
    fusion = chiasm("train", "pocket", "--to", tmp_path, "--fusion", "magic")
    assert fusion.returncode == 2
    assert fusion.stderr.startswith("chiasm: --fusion 'magic': expected concat")
    shards = chiasm("train", "pocket", "--to", tmp_path, "a.tar")
    assert shards.returncode == 2 and "unexpected extra argument" in shards.stderr
    nothing = chiasm("train", "pocket", "--to", tmp_path, "--fusion", "add", "--fusion-steps", 0)
    assert nothing.returncode == 2 and "asks for one, found none" in nothing.stderr
    (tmp_path / "file").write_text("")
    taken = chiasm("train", "pocket", "--to", tmp_path / "file")
    assert taken.returncode == 2 and "found a file" in taken.stderr


def test_a_refused_training_leaves_no_folder(chiasm, shards, tmp_path):
    to = tmp_path / "to"
    joined = ("--image-encoder", tmp_path, "--text-encoder", tmp_path, "--to", to)
    for command in (
        ("two-tower", shards[0], *joined),
        ("two-tower", shards[0], *joined, "--fusion", "magic"),
        ("pocket", "--to", to, "--steps", 0),
        ("pocket", "--to", to, "--towers", tmp_path),
    ):
        ran = chiasm("train", *command)
        assert ran.returncode in (1, 2) and ran.stderr.startswith("chiasm: "), ran.stderr
        assert not to.exists()


@pytest.mark.parametrize("recipe", ["pocket", "two-tower", "joint"])
def test_a_learning_rate_that_none_can_have_is_refused_before_anything_is_read(
    chiasm, tmp_path, recipe
):
    more = {
        "pocket": (),
        "two-tower": ("nowhere.tar", "--image-encoder", "nowhere", "--text-encoder", "nowhere"),
        "joint": ("nowhere.tar", "--towers", "magic:x"),
    }
    for given in ("1.5", "0", "-0.001", "nan", "inf"):
        ran = chiasm(
            "train", recipe, *more[recipe], "--to", tmp_path / "to", "--learning-rate", given
        )
        assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1, ran.stderr
        assert "train.learning_rate: expected " in ran.stderr and not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("recipe", "options", "defaults"),
    [
        ("pocket", pocket_settings.TrainSettings, {
            "steps": "steps", "fusion-steps": "fusion_steps", "decoder-steps": "decoder_steps",
            "image-token-steps": "image_token_steps", "gallery": "gallery",
            "learning-rate": "learning_rate",
        }),
        ("two-tower", two_tower_trainer.TrainSettings, {
            "steps": "steps", "learning-rate": "learning_rate",
        }),
        ("joint", joint_settings.JointSettings, {
            "steps": "steps", "fusion-steps": "fusion_steps", "learning-rate": "learning_rate",
        }),
    ],
)  # fmt: skip
def test_help_has_the_recipes_own_numbers(chiasm, recipe, options, defaults):
    ran = chiasm("train", recipe, "--help")
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", ran.stdout).split())
    assert ran.returncode == 0 and "the recipe's" not in text
    for option, name in defaults.items():
        of_option = re.search(rf"--{option} <(?:int|float)> .*?\(default: ([^;)]*)", text)
        assert of_option and of_option[1] == str(getattr(options(), name)), (option, text)


def test_the_last_lines_say_how_the_result_is_used(capsys):
    print_use(Path("mine"), "two-tower")
    print_use(Path("mine"), "pocket", ModelConfig())
    assert capsys.readouterr().out.splitlines() == [
        "mine: trained; use it with --encoder two-tower:mine",
        "mine: trained; use it with --encoder pocket:mine",
    ]


@pytest.mark.parametrize(
    ("prefixes", "command"),
    [
        (("ask:en", "caption:en", "caption:zh"), "caption PICTURE"),
        (("caption:zh", "ask:en"), "caption PICTURE --language zh"),
        (("ask:en", "ask:zh", "imagine"), "ask PICTURE QUESTION"),
        (("ask:zh", "sentiment:en"), "ask PICTURE QUESTION --language zh"),
        (("translate:zh", "sentiment:en"), "translate TEXT --image PICTURE --to zh"),
        (("sentiment:en",), "sentiment TEXT --image PICTURE"),
        (("sentiment:zh",), "sentiment TEXT --image PICTURE --language zh"),
        (("imagine",), None),
    ],
)
def test_the_last_line_is_a_command_that_the_decoder_can_answer(capsys, prefixes, command):
    print_use(Path("mine"), "pocket", ModelConfig(decoder=DecoderConfig(prefixes=prefixes)))
    said = [] if command is None else [f"it answers, too: chiasm {command} --model pocket:mine"]
    assert capsys.readouterr().out.splitlines()[1:] == said
    if command is not None:
        name, *given = command.split()
        functions = {"ask": ask, "caption": caption, "translate": translate, "sentiment": sentiment}
        parser = typer.Typer()
        parser.command()(functions[name])
        get_command(parser).make_context(name, [*given, "--model", "pocket:mine"])


def test_settings_reach_both_recipes():
    settings = compose("laptop", [
        "train.steps=3", "train.fusion=add", "train.learning_rate=0.01", "train.seed=5",
        "read.caption_field=zh", "encoder.precision=float32", "train.batch=6", "train.corpus=7",
        "train.calibrated=8", "train.gallery=11",
    ])  # fmt: skip
    pocket = train_settings(settings.train, None)
    assert (pocket.steps, pocket.learning_rate, pocket.data.seed) == (3, 0.01, 5)
    assert (pocket.data.batch, pocket.corpus, pocket.calibrated, pocket.gallery) == (6, 7, 8, 11)
    assert pocket.model.fusion.fusion == "add"
    towers = two_tower_settings("image", "text", settings)
    assert (towers.train.steps, towers.train.learning_rate, towers.train.seed) == (3, 0.01, 5)
    assert towers.fusion.fusion == "add" and towers.read.caption_field == "zh"
    assert towers.encoder.precision == "float32"


def test_towers_alone_refuse_to_match(tmp_path, chiasm):
    ran = chiasm(
        "train", "pocket", "--to", tmp_path, "--steps", 1, "--fusion-steps", 0, *SMALL,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    on_top = chiasm(
        "train", "pocket", "--to", tmp_path / "fused", "--towers", tmp_path, "--steps",
        1, "--fusion-steps", 1, "--fusion", "gated", *SMALL,
    )  # fmt: skip
    assert on_top.returncode == 0, on_top.stderr
    (line,) = read_log(tmp_path / "fused")
    assert line["step"] == 2 and "match" in line
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert config["fusion"]["fusion"] == "gated"
    encoder = load_encoder(f"pocket:{tmp_path}", EncoderSettings(device="cpu"))
    with pytest.raises(UsageError, match="two towers alone"):
        match_rows(encoder, [preprocess(encoder, Image.new("RGB", (9, 9)))], ["a boat"])


def test_a_log_of_a_training_that_went_on_tells_each_step_once(tmp_path):
    lines = [
        {"step": 20, "contrast": 3.0},
        {"step": 40, "contrast": 2.0},
        {"step": 40, "recall": {}},
    ]
    again = {"step": 40, "contrast": 1.9}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, again])
    (tmp_path / "log.jsonl").write_text(text)
    assert read_log(tmp_path) == [lines[0], again, lines[2]]


def test_curves_show_each_stage_in_its_turn_and_lines_that_a_kill_tore_are_left_out(tmp_path):
    lines = [
        {"stage": "second to none", "step": 10, "image": 3.0},
        {"stage": "second to none", "step": 20, "image": 2.0},
        {"stage": "another", "step": 10, "image": 4.0, "text": 1.0},
    ]
    records = [json.dumps(line) + "\n" for line in lines]
    torn = records[1][:20] + records[1]  # what goes on after a kill goes on in the same line
    (tmp_path / "log.jsonl").write_text(records[0] + torn + records[1] + records[2])
    assert read_log(tmp_path) == lines
    drawn = figure_of(lines)
    assert [axes.get_title() for axes in drawn.axes] == [
        "training losses, second to none", "training losses, another",
    ]  # fmt: skip
    first, second = ([line.get_label() for line in axes.lines] for axes in drawn.axes)
    assert (first, second) == (["image"], ["image", "text"])
    assert len({axes.lines[0].get_color() for axes in drawn.axes}) == 1  # of image in both
    assert drawn.axes[1].lines[0].get_marker() == "."  # a single point is seen
    assert drawn.axes[0].lines[0].get_xydata().tolist() == [[10, 3.0], [20, 2.0]]
    with Image.open(draw_curves(tmp_path)) as curves:
        assert curves.format == "PNG"


def test_a_query_is_taken_where_the_command_allows_it(monkeypatch, tmp_path):
    calls: list[tuple[list[str], bool]] = []

    class Listed(Exception):
        pass

    def list_shards(specs, stdin, *, allow_query):
        calls.append((specs, allow_query))
        raise Listed

    monkeypatch.setattr(options, "list_shards", list_shards)
    to, url = str(tmp_path / "c"), "https://host/a.tar?key=hush"
    for allow in ({}, {"allow_query": True}):
        with pytest.raises(Listed):
            embed.embed([url], to, **allow)
        with pytest.raises(Listed):
            filter_command.filter_([url], to, "pocket", **allow)
        with pytest.raises(Listed):
            train_two_tower([url], tmp_path / "c", "image", "text", **allow)
    assert calls == [([url], False)] * 3 + [([url], True)] * 3
