"""What looks wrong in a post-training, from its logged metrics alone, and what to try (facts: GRPO, 4.3 and 5)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Literal

from mgrpo.options import require


@dataclass(frozen=True)
class AlarmConfig:
    """When to warn. An alarm says what was seen and what to try; it never changes the training."""

    dead_groups: float = 0.5
    """Share of groups without any spread in their rewards, mean over --alarms.window iterations; 1: never."""
    clipped: float = 0.5
    """Share of ratios outside the clip range, mean over --alarms.window iterations; 1: never."""
    spike: float = 10.0
    """Gradient norm as a multiple of its median over --alarms.window iterations; 0: never."""
    diversity: float = 0.25
    """Diversity inside groups as a share of what it was in the first --alarms.window iterations; 0: never."""
    hacking: int = 2
    """Evaluations in a row in which the reward rose while the gold measure got worse; 0: never."""
    window: int = 20
    """Iterations that a mean or median is over."""
    every: int = 50
    """Iterations before the same alarm is given again."""

    def __post_init__(self) -> None:
        require(self, "dead_groups", "clipped", "diversity", at_least=0, at_most=1)
        require(self, "spike", "hacking", at_least=0)
        require(self, "window", "every", at_least=1)


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at."""

    name: str
    """dead_groups, clipped, gradient_spike, unscored, diversity or hacking."""
    step: int
    """Iterations finished when it was seen."""
    text: str
    """What was seen, and what to try."""


@dataclass
class Alarms:
    """Watches the metrics of one iteration after the other. What it remembers comes from these alone, so a resumed
    training feeds it the log that is there."""

    config: AlarmConfig
    gold: str
    """Name of the measure that is no reward, without its prefix ``validation/``."""
    gold_better: Literal["min", "max"]
    _recent: deque[Mapping[str, float]] = field(init=False)
    _first_diversity: list[float] = field(default_factory=list, init=False)
    _given: dict[str, int] = field(default_factory=dict, init=False)
    _gold: list[tuple[float, float]] = field(default_factory=list, init=False)
    _rewards: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._recent = deque(maxlen=self.config.window)

    def replay(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Remember what is logged already, silently."""
        for row in rows:
            self.observe(int(row["step"]), row)

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Take in an iteration; the alarms that it gives, each at most once in ``every`` iterations."""
        spike = self._spike(metrics)  # compared with the iterations before it
        self._recent.append(metrics)
        found: dict[str, str | None] = {
            "unscored": self._unscored(metrics),
            "gradient_spike": spike,
            "dead_groups": self._dead(),
            "clipped": self._clipped(),
            "diversity": self._diversity(metrics),
            "hacking": self._hacking(metrics),
        }
        alarms = []
        for name, text in found.items():
            if text is not None and step - self._given.get(name, -self.config.every) >= self.config.every:
                self._given[name] = step
                alarms.append(Alarm(name, step, text))
        return alarms

    def _mean(self, name: str) -> float | None:
        """Mean over a full window; None before there is one."""
        if len(self._recent) < self.config.window:
            return None
        values = [row[name] for row in self._recent if _known(row, name)]
        return sum(values) / len(values) if values else None

    def _dead(self) -> str | None:
        share = self._mean("frac_dead_all")
        if share is None or share <= self.config.dead_groups or self.config.dead_groups == 1:
            return None
        return (
            f"{share:.0%} of the groups had no spread in any reward over the last {self.config.window} iterations: "
            "they teach nothing. Try more noise (--sampler.eta, --perlin.alpha), own initial noise for every member, "
            "a larger --group-size, or steeper --scales"
        )

    def _clipped(self) -> str | None:
        share = self._mean("clip_ratio/region_mean")
        if share is None or share <= self.config.clipped or self.config.clipped == 1:
            return None
        return (
            f"{share:.0%} of the ratios were clipped over the last {self.config.window} iterations: most samples no "
            "longer give a gradient. Try fewer --optimizer-steps, a lower --learning-rate, or a wider --loss.clip-range"
        )

    def _spike(self, metrics: Mapping[str, float]) -> str | None:
        norms = [row["grad_norm"] for row in self._recent if _known(row, "grad_norm")]
        if not self.config.spike or len(norms) < self.config.window or not _known(metrics, "grad_norm"):
            return None
        usual, norm = median(norms), metrics["grad_norm"]
        if norm <= self.config.spike * usual or usual == 0:
            return None
        return (
            f"the gradient's norm is {norm:.3g}, {norm / usual:.0f} times its median over the last {len(norms)} "
            "iterations. If this comes again, try a lower --learning-rate or --gradient-clip, or --loss.step-weight "
            "inv_snr"
        )

    def _unscored(self, metrics: Mapping[str, float]) -> str | None:
        count = metrics.get("unscored_samples", 0)
        if not count:
            return None
        return (
            f"{count:.0f} samples could not be scored (a reward was NaN) and were left out; unscored.jsonl names them. "
            "If there are many, look for broken conditions or a reward that divides by zero"
        )

    def _diversity(self, metrics: Mapping[str, float]) -> str | None:
        name = next((key for key in metrics if key.startswith("diversity/") and _known(metrics, key)), None)
        if name is None:
            return None
        if len(self._first_diversity) < self.config.window:
            self._first_diversity.append(metrics[name])
            return None
        begun = sum(self._first_diversity) / len(self._first_diversity)
        now = self._mean(name)
        if now is None or not begun or now >= self.config.diversity * begun:
            return None
        return (
            f"the members of a group differ by {now:.3g} ({name}), {now / begun:.0%} of what it was at the beginning: "
            "the policy collapses. Try --loss.kl-coef, a lower --learning-rate, or an earlier checkpoint"
        )

    def _hacking(self, metrics: Mapping[str, float]) -> str | None:
        if _known(metrics, "reward"):
            self._rewards.append(metrics["reward"])
        name = f"validation/{self.gold}"
        if not self.config.hacking or not _known(metrics, name) or not self._rewards:
            return None
        sign = 1.0 if self.gold_better == "min" else -1.0
        self._gold.append((sum(self._rewards) / len(self._rewards), sign * metrics[name]))
        self._rewards = []
        last = self._gold[-self.config.hacking - 1 :]
        if len(last) <= self.config.hacking:
            return None
        if not all(after[0] > before[0] and after[1] > before[1] for before, after in pairwise(last)):
            return None
        return (
            f"in the last {self.config.hacking} evaluations the reward rose ({last[0][0]:.4g} to {last[-1][0]:.4g}) "
            f"while {self.gold} got worse ({abs(last[0][1]):.4g} to {abs(last[-1][1]):.4g}): the policy learns to "
            "please the reward. Try the best checkpoint, --patience, --loss.kl-coef, or other reward weights"
        )


def _known(row: Mapping[str, float], name: str) -> bool:
    value = row.get(name)
    return value is not None and math.isfinite(value)


