"""What a terminal shows of a running post-training, under the bar: curves, health, evaluations, time, the last alarm.

Plain text with roles of colours, line by line; :mod:`mgrpo.terminal.progress` puts it on the screen.
"""

from __future__ import annotations

import math
import textwrap
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

Role = Literal["plain", "label", "value", "curve", "warning"]
"""What a piece of a line is, which decides its colour."""

Line = list[tuple[str, Role]]

BARS = "▁▂▃▄▅▆▇█"

NARROWEST = 72
"""Columns that the view needs; on a narrower terminal the bar stands alone."""

_MOST = 256
"""Numbers that a curve keeps; when there are more, neighbours are averaged."""


class Curve:
    """Numbers over the whole run in bounded memory: as it gets longer, each kept number stands for more iterations."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self._kept: list[float] = []
        self._stretch = 1
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """Take in the next number."""
        self.first = value if self.first is None else self.first
        self.last = value
        self._open.append(value)
        if len(self._open) < self._stretch:
            return
        self._kept.append(sum(self._open) / len(self._open))
        self._open = []
        if len(self._kept) > _MOST:
            pairs = zip(self._kept[::2], self._kept[1::2])
            rest = self._kept[len(self._kept) // 2 * 2 :]
            self._kept = [(a + b) / 2 for a, b in pairs]
            self._open = rest * self._stretch  # stands for as many numbers, for the next pair to take in
            self._stretch *= 2

    def drawn(self, width: int) -> str:
        """The curve as ``width`` bars at most, lowest to highest number."""
        values = self._kept + ([sum(self._open) / len(self._open)] if self._open else [])
        count = min(width, len(values))
        edges = [round(index * len(values) / count) for index in range(count + 1)] if count else []
        means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
        low, high = min(means, default=0.0), max(means, default=0.0)
        if high <= low:
            return BARS[len(BARS) // 2] * count
        return "".join(BARS[min(int((value - low) / (high - low) * len(BARS)), len(BARS) - 1)] for value in means)


class LiveView:
    """Keeps what the view shows, from the metrics of one iteration after the other."""

    def __init__(self, rewards: Sequence[str], *, gold: str, gold_better: Literal["min", "max"]) -> None:
        self._rewards = list(rewards)
        self._gold = gold
        self._sign = 1.0 if gold_better == "min" else -1.0
        self._curves: dict[str, Curve] = {}
        self._latest: Mapping[str, float | None] = {}
        self._best: tuple[int, float] | None = None
        self._measured = 0
        self._alarm: tuple[int, str, str] | None = None
        self._alarms = 0
        self._lock = threading.Lock()

    def observe(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Take in an iteration; a metric that is missing, None or NaN leaves a gap."""
        with self._lock:
            self._take_in(step, metrics)

    def _take_in(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self._latest = metrics
        for name in ("reward", *(f"rewards/{reward}/mean" for reward in self._rewards), *_first_diversity(metrics)):
            if (value := _number(metrics, name)) is not None:
                self._curves.setdefault(name, Curve()).add(value)
        gold = _number(metrics, f"validation/{self._gold}")
        if gold is not None:
            self._curves.setdefault("gold", Curve()).add(gold)
            self._measured = step
            if self._best is None or self._sign * gold < self._sign * self._best[1]:
                self._best = (step, gold)

    def alarm(self, step: int, name: str, text: str) -> None:
        """Show an alarm until the next one."""
        with self._lock:
            self._alarm = (step, name, text)
            self._alarms += 1

    def lines(self, width: int) -> list[Line]:
        """The view in ``width`` columns; empty before the first iteration, or where that is too narrow for it."""
        with self._lock:
            return self._drawn(width) if self._curves and width >= NARROWEST else []

    def _drawn(self, width: int) -> list[Line]:
        labels = {"reward": "reward", **{f"rewards/{name}/mean": f"  {name}" for name in self._rewards}}
        if len(self._rewards) == 1:  # the total is the same curve
            labels = {"reward": f"reward {self._rewards[0]}"}
        for name in self._curves:
            if name.startswith("diversity/"):
                labels[name] = name.removeprefix("diversity/").removeprefix("diversity_")
        labels["gold"] = self._gold
        labels = {name: label for name, label in labels.items() if name in self._curves}
        numbers = {name: self._numbers(name) for name in labels}
        room = min(max(map(len, labels.values())), 26)
        length = max(8, width - room - 2 - max(map(len, numbers.values())))
        lines: list[Line] = [
            [
                (f"{label[:room]:<{room}} ", "label"),
                (f"{self._curves[name].drawn(length):<{length}} ", "curve"),
                (numbers[name], "value"),
            ]
            for name, label in labels.items()
        ]
        lines.append(self._health())
        if time := self._time():
            lines.append(time)
        return [_cut(line, width) for line in lines] + self._last_alarm(width)

    def _numbers(self, name: str) -> str:
        """A curve's last number, and what to compare it with."""
        curve = self._curves[name]
        if name == "gold" and self._best is not None:
            step, best = self._best
            where = "the best" if step == self._measured else f"best {_short(best)} at {step}"
            return f"{_short(curve.last):>9}  at {self._measured}, {where}" + (" ★" if step == self._measured else "")
        return f"{_short(curve.last):>9}  from {_short(curve.first)}"

    def _health(self) -> Line:
        """The numbers that should stay in a range, each with its name."""
        line: Line = []
        for label, name, form in (
            ("dead groups", "frac_dead_all", "percent"),
            ("gradient", "grad_norm", "number"),
            ("clipped", "clip_ratio/region_mean", "percent"),
            ("KL", "kl", "number"),
            ("update", "update_ratio", "number"),
        ):
            value = _number(self._latest, name)
            if value is None or (name == "kl" and not value):
                continue
            shown = f"{100 * value:.0f} %" if form == "percent" else _short(value)
            line += [(f"{label} ", "label"), (f"{shown}   ", "value")]
        return line

    def _time(self) -> Line:
        """Where the last iteration's time went."""
        whole = _number(self._latest, "step_time")
        if not whole:
            return []
        line: Line = [("time ", "label"), (f"{_short(whole)} s/iteration", "value")]
        for name in self._latest:
            seconds = _number(self._latest, name)
            if name.startswith("time/") and seconds is not None:
                line += [(f"  {name[5:]} ", "label"), (f"{100 * seconds / whole:.0f} %", "value")]
        samples, memory = _number(self._latest, "system/samples_per_s"), _number(self._latest, "system/peak_memory_mib")
        line += [] if samples is None else [("   ", "plain"), (f"{_short(samples)} samples/s", "value")]
        line += [] if memory is None else [("   memory ", "label"), (f"{memory:.0f} MiB", "value")]
        return line

    def _last_alarm(self, width: int) -> list[Line]:
        if self._alarm is None:
            return []
        step, name, text = self._alarm
        count = "" if self._alarms == 1 else f" ({self._alarms} in all, see alarms.jsonl)"
        rows = textwrap.wrap(f"alarm {name} at iteration {step}{count}: {text}", width, max_lines=3, placeholder=" …")
        return [[(row, "warning")] for row in rows]


def _first_diversity(metrics: Mapping[str, float | None]) -> list[str]:
    return [name for name in metrics if name.startswith("diversity/")][:1]


def _number(row: Mapping[str, float | None], name: str) -> float | None:
    value = row.get(name)
    return value if value is not None and math.isfinite(value) else None


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _cut(line: Line, width: int) -> Line:
    """A line without what doesn't fit; a piece that is cut ends with an ellipsis."""
    kept: Line = []
    for text, role in line:
        if len(text.rstrip()) > width:
            return [*kept, (text[: max(width - 1, 0)] + "…", role)] if width > 0 else kept
        kept.append((text[:width], role))
        width -= len(text)
    return kept
