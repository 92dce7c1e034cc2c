"""Charts of post-trainings, from the rows of their logs: one curve for each run, or for each part of a lone run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mgrpo.report.data import Curve, Panel

Row = Mapping[str, Any]

NETWORK_CALLS = "network_calls"
"""Name under which :func:`with_network_calls` counts them."""

_COLORS = ("post_trained", "prior", "accent", "ground_truth", "muted")
_REWARD_LABELS = {
    "visual": "perceptual model",
    "position": "joint position",
    "aligned_position": "aligned position",
    "rotation": "joint rotation",
    "velocity": "joint velocity",
}
_UNITS = (("_mm_s", "mm/s"), ("_mm", "mm"), ("_deg", "degrees"), ("_m_s3", "m/s³"), ("_frobenius", ""))


@dataclass(frozen=True)
class Log:
    """What a run has logged, and the settings that its charts refer to."""

    name: str
    rows: Sequence[Row]
    gradient_clip: float = math.nan
    clip_range: float = math.nan
    gold: str = ""
    """Measure that is no reward, without ``validation/``."""
    gold_better: Literal["min", "max"] = "min"
    labels: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Label and unit of the measures on validation clips, by name; others show their name."""


def with_network_calls(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows, each with how many sequences the network has been called on until then (its decoder, where a policy has
    several parts)."""
    counted, total = [], 0.0
    for row in rows:
        calls = row.get("decode")
        total = math.nan if calls is None else total + calls
        counted.append({**row, NETWORK_CALLS: None if math.isnan(total) else total})
    return counted


def reward_names(logs: Sequence[Log]) -> list[str]:
    """The rewards that any run has logged, in the order of the first that has them."""
    found: dict[str, None] = {}
    for log in logs:
        for row in log.rows[:1]:
            names = [key.split("/")[1] for key in row if key.startswith("rewards/") and key.endswith("/mean")]
            found |= dict.fromkeys(names)
    return list(found)


def reward_label(name: str) -> str:
    """A reward in words."""
    return _REWARD_LABELS.get(name, name.replace("_", " "))


def reward_curves(rows: Sequence[Row], names: Sequence[str]) -> tuple[Curve, ...]:
    """Total reward, then each reward, over iterations; the band is the spread inside groups."""
    curves = [Curve.from_rows(rows, "reward", "total reward", spread="reward_std", color="post_trained")]
    for name in names:
        key = f"rewards/{name}"
        curves.append(
            Curve.from_rows(rows, f"{key}/mean", reward_label(name), spread=f"{key}/std", color="post_trained")
        )
    return tuple(curves)


def reward_charts(logs: Sequence[Log], *, x: str = "step") -> list[Panel]:
    """The paper's figure 2: total reward and each reward, over iterations (``step``) or NETWORK_CALLS."""
    found = []
    for title, key in (("total reward", "reward"), *((reward_label(n), f"rewards/{n}") for n in reward_names(logs))):
        mean, std = (key, "reward_std") if key == "reward" else (f"{key}/mean", f"{key}/std")
        spread = std if len(logs) == 1 and x == "step" else None
        label = "iteration" if x == "step" else "sequences through the network"
        found.append(_panel(title, logs, mean, title, x=x, spread=spread, unit="mean reward", x_label=label))
    return _with_numbers(found)


def dead_groups(logs: Sequence[Log]) -> Panel:
    """How many groups teach nothing."""
    return _panel(
        "Dead groups", logs, "frac_reward_zero_std", "share of groups, over rewards", low=0.0, high=1.0,
        key="dead_groups", note="A group without spread in a reward has nothing to say about it.",
    )  # fmt: skip


def diversity(logs: Sequence[Log]) -> Panel:
    """How much the members of a group differ."""
    return _panel(
        "Diversity in groups", logs, "diversity/diversity_joint_std_mm", "joint spread", unit="mm",
        note="Standard deviation of the joints over the members of a group, during training.",
    )  # fmt: skip


def advantage(logs: Sequence[Log]) -> Panel:
    """How large advantages are."""
    return _panel(
        "Advantage", logs, "advantage/abs_mean", "mean absolute value",
        note="Summed over rewards, after normalisation in the group.",
    )  # fmt: skip


def gradient_norm(logs: Sequence[Log]) -> Panel:
    """The gradient before it is clipped."""
    return _panel(
        "Gradient norm", logs, "grad_norm", "norm before clipping", note="Of all weights together.",
        reference=_common(log.gradient_clip for log in logs), reference_label="clipping",
    )  # fmt: skip


def starting_ratio(logs: Sequence[Log]) -> Panel:
    """Whether rollout and update compute the same policy."""
    return _panel(
        "Starting log-ratio", logs, "ratio/first_log_max", "largest absolute value", low=0.0,
        reference=_common(log.clip_range for log in logs), reference_label="clip range",
        note="New against old policy before the first step of an update: zero, as both are still the same.",
    )  # fmt: skip


def validation(logs: Sequence[Log]) -> Panel:
    """Errors on validation clips, of which training knows nothing."""
    panel = _panel(
        "Error on validation clips", logs, "validation/mpjpe_mm", "MPJPE", unit="mm",
        note="Clean head path, fixed noise; no gradient comes from here.",
    )  # fmt: skip
    if len(logs) > 1:
        return panel
    other = Curve.from_rows(logs[0].rows, "validation/pa_mpjpe_mm", "PA-MPJPE", color="muted")
    return replace(panel, curves=tuple(curve for curve in (*panel.curves, other) if curve.y))


def group_charts(logs: Sequence[Log]) -> list[Panel]:
    """Whether the groups still teach anything."""
    signal = [(reward_label(name), f"rewards/{name}/signal") for name in reward_names(logs)]
    found = [
        dead_groups(logs),
        _panel("Groups without any signal", logs, "frac_dead_all", "share of groups", low=0.0, high=1.0),
        diversity(logs),
        _panel("Spread of the reward in groups", logs, "reward_std", "standard deviation"),
        advantage(logs),
        _panel("Clamped advantages", logs, "advantage/clamp_fraction", "share of samples", low=0.0),
        _panel("Samples without a score", logs, "unscored_samples", "samples", low=0.0),
    ]
    if len(logs) == 1:
        note = "Variance inside groups over all variance: what can be learned from, of what there is."
        found.append(_parts("Signal of each reward", logs[0], signal, low=0.0, high=1.0, note=note))
    return _with_numbers(found)


def update_charts(logs: Sequence[Log]) -> list[Panel]:
    """Whether the policy moves, and gently."""
    found = [gradient_norm(logs), starting_ratio(logs)]
    if len(logs) == 1:
        log, thirds = logs[0], ("early", "middle", "late")
        ratio = [("largest", "ratio/max"), ("mean", "ratio/mean"), ("smallest", "ratio/min")]
        clipped = [("from below", "clip_ratio/low_mean"), ("from above", "clip_ratio/high_mean")]
        found += [
            _parts("Ratio", log, ratio, note="Of new to old probability, over the passes of an iteration."),
            _parts("Clipped ratios", log, clipped, unit="share of samples", low=0.0, key="clip_fraction"),
            _parts(
                "Gradient in the prediction", log, [(name, f"output_grad_norm_{name}") for name in thirds],
                unit="norm", note="What the early, middle and late steps of the sampler ask of the network.", log=True,
            ),
        ]  # fmt: skip
    else:
        found += [
            _panel("Mean ratio", logs, "ratio/mean", "mean"),
            _panel("Clipped ratios", logs, "clip_ratio/region_mean", "share", low=0.0, key="clip_fraction"),
        ]
    found += [
        _panel("KL to the old policy", logs, "approx_kl", "KL", unit="nats per channel", low=0.0),
        *_unless_zero(_panel("KL to the prior", logs, "kl", "KL", unit="nats per channel", low=0.0)),
        _panel("Size of an update", logs, "update_ratio", "relative to the weights", log=True),
        _panel("Distance to the average", logs, "ema_distance", "relative to the weights", log=True),
        _panel("Learning rate", logs, "learning_rate", "learning rate"),
    ]
    return _with_numbers(found)


def error_charts(logs: Sequence[Log]) -> list[Panel]:
    """The errors behind the rewards, as anybody would measure them."""
    names: dict[str, None] = {}
    for log in logs:
        for row in log.rows[:1]:
            names |= dict.fromkeys(key for key in row if key.startswith("error/"))
    found = []
    for key in names:
        suffix, unit = next(((s, unit) for s, unit in _UNITS if key.endswith(s)), ("", ""))
        title = reward_label(key.removeprefix("error/").removesuffix(suffix))
        found.append(_panel(title, logs, key, title, unit=unit))
    return _with_numbers(found)


def gold_charts(logs: Sequence[Log]) -> list[Panel]:
    """Measures that are no rewards on clips that are not trained on; the deciding one first, with its best value."""
    keys: dict[str, None] = dict.fromkeys(f"validation/{log.gold}" for log in logs if log.gold)
    for log in logs:
        for row in log.rows:
            keys |= dict.fromkeys(key for key in row if key.startswith("validation/"))
    found = []
    for key in keys:
        name = key.removeprefix("validation/")
        label, unit = logs[0].labels.get(name, (name, ""))
        panel = _panel(label, logs, key, label, unit=unit)
        if len(logs) == 1 and name == logs[0].gold and (best := best_evaluation(logs[0])) is not None:
            panel = replace(panel, reference=best[1], reference_label=f"best, at iteration {best[0]:.0f}")
        found.append(panel)
    return _with_numbers(found)


def best_evaluation(log: Log) -> tuple[float, float] | None:
    """(iteration, value) of the best value of the deciding measure; on a tie the earlier one."""
    sign = 1.0 if log.gold_better == "min" else -1.0
    found = [
        (sign * row[f"validation/{log.gold}"], row["step"])
        for row in log.rows
        if row.get(f"validation/{log.gold}") is not None
    ]
    return (min(found)[1], sign * min(found)[0]) if found else None


def time_charts(logs: Sequence[Log]) -> list[Panel]:
    """Where the time goes."""
    found = [_panel("Time of an iteration", logs, "step_time", "seconds", unit="" if len(logs) == 1 else "s", low=0.0)]
    if len(logs) == 1:
        parts = [(phase, f"time/{phase}") for phase in phases(logs)]
        found = [_parts("Time of an iteration", logs[0], [("all", "step_time"), *parts], unit="seconds", low=0.0)]
    found += [
        _panel("Samples per second", logs, "system/samples_per_s", "samples/s", low=0.0),
        _panel("Network calls per second", logs, "system/network_calls_per_s", "sequences/s", low=0.0),
        _panel("Peak memory", logs, "system/peak_memory_mib", "MiB"),
    ]
    return _with_numbers(found)


def phases(logs: Sequence[Log]) -> list[str]:
    """Names of the phases of an iteration that any run has measured."""
    found: dict[str, None] = {}
    for log in logs:
        for row in log.rows[:1]:
            found |= dict.fromkeys(key.removeprefix("time/") for key in row if key.startswith("time/"))
    return list(found)


def _panel(
    title: str,
    logs: Sequence[Log],
    metric: str,
    label: str,
    /,
    *,
    x: str = "step",
    spread: str | None = None,
    **options: Any,
) -> Panel:
    """A curve of one metric for each run; several runs are told apart by name."""
    curves = [
        Curve.from_rows(
            log.rows, metric, label if len(logs) == 1 else log.name, x=x, spread=spread, color=_COLORS[i % len(_COLORS)]
        )
        for i, log in enumerate(logs)
    ]
    return Panel(title, tuple(curve for curve in curves if curve.y), **options)


def _parts(title: str, run: Log, parts: Sequence[tuple[str, str]], /, **options: Any) -> Panel:
    """Several metrics of one run, by label and key."""
    curves = [
        Curve.from_rows(run.rows, key, label, color=_COLORS[i % len(_COLORS)]) for i, (label, key) in enumerate(parts)
    ]
    return Panel(title, tuple(curve for curve in curves if curve.y), **options)


def _with_numbers(panels: Sequence[Panel]) -> list[Panel]:
    """The panels that have anything to show."""
    return [p for p in panels if any(math.isfinite(value) for curve in p.curves for value in curve.y)]


def _unless_zero(panel: Panel) -> list[Panel]:
    """The panel, unless all it holds is 0: what was not measured is logged as that."""
    return [panel] if any(value for curve in panel.curves for value in curve.y) else []


def _common(values: Iterable[float]) -> float:
    """A value that all runs share; NaN where they don't."""
    found = set(values)
    return found.pop() if len(found) == 1 else math.nan
