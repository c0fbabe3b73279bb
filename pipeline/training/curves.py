"""A training's log.jsonl -> curves.png beside it: the losses of each stage, R@1 on held-out
samples, and how often the decoder is right.

matplotlib is loaded here only, and drawn to a file: no window, no display.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.training.log import Record, held_out_r1, is_evaluation, read_log

CURVES = "curves.png"
NOT_LOSSES = {
    "step", "total", "seconds", "seconds_per_step", "seconds_left", "norm", "recall", "stage",
    "held_out_r1", "accuracy",
}  # fmt: skip


def draw_curves(folder: Path) -> Path:
    """Draw the log of a training's folder; -> the picture's path."""
    drawn = io.BytesIO()
    figure_of(read_log(folder)).savefig(drawn, format="png", dpi=120)
    write_file(folder / CURVES, drawn.getvalue())
    return folder / CURVES


def figure_of(records: list[Record]) -> Figure:
    """Records as `read_log` gives them -> a panel of losses for each stage, one of R@1 and one of
    the decoder's accuracy where a record has them."""
    names = sorted({name for record in records for name in record} - NOT_LOSSES)
    stages = list(
        dict.fromkeys(record.get("stage") for record in records if not is_evaluation(record))
    )
    held_out = [record for record in records if held_out_r1(record) is not None]
    judged = [record for record in records if "accuracy" in record]
    count = max(1, len(stages) + bool(held_out) + bool(judged))
    figure = Figure(figsize=(5.5 * count, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for axes, stage in zip(panels, stages, strict=False):
        of_stage = [r for r in records if r.get("stage") == stage and not is_evaluation(r)]
        title = "training losses" if stage is None else f"training losses, {stage}"
        _draw_losses(axes, of_stage, names, title)
    if held_out:
        _draw_recall(panels[len(stages)], held_out)
    if judged:
        _draw_accuracy(panels[-1], judged)
    return figure


def _draw_losses(axes: Axes, records: list[Record], names: list[str], title: str) -> None:
    """names: of all losses, so that each has one colour in every panel."""
    for colour, name in enumerate(names):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                marker=".",  # a short training has one point, which no line shows
                label=name,
                linewidth=1.2,
                color=f"C{colour}",
            )
    axes.set(title=title, xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()


def _draw_recall(axes: Axes, records: list[Record]) -> None:
    """A line for each direction and language where they are known, else one."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if "recall" not in record:
            found = {"held out, text to image": record["held_out_r1"]}
        else:
            found = {
                f"{direction.replace('_', ' ')}, {language}": recall["r1"]
                for direction, languages in record["recall"].items()
                for language, recall in languages.items()
            }
        for name, value in found.items():
            lines.setdefault(name, []).append((record["step"], value))
    _draw_shares(axes, lines, "R@1 on held-out samples", "R@1")


def _draw_accuracy(axes: Axes, records: list[Record]) -> None:
    """A line for each task."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for task, groups in record["accuracy"].items():
            lines.setdefault(task, []).append((record["step"], groups["all"]))
    _draw_shares(axes, lines, "right of what the decoder writes", "share")


def _draw_shares(
    axes: Axes, lines: dict[str, list[tuple[int, float]]], title: str, unit: str
) -> None:
    """lines: by name, of (step, share 0 to 1)."""
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(title=title, xlabel="step", ylabel=unit, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
