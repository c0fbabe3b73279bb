"""Recall against queries a second: curves of many rounds, compared at equal recall, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Point = Mapping[str, Any]  # "recall", "qps_cpu", "qps_wall"
OURS = "ours"
# Recalls near 1 are what is asked for: the axis shows the part that is missed.
DRAWN = (0.85, 0.999)


def frontier(points: Sequence[Point], speed: str = "qps_cpu") -> list[tuple[float, float]]:
    """(recall, queries a second) of those points that no other one beats in both, by recall."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (-p[speed], -p["recall"])):
        if not best or point["recall"] > best[-1][0]:
            best.append((point["recall"], point[speed]))
    return best


def speed_at(points: Sequence[Point], recall: float, speed: str = "qps_cpu") -> float | None:
    """Queries a second at a recall: the logarithm linear in recall between two points; that of the
    fastest point where even it finds more, None where nothing finds so much."""
    curve = frontier(points, speed)
    if not curve or curve[-1][0] < recall:
        return None
    after = next(n for n, (found, _) in enumerate(curve) if found >= recall)
    if after == 0:
        return curve[0][1]
    (r0, s0), (r1, s1) = curve[after - 1], curve[after]
    share = (recall - r0) / (r1 - r0)
    return math.exp((1 - share) * math.log(s0) + share * math.log(s1))


def fastest_at(rounds: Sequence[Sequence[Point]], recall: float) -> dict[str, float] | None:
    """Median, lowest and highest queries a second of the rounds at a recall."""
    return spread([speed_at(points, recall) for points in rounds], digits=0)


def ratios(rounds: Mapping[str, Sequence[Sequence[Point]]], recall: float) -> dict[str, Any]:
    """Name of a peer -> spread of our speed over its speed, round by round; `best peer`: over the
    fastest one of each round. A peer with one point alone is compared at that point's recall."""
    if OURS not in rounds:
        return {}
    ours = [speed_at(points, recall) for points in rounds[OURS]]
    found: dict[str, Any] = {}
    theirs = {
        name: [speed_at(points, recall) for points in each]
        for name, each in rounds.items()
        if name != OURS
    }
    for name, speeds in theirs.items():
        found[name] = spread([_over(a, b) for a, b in zip(ours, speeds, strict=True)])
        if all(len(points) == 1 for points in rounds[name]):
            found[name] = spread(
                [
                    _over(speed_at(mine, point["recall"]), point["qps_cpu"])
                    for mine, (point,) in zip(rounds[OURS], rounds[name], strict=True)
                ]
            )
    best = [
        max((s for s in speeds if s is not None), default=None)
        for speeds in zip(*theirs.values(), strict=True)
    ]
    if best:
        found["best peer"] = spread([_over(a, b) for a, b in zip(ours, best, strict=True)])
    return found


def _over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours / theirs


def spread(values: Sequence[float | None], digits: int = 3) -> dict[str, float] | None:
    """Median, lowest and highest; None where a round has no value."""
    there = [value for value in values if value is not None]
    if len(there) < len(values) or not there:
        return None
    figures = {"median": median(there), "lowest": min(there), "highest": max(there)}
    return {name: round(value, digits) for name, value in figures.items()}


def draw(sets: Mapping[str, Any], to: Path) -> None:
    """All curves, a panel for each set and size of batch, into one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = sorted(
        {batch for each in sets.values() for f in each["peers"].values() for batch in _batches(f)},
        key=int,
        reverse=True,
    )
    figure, panels = pyplot.subplots(
        len(sets), len(batches), figsize=(7 * len(batches), 4.6 * len(sets)), squeeze=False
    )
    for row, (name, measured) in zip(panels, sets.items(), strict=True):
        for panel, batch in zip(row, batches, strict=True):
            for number, (peer, figures) in enumerate(measured["peers"].items()):
                _curve(panel, peer, figures, batch, f"C{number}")
            size = "one query at a time" if batch == "1" else f"batches of {batch}"
            panel.set(title=f"{name}, {size}", xlabel="recall@10", yscale="log")
            panel.set_ylabel("queries a CPU second, one thread")
            panel.grid(visible=True, which="both", alpha=0.3)
            panel.set_xscale("function", functions=(_missed, _found))
            ticks = [0.85, 0.9, 0.95, 0.98, 0.99, 0.995]
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.set_xlim(*DRAWN)
            panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(to, dpi=110)
    pyplot.close(figure)


def _batches(figures: Mapping[str, Any]) -> list[str]:
    return [*figures["rounds"][0]] if figures.get("rounds") else []


def _curve(panel: Any, peer: str, figures: Mapping[str, Any], batch: str, colour: str) -> None:
    if not figures.get("rounds"):
        return
    by_param = zip(*(each[batch] for each in figures["rounds"]), strict=True)
    medians = [
        {name: median(point[name] for point in same) for name in ("recall", "qps_cpu")}
        for same in by_param
    ]
    points = frontier(medians)
    width = 2.4 if peer == OURS else 1.2
    panel.plot(*zip(*points, strict=True), marker="o", ms=3, lw=width, color=colour, label=peer)


def _missed(recall: Any) -> Any:
    import numpy as np

    return -np.log10(np.clip(1.0005 - np.asarray(recall), 1e-6, None))


def _found(place: Any) -> Any:
    import numpy as np

    return 1.0005 - 10 ** -np.asarray(place)
