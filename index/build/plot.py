"""A report as a picture: recall against queries a second."""

from __future__ import annotations

import io
from collections.abc import Sequence

from chiasm.index.build.report import Report


def draw_reports(reports: Sequence[Report]) -> bytes:
    """A PNG: of each column its candidates on the sample, and the curve of the plan that was built
    over all rows."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(1, len(reports))
    figure = Figure(figsize=(6.5 * count, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, report in zip(panels, reports, strict=False):
        kind = next(iter(report.measured.recall), "")
        for number, one in enumerate(report.candidates):
            recall = one.recall.get(kind, {}).get(report.at)
            if recall is not None:
                color = colormaps["tab20"](number % 20)
                speed = one.queries_per_second
                axes.plot(recall, speed, "o", ms=4, color=color, label=one.label)
        curve = [(point.recall, point.queries_per_second) for point in report.curve]
        if curve:
            axes.plot(*zip(*curve, strict=True), "k.-", label=f"built: {report.measured.plan}")
        axes.axvline(report.recall, color="grey", lw=0.8)
        axes.set(title=f"{report.column}, {report.rows:,} rows", yscale="log")
        axes.set(
            xlabel=f"recall@{report.at}, {kind} queries", ylabel="queries a second, one thread"
        )
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()
