"""What each ablation consists of: rows, columns, and what a row is compared with. Nothing is run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from mgrpo.errors import InputError
from mgrpo.eval.metrics import METRICS, MetricInfo
from mgrpo.train.grpo_config import GRPO_PRESETS

from .options import (
    PRESET_PARTS,
    AblateConfig,
    PresetsConfig,
    SamplerAblationConfig,
    StepWeightsConfig,
    Table2Config,
    Table3Config,
    Table4Config,
    Table5Config,
)

Method = Literal["prior", "grpo", "finetune", "dpo", "reft", "perceptual"]

PAPER_COLUMNS = (
    *("mpjpe_mm", "pa_mpjpe_egoallo_mm", "mpjve_mm_s", "mpjre_paper_deg"),
    *("jitter_ratio", "gp_sum_m", "fs_egoallo_m"),
)
"""The paper's seven measures as published."""
STANDARD_COLUMNS = (
    *("mpjpe_mm", "pa_mpjpe_mm", "mpjve_mm_s", "mpjre_geodesic_deg"),
    *("jitter_m_s3", "gp_mean_mm", "fs_mm_per_contact_frame"),
)
"""The same by their usual definitions."""
_DIVERSITY = ("diversity_l2", "diversity_joint_std_mm")


@dataclass(frozen=True)
class Row:
    """One line of an ablation: a training that differs from the others in what ``changes`` says."""

    name: str
    """Name in options and folders."""
    label: str
    """Name in tables."""
    method: Method
    """What is trained: ``prior`` nothing beyond the shared prior, ``perceptual`` a perceptual model."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training that differ from the ablation's, by dotted name."""
    reference: str | None = None
    """Row that it is compared with."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler in the evaluation that differ from the ablation's."""
    block: str = ""
    """Heading of its part of the table."""
    equal_calls: str | None = None
    """Row whose network calls it shall have: its iterations are set from what both rows of its own name before the
    ``@`` spent."""


@dataclass(frozen=True)
class Ablation:
    """An ablation."""

    name: str
    title: str
    rows: Callable[[Any], tuple[Row, ...]]
    """From its configuration."""
    tables: Mapping[str, tuple[str, ...]]
    """Columns of each of its tables, by the family of definitions."""
    better: Mapping[str, Literal["lower", "higher"]] = field(default_factory=dict)
    """Direction that counts as an improvement of measures that have none elsewhere."""
    diversity: bool = False
    """Whether the diversity of the prior's groups is measured under each row's noise; it takes the place of the
    evaluation's."""

    def measures(self, family: str) -> tuple[MetricInfo, ...]:
        """Columns of the table of a family, with the directions that are good here."""
        infos = (METRICS[name] for name in self.tables[family])
        return tuple(replace(info, better=self.better.get(info.name, info.better)) for info in infos)


def _table2(config: Table2Config) -> tuple[Row, ...]:
    return (
        Row("prior", "Baseline (prior)", "prior"),
        Row("vanilla", "+ Vanilla GRPO", "grpo", {"rewards.visual": 0.0, "perlin.alpha": 0.0}, "prior"),
        Row("visual", "+ Visual", "grpo", {"perlin.alpha": 0.0}, "prior"),
        Row("perlin", "+ Perlin noise", "grpo", {}, "prior"),
    )


def _table3(config: Table3Config) -> tuple[Row, ...]:
    rows = []
    for per_member, alpha in product((False, True), config.alphas):
        if alpha == 0 and per_member and 0.0 in config.alphas:
            continue  # without noise there is nothing to share
        kind = "member" if per_member else "shared"
        name, label = ("none", "No noise") if alpha == 0 else (f"{kind}-{alpha:g}", f"Perlin α = {alpha:g} m, {kind}")
        changes = {"perlin.alpha": alpha, "perlin.per_member": per_member}
        rows.append(Row(name, label, "grpo", changes, None if alpha == 0 else "none"))
    if "none" not in {row.name for row in rows}:
        rows.insert(0, Row("none", "No noise", "grpo", {"perlin.alpha": 0.0, "perlin.per_member": False}))
    return tuple(rows)


def _table4(config: Table4Config) -> tuple[Row, ...]:
    return (
        *(
            Row(
                f"noise-{sigma:g}",
                f"GT noise (σ = {sigma:g})",
                "perceptual",
                {"negatives": "gaussian", "gaussian_sigma": sigma},
                "samples",
            )
            for sigma in config.sigmas
        ),
        Row("samples", "Hard-negative samples", "perceptual"),
    )


def _table5(config: Table5Config) -> tuple[Row, ...]:
    own = config.baselines
    levels = {"levels": own.levels}
    dpo = {"beta": own.beta, **levels}
    methods: tuple[tuple[str, str, Method, dict[str, Any]], ...] = (
        ("finetune", "FT (denoising loss)", "finetune", {"variant": "denoise", **levels}),
        ("finetune-geometric", "FT (+ joint errors)", "finetune", {"variant": "geometric", **levels}),
        ("finetune-best", "FT (best of group)", "finetune", {"variant": "best-of-group", **levels}),
        ("dpo-offline", "DPO (offline)", "dpo", {"mode": "offline", **dpo}),
        ("dpo-online", "DPO (online)", "dpo", {"mode": "online", "refresh_every": own.refresh_every, **dpo}),
        ("dpo-truth", "DPO (recording wins)", "dpo", {"mode": "offline", "winner": "truth", **dpo}),
        ("reft", "Rewards back-propagated", "reft", {"last_steps": own.last_steps}),
    )
    steps, calls = "equal optimiser steps", "equal network calls"
    return (
        Row("prior", "Prior", "prior", block=steps),
        *(Row(name, label, method, changes, "prior", block=steps) for name, label, method, changes in methods),
        Row("grpo", "GRPO", "grpo", {}, "prior", block=steps),
        *(
            Row(f"{name}@calls", label, method, changes, "prior", block=calls, equal_calls="grpo")
            for name, label, method, changes in methods
        ),
    )


def _sampler(config: SamplerAblationConfig) -> tuple[Row, ...]:
    rows = []
    for kernel, eta in product(config.kernels, config.etas):
        if kernel == "ode" or eta == 0:
            raise InputError(f"--kernels {kernel}, --etas {eta:g}: no step draws noise, so there is nothing to train")
        name, label = f"{kernel}-{eta:g}", f"{kernel}, η = {eta:g}"
        changed = {"kernel": kernel, "eta": eta}
        rows.append(Row(f"{name}.prior", f"{label}: prior", "prior", sampler=changed, block=label))
        training = {f"sampler.{key}": value for key, value in changed.items()}
        rows.append(Row(name, f"{label}: GRPO", "grpo", training, f"{name}.prior", changed, label))
    return tuple(rows)


def _stepweights(config: StepWeightsConfig) -> tuple[Row, ...]:
    rows = [Row("prior", "Prior", "prior")]
    for weight, size in product(("none", "inv_snr", "noise"), config.window_sizes):
        steps = "all steps" if size == 0 else f"{size} noisiest"
        changes = {"loss.step_weight": weight, "window.size": size}
        rows.append(Row(f"{weight}-{size or 'all'}", f"{weight}, {steps}", "grpo", changes, "prior"))
    return tuple(rows)


def _presets(config: PresetsConfig) -> tuple[Row, ...]:
    steps, calls = "equal optimiser steps", "equal network calls"
    changes = {
        name: {
            **{part: getattr(preset, part) for part in PRESET_PARTS},
            "sampler.project": preset.sampler.project,
            "execution.reuse_graphs": preset.execution.reuse_graphs,
        }
        for name, preset in GRPO_PRESETS.items()
    }
    names = ("paper", "default", "fast")
    return (
        Row("prior", "Prior", "prior", block=steps),
        *(Row(name, name, "grpo", changes[name], "prior", block=steps) for name in names),
        *(
            Row(f"{name}@calls", name, "grpo", changes[name], "prior", block=calls, equal_calls="paper")
            for name in names[1:]
        ),
    )


_SEVEN = {"paper": PAPER_COLUMNS, "standard": STANDARD_COLUMNS}

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation("table2", "Table 2: parts of the method", _table2, _SEVEN),
        Ablation(
            "table3",
            "Table 3: diversity under Perlin noise",
            _table3,
            {"paper": (*_DIVERSITY, *PAPER_COLUMNS), "standard": (*_DIVERSITY, *STANDARD_COLUMNS)},
            diversity=True,
        ),
        Ablation(
            "table4",
            "Table 4: negatives of the perceptual model",
            _table4,
            {"paper": ("accuracy", "wrong_count")},
            better={"accuracy": "higher", "wrong_count": "lower"},  # here they judge the judge, not the motion
        ),
        Ablation("table5", "Table 5: post-training methods", _table5, _SEVEN),
        Ablation("sampler", "Transition kernels and their noise", _sampler, _SEVEN),
        Ablation("presets", "Presets of GRPO", _presets, _SEVEN),
        Ablation("stepweights", "Weights and number of trained steps", _stepweights, _SEVEN),
    )
}


def chosen_rows(ablation: Ablation, config: AblateConfig) -> tuple[Row, ...]:
    """The rows that the options select, with all that they need, in the table's order. Raises InputError for names that
    the ablation doesn't have, or has twice."""
    rows: dict[str, Row] = {}
    for row in ablation.rows(config):
        if row.name in rows:
            raise InputError(
                f"two rows of {ablation.name} would be called {row.name}: give values that differ in six digits"
            )
        rows[row.name] = row
    if unknown := [name for name in config.rows if name not in rows]:
        raise InputError(f"--rows: {ablation.name} has no {', '.join(unknown)}; it has {', '.join(rows)}")
    wanted = set(config.rows or rows)
    for name in tuple(wanted):
        row = rows[name]
        needed = {row.reference} if row.equal_calls is None else {row.reference, row.equal_calls, own_row(row)}
        wanted |= needed - {None}  # type: ignore[arg-type]
    return tuple(row for row in rows.values() if row.name in wanted)


def own_row(row: Row) -> str:
    """Name of the row with the same training at its own number of iterations."""
    return row.name.partition("@")[0]
