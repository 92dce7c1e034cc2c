"""The report's pictures as PNG files, drawn with matplotlib: for slides, papers and READMEs. The page itself has its
own charts.

Every function returns a matplotlib Figure, or None where there is nothing to draw. No global matplotlib state is
changed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mgrpo.report.charts import (
    SMOOTHING,
    axis_label,
    bars_top,
    change_percent,
    change_scale,
    outside,
    reward_panels,
    shows_points,
    smoothing_width,
    tick_labels,
    whisker_note,
    y_range,
)
from mgrpo.report.data import BarGroup, Curve, MetricRow, Panel, ReportData
from mgrpo.report.findings import verdict, with_unit
from mgrpo.report.numbers import fixed, log_ticks, nice_ticks, running_mean, short, signed
from mgrpo.storage import replacing
from mgrpo.viz.palette import LIGHT, mix, rgb

DPI = 160

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": LIGHT.line,
    "axes.labelcolor": LIGHT.muted,
    "axes.titlecolor": LIGHT.ink,
    "axes.titlesize": 10,
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
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.facecolor": LIGHT.surface,
    "legend.fontsize": 8,
    "figure.facecolor": LIGHT.surface,
    "axes.facecolor": LIGHT.surface,
    "savefig.facecolor": LIGHT.surface,
}

_DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) with an Agg canvas, independent of pyplot."""
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.07)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _wrapped(text: str, width: float) -> str:
    """A caption broken into lines for a figure of this width in inches."""
    return "\n".join(textwrap.wrap(text, round(17 * width)))


def _title(text: str) -> str:
    """A heading: the first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def _caption(figure: Figure, text: str) -> None:
    """Lines below a figure that say how to read it: a picture is met without the page around it."""
    figure.supxlabel(
        _wrapped(text, figure.get_figwidth()), x=0.01, ha="left", fontsize=7.5, color=LIGHT.muted, linespacing=1.4
    )


def _draw_curve(axes: Axes, curve: Curve, dashes: Any) -> bool:
    """One curve, with its band and, where it is noisy, pale behind its running mean; whether it is."""
    color = LIGHT.of(curve.color)
    width = smoothing_width(len(curve.y))
    noisy = width >= 3
    smooth = running_mean(list(curve.y), width) if noisy else list(curve.y)
    if curve.spread:
        spread = running_mean(list(curve.spread), width)
        low = [m - s for m, s in zip(smooth, spread)]
        high = [m + s for m, s in zip(smooth, spread)]
        axes.fill_between(curve.x, low, high, color=color, alpha=0.13, linewidth=0)
    if noisy:
        axes.plot(curve.x, curve.y, color=color, linewidth=0.7, alpha=0.3)
    axes.plot(
        curve.x,
        smooth,
        color=color,
        linewidth=1.6,
        zorder=3,
        linestyle=dashes,
        marker="o" if shows_points(curve) else None,
        markersize=3.2,
        label=curve.label,
    )
    return noisy


def _draw_panel(axes: Axes, panel: Panel) -> bool:
    """The same drawing rules as the page's line charts; whether a curve was smoothed."""
    finite = [value for curve in panel.curves for value in curve.y if math.isfinite(value)]
    axes.set_title(_title(panel.title))
    if not finite:
        axes.text(0.5, 0.5, "no numbers", transform=axes.transAxes, ha="center", va="center", color=LIGHT.muted)
        axes.set_xticks([])
        axes.set_yticks([])
        return False
    several = len(panel.curves) > 1
    noisy = [
        _draw_curve(axes, curve, _DASHES[index % len(_DASHES)] if several else "-")
        for index, curve in enumerate(panel.curves)
    ]
    low, high, log = y_range(panel)
    if log:
        axes.set_yscale("log")
        ticks = log_ticks(low, high)
        axes.set_yticks(ticks, [short(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
    else:
        ticks = nice_ticks(low, high)
        axes.set_yticks(ticks, tick_labels(ticks))
    axes.set_ylim(low, high)
    if all(low <= value <= high for value in finite):
        # a line along the end of the axis would lose half its width there
        for line in axes.lines:
            line.set_clip_on(False)
    if low <= panel.reference <= high:
        axes.axhline(panel.reference, color=LIGHT.muted, linewidth=0.8, linestyle=(0, (3, 3)))
        if panel.reference_label:
            above = axes.transLimits.transform((0, axes.transScale.transform((1, panel.reference))[1]))[1] < 0.15
            axes.annotate(
                panel.reference_label,
                (1.0, panel.reference),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3 if above else -3),
                textcoords="offset points",
                ha="right",
                va="bottom" if above else "top",
                fontsize=8,
                color=LIGHT.muted,
            )
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(axis_label(panel))
    axes.margins(x=0.01)
    if several:
        axes.legend(loc="best", handlelength=2.6)
    return any(noisy)


def panels_figure(panels: Sequence[Panel], *, columns: int = 3) -> Figure | None:
    """Panels in a grid, with a caption where what was drawn needs one."""
    if not panels:
        return None
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _new_figure(3.1 * columns, 2.3 * rows + 0.3)
    noisy = [_draw_panel(figure.add_subplot(rows, columns, index + 1), panel) for index, panel in enumerate(panels)]
    said = [SMOOTHING] if any(noisy) else []
    if any(curve.spread for panel in panels for curve in panel.curves):
        said.append("Band: standard deviation inside groups.")
    said += [f"{_title(panel.title)}: {text}" for panel in panels if (text := outside(panel))]
    if said:
        _caption(figure, " ".join(said))
    return figure


def diversity_figure(groups: Sequence[BarGroup]) -> Figure | None:
    """Bars with whiskers of one standard error, two panels a row; panels of one quantity share their axis."""
    groups = [group for group in groups if any(math.isfinite(bar.mean) for bar in group.bars)]
    if not groups:
        return None
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = _new_figure(3.7 * columns, 2.4 * rows + 0.5)
    for index, group in enumerate(groups):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set_title(_title(group.title))
        axes.set_ylabel(", ".join(part for part in (group.quantity.lower(), group.unit) if part))
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
                fontsize=8.5,
            )
        axes.set_xticks(range(len(group.bars)), [bar.label for bar in group.bars])
        axes.set_xlabel(group.x_label)
        axes.set_xlim(-0.6, len(group.bars) - 0.4)
        axes.set_ylim(
            min(0.0, *(bar.mean for bar in group.bars if math.isfinite(bar.mean))), 1.18 * bars_top(group, groups)
        )
    notes = dict.fromkeys(f"{group.quantity or group.title}: {group.note}" for group in groups if group.note)
    _caption(figure, " ".join((*notes, whisker_note(groups))))
    return figure


_VERDICT_COLORS = {"better": LIGHT.post_trained, "worse": LIGHT.warning}


def _metric_name(row: MetricRow) -> str:
    """A metric's label with the sign of its good direction."""
    return f"{row.label} {_DIRECTIONS[row.better]}".rstrip()


_DIRECTIONS = {"lower": "↓", "higher": "↑", "one": "→ 1", "none": ""}


def _draw_change(axes: Axes, row: MetricRow, y: float, scale: float) -> None:
    """One line of the results: interval and mean of the paired change, and the numbers beside them."""
    change, low, high = change_percent(row)
    color = _VERDICT_COLORS.get(verdict(row), LIGHT.muted)
    axes.axhline(y, color=LIGHT.line, linewidth=0.6, zorder=0)
    if math.isfinite(low) and math.isfinite(high) and low < scale and high > -scale:
        ends = (max(low, -scale), min(high, scale))
        axes.plot(ends, (y, y), color=color, linewidth=2, solid_capstyle="butt", gid=f"interval {row.key}")
    marker = "o" if abs(change) <= scale else "<" if change < 0 else ">"
    axes.plot(
        max(-scale, min(scale, change)), y, marker, color=color, markersize=6, clip_on=False, gid=f"mean {row.key}"
    )
    texts = (
        (1.04, "left", fixed(row.prior.mean, row.decimals), LIGHT.prior_text),
        (1.30, "left", with_unit(fixed(row.post_trained.mean, row.decimals), row.unit), LIGHT.post_trained),
        (1.88, "right", f"{signed(change, 1)} %", color),
    )
    for x, side, text, tint in texts:
        axes.text(
            x, y, text, transform=axes.get_yaxis_transform(), va="center", ha=side, color=tint, gid=f"text {row.key}"
        )


def results_figure(data: ReportData) -> Figure | None:
    """The paired change of each metric in percent of the prior, with the interval of the tables, beside the numbers
    themselves."""
    rows = [row for row in data.metrics if row.family != "paper" and math.isfinite(change_percent(row)[0])]
    if not rows:
        return None
    scale = change_scale(rows)
    note = (
        "Dot: mean of post-trained minus prior, window by window; line: its 95 % interval; arrowhead: the mean lies "
        "beyond the axis. Blue: better, red: worse, grey: no clear change (or one that rounds to zero), or a metric "
        "without a good direction; "
        f"arrows after the names show that direction. {data.interval_note}"
    )
    width = 8.6
    note = _wrapped(note, width)
    below, above = 0.72 + 0.155 * (note.count("\n") + 1), 0.62
    height = above + below + 0.31 * len(rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    # the numbers stand to the right of the axes, in room left for them
    axes = figure.add_axes((0.14, below / height, 0.445, 1 - (above + below) / height))
    axes.grid(False)
    axes.axvline(0, color=LIGHT.muted, linewidth=0.8)
    for position, row in enumerate(rows):
        _draw_change(axes, row, len(rows) - 1 - position, scale)
    for x, side, text, tint in (
        (1.04, "left", "prior", LIGHT.prior_text),
        (1.30, "left", "post-trained", LIGHT.post_trained),
        (1.88, "right", "change", LIGHT.muted),
    ):
        axes.text(
            x,
            len(rows) - 0.2,
            text,
            transform=axes.get_yaxis_transform(),
            va="center",
            ha=side,
            color=tint,
            weight="bold",
        )
    axes.set_yticks(range(len(rows)), [_metric_name(row) for row in reversed(rows)])
    axes.tick_params(axis="y", labelcolor=LIGHT.ink)
    ticks = nice_ticks(-scale, scale, 4)
    axes.set_xticks(ticks, [("+" if tick > 0 else "") + text for tick, text in zip(ticks, tick_labels(ticks))])
    axes.set_xlim(-scale * 1.05, scale * 1.05)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("change by post-training, % of the prior")
    figure.text(
        0.014, 1 - 0.2 / height, "Post-trained against prior on held-out motion", weight="bold", size=11, va="center"
    )
    figure.text(0.014, 0.09 / height, note, fontsize=7.5, color=LIGHT.muted, va="bottom", linespacing=1.4)
    return figure


def save_figures(data: ReportData, folder: Path) -> dict[str, Path]:
    """Draw every figure of a demo's report that has numbers and write it as PNG: name to path. OSError if a file can't
    be written."""
    with matplotlib.rc_context(_STYLE):
        figures = {
            "results": results_figure(data),
            "rewards": panels_figure(reward_panels(data.rewards)),
            "training": panels_figure((*data.prior_training, *data.perceptual_training)),
            "health": panels_figure(data.health),
            "diversity": diversity_figure(data.diversity),
        }
        return _saved(figures, folder)


def save_panels(groups: Mapping[str, Sequence[Panel]], folder: Path) -> dict[str, Path]:
    """Draw each group of panels as one PNG: name to path. OSError if a file can't be written."""
    with matplotlib.rc_context(_STYLE):
        return _saved({name: panels_figure(panels) for name, panels in groups.items()}, folder)


def _saved(figures: Mapping[str, Figure | None], folder: Path) -> dict[str, Path]:
    written: dict[str, Path] = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        path = folder / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")
        written[name] = path
    return written
