"""Charts as inline SVG: drawn here, coloured by the page's CSS, made readable point by point by the page's script.

Each chart is a ``<figure>`` that a screen reader gets as one sentence, that prints without JavaScript, and that the
keyboard can walk through. The numbers under the pointer come from the ``data-chart`` attribute (JSON).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from mgrpo.report.data import BarGroup, Curve, MetricRow, Panel
from mgrpo.report.numbers import MINUS, fixed, log_ticks, nice_ticks, running_mean, short, with_error

_MOST_POINTS = 1000
"""More numbers than this are averaged in equal stretches before drawing."""

SMOOTHING = "Pale: each iteration; line: running mean over a twentieth of them."
"""What noisy curves show, for captions."""

Point = tuple[float, float]


def reward_panels(curves: Sequence[Curve]) -> list[Panel]:
    """One panel for each reward, so that each keeps its own scale."""
    return [Panel(curve.label, (curve,), unit="mean reward") for curve in curves]


@dataclass(frozen=True)
class _Axes:
    """Where the plot lies inside the SVG's viewBox, and which numbers its edges stand for."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_low: float = 0.0
    x_high: float = 1.0
    y_low: float = 0.0
    y_high: float = 1.0
    log: bool = False

    @property
    def plot_width(self) -> float:
        return self.width - self.left - self.right

    @property
    def plot_height(self) -> float:
        return self.height - self.top - self.bottom

    def x(self, value: float) -> float:
        """Horizontal place of a number."""
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * self.plot_width

    def y(self, value: float) -> float:
        """Vertical place of a number; NaN if it has none."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        if self.log:
            share = math.log(value / self.y_low) / math.log(self.y_high / self.y_low)
        else:
            share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.top + (1 - share) * self.plot_height

    def rule(self, value: float, kind: str) -> str:
        """A horizontal line at a number."""
        y = f"{self.y(value):.1f}"
        return f'<line class="{kind}" x1="{self.left:g}" x2="{self.width - self.right:g}" y1="{y}" y2="{y}"/>'


@dataclass(frozen=True)
class _Series:
    """A curve ready for drawing."""

    curve: Curve
    x: list[float]
    y: list[float]
    smooth: list[float]
    spread: list[float]
    """Half-width of the band around ``smooth``; empty for none."""
    noisy: bool
    """Whether ``smooth`` is a running mean, so that ``y`` is drawn too."""
    stretch: int
    """How many numbers were averaged to one."""

    @property
    def color(self) -> str:
        """Name of the colour as the stylesheet spells it."""
        return self.curve.color.replace("_", "-")


def _text(x: float, y: float, content: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _series(curve: Curve, smoothing: bool) -> _Series:
    """Average a curve in stretches if there are very many numbers, and smooth it if it has enough of them."""
    stretch = max(1, math.ceil(len(curve.y) / _MOST_POINTS))

    def average(values: Sequence[float]) -> list[float]:
        if stretch == 1:
            return list(values)
        parts = [[v for v in values[i : i + stretch] if math.isfinite(v)] for i in range(0, len(values), stretch)]
        return [sum(part) / len(part) if part else math.nan for part in parts]

    x, y, spread = average(curve.x), average(curve.y), average(curve.spread)
    window = smoothing_width(len(y))
    noisy = smoothing and window >= 3
    if not noisy:
        return _Series(curve, x, y, y, spread, False, stretch)
    return _Series(curve, x, y, running_mean(y, window), running_mean(spread, window), True, stretch)


def smoothing_width(count: int) -> int:
    """Entries that the running mean of a curve of ``count`` numbers is over: about a twentieth, 1 for short curves."""
    return 2 * (count // 40) + 1


def _path(points: Sequence[Point]) -> str:
    """SVG path through points, broken where one isn't finite; a lone point becomes a short dash."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[0]) and math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in runs:
        if len(run) == 1:
            run = [(run[0][0] - 1.5, run[0][1]), (run[0][0] + 1.5, run[0][1])]
        if run:
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run))
    return "".join(parts)


def _band(upper: Sequence[Point], lower: Sequence[Point]) -> str:
    """SVG path of the area between two lines over the same x."""
    parts: list[str] = []
    run: list[tuple[float, float, float]] = []
    for x, high, low in [*((x, y, low) for (x, y), (_, low) in zip(upper, lower)), (math.nan,) * 3]:
        if math.isfinite(x) and math.isfinite(high) and math.isfinite(low):
            run.append((x, high, low))
            continue
        if len(run) > 1:
            there = "L".join(f"{x:.1f} {high:.1f}" for x, high, _ in run)
            back = "L".join(f"{x:.1f} {low:.1f}" for x, _, low in reversed(run))
            parts.append(f"M{there}L{back}Z")
        run = []
    return "".join(parts)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Tick texts with the same number of decimals, as few as tell the ticks apart."""
    if len(ticks) > 1 and all(1e-4 <= abs(tick) < 1e5 or tick == 0 for tick in ticks):
        for decimals in range(6):
            if all(abs(float(f"{tick:.{decimals}f}") - tick) <= 1e-9 + 1e-6 * abs(tick) for tick in ticks):
                return [fixed(tick, decimals) for tick in ticks]
    if all(math.isfinite(tick) for tick in ticks) and any(0 < abs(tick) < 1e-4 for tick in ticks):
        # all of them alike: not 5e-5 below 0.0001
        digits = next(
            (n for n in range(3) if all(abs(float(f"{tick:.{n}e}") - tick) <= 1e-6 * abs(tick) for tick in ticks)), 2
        )
        return [f"{tick:.{digits}e}".replace("e-0", "e-").replace("-", MINUS) if tick else "0" for tick in ticks]
    return [short(tick) for tick in ticks]


def _y_ticks(axes: _Axes) -> str:
    """Grid lines with their numbers."""
    ticks = log_ticks(axes.y_low, axes.y_high) if axes.log else nice_ticks(axes.y_low, axes.y_high, 4)
    return "".join(
        axes.rule(tick, "grid") + _text(axes.left - 8, axes.y(tick) + 3.6, text, "end")
        for tick, text in zip(ticks, tick_labels(ticks))
    )


def _x_ticks(axes: _Axes, label: str) -> str:
    """Numbers under the plot and what they count."""
    ticks = nice_ticks(axes.x_low, axes.x_high, 4)
    texts = [_text(axes.x(tick), axes.height - 24, text) for tick, text in zip(ticks, tick_labels(ticks))]
    return "".join(texts) + _text(axes.left + axes.plot_width / 2, axes.height - 6, label)


def _reference(axes: _Axes, panel: Panel) -> str:
    """The thin line at a panel's reference level with its label, below the line if there is no room above."""
    y = axes.y(panel.reference)
    if not math.isfinite(y):
        return ""
    shift = 12 if y < axes.top + 16 else -5
    label = _text(axes.width - axes.right, y + shift, panel.reference_label, "end") if panel.reference_label else ""
    return axes.rule(panel.reference, "reference") + label


def _heading(title: str, unit: str) -> str:
    unit = f'<span class="chart-unit">{escape(unit)}</span>' if unit else ""
    return f'<figcaption><span class="chart-title">{escape(title)}</span>{unit}</figcaption>'


def _note(text: str) -> str:
    return f'<p class="chart-note">{escape(text)}</p>' if text else ""


def _empty_chart(title: str, unit: str, note: str) -> str:
    text = '<p class="empty">No numbers were recorded for this chart.</p>'
    return f'<figure class="chart chart-empty">{_heading(title, unit)}{text}{_note(note)}</figure>'


def axis_label(panel: Panel) -> str:
    """What a panel's y axis counts, with the unit: a lone curve's name, where it adds to the title."""
    lone = panel.curves[0].label if len(panel.curves) == 1 else ""
    if lone.lower() == panel.title.lower():
        lone = ""
    return f"{lone}, {panel.unit}" if lone and panel.unit else lone or panel.unit


def y_range(panel: Panel) -> tuple[float, float, bool]:
    """Ends of a panel's y axis and whether it is logarithmic: all numbers and bands inside, a little room, the panel's
    own ends kept. The panel must hold a finite number.

    The reference is inside too, unless it lies so far away that the curves would become flat lines; a constant is flat
    in any case, and a reference gives it its scale.
    """
    pairs = [(m, s) for curve in panel.curves for m, s in zip(curve.y, curve.spread or (0.0,) * len(curve.y))]
    values = [m for m, _ in pairs if math.isfinite(m)]
    log = panel.log and min(values) > 0
    if not log:
        values += [m + sign * s for m, s in pairs for sign in (1, -1) if math.isfinite(m + s)]
    keep_low = math.isfinite(panel.low) and not (log and panel.low <= 0)
    keep_high = math.isfinite(panel.high)
    low = panel.low if keep_low else min(values)
    high = panel.high if keep_high else max(values)
    constant = max(values) == min(values) and not (log and panel.reference <= 0)
    if math.isfinite(panel.reference) and (constant or _is_near(panel.reference, low, high, log)):
        low, high = low if keep_low else min(low, panel.reference), high if keep_high else max(high, panel.reference)
    if high <= low:
        pad = abs(low) * 0.05 or 0.5
        return (low / 1.5, low * 1.5, log) if log else (low if keep_low else low - pad, low + pad, log)
    if log:
        room = (high / low) ** 0.06
        return low if keep_low else low / room, high if keep_high else high * room, log
    room = 0.06 * (high - low)
    return low if keep_low else low - room, high if keep_high else high + room, log


def outside(panel: Panel) -> str:
    """A sentence about a panel's reference where the y axis doesn't reach it; else empty."""
    if not panel.reference_label or not any(math.isfinite(y) for curve in panel.curves for y in curve.y):
        return ""
    low, high, _ = y_range(panel)
    if not math.isfinite(panel.reference) or low <= panel.reference <= high:
        return ""
    return f"{panel.reference_label} at {short(panel.reference)}, outside the picture."


def _is_near(reference: float, low: float, high: float, log: bool) -> bool:
    """Whether a level is at most three spans away from an interval (spans in decades on a logarithmic axis)."""
    if log:
        if reference <= 0:
            return False
        reference, low, high = math.log10(reference), math.log10(low), math.log10(high)
        span = max(high - low, 0.3)
    else:
        span = max(high - low, 0.02 * max(abs(low), abs(high)))
    return max(low - reference, reference - high) <= 3 * span


_FEW_POINTS = 12
"""Curves with at most this many numbers show each as a dot: the line between them was not measured."""


def shows_points(curve: Curve) -> bool:
    """Whether a curve has so few numbers that each gets a dot."""
    return sum(math.isfinite(value) for value in curve.y) <= _FEW_POINTS


def _drawn(series: _Series, axes: _Axes, dash: int) -> str:
    """Band, pale raw curve and line of a series, with dots where there are few numbers."""
    body = ""
    if series.spread:
        triples = list(zip(series.x, series.smooth, series.spread))
        upper = [(axes.x(x), axes.y(m + s)) for x, m, s in triples]
        lower = [(axes.x(x), axes.y(max(m - s, axes.y_low) if axes.log else m - s)) for x, m, s in triples]
        body += f'<path class="band" d="{_band(upper, lower)}"/>'
    if series.noisy:
        body += f'<path class="raw" d="{_path([(axes.x(x), axes.y(y)) for x, y in zip(series.x, series.y)])}"/>'
    line = _path([(axes.x(x), axes.y(y)) for x, y in zip(series.x, series.smooth)])
    dots = ""
    if shows_points(series.curve):
        dots = "".join(
            f'<circle class="dot" cx="{axes.x(x):.1f}" cy="{y:.1f}" r="2.6"/>'
            for x, value in zip(series.x, series.smooth)
            if math.isfinite(y := axes.y(value))
        )
    return f'<g class="series c-{series.color} dash-{dash}">{body}<path class="line" d="{line}"/>{dots}</g>'


def _end_names(series: Sequence[_Series], axes: _Axes) -> str:
    """The curves' names beside their right ends, pushed apart where they would touch."""
    ends: list[tuple[float, _Series]] = []
    for s in series:
        places = [y for value in s.smooth if math.isfinite(y := axes.y(value))]
        if places:
            ends.append((places[-1], s))
    ends.sort(key=lambda end: end[0])
    gap = 12.5
    places = [y for y, _ in ends]
    for index, (before, after) in enumerate(pairwise(list(places))):
        places[index + 1] = max(after, max(before, places[index]) + gap)
    limit = axes.top + axes.plot_height
    for index in reversed(range(len(places))):
        places[index] = max(min(places[index], limit), axes.top + 2)
        limit = places[index] - gap
    x = axes.left + axes.plot_width + 7
    return "".join(_text(x, y + 3.8, s.curve.label, "start", f"end c-{s.color}") for y, (_, s) in zip(places, ends))


def _legend(series: Sequence[_Series]) -> str:
    """Dash patterns with names."""
    keys = []
    for index, s in enumerate(series):
        line = f'<g class="series c-{s.color} dash-{index % 6}"><path class="line" d="M1 4L21 4"/></g>'
        mark = f'<svg width="22" height="8" aria-hidden="true">{line}</svg>'
        keys.append(f'<span class="key">{mark}{escape(s.curve.label)}</span>')
    return f'<div class="legend">{"".join(keys)}</div>'


def _readout(panel: Panel, series: Sequence[_Series], axes: _Axes) -> str:
    """What the page's script needs to show the number under the pointer, as the text of an attribute."""

    def place(value: float) -> float | None:
        return round(value, 1) if math.isfinite(value) else None

    def number(s: _Series, index: int) -> str:
        return with_error(s.y[index], s.spread[index] if s.spread else math.nan)

    content = {
        "plot": [axes.left, axes.top, axes.plot_width, axes.plot_height],
        "size": [axes.width, axes.height],
        "xLabel": panel.x_label,
        "series": [
            {
                "label": s.curve.label,
                "color": s.color,
                "px": [place(axes.x(x)) for x in s.x],
                "py": [place(axes.y(y)) for y in s.smooth],
                "x": [short(x) for x in s.x],
                "y": [number(s, index) for index in range(len(s.y))],
            }
            for s in series
        ],
    }
    return escape(json.dumps(content, ensure_ascii=False, allow_nan=False), quote=True)


def _spoken(panel: Panel) -> str:
    """A chart as a sentence: each curve's first and last number."""
    parts = []
    for curve in panel.curves:
        good = [y for y in curve.y if math.isfinite(y)]
        if good:
            parts.append(f"{curve.label} from {short(good[0])} to {short(good[-1])}")
    unit = f" ({panel.unit})" if panel.unit else ""
    return f"Line chart: {panel.title}{unit} over {panel.x_label}. " + "; ".join(parts) + "."


def line_chart(panel: Panel, *, width: float = 350, height: float = 200, chart_id: str) -> str:
    """A line chart of a panel.

    Noisy curves appear twice, pale as they are and smoothed; ``spread`` is a band around the smooth one. Three or more
    curves carry their names at their right ends (a legend of dashes is hard to follow), fewer have a legend.
    ``chart_id`` must be unique on the page.
    """
    series = [_series(curve, smoothing=len(panel.curves) <= 6) for curve in panel.curves]
    drawable = [(x, y) for s in series for x, y in zip(s.x, s.y) if math.isfinite(x) and math.isfinite(y)]
    if not drawable:
        return _empty_chart(panel.title, axis_label(panel), panel.note)
    x_low, x_high = min(x for x, _ in drawable), max(x for x, _ in drawable)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high, log = y_range(panel)
    longest = max(len(curve.label) for curve in panel.curves)
    named_at_end = len(panel.curves) >= 3 and longest <= 18
    right = 18 + 6.2 * longest if named_at_end else 12
    axes = _Axes(width, height, 50, right, 12, 42, x_low, x_high, y_low, y_high, log)

    lines = "".join(_drawn(s, axes, index % 6 if len(series) > 1 else 0) for index, s in enumerate(series))
    names = _end_names(series, axes) if named_at_end else ""
    legend = _legend(series) if len(series) > 1 and not named_at_end else ""
    stretch = max(s.stretch for s in series)
    note = panel.note + (f" Each point is the mean of {stretch} steps." if stretch > 1 else "")
    reference = ""
    if y_low <= panel.reference <= y_high:
        reference = _reference(axes, panel)
    note += f" {outside(panel)[:1].upper()}{outside(panel)[1:]}"
    clip = (
        f'<clipPath id="{chart_id}-clip"><rect x="{axes.left - 3:g}" y="{axes.top - 3:g}" '
        f'width="{axes.plot_width + 6:g}" height="{axes.plot_height + 6:g}"/></clipPath>'
    )
    return (
        f'<figure class="chart">{_heading(panel.title, axis_label(panel))}'
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" tabindex="0" '
        f'aria-label="{escape(_spoken(panel), quote=True)}" data-chart="{_readout(panel, series, axes)}">'
        f"<defs>{clip}</defs>{_y_ticks(axes)}{_x_ticks(axes, panel.x_label)}{reference}"
        f'<g clip-path="url(#{chart_id}-clip)">{lines}</g>{names}<g class="hover"></g></svg>'
        f"{legend}{_note(note.strip())}</figure>"
    )


def _bar(axes: _Axes, center: float, width: float, mean: float, se: float, strength: float) -> str:
    """A bar, a whisker of one standard error, and the number above both."""
    top, base = axes.y(max(mean, 0.0)), axes.y(0.0)
    size = f'x="{center - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(base - top, 0.5):.1f}" rx="2"'
    # the blank keeps grid lines from shining through the translucent bar
    shape = f'<rect class="blank" {size}/><rect class="bar" style="fill-opacity:{strength:.2f}" {size}/>'
    if not (math.isfinite(se) and se > 0):
        return shape + _text(center, top - 6, short(mean), kind="value")
    upper, lower = axes.y(mean + se), axes.y(max(mean - se, 0))
    stem = f"M{center:.1f} {upper:.1f}L{center:.1f} {lower:.1f}"
    ends = "".join(f"M{center - 6:.1f} {y:.1f}L{center + 6:.1f} {y:.1f}" for y in (upper, lower))
    return f'{shape}<path class="whisker" d="{stem}{ends}"/>' + _text(center, upper - 6, short(mean), kind="value")


def bars_top(group: BarGroup, groups: Sequence[BarGroup] = ()) -> float:
    """Where the whiskers of a group end at most, NaN without numbers: over all ``groups`` of its quantity and unit, so
    that bars which invite comparison stand on one scale."""
    alike = [
        other for other in groups if group.quantity and (other.quantity, other.unit) == (group.quantity, group.unit)
    ]
    tops = [
        bar.mean + (bar.se if math.isfinite(bar.se) else 0)
        for other in [group, *alike]
        for bar in other.bars
        if math.isfinite(bar.mean)
    ]
    return max(tops) if any(math.isfinite(bar.mean) for bar in group.bars) else math.nan


def whisker_note(groups: Sequence[BarGroup]) -> str:
    """What the whiskers of bars mean."""
    text = "Whiskers: one standard error."
    if any(math.isfinite(bar.rise) for group in groups for bar in group.bars):
        text += (
            " Bars of one panel share their windows and the sampler's noise: their differences are surer than the "
            "whiskers suggest."
        )
    return text


def bar_chart(group: BarGroup, groups: Sequence[BarGroup] = (), *, width: float = 480, height: float = 250) -> str:
    """Upright bars with whiskers of one standard error and their numbers above; the axis of the quantity is shared with
    ``groups`` (:func:`bars_top`)."""
    top = bars_top(group, groups)
    if not math.isfinite(top):
        return _empty_chart(group.title, group.unit, group.note)
    below = 44 if group.x_label else 30
    axes = _Axes(width, height, 50, 12, 22, below, y_high=max(top * 1.06, 1e-12))
    slot = axes.plot_width / len(group.bars)
    parts, spoken = [], []
    for index, bar in enumerate(group.bars):
        center = axes.left + slot * (index + 0.5)
        parts.append(_text(center, height - below + 20, bar.label, kind="tick strong"))
        if math.isfinite(bar.mean):
            strength = 0.4 + 0.6 * (index + 1) / len(group.bars)
            parts.append(_bar(axes, center, min(58.0, slot * 0.55), bar.mean, bar.se, strength))
            error = f" ± {short(bar.se)}" if math.isfinite(bar.se) else ""
            spoken.append(f"{bar.label}: {short(bar.mean)}{error}")
    if group.x_label:
        parts.append(_text(axes.left + axes.plot_width / 2, height - 6, group.x_label))
    unit = f" ({group.unit})" if group.unit else ""
    label = escape(f"Bar chart: {group.title}{unit}. {'; '.join(spoken)}.", quote=True)
    return (
        f'<figure class="chart">{_heading(group.title, group.unit)}'
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">'
        f"{_y_ticks(axes)}{''.join(parts)}</svg>{_note(group.note)}</figure>"
    )


def change_percent(row: MetricRow) -> tuple[float, float, float]:
    """The paired difference and its interval in percent of the prior's mean; NaN where the row shows that mean as zero
    (percent of what is rounding error says nothing)."""
    base = abs(row.prior.mean)
    if not math.isfinite(base) or base < 0.5 * 10.0**-row.decimals:
        return math.nan, math.nan, math.nan
    low, high = row.difference.interval
    return 100 * row.difference.mean / base, 100 * low / base, 100 * high / base


def change_scale(rows: Sequence[MetricRow]) -> float:
    """Half-width in percent of the axis that the rows of one table share: wide enough for 70 % of the intervals, so
    that one large change doesn't squeeze the others into a dot each; at most 100."""
    reach = sorted(
        max(abs(value) for value in change_percent(row) if math.isfinite(value))
        for row in rows
        if math.isfinite(change_percent(row)[0])
    )
    largest = reach[round(0.7 * (len(reach) - 1))] if reach else 10.0
    return next((step for step in (2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0) if step >= largest), 100.0)


def change_glyph(row: MetricRow, scale: float, verdict: str) -> str:
    """A small picture for a table row: zero in the middle, the change as a dot, its 95 % interval as a line.

    A change beyond the axis is an arrowhead at its end.
    """
    middle, low, high = change_percent(row)
    if not math.isfinite(middle):
        return ""
    width, height = 130.0, 20.0

    def place(value: float) -> str:
        return f"{width / 2 + max(-1.0, min(1.0, value / scale)) * (width / 2 - 8):.1f}"

    mark = f'<circle cx="{place(middle)}" cy="10" r="4.2"/>'
    if abs(middle) > scale:
        side = math.copysign(1, middle)
        tip, base = width / 2 + side * (width / 2 - 1), width / 2 + side * (width / 2 - 11)
        mark = f'<path class="beyond" d="M{tip:g} 10L{base:g} 4.5L{base:g} 15.5Z"/>'
    whisker = ""
    if math.isfinite(low) and math.isfinite(high):
        whisker = f'<line class="ci" x1="{place(low)}" x2="{place(high)}" y1="10" y2="10"/>'
    return (
        f'<svg class="change {escape(verdict)}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" aria-hidden="true"><line class="axis" x1="8" x2="{width - 8:g}" y1="10" y2="10"/>'
        f'<line class="zero" x1="{width / 2:g}" x2="{width / 2:g}" y1="2" y2="18"/>{whisker}'
        f"{mark}</svg>"
    )
