"""What a training tells while it goes: records, lines, its log and its curves."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from chiasm.pipeline.training.curves import draw_curves, figure_of
from chiasm.pipeline.training.log import Pace, append_log, held_out_r1, read_log
from chiasm.pipeline.training.progress_lines import (
    format_duration,
    format_kept_files,
    format_progress,
)

RECALL = {
    "text_to_image": {"en": {"r1": 0.5, "r5": 0.6}, "zh": {"r1": 0.3, "r5": 0.6}},
    "image_to_text": {"en": {"r1": 0.9, "r5": 1.0}, "zh": {"r1": 0.9, "r5": 1.0}},
}


def test_a_record_is_one_readable_line():
    record = {
        "step": 120, "total": 1600, "loss": 2.31, "held_out_r1": 0.41, "seconds_per_step": 1.9,
        "seconds_left": 2760,
    }  # fmt: skip
    assert format_progress(record) == (
        "step 120 of 1,600  loss 2.31  held out R@1 0.41  1.9 s/step  46 min left"
    )
    assert format_progress({"stage": "towers", **record}).startswith("towers  step 120 of 1,600  ")
    assert format_progress({"step": 200, "total": 1600, "recall": RECALL}) == (
        "step 200 of 1,600  held out R@1 0.40"
    )
    assert format_progress({"step": 20}) == "step 20"
    assert format_progress({"message": "360 pictures"}) == "360 pictures"


def test_held_out_recall_is_the_mean_over_languages_from_text_to_image():
    assert held_out_r1({"recall": RECALL}) == pytest.approx(0.4)
    assert held_out_r1({"held_out_r1": 0.25}) == 0.25
    assert held_out_r1({"step": 3}) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (2760, "46 min"), (5400, "1.5 h"), (90000, "25.0 h")],
)
def test_durations_have_the_unit_that_keeps_them_short(seconds, text):
    assert format_duration(seconds) == text


def test_pace_is_that_of_this_process():
    now = [100.0]
    pace = Pace(40, clock=lambda: now[0])
    now[0] = 110.0
    assert pace.at(60, 100) == {"total": 100, "seconds_per_step": 0.5, "seconds_left": 20}
    assert pace.at(100, 100)["seconds_left"] == 0


def test_a_log_gives_the_last_record_of_each_step_and_reads_earlier_names(tmp_path):
    earlier = {"sitting": "first", "step": 10, "lies": 2.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(earlier) + "\n" + '{"step": 20, "torn\n')
    append_log(tmp_path, {"stage": "first", "step": 10, "relations": 1.0})
    append_log(tmp_path, {"stage": "first", "step": 20, "relations": 0.5})
    assert read_log(tmp_path) == [
        {"stage": "first", "step": 10, "relations": 1.0},
        {"stage": "first", "step": 20, "relations": 0.5},
    ]


def test_curves_have_labels_legends_and_the_held_out_line(tmp_path):
    for stage, first in (("towers", 0), ("fusion", 20)):
        for step in (10, 20):
            append_log(tmp_path, {
                "stage": stage, "step": first + step, "total": 40, "seconds": 1.0,
                "seconds_per_step": 0.1, "seconds_left": 2, "norm": 9.0, "loss": 3.0 / step,
            })  # fmt: skip
    append_log(tmp_path, {"stage": "towers", "step": 20, "total": 20, "recall": RECALL})
    figure = figure_of(read_log(tmp_path))
    towers, fusion, held_out = figure.axes
    assert [axes.get_title() for axes in figure.axes] == [
        "training losses, towers", "training losses, fusion", "R@1 on held-out samples",
    ]  # fmt: skip
    for axes, label in ((towers, "loss"), (fusion, "loss"), (held_out, "R@1")):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", label)
        assert axes.get_legend() is not None
    assert [line.get_label() for line in towers.lines] == ["loss"]  # no clock, no norm
    assert sorted(line.get_label() for line in held_out.lines) == [
        "image to text, en", "image to text, zh", "text to image, en", "text to image, zh",
    ]  # fmt: skip
    with Image.open(draw_curves(tmp_path)) as picture:
        assert picture.format == "PNG"


def test_two_towers_have_a_held_out_line_from_the_records_of_their_steps():
    records = [
        {"stage": "choosing", "step": step, "loss": 1.0, "held_out_r1": step / 100}
        for step in (10, 20)
    ] + [{"stage": "all-samples", "step": 10, "loss": 1.0}]
    *_, held_out = figure_of(records).axes
    (line,) = held_out.lines
    assert line.get_xydata().tolist() == [[10, 0.1], [20, 0.2]]


def test_a_log_without_anything_to_draw_is_an_empty_picture(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    with Image.open(draw_curves(tmp_path)) as picture:
        assert picture.format == "PNG"


def test_kept_files_are_named_with_their_sizes(tmp_path):
    (tmp_path / "features" / "deep").mkdir(parents=True)
    (tmp_path / "features" / "deep" / "x.tar").write_bytes(bytes(2_500_000))
    (tmp_path / "state").write_bytes(bytes(100_000))
    line = format_kept_files(tmp_path, ["features", "state", "not there"])
    assert line.endswith(": features (2.5 MB), state (0.1 MB)") and str(tmp_path) in line
