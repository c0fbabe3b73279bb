"""A report as a picture: recall against queries a second."""

from __future__ import annotations

import io
from collections.abc import Sequence

from chiasm.index.build.report import Report


def draw_reports(reports: Sequence[Report]) -> bytes:
    """A PNG: of each column its candidates on the sample, and the curve of the plan that was built
    over all rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(1, len(reports))
    figure = Figure(figsize=(6.5 * count, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes, report in zip(panels, reports, strict=False):
        kind = next(iter(report.measured.recall), "")
        for one in report.candidates:
            recall = one.recall.get(kind, {}).get(report.at)
            if recall is not None:
                axes.plot(recall, one.queries_per_second, "o", ms=4, label=one.plan)
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
