"""Sentences that follow from a report's numbers, and nothing beyond them.

A metric counts as changed only if the 95 % interval of its paired difference excludes zero and the difference does not
round to zero in the decimals shown; a reward has risen only if
its last tenth exceeds its first by more than two standard errors. Everything else is said to be unclear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from mgrpo.report.data import BarGroup, Curve, Finding, MetricRow, ReportData
from mgrpo.report.numbers import fixed, signed, with_error

Verdict = Literal["better", "worse", "unclear", "changed", "same", "missing"]
"""What a row's numbers allow to say; "changed" and "same" are for metrics without a good direction."""


def verdict(row: MetricRow) -> Verdict:
    """Whether post-training changed a metric, judged by the 95 % interval of the paired difference.

    A difference that the row's decimals round to zero is no change, however sure.
    """
    low, high = row.difference.interval
    if not (math.isfinite(row.difference.mean) and math.isfinite(low) and math.isfinite(high)):
        return "missing"
    clear = (low > 0 or high < 0) and not _rounds_to_zero(row)
    if row.better == "none":
        return "changed" if clear else "same"
    if not clear:
        return "unclear"
    if row.better == "one":
        nearer = abs(row.post_trained.mean - 1) < abs(row.prior.mean - 1)
        return "better" if nearer else "worse"
    return "better" if (row.difference.mean < 0) == (row.better == "lower") else "worse"


def with_unit(text: str, unit: str) -> str:
    """A number with its unit."""
    return f"{text} {unit}" if unit else text


def _rounds_to_zero(row: MetricRow) -> bool:
    """Whether a difference is too small to show in the decimals of its row."""
    return abs(row.difference.mean) < 0.5 * 10.0**-row.decimals


def listed(names: Sequence[str]) -> str:
    """Words with commas and an "and"."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def interval_text(row: MetricRow) -> str:
    """The 95 % interval of the paired difference, such as "[−29.8, −24.6]"; empty where there is none."""
    low, high = row.difference.interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{signed(low, row.decimals)}, {signed(high, row.decimals)}]"


def difference_text(row: MetricRow) -> str:
    """The paired difference with its 95 % interval, such as "−27.2 [−29.8, −24.6] mm"."""
    text = f"{signed(row.difference.mean, row.decimals)} {interval_text(row)}"
    return with_unit(text.rstrip(), row.unit)


def metric_sentence(row: MetricRow) -> Finding:
    """What happened to one metric."""
    before, after = fixed(row.prior.mean, row.decimals), with_unit(fixed(row.post_trained.mean, row.decimals), row.unit)
    found = verdict(row)
    moved = f"from {before} to {after} (paired difference {difference_text(row)})"
    if found == "missing":
        return Finding("neutral", f"{row.label} can't be compared: no paired difference with an interval was recorded.")
    if found in ("unclear", "same"):
        reason = "the difference rounds to zero" if _rounds_to_zero(row) else "the 95 % interval includes zero"
        return Finding("neutral", f"{row.label} shows no clear change: it went {moved}; {reason}.")
    verb = "lowered" if row.difference.mean < 0 else "raised"
    if found == "changed":
        return Finding("neutral", f"Post-training {verb} {row.label} {moved}.")
    tail = {"lower": "lower", "higher": "higher", "one": "nearer to 1", "none": ""}[row.better]
    ending = "." if found == "better" else f"; {tail} would be better."
    return Finding("good" if found == "better" else "bad", f"Post-training {verb} {row.label} {moved}{ending}")


def _averaging_findings(rows: Sequence[MetricRow]) -> list[Finding]:
    """How far averaging the prior's samples alone goes, for the rows that improved: beyond it, or within its reach."""
    beyond, within = [], []
    for row in rows:
        average = row.prior_mean_of_samples
        improved = row.better == "lower" and verdict(row) == "better"
        if average is not None and improved and average.mean < row.prior.mean:
            reach = f"{with_unit(fixed(average.mean, row.decimals), row.unit)} in {row.label}"
            below = average.mean - row.post_trained.mean >= 0.5 * 10.0**-row.decimals
            (beyond if below else within).append(reach)
    found = []
    if beyond:
        text = (
            f"Averaging the prior's samples would give {listed(beyond)}; single post-trained samples are below that, "
            "which losing variance alone would not reach."
        )
        found.append(Finding("neutral", text))
    if within:
        text = (
            f"Averaging the prior's samples already gives {listed(within)}: a gain of this size can come from samples "
            "that vary less, without a better motion."
        )
        found.append(Finding("neutral", text))
    return found


def _metric_findings(data: ReportData) -> list[Finding]:
    rows = [row for row in data.metrics if row.family != "paper"]
    headline = [row for row in rows if row.headline]
    others = [row for row in rows if not row.headline]
    found = [metric_sentence(row) for row in headline]
    found += _averaging_findings(headline)
    worse = [row for row in others if verdict(row) == "worse"]
    if worse:
        names = ", ".join(f"{row.label} ({difference_text(row)})" for row in worse)
        found.append(
            Finding(
                "warning",
                f"Got worse, clearly: {names}. A reward that doesn't measure these can be raised at their expense.",
            )
        )
    better = [row for row in others if verdict(row) == "better"]
    if better:
        found.append(
            Finding(
                "good",
                "Also improved, clearly: " + ", ".join(f"{row.label} ({difference_text(row)})" for row in better) + ".",
            )
        )
    return found


@dataclass(frozen=True)
class RewardChange:
    """How a reward curve ends against how it began."""

    first: float
    """Mean of the first tenth of the iterations."""
    last: float
    """Mean of the last tenth."""
    se: float
    """Standard error of last - first, from the scatter of the iterations; NaN with too few of them."""

    @property
    def difference(self) -> float:
        """Last minus first."""
        return self.last - self.first

    @property
    def decimals(self) -> int:
        """Decimals that show two digits of the difference."""
        size = abs(self.difference)
        return min(6, max(1, 1 - math.floor(math.log10(size)))) if math.isfinite(size) and size > 0 else 3

    @property
    def difference_text(self) -> str:
        """The difference with its standard error."""
        error = f" ± {fixed(self.se, self.decimals)}" if math.isfinite(self.se) else ""
        return signed(self.difference, self.decimals) + error


def reward_change(curve: Curve) -> RewardChange:
    """Means of a curve's first and last tenth."""
    first, last = curve.tenths()
    return RewardChange(first.mean, last.mean, math.hypot(first.se, last.se))


def _reward_findings(data: ReportData) -> list[Finding]:
    if not data.rewards or not data.rewards[0].y:
        return []
    change = reward_change(data.rewards[0])
    if not math.isfinite(change.difference):
        return [Finding("warning", "The total reward can't be judged: its first or last tenth holds no numbers.")]
    numbers = (
        f"{fixed(change.first, change.decimals)} in the first tenth of the iterations, "
        f"{fixed(change.last, change.decimals)} in the last (difference {change.difference_text})"
    )
    if not math.isfinite(change.se):
        return [Finding("neutral", f"Mean total reward: {numbers}; too few iterations for a standard error.")]
    if change.difference > 2 * change.se:
        return [Finding("good", f"The mean total reward rose: {numbers}.")]
    if change.difference < -2 * change.se:
        return [Finding("bad", f"The mean total reward fell: {numbers}.")]
    return [Finding("neutral", f"The mean total reward shows no clear change: {numbers}.")]


def _perceptual_findings(data: ReportData) -> list[Finding]:
    accuracy = data.perceptual_accuracy
    if accuracy is None or not math.isfinite(accuracy.mean):
        return []
    text = fixed(100 * accuracy.mean, 1)
    if math.isfinite(accuracy.se):
        text += f" ± {fixed(100 * accuracy.se, 1)}"
    beats_chance = math.isfinite(accuracy.se) and accuracy.mean - 2 * accuracy.se > 0.5
    tone = "good" if beats_chance else "warning" if accuracy.mean <= 0.5 else "neutral"
    return [
        Finding(
            tone,
            f"On held-out windows the perceptual model prefers the recording to a generated motion in {text} % of "
            "the comparisons (chance: 50 %).",
        )
    ]


def diversity_finding(group: BarGroup) -> Finding | None:
    """Whether a quantity rises with the bars' values, step by step; None if there aren't two bars with numbers."""
    bars = sorted(
        (bar for bar in group.bars if math.isfinite(bar.value) and math.isfinite(bar.mean)), key=lambda bar: bar.value
    )
    if len(bars) < 2:
        return None
    steps = [
        (after.rise, after.rise_se)
        if math.isfinite(after.rise)
        else (after.mean - before.mean, math.hypot(before.se, after.se))
        for before, after in pairwise(bars)
    ]
    numbers = ", ".join(f"{with_unit(with_error(bar.mean, bar.se), group.unit)} at {bar.label}" for bar in bars)
    name = group.title[:1].upper() + group.title[1:]
    if all(step > 0 for step, _ in steps):
        text = f"{name}: rises with every step of the noise, {numbers}"
        if all(step > 2 * se for step, se in steps):
            return Finding("good", text + ".")
        return Finding("neutral", text + "; not every step exceeds two standard errors.")
    return Finding("neutral", f"{name}: doesn't rise with every step of the noise, {numbers}.")


def _health_findings(data: ReportData) -> list[Finding]:
    found = []
    for panel in data.health:
        for curve in panel.curves:
            if not curve.y:
                continue
            last = curve.tenths()[1].mean
            if panel.key == "dead_groups" and last > 0.5:
                found.append(
                    Finding(
                        "warning",
                        f"{curve.label}: {fixed(100 * last, 0)} % had no spread in the last tenth of the iterations; "
                        "a reward teaches nothing in such a group.",
                    )
                )
            if panel.key == "clip_fraction" and last > 0.9:
                found.append(
                    Finding(
                        "warning",
                        f"{curve.label}: {fixed(100 * last, 0)} % of the ratios were clipped in the last tenth.",
                    )
                )
    gaps = []
    for curve in [
        *data.rewards,
        *(curve for panel in (*data.health, *data.prior_training, *data.perceptual_training) for curve in panel.curves),
    ]:
        missing = sum(not math.isfinite(value) for value in curve.y)
        if missing:
            gaps.append(f"{curve.label} ({missing} of {len(curve.y)})")
    if gaps:
        found.append(Finding("warning", f"Not a number, left out of the charts: {', '.join(gaps)}."))
    return found


def compute_findings(data: ReportData) -> tuple[Finding, ...]:
    """Every sentence that the numbers of a report support, then the caller's own."""
    found = _metric_findings(data) + _reward_findings(data) + _perceptual_findings(data)
    found += [sentence for group in data.diversity if (sentence := diversity_finding(group)) is not None]
    return (*found, *_health_findings(data), *data.findings)


def headline_sentence(data: ReportData) -> str:
    """One sentence for the top of the page: what post-training did to the headline metrics."""
    rows = [row for row in data.metrics if row.headline and row.family != "paper"]
    if not rows:
        return ""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(verdict(row), []).append(row.label)

    parts = []
    if "better" in groups:
        parts.append(f"improved {listed(groups['better'])}")
    if "worse" in groups:
        parts.append(f"worsened {listed(groups['worse'])}")
    unclear = groups.get("unclear", []) + groups.get("same", [])
    if unclear:
        parts.append(f"did not clearly change {listed(unclear)}")
    if not parts:
        return ""
    return "On held-out motion, post-training " + ("; it ".join(parts)) + "."
