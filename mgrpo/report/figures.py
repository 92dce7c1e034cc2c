"""The report's pictures as PNG files, drawn with matplotlib: for slides, papers and READMEs. The page itself has its
own charts.

Every function returns a matplotlib Figure, or None where there is nothing to draw. No global matplotlib state is
changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mgrpo.report.charts import change_percent, change_scale, y_range
from mgrpo.report.data import BarGroup, Curve, Panel, ReportData
from mgrpo.report.findings import verdict, with_unit
from mgrpo.report.numbers import fixed, log_ticks, running_mean, short, signed
from mgrpo.storage import replacing
from mgrpo.viz.palette import LIGHT, mix, rgb

DPI = 160

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": LIGHT.line,
    "axes.labelcolor": LIGHT.muted,
    "axes.titlecolor": LIGHT.ink,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": LIGHT.line,
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT.muted,
    "ytick.color": LIGHT.muted,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "text.color": LIGHT.ink,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": LIGHT.surface,
    "axes.facecolor": LIGHT.surface,
    "savefig.facecolor": LIGHT.surface,
}

_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) with an Agg canvas, independent of pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_curves(axes: Axes, panel: Panel) -> None:
    """The same drawing rules as the page's line charts: pale raw numbers, a smoothed line, a band of the spread."""
    finite = [value for curve in panel.curves for value in curve.y if math.isfinite(value)]
    axes.set_title(panel.title)
    if not finite:
        axes.text(0.5, 0.5, "no numbers", transform=axes.transAxes, ha="center", va="center", color=LIGHT.muted)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for index, curve in enumerate(panel.curves):
        color = LIGHT.of(curve.color)
        width = 2 * (len(curve.y) // 40) + 1
        noisy = width >= 3
        smooth = running_mean(list(curve.y), width) if noisy else list(curve.y)
        if curve.spread:
            spread = running_mean(list(curve.spread), width)
            low = [m - s for m, s in zip(smooth, spread)]
            high = [m + s for m, s in zip(smooth, spread)]
            axes.fill_between(curve.x, low, high, color=color, alpha=0.13, linewidth=0)
        if noisy:
            axes.plot(curve.x, curve.y, color=color, linewidth=0.7, alpha=0.3)
        lone = sum(math.isfinite(value) for value in curve.y) == 1
        axes.plot(
            curve.x,
            smooth,
            color=color,
            linewidth=1.6,
            linestyle=_DASHES[index % len(_DASHES)] if len(panel.curves) > 1 else "-",
            marker="o" if lone else None,
            markersize=3,
            label=curve.label,
        )
    low, high, log = y_range(panel)
    if log:
        axes.set_yscale("log")
        ticks = log_ticks(low, high)
        axes.set_yticks(ticks, [short(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)
    if low <= panel.reference <= high:
        axes.axhline(panel.reference, color=LIGHT.muted, linewidth=0.8, linestyle=(0, (3, 3)))
        if panel.reference_label:
            axes.annotate(
                panel.reference_label,
                (1.0, panel.reference),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=7.5,
                color=LIGHT.muted,
            )
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.unit)
    axes.margins(x=0.01)
    if len(panel.curves) > 1:
        axes.legend(loc="best")


def panels_figure(panels: Sequence[Panel], *, columns: int = 3) -> Figure | None:
    """Panels in a grid."""
    if not panels:
        return None
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _new_figure(3.5 * columns, 2.35 * rows)
    for index, panel in enumerate(panels):
        _draw_curves(figure.add_subplot(rows, columns, index + 1), panel)
    return figure


def reward_panels(curves: Sequence[Curve]) -> list[Panel]:
    """One panel for each reward, so that each keeps its own scale."""
    return [Panel(curve.label, (curve,)) for curve in curves]


def diversity_figure(groups: Sequence[BarGroup]) -> Figure | None:
    """Bars with whiskers of one standard error."""
    groups = [group for group in groups if any(math.isfinite(bar.mean) for bar in group.bars)]
    if not groups:
        return None
    figure = _new_figure(3.4 * len(groups), 2.6)
    for index, group in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), index + 1)
        axes.set_title(group.title)
        axes.set_ylabel(group.unit)
        for position, bar in enumerate(group.bars):
            if not math.isfinite(bar.mean):
                continue
            error = bar.se if math.isfinite(bar.se) else 0.0
            strength = 0.4 + 0.6 * (position + 1) / len(group.bars)
            color = [channel / 255 for channel in mix(rgb(LIGHT.surface), rgb(LIGHT.accent), strength)]
            axes.bar(position, bar.mean, width=0.55, color=color, linewidth=0)
            if error > 0:
                axes.errorbar(position, bar.mean, yerr=error, color=LIGHT.ink, linewidth=1.1, capsize=3)
            axes.annotate(
                short(bar.mean),
                (position, bar.mean + error),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.set_xticks(range(len(group.bars)), [bar.label for bar in group.bars])
        axes.margins(y=0.14)
    return figure


def results_figure(data: ReportData) -> Figure | None:
    """The paired change of each metric in percent of the prior, with its 95 % interval, beside the numbers
    themselves."""
    rows = [row for row in data.metrics if row.family != "paper" and math.isfinite(change_percent(row)[0])]
    if not rows:
        return None
    scale = change_scale(rows)
    height = 1.0 + 0.32 * len(rows)
    figure = Figure(figsize=(8.6, height), dpi=DPI)
    FigureCanvasAgg(figure)
    # the numbers stand to the right of the axes, in room left for them
    axes = figure.add_axes((0.14, 0.58 / height, 0.5, 1 - 0.95 / height))
    axes.grid(False)
    colors = {"better": LIGHT.post_trained, "worse": LIGHT.warning}
    axes.axvline(0, color=LIGHT.muted, linewidth=0.8)
    for position, row in enumerate(rows):
        y = len(rows) - 1 - position
        middle, low, high = (max(-scale, min(scale, value)) for value in change_percent(row))
        color = colors.get(verdict(row), LIGHT.muted)
        axes.axhline(y, color=LIGHT.line, linewidth=0.6, zorder=0)
        if math.isfinite(low) and math.isfinite(high):
            axes.plot((low, high), (y, y), color=color, linewidth=2, solid_capstyle="round")
        beyond = abs(change_percent(row)[0]) > scale
        marker = ("<" if middle < 0 else ">") if beyond else "o"
        axes.plot(middle, y, marker, color=color, markersize=6, clip_on=False)
        values = (
            f"{fixed(row.prior.mean, row.decimals)} → {with_unit(fixed(row.post_trained.mean, row.decimals), row.unit)}"
        )
        axes.text(1.03, y, values, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
        axes.text(
            1.68,
            y,
            f"{signed(change_percent(row)[0], 1)} %",
            transform=axes.get_yaxis_transform(),
            va="center",
            ha="right",
            color=color,
            fontsize=8.5,
        )
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axes.tick_params(axis="y", labelcolor=LIGHT.ink, labelsize=8.5)
    axes.set_xlim(-scale * 1.05, scale * 1.05)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("change by post-training, % of the prior (paired, 95 % interval)")
    axes.set_title("Post-trained against prior on held-out motion")
    return figure


def save_figures(data: ReportData, folder: Path) -> dict[str, Path]:
    """Draw every figure that has numbers and write it as PNG: name to path. OSError if a file can't be written."""
    written: dict[str, Path] = {}
    with matplotlib.rc_context(_STYLE):
        figures = {
            "results": results_figure(data),
            "rewards": panels_figure(reward_panels(data.rewards)),
            "training": panels_figure((*data.prior_training, *data.perceptual_training)),
            "health": panels_figure(data.health),
            "diversity": diversity_figure(data.diversity),
        }
        for name, figure in figures.items():
            if figure is None:
                continue
            path = folder / f"{name}.png"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=DPI, format="png")
            written[name] = path
    return written
