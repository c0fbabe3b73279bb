"""A training's log.jsonl -> curves.png beside it: losses by step and recall on the held-out gallery
or, of a training in several sittings, the losses of each.

matplotlib is loaded here only, and drawn to a file: no window, no display.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chiasm.pipeline.model.checkpoint import write_whole

LOG, CURVES = "log.jsonl", "curves.png"
NOT_LOSSES = {"step", "seconds", "norm", "recall", "sitting"}


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, each step's last word: a training that was killed and went on
    tells again of the steps since its checkpoint. Sittings stay in their order. Of a line that a
    kill tore nothing is known.
    """
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    sittings: dict[str | None, int] = {}
    for text in (folder / LOG).read_text("utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        place = sittings.setdefault(line.get("sitting"), len(sittings))
        latest[place, line["step"], "recall" in line] = line
    return [latest[key] for key in sorted(latest)]


def draw_curves(folder: Path) -> Path:
    """Draw what the log tells; -> the picture's path."""
    drawn = io.BytesIO()
    figure_of(read_log(folder)).savefig(drawn, format="png", dpi=120)
    write_whole(folder / CURVES, drawn.getvalue())
    return folder / CURVES


def figure_of(lines: list[dict[str, Any]]) -> Figure:
    """What `read_log` gave, drawn."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    names = sorted({name for line in lines for name in line} - NOT_LOSSES)
    sittings = list(dict.fromkeys(line["sitting"] for line in lines if "sitting" in line))
    if sittings:
        panels = figure.subplots(1, len(sittings), squeeze=False)[0]
        for axes, sitting in zip(panels, sittings, strict=True):
            of = [line for line in lines if line["sitting"] == sitting]
            _losses(axes, of, names, f"training losses, {sitting}")
    else:
        losses, recall = figure.subplots(1, 2)
        some = [line for line in lines if "recall" not in line]
        _losses(losses, some, names, "training losses")
        _recall(recall, [line for line in lines if "recall" in line])
    return figure


def _losses(axes: Axes, lines: list[dict[str, Any]], names: list[str], title: str) -> None:
    """names: of all losses, so that each has one colour in every panel."""
    for colour, name in enumerate(names):
        told = [(line["step"], line[name]) for line in lines if name in line]
        if told:
            axes.plot(*zip(*told, strict=True), label=name, linewidth=1.2, color=f"C{colour}")
    axes.set(title=title, xlabel="step", yscale="log")
    axes.grid(alpha=0.3)
    if names:
        axes.legend()


def _recall(axes: Axes, lines: list[dict[str, Any]]) -> None:
    first = lines[0]["recall"] if lines else {}
    ways = [(direction, language) for direction, told in first.items() for language in told]
    for direction, language in ways:
        told = [(line["step"], line["recall"][direction][language]["r1"]) for line in lines]
        axes.plot(
            *zip(*told, strict=True), marker=".", label=f"{direction.replace('_', ' ')}, {language}"
        )
    axes.set(title="R@1 of the averaged towers, held-out gallery", xlabel="step", ylim=(0, 1))
    axes.grid(alpha=0.3)
    if ways:
        axes.legend()
