"""What a report tells, as plain numbers: frozen dataclasses of Python and numpy values, input of ``write_report``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from mgrpo.errors import InputError
from mgrpo.viz.comparison import MotionComparison

Better = Literal["lower", "higher", "one", "none"]
"""Which way a metric improves; "one": nearer to 1 is better; "none": neither way (shown without a verdict)."""

Family = Literal["both", "standard", "paper"]
"""Metric family: the usual definition, exactly as in the published evaluation, or both where the two agree."""

Tone = Literal["good", "bad", "neutral", "warning"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, in the unit of whoever holds it. NaN means not available."""

    mean: float
    se: float = math.nan
    """Standard error of the mean."""


@dataclass(frozen=True)
class PairedDifference:
    """Post-trained minus prior, taken window by window (same windows, same noise), so that easy and hard windows cancel
    out."""

    mean: float
    se: float = math.nan
    """Standard error of the mean difference."""
    ci_low: float = math.nan
    """Lower end of the 95 % confidence interval; NaN: taken as mean - 1.96 se."""
    ci_high: float = math.nan
    """Upper end of the 95 % confidence interval; NaN: taken as mean + 1.96 se."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval."""
        low = self.ci_low if math.isfinite(self.ci_low) else self.mean - 1.96 * self.se
        high = self.ci_high if math.isfinite(self.ci_high) else self.mean + 1.96 * self.se
        return low, high


@dataclass(frozen=True)
class MetricRow:
    """One line of the results table."""

    key: str
    """Identifier, such as ``mpjpe_mm``; standard texts of the glossary are found by it."""
    label: str
    unit: str
    better: Better
    prior: Estimate
    post_trained: Estimate
    difference: PairedDifference
    family: Family = "standard"
    prior_mean_of_samples: Estimate | None = None
    """The prior's samples averaged to one motion: how low the error gets by losing variance alone."""
    ground_truth: Estimate | None = None
    """The same metric on the recorded motion, where that says something (jitter, skating)."""
    decimals: int = 1
    description: str = ""
    """For the glossary, where it has no text of its own for this key."""
    headline: bool = False
    """Whether this row may become a key figure at the top of the page."""

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher", "one", "none"):
            raise InputError(f"MetricRow '{self.key}': better must be lower, higher, one or none, got '{self.better}'")
        if self.family not in ("both", "standard", "paper"):
            raise InputError(f"MetricRow '{self.key}': family must be both, standard or paper, got '{self.family}'")


def mean_and_se(values: object) -> Estimate:
    """Mean and standard error (unbiased) of the finite numbers among ``values``; NaN where there are too few."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return Estimate(math.nan, math.nan)
    se = float(numbers.std(ddof=1) / math.sqrt(numbers.size)) if numbers.size > 1 else math.nan
    return Estimate(float(numbers.mean()), se)


@dataclass(frozen=True)
class Curve:
    """Numbers over iterations. NaN entries are gaps."""

    label: str
    x: tuple[float, ...]
    """Iteration (or step) of each number."""
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()
    """Optional half-width of a band around y, such as the standard deviation inside groups."""
    color: str = "accent"
    """Role of the colour: ground_truth, prior, post_trained, accent or muted."""

    def __post_init__(self) -> None:
        for name in ("x", "y", "spread"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.x) != len(self.y):
            raise InputError(
                f"Curve '{self.label}': x and y must have the same length, got {len(self.x)} and {len(self.y)}"
            )
        if self.spread and len(self.spread) != len(self.y):
            raise InputError(
                f"Curve '{self.label}': spread must be empty or as long as y, got {len(self.spread)} and {len(self.y)}"
            )
        if self.color not in ("ground_truth", "prior", "post_trained", "accent", "muted"):
            raise InputError(f"Curve '{self.label}': color must name a role of the palette, got '{self.color}'")

    @classmethod
    def of(cls, label: str, y: Sequence[float], *, spread: Sequence[float] = (), color: str = "accent") -> Curve:
        """A curve over iterations 0, 1, 2, …"""
        return cls(label, tuple(range(len(y))), tuple(y), tuple(spread), color)

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        key: str,
        label: str,
        *,
        x: str = "step",
        spread: str | None = None,
        color: str = "accent",
    ) -> Curve:
        """A curve out of logged rows (dicts, one a step): those that hold ``key``; without any, an empty curve."""
        chosen = [row for row in rows if row.get(key) is not None and row.get(x) is not None]
        bands = (
            ()
            if spread is None
            else tuple(float(row[spread]) if row.get(spread) is not None else math.nan for row in chosen)
        )
        return cls(
            label, tuple(float(row[x]) for row in chosen), tuple(float(row[key]) for row in chosen), bands, color
        )

    def tenths(self) -> tuple[Estimate, Estimate]:
        """Mean and standard error of the first and of the last tenth of the numbers (at least one each)."""
        count = max(1, round(len(self.y) / 10))
        return mean_and_se(self.y[:count]), mean_and_se(self.y[-count:])


@dataclass(frozen=True)
class Panel:
    """One chart: curves that share axes."""

    title: str
    curves: tuple[Curve, ...]
    unit: str = ""
    note: str = ""
    """What to look for, one or two sentences."""
    log: bool = False
    """Logarithmic y axis (used only if all numbers are above zero)."""
    low: float = math.nan
    """Lower end of the y axis; NaN: from the numbers."""
    high: float = math.nan
    """Upper end of the y axis; NaN: from the numbers."""
    reference: float = math.nan
    """A level to draw as a thin line; NaN: none."""
    reference_label: str = ""
    x_label: str = "iteration"
    key: str = ""
    """What the chart holds, for findings that look at it: ``dead_groups`` or ``clip_fraction`` (shares 0 to 1); else
    empty."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "curves", tuple(self.curves))


@dataclass(frozen=True)
class Bar:
    """A bar with its standard error."""

    label: str
    mean: float
    se: float = math.nan
    value: float = math.nan
    """The number behind the label (such as alpha), by which findings order the bars; NaN: none."""
    rise: float = math.nan
    """Mean paired difference to the bar before (by value), where both were measured on the same windows; NaN: unknown,
    the means are compared instead."""
    rise_se: float = math.nan
    """Standard error of ``rise``."""


@dataclass(frozen=True)
class BarGroup:
    """Bars of one quantity, such as diversity for each noise strength."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    note: str = ""
    quantity: str = ""
    """What the bars measure, a few words for the axis; groups of one quantity share the axis."""
    x_label: str = ""
    """What tells the bars apart, with its unit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bars", tuple(self.bars))


@dataclass(frozen=True)
class Stage:
    """A stage of the run and what it took."""

    name: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class RunInfo:
    """Where, when and how the numbers were made."""

    title: str
    command: str
    """The command line that makes this report again."""
    date: str
    """Start of the run, ISO 8601."""
    seed: int
    summary: str = ""
    """One or two sentences under the title."""
    git_commit: str = ""
    git_dirty: bool = False
    machine: Mapping[str, str] = field(default_factory=dict)
    """Processor, memory, accelerator, operating system: name to text."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package to version."""
    config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Settings worth knowing, by section (prior, perceptual, GRPO, evaluation): name to text with unit."""


@dataclass(frozen=True)
class Finding:
    """A sentence that the numbers support, with its tone."""

    tone: Tone
    text: str


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Any part may be empty: its section is then left out or says so."""

    run: RunInfo
    stages: tuple[Stage, ...] = ()
    metrics: tuple[MetricRow, ...] = ()
    rewards: tuple[Curve, ...] = ()
    """Reward curves over GRPO iterations: the total first, then each reward; spread = standard deviation inside
    groups."""
    prior_training: tuple[Panel, ...] = ()
    """Loss of the prior."""
    perceptual_training: tuple[Panel, ...] = ()
    """Loss and held-out accuracy of the perceptual model."""
    perceptual_accuracy: Estimate | None = None
    """Share (0 to 1) of comparisons on held-out windows in which the perceptual model scores the recording above the
    generated motion."""
    health: tuple[Panel, ...] = ()
    """Group health: dead groups, ratio, clip fraction, KL, gradient norm, advantage size."""
    diversity: tuple[BarGroup, ...] = ()
    """Diversity inside groups for each strength of the Perlin noise (Bar.value = alpha in metres)."""
    motions: tuple[MotionComparison, ...] = ()
    """Clips for the player; the film shows the first ones, the film strip the very first."""
    findings: tuple[Finding, ...] = ()
    """Sentences of the caller's own, shown after those computed from the numbers."""
    evaluation_note: str = ""
    """What was evaluated: how many windows, clips, seeds, samples; which sampler."""
    interval_note: str = ""
    """What the intervals of the paired differences are: a sentence or two under the table and the picture of the
    results."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))
