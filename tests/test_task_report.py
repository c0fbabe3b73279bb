"""The decoder's figures in the report of a training, and its curve."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_stages import RUN, learned

from chiasm.pipeline.model.checkpoint import load_model
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2
from chiasm.pipeline.training.curves import figure_of
from chiasm.pipeline.training.log import read_log
from chiasm.pipeline.training.pocket import task_report
from chiasm.pipeline.training.pocket.evaluate_tasks import Examples
from chiasm.pipeline.training.pocket.report import format_report, write_report
from chiasm.pipeline.training.pocket.settings import task_settings
from chiasm.pipeline.training.pocket.task_report import draw_pairs, format_tasks, task_figures

# A tokenizer of few texts needs many tokens for a caption.
TASKS = replace(task_settings(replace(RUN, examples={"ask": 2, "caption": 1})), target=200)
CPU = EncoderSettings(device="cpu", precision="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    learned(folder)
    return folder


@pytest.mark.parametrize("task", ["ask", "translate", "sentiment"])
def test_pairs_have_one_text_two_answers_and_pictures_that_differ_in_one_fact(task):
    pairs = list(draw_pairs(task, 48, 5, WORLD_2))
    assert len(pairs) == 48
    for (one, first), (other, second) in pairs:
        assert first.source == second.source and first.target != second.target
        assert first.task == task and first.language == second.language
        assert not withheld_in(one) and not withheld_in(other)
        gone, new = set(one.things) - set(other.things), set(other.things) - set(one.things)
        assert (len(gone) <= 2 and len(new) <= 2) and (
            one.background == other.background or not gone
        )
    assert {first.language for (_, first), _ in pairs} == {"en", "zh"}
    if task == "ask":
        assert len({first.kind for (_, first), _ in pairs}) == len(task_report.TYPES)


def test_tasks_and_worlds_that_have_no_pairs_have_none():
    assert list(draw_pairs("caption", 4, 5, WORLD_2)) == []
    assert list(draw_pairs("translate", 4, 5, WORLD_1)) == []


def test_figures_are_shares_with_errors_over_scenes(folder, monkeypatch):
    """Of texts that are right, wrong, and right for one picture of a pair."""
    model, tokenizer = load_model(folder)
    judged = []

    def write(model, tokenizer, blocks):
        count = sum(len(block.prefixes) for block in blocks)
        return [""] * count

    def right(texts, of, world):
        rng = np.random.default_rng(len(judged))
        judged.append((of, (rng.random(len(texts)) < 0.7).tolist()))
        return judged[-1][1]

    monkeypatch.setattr(task_report, "write_texts", write)
    monkeypatch.setattr(task_report, "right_ones", right)
    found = task_figures(model, tokenizer, TASKS, 12, 5)
    assert set(found) == {"ask", "caption", "sentiment"} and "pairs" not in found["caption"]
    (of_ask, answers), (asked_of_pairs, of_pairs) = judged[:2]
    assert len(answers) > 30 and len(of_pairs) == 24
    for name in ("all", "en", of_ask.examples[0][1].kind, f"zh {of_ask.examples[0][1].kind}"):
        of_scene, count = {}, 0
        some = [
            (row, good)
            for (row, e), good in zip(of_ask.examples, answers, strict=True)
            if name in ("all", e.language, e.kind, f"{e.language} {e.kind}")
        ]
        if not some:
            continue
        share = sum(good for _, good in some) / len(some)
        for row, good in some:
            of_scene[row] = of_scene.get(row, 0) + good - share
            count += 1
        error = sum(x * x for x in of_scene.values()) ** 0.5 / count
        expected = {"right": share, "error": error, "of": count}
        assert found["ask"][name] == pytest.approx(expected), name
    both = [a and b for a, b in zip(of_pairs[::2], of_pairs[1::2], strict=True)]
    share = sum(both) / 12
    assert found["ask"]["pairs"]["right"] == pytest.approx(share)
    assert found["ask"]["pairs"]["error"] == pytest.approx((share * (1 - share) / 12) ** 0.5)
    kinds = [example.kind for _, example in asked_of_pairs.examples]
    assert kinds[::2] == kinds[1::2]
    for kind in set(kinds):
        of_kind = [good for good, each in zip(both, kinds[::2], strict=True) if each == kind]
        figure = found["ask"][f"{kind} pairs"]
        assert figure["of"] == len(of_kind)
        assert figure["right"] == pytest.approx(sum(of_kind) / len(of_kind))
    # The two of a pair of sentiment are of two types.
    assert {name for name in found["sentiment"] if name.endswith("pairs")} == {
        "pairs",
        "en pairs",
        "zh pairs",
    }
    lines = format_tasks(found)
    kind = next(kind for kind in kinds if kind in found["ask"])
    of_type, of_both = (
        f"{found['ask'][name]['right']:.3f} ({found['ask'][name]['error']:.3f})"
        for name in (kind, f"{kind} pairs")
    )
    assert f"    {kind:<16}{of_type}  pairs {of_both}" in lines
    assert (
        f"pairs {share:.3f}" in lines[1] and f"all {found['ask']['all']['right']:.3f}" in lines[1]
    )
    assert sum(line.startswith("  caption") for line in lines) == 1


def test_examples_that_are_pairs_have_figures_of_both(folder, monkeypatch):
    """The first of each pair is right, of every second pair the other, too."""
    model, tokenizer = load_model(folder)
    pairs = list(draw_pairs("ask", 24, 5, WORLD_2))
    sides = [side for pair in pairs for side in pair]
    of = Examples("ask", [scene for scene, _ in sides], list(enumerate(e for _, e in sides)))
    right = [row % 2 == 0 or row % 4 == 1 for row in range(len(sides))]
    monkeypatch.setattr(task_report, "write_texts", lambda *given: [""] * len(sides))
    monkeypatch.setattr(task_report, "right_ones", lambda texts, of, world: right)
    alone = task_report.figures_of(model, tokenizer, TASKS, of)
    found = task_report.figures_of(model, tokenizer, TASKS, of, paired=True)
    assert not [name for name in alone if name.endswith("pairs")]
    assert {name: found[name] for name in alone} == alone
    assert found["pairs"]["right"] == 0.5 and found["pairs"]["of"] == 24
    assert found["all"]["right"] == 0.75 and found["all"]["of"] == 48
    assert {f"{e.kind} pairs" for _, e in sides} <= set(found)


def test_a_report_has_each_task_and_the_curves_a_panel_of_the_decoder(folder):
    report = write_report(folder, 8, CPU, task_settings(RUN))
    assert json.loads((folder / "report.json").read_text())["tasks"] == report["tasks"]
    assert set(report["tasks"]) == {"ask", "sentiment"}
    for groups in report["tasks"].values():
        assert {"all", "en", "zh", "pairs", "en pairs", "zh pairs"} <= set(groups)
        assert all({"right", "error", "of"} == set(figure) for figure in groups.values())
    assert any(line.startswith("  sentiment ") for line in format_report(report))
    *losses, recall, accuracy = figure_of(read_log(folder)).axes
    assert [axes.get_title() for axes in losses] == [
        f"training losses, {stage}" for stage in ("towers", "fusion", "joint", "decoder")
    ]
    assert recall.get_title() == "R@1 on held-out samples"
    assert accuracy.get_title() == "right of what the decoder writes"
    assert [line.get_label() for line in accuracy.lines] == ["ask", "sentiment"]
    assert [len(line.get_xydata()) for line in accuracy.lines] == [2, 2]
