"""From what the demo's stages left behind to the report's plain numbers."""

from __future__ import annotations

import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgrpo.data import MotionWindows
from mgrpo.demo.config import DemoConfig
from mgrpo.eval.cells import counted
from mgrpo.eval.evaluate import EvaluationResult, compare
from mgrpo.eval.metrics import METRICS
from mgrpo.eval.statistics import over_windows_and_seeds
from mgrpo.eval.tables import interval_note
from mgrpo.models.motion import PredictedMotion
from mgrpo.report.data import (
    Bar,
    BarGroup,
    Curve,
    Estimate,
    MetricRow,
    PairedDifference,
    Panel,
    ReportData,
    RunInfo,
    Stage,
)
from mgrpo.report.numbers import short
from mgrpo.report.training_panels import (
    Log,
    advantage,
    dead_groups,
    diversity,
    gradient_norm,
    reward_curves,
    starting_ratio,
    validation,
)
from mgrpo.runs.metric_log import read_metrics
from mgrpo.runs.provenance import provenance
from mgrpo.train.diversity import DiversityAt
from mgrpo.viz.comparison import MotionComparison, SkeletonTrack

_STAGE_LABELS = {"perceptual": "perceptual model", "grpo": "GRPO"}
_HEADLINE = ("mpjpe_mm", "pa_mpjpe_mm", "mpjve_mm_s")


@dataclass(frozen=True)
class DemoResults:
    """Everything that the report is made of."""

    started: datetime
    command: list[str] | None
    config: DemoConfig
    results: Sequence[EvaluationResult]
    """Prior first, then post-trained, on the held-out windows."""
    diversity: Sequence[DiversityAt]
    windows: MotionWindows
    """Held-out windows."""
    samples: Mapping[str, PredictedMotion]
    """Samples ``(N, S, T, …)`` of the held-out windows by model name."""
    clip_names: Mapping[str, tuple[str, ...]]
    stages: tuple[Stage, ...]
    folders: Mapping[str, Path]
    """Run folder of each training stage."""


def demo_report(found: DemoResults) -> ReportData:
    """The report of a demo."""
    prior_log, perceptual_log, grpo_log = (
        read_metrics(found.folders[name] / "metrics.jsonl") for name in ("prior", "perceptual", "grpo")
    )
    prior, post = found.results
    accuracy, rows = prior_accuracy(prior), metric_rows(prior, post)
    windows, config = len(found.windows), found.config
    return ReportData(
        run=_run_info(found),
        stages=tuple(replace(stage, name=_STAGE_LABELS.get(stage.name, stage.name)) for stage in found.stages),
        metrics=rows,
        rewards=reward_curves(grpo_log, list(config.grpo.rewards.active())),
        prior_training=(_prior_panel(prior_log),),
        perceptual_training=_perceptual_panels(perceptual_log),
        perceptual_accuracy=accuracy,
        health=health_panels(grpo_log, config),
        diversity=diversity_bars(found.diversity),
        motions=comparisons(found),
        evaluation_note=(
            f"{windows} windows of {config.data.length} frames from the clips "
            f"{', '.join(found.clip_names['held_out'])} (and their mirror images) "
            f"that no stage has trained on; {counted(config.evaluation_seeds, 'noise seed')} with "
            f"{counted(config.evaluation_samples, 'sample')} each; the same sampler "
            f"({config.grpo.sampler.kernel}, {config.grpo.sampler.steps} steps) and the same noise for both models."
        ),
        interval_note=_interval_note(prior, rows),
    )


def _interval_note(prior: EvaluationResult, rows: Sequence[MetricRow]) -> str:
    """What the intervals of the rows' differences are: those of the tables beside the report."""
    said = interval_note(prior, "Intervals of differences")
    if not any(math.isfinite(row.difference.ci_low) for row in rows):
        # one clip: PairedDifference falls back on the standard error
        said += " The intervals shown are 1.96 standard errors over windows and seeds to either side."
    return said


def prior_accuracy(prior: EvaluationResult) -> Estimate | None:
    """The perceptual model's accuracy on held-out windows against the prior's samples, if it was measured."""
    statistic = prior.statistics().get("accuracy")
    return None if statistic is None else Estimate(statistic.mean, statistic.standard_error)


def metric_rows(prior: EvaluationResult, post: EvaluationResult) -> tuple[MetricRow, ...]:
    """A row for every measure that both models have, with the paired difference (post-trained minus prior).

    Means, errors and intervals are those of the tables (:mod:`mgrpo.eval.tables`): page, pictures, terminal and JSON
    come to the same verdicts.
    """
    before, after = prior.statistics(), post.statistics()
    means, truth, gaps = prior.mean_of_samples_statistics(), prior.ground_truth_statistics(), compare(prior, post)
    rows = []
    for name, info in METRICS.items():
        if name not in before or name not in after or name not in gaps:
            continue
        scale, gap = info.scale, gaps[name]

        def estimate(found: Mapping[str, Any], name: str = name, scale: float = scale) -> Estimate | None:
            statistic = found.get(name)
            return None if statistic is None else Estimate(scale * statistic.mean, scale * statistic.standard_error)

        rows.append(
            MetricRow(
                key=name,
                label=info.label,
                unit=info.unit,
                better="one" if name == "jitter_ratio" else info.better,
                prior=estimate(before),
                post_trained=estimate(after),
                difference=PairedDifference(
                    scale * gap.mean,
                    scale * gap.standard_error,
                    scale * gap.interval_low,
                    scale * gap.interval_high,
                ),
                family=info.family,
                prior_mean_of_samples=estimate(means),
                ground_truth=estimate(truth),
                decimals=info.decimals,
                description=info.doc,
                headline=name in _HEADLINE,
            )
        )
    return tuple(rows)


def _prior_panel(log: Sequence[Mapping[str, Any]]) -> Panel:
    return Panel(
        "Denoising loss",
        (
            Curve.from_rows(log, "loss", "training", color="muted"),
            Curve.from_rows(log, "validation_loss", "validation clips", color="prior"),
        ),
        unit="weighted squared error",
        note="Of the predicted clean motion. Training windows are drawn anew at every step.",
        log=True,
    )


def _perceptual_panels(log: Sequence[Mapping[str, Any]]) -> tuple[Panel, ...]:
    return (
        Panel(
            "InfoNCE loss",
            (
                Curve.from_rows(log, "loss", "training", color="muted"),
                Curve.from_rows(log, "validation/loss", "validation clips"),
            ),
            unit="nats",
            note="How surely the recording is told from the prior's samples; lower is surer.",
        ),
        Panel(
            "Accuracy",
            (
                Curve.from_rows(log, "accuracy", "training", color="muted"),
                Curve.from_rows(log, "validation/accuracy", "validation clips"),
            ),
            unit="share of pairs",
            note="Pairs in which the recording scores higher; guessing gives one half.",
            low=0.0,
            high=1.0,
            reference=0.5,
            reference_label="guessing",
        ),
    )


def health_panels(rows: Sequence[Mapping[str, Any]], config: DemoConfig) -> tuple[Panel, ...]:
    """Whether groups teach anything, and whether the policy moves gently."""
    log = [Log("GRPO", rows, gradient_clip=config.grpo.gradient_clip, clip_range=config.grpo.loss.clip_range)]
    panels = (dead_groups, diversity, advantage, gradient_norm, starting_ratio, validation)
    return tuple(panel for panel in (make(log) for make in panels) if any(len(line.y) for line in panel.curves))


def diversity_bars(diversity: Sequence[DiversityAt]) -> tuple[BarGroup, ...]:
    """One group of bars for each measure of diversity and each kind of noise, over the amplitudes of the noise."""
    groups = []
    kinds = [(per_member, name) for per_member in (False, True) for name in (diversity[0].values if diversity else ())]
    for per_member, name in kinds:
        info = METRICS[name]
        bars, before = [], None
        for entry in diversity:
            if entry.per_member != per_member:
                continue
            statistic = over_windows_and_seeds(entry.values[name])
            rise, rise_se = math.nan, math.nan
            if before is not None:
                change = over_windows_and_seeds(entry.values[name] - before)
                rise, rise_se = info.scale * change.mean, info.scale * change.standard_error
            before = entry.values[name]
            bars.append(
                Bar(
                    f"{entry.alpha:g} m",
                    info.scale * statistic.mean,
                    info.scale * statistic.standard_error,
                    value=entry.alpha,
                    rise=rise,
                    rise_se=rise_se,
                )
            )
        whose = "each member its own noise" if per_member else "the group shares the noise"
        if bars:
            name = info.label.rstrip("*")
            groups.append(
                BarGroup(
                    f"{name}, {whose}",
                    info.unit,
                    tuple(bars),
                    note=f"{info.doc}.",
                    quantity=name,
                    x_label="amplitude of the Perlin noise",
                )
            )
    return tuple(groups)


def printed_diversity(diversity: Sequence[DiversityAt]) -> str:
    """The diversities as a line for the terminal."""
    parts = []
    for group in diversity_bars(diversity):
        bars = ", ".join(f"alpha {bar.label} {bar.mean:.2f} ± {bar.se:.2f}" for bar in group.bars)
        parts.append(f"{group.title} ({group.unit}): {bars}")
    return "\n".join(["diversity inside groups", *(f"  {part}" for part in parts)])


def comparisons(found: DemoResults, count: int = 6) -> tuple[MotionComparison, ...]:
    """Clips for the player: one window of each held-out clip first, the one with the median error of the prior, then
    others by name."""
    truth = found.windows.joints
    errors = {
        name: ((motion.joints22[:, 0] - truth).norm(dim=-1).mean(-1) * 1000) for name, motion in found.samples.items()
    }
    order: list[int] = []
    prior_error = errors["prior"].mean(-1)
    for name in dict.fromkeys(found.windows.names):
        rows = [row for row, owner in enumerate(found.windows.names) if owner == name]
        rows.sort(key=lambda row: float(prior_error[row]))
        order.append(rows[len(rows) // 2])
    made = []
    for row in order[:count]:
        tracks = {}
        for name, motion in found.samples.items():
            contacts = motion.contacts[row, 0].clamp(0, 1)
            tracks[name] = SkeletonTrack(_array(motion.joints22[row]), _array(contacts), _array(errors[name][row]))
        made.append(
            MotionComparison(
                name=found.windows.names[row],
                fps=30.0,
                ground_truth=SkeletonTrack(_array(truth[row]), _array(found.windows.contacts[row])),
                prior=tracks["prior"],
                post_trained=tracks["post-trained"],
                T_world_cpf=_array(found.windows.T_world_cpf[row]),
                caption="held-out clip; of its windows, the one on which the prior's error is the median",
            )
        )
    return tuple(made)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _run_info(found: DemoResults) -> RunInfo:
    config = found.config
    record, _ = provenance(found.command, resumed_from_step=None)
    git = record.get("git") or {}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return RunInfo(
        title="MotionGRPO, small",
        summary=(
            "A diffusion prior guesses the body from the head's path, and is post-trained with GRPO under Perlin "
            "noise and a hybrid reward."
        ),
        command="mgrpo demo" if found.command is None else shlex.join(["mgrpo", *found.command[1:]]),
        date=found.started.isoformat(timespec="seconds"),
        seed=config.seed,
        git_commit=str(git.get("commit") or ""),
        git_dirty=bool(git.get("dirty")),
        machine={
            "processor": f"{platform.machine()}, {os.cpu_count()} cores",
            "memory": f"{memory:.0f} GiB",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "system": platform.platform(terse=True),
        },
        versions={name: str(version) for name, version in record.get("versions", {}).items()},
        config={
            "motion": {
                "prior": ", ".join(found.clip_names["train"]),
                "GRPO": ", ".join(found.clip_names["post_training"] or found.clip_names["train"]),
                "validation": ", ".join(found.clip_names["validation"]),
                "held out": ", ".join(found.clip_names["held_out"]),
                "window": f"{config.data.length} frames",
            },
            "prior": {
                "preset": config.prior.preset,
                "optimiser steps": str(config.prior.iterations),
                "batch": f"{config.prior.batch_size} windows",
                "learning rate": short(config.prior.learning_rate),
            },
            "perceptual": {
                "preset": config.perceptual.preset,
                "optimiser steps": str(config.perceptual.iterations),
                "candidates": f"1 recording, {config.perceptual.negatives_per_clip} samples",
            },
            "GRPO": {
                "rollouts": str(config.grpo.iterations),
                "groups": f"{config.grpo.conditions} of {config.grpo.group_size}",
                "sampler": f"{config.grpo.sampler.kernel}, eta {config.grpo.sampler.eta:g}, "
                f"{config.grpo.sampler.steps} steps",
                "Perlin noise": f"{config.grpo.perlin.alpha:g} m",
                "rewards": ", ".join(name.replace("_", " ") for name in config.grpo.rewards.active()),
                "learning rate": short(config.grpo.learning_rate),
            },
        },
    )
