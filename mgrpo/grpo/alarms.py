"""What looks wrong in a post-training, from its logged metrics alone, and what to try (facts: GRPO, sections 4.3 and
5)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from mgrpo.options import option, require


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
    hacking_margin: float = 0.01
    """How much worse the gold measure must have got over them, as a share of itself."""
    window: int = 20
    """Iterations that a mean or median is over."""
    every: int = 50
    """Iterations before the same alarm is given again."""

    def __post_init__(self) -> None:
        require(self, "dead_groups", "clipped", "diversity", at_least=0, at_most=1)
        require(self, "spike", "hacking", "hacking_margin", at_least=0)
        require(self, "window", "every", at_least=1)

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        return {} if self.hacking else {"hacking_margin": f"with {option(self, 'hacking')} 0"}


@dataclass(frozen=True)
class Alarm:
    """Something that a person should look at."""

    name: str
    """unscored, ratio, gradient_spike, dead_groups, clipped, diversity or hacking."""
    step: int
    """Iterations finished when it was seen."""
    text: str
    """What was seen, and what to try."""


@dataclass(frozen=True)
class _Evaluation:
    """The gold measure, and the reward since the evaluation before."""

    reward: float
    """Mean over iterations."""
    error: float
    """Standard error of that mean; 0 where there is one iteration only."""
    gold: float
    """With the sign that makes smaller values better."""


class Alarms:
    """Watches the metrics of one iteration after the other.

    What it remembers comes from these alone and does not grow, so a resumed training feeds it the log that is there and
    gives the alarms of an unbroken one. A metric that is missing, None or NaN is not there for it.
    """

    def __init__(
        self, config: AlarmConfig, *, clip_range: float, gold: str, gold_better: Literal["min", "max"]
    ) -> None:
        """``clip_range``: of the ratios. ``gold``: the measure that is no reward, without ``validation/`` before it."""
        self.config = config
        self._clip_range = clip_range
        self._gold = gold
        self._sign = 1.0 if gold_better == "min" else -1.0
        self._recent: deque[Mapping[str, float | None]] = deque(maxlen=config.window)
        self._given: dict[str, int] = {}
        self._first_diversity: list[float] = []
        self._evaluations: deque[_Evaluation] = deque(maxlen=config.hacking + 1)
        # count, mean and sum of squared deviations of the rewards since the last evaluation
        self._rewards = (0, 0.0, 0.0)

    def replay(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Remember what is logged already, silently."""
        for row in rows:
            self.observe(int(row["step"] or 0), row)

    def observe(self, step: int, metrics: Mapping[str, float | None]) -> list[Alarm]:
        """Take in an iteration; the alarms that it gives, each at most once in ``every`` iterations."""
        spike = self._spike(metrics)  # compared with the iterations before it
        self._recent.append(metrics)
        found = {
            "unscored": self._unscored(metrics),
            "ratio": self._ratio(metrics),
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

    def _known(self, name: str) -> list[float]:
        """The finite values of the recent iterations, where the window is full and most of them have one; else none."""
        values = [value for row in self._recent if (value := _number(row, name)) is not None]
        return values if len(self._recent) == self.config.window and 2 * len(values) > self.config.window else []

    def _mean(self, name: str) -> float | None:
        values = self._known(name)
        return sum(values) / len(values) if values else None

    def _unscored(self, metrics: Mapping[str, float | None]) -> str | None:
        count = _number(metrics, "unscored_samples")
        if not count:
            return None
        samples = "1 sample" if count == 1 else f"{count:.0f} samples"
        return (
            f"{samples} could not be scored (a reward was NaN) and count for nothing; unscored.jsonl names them. If "
            "this goes on, look for broken conditions, or a reward that divides by zero"
        )

    def _ratio(self, metrics: Mapping[str, float | None]) -> str | None:
        worst = _number(metrics, "ratio/first_log_max")
        if worst is None or worst <= 0.1 * self._clip_range:
            return None
        return (
            f"before its update the ratio was off by {worst:.3g} (clip range {self._clip_range:g}): rollout and update "
            "no longer compute the same network. Try --execution.precision fp32 and --execution.no-compile"
        )

    def _spike(self, metrics: Mapping[str, float | None]) -> str | None:
        norms, norm = self._known("grad_norm"), _number(metrics, "grad_norm")
        if not self.config.spike or not norms or norm is None:
            return None
        usual = median(norms)
        if usual == 0 or norm <= self.config.spike * usual:
            return None
        return (
            f"the gradient's norm is {norm:.3g}, {norm / usual:.3g} times its median over the last {len(norms)} "
            "iterations. If this comes again, try a lower --learning-rate or --gradient-clip, or --loss.step-weight "
            "inv_snr"
        )

    def _dead(self) -> str | None:
        share = self._mean("frac_dead_all")
        if share is None or share <= self.config.dead_groups:
            return None
        return (
            f"{share:.0%} of the groups had no spread in any reward over the last {self.config.window} iterations: "
            "they teach nothing. Try more noise (--sampler.eta, --perlin.alpha), --no-share-initial-noise, a larger "
            "--group-size, or steeper --scales"
        )

    def _clipped(self) -> str | None:
        share = self._mean("clip_ratio/region_mean")
        if share is None or share <= self.config.clipped:
            return None
        return (
            f"{share:.0%} of the ratios were clipped over the last {self.config.window} iterations: most samples no "
            "longer give a gradient. Try fewer --optimizer-steps, a lower --learning-rate, or a wider --loss.clip-range"
        )

    def _diversity(self, metrics: Mapping[str, float | None]) -> str | None:
        name = next((key for key in metrics if key.startswith("diversity/")), None)
        value = None if name is None else _number(metrics, name)
        if name is None or value is None:
            return None
        if len(self._first_diversity) < self.config.window:
            self._first_diversity.append(value)
            return None
        begun = sum(self._first_diversity) / len(self._first_diversity)
        now = self._mean(name)
        if now is None or now >= self.config.diversity * begun:
            return None
        return (
            f"the members of a group differ by {now:.3g} ({name.removeprefix('diversity/')}), {now / begun:.0%} of "
            "what it was at the beginning: the policy collapses. Try --loss.kl-coef, a lower --learning-rate, or an "
            "earlier checkpoint"
        )

    def _hacking(self, metrics: Mapping[str, float | None]) -> str | None:
        reward, gold = _number(metrics, "reward"), _number(metrics, f"validation/{self._gold}")
        count, mean, squares = self._rewards
        if reward is not None:
            count, before = count + 1, mean
            mean += (reward - mean) / count
            squares += (reward - before) * (reward - mean)
        self._rewards = (count, mean, squares)
        if gold is None or not count or not self.config.hacking:
            return None
        error = math.sqrt(squares / (count - 1) / count) if count > 1 else 0.0
        self._evaluations.append(_Evaluation(mean, error, self._sign * gold))
        self._rewards = (0, 0.0, 0.0)
        seen = list(self._evaluations)
        if len(seen) <= self.config.hacking:
            return None
        first, last = seen[0], seen[-1]
        in_a_row = all(b.reward > a.reward and b.gold > a.gold for a, b in pairwise(seen))
        clear = last.reward - first.reward > 2 * math.hypot(first.error, last.error)
        if not (in_a_row and clear and last.gold - first.gold > self.config.hacking_margin * abs(first.gold)):
            return None
        return (
            f"over the last {self.config.hacking} evaluations the reward rose ({first.reward:.4g} to "
            f"{last.reward:.4g}) while {self._gold} got worse ({self._sign * first.gold:.4g} to "
            f"{self._sign * last.gold:.4g}): the policy learns to please the reward. Try the best checkpoint, "
            "--patience, --loss.kl-coef, or other --rewards"
        )


def _number(row: Mapping[str, float | None], name: str) -> float | None:
    """A metric where it is there and finite."""
    value = row.get(name)
    return value if value is not None and math.isfinite(value) else None
