"""From the rows of an ablation to its stages: what is trained and measured, in which folder, after what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from mgrpo.config_record import differences, to_plain, with_defaults
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.diffusion.schedule import CosineSchedule
from mgrpo.errors import InputError
from mgrpo.models.denoiser import DENOISER_PRESETS
from mgrpo.storage import atomic_write, read_bytes
from mgrpo.train.baseline_config import BaselineConfig, DpoConfig, FinetuneConfig, ReftConfig
from mgrpo.train.grpo_config import GrpoConfig
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.run_config import NetworkExecution

from .options import AblateConfig
from .rows import ABLATIONS, Row, chosen_rows, own_row

Kind = Literal["prior", "perceptual", "grpo", "finetune", "dpo", "reft", "evaluation", "diversity"]

T = TypeVar("T")

_PLACES = ("output", "prior", "perceptual", "model", "device", "resume", "training")
"""Settings that follow from the folder and the machine, not compared when an ablation goes on."""
_NOT_COMPARED = (*_PLACES, *(f"training.{name}" for name in _PLACES))


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation of one model."""

    model: Path
    perceptual: Path
    data: MotionDataConfig
    test: str
    """Motion to evaluate on; empty: the held-out clips of ``data``."""
    windows: int
    """Most windows; 0: all."""
    seeds: int
    samples: int
    sampler: SamplerConfig
    device: str = "auto"


@dataclass(frozen=True)
class DiversitySettings:
    """Diversity of the groups that a model draws while it is trained."""

    model: Path
    sampler: SamplerConfig
    alpha: float
    per_member: bool
    group_size: int
    share_initial_noise: bool
    lattice: float
    octaves: int
    seed: int
    draws: int
    data: MotionDataConfig
    test: str
    windows: int
    device: str = "auto"


@dataclass(frozen=True)
class Stage:
    """One piece of work, done once."""

    name: str
    """``shared/seed0/prior``, ``table2/seed1/visual``, ``table2/seed1/visual.evaluation``."""
    kind: Kind
    config: Any
    """Options of the training, or :class:`EvaluationSettings`, :class:`DiversitySettings`."""
    after: tuple[str, ...] = ()
    """Stages that must be finished before."""
    equal_calls: tuple[str, str] | None = None
    """Two trainings: the iterations are multiplied by what the first spent over what the second spent."""


@dataclass(frozen=True)
class Plan:
    """All stages of an ablation, each after those that it needs."""

    ablation: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    unchanged: frozenset[str] = frozenset()
    """Rows whose training is GRPO with the ablation's own settings, which ablations in the same folder share."""

    def evaluation(self, row: Row, seed: int) -> str:
        """Name of the stage that evaluates a row."""
        return f"{self.ablation}/seed{seed}/{row.name}.evaluation"

    def diversity(self, row: Row, seed: int) -> str:
        """Name of the stage that measures the diversity of a row's groups."""
        return f"{self.ablation}/seed{seed}/{row.name}.diversity"

    def training(self, row: Row, seed: int) -> str:
        """Name of the stage that trains what a row is about."""
        if row.method == "prior":
            return f"shared/seed{seed}/prior"
        if row.method == "perceptual" and not row.changes:
            return f"shared/seed{seed}/perceptual"
        if row.name in self.unchanged:
            return f"shared/seed{seed}/grpo"
        return f"{self.ablation}/seed{seed}/{row.name}"


def make_plan(name: str, config: AblateConfig) -> Plan:
    """The stages of ablation ``name``. Raises InputError for options of which no valid training can be made."""
    ablation = ABLATIONS[name]
    rows = chosen_rows(ablation, config)
    base = replace(config.grpo, sampler=config.sampler)
    same = frozenset(row.name for row in rows if row.method == "grpo" and _configuration(row, base, None) == base)
    plan = Plan(name, rows, config.seeds, (), same)
    by_name = {row.name: row for row in rows}
    stages: dict[str, Stage] = {}
    data = replace(config.data, motion=config.data_train)
    for seed in config.seeds:
        base = {"data": data, "seed": seed, "resume": True}
        shared = f"shared/seed{seed}"
        prior = replace(config.prior, output=folder_of(config, f"{shared}/prior"), **base)
        perceptual = replace(
            config.perceptual,
            output=folder_of(config, f"{shared}/perceptual"),
            prior=prior.output / "last",
            sampler=config.sampler,
            **base,
        )
        grpo = replace(
            config.grpo, prior=prior.output / "last", perceptual=perceptual.output, sampler=config.sampler, **base
        )
        stages[f"{shared}/prior"] = Stage(f"{shared}/prior", "prior", prior)
        both = (f"{shared}/prior", f"{shared}/perceptual")
        stages[both[1]] = Stage(both[1], "perceptual", perceptual, both[:1])
        for row in rows:
            training = plan.training(row, seed)
            output = folder_of(config, training)
            if training not in stages:
                made = _configuration(row, grpo, perceptual)
                ends = None
                after = both[:1] if row.method == "perceptual" else both
                if row.equal_calls is not None:
                    reference, own = (plan.training(by_name[other], seed) for other in (row.equal_calls, own_row(row)))
                    ends = (reference, own)
                    after = (*after, *ends)
                stages[training] = Stage(training, row.method, replace(made, output=output), after, ends)
            is_perceptual = row.method == "perceptual"
            evaluation = EvaluationSettings(
                model=folder_of(config, both[0]) if is_perceptual else output,
                perceptual=output if is_perceptual else perceptual.output,
                data=data,
                test=config.data_test,
                windows=config.test_windows,
                seeds=config.evaluation_seeds,
                samples=config.evaluation_samples,
                sampler=_sampler(config.sampler, row),
            )
            label = plan.evaluation(row, seed)
            needed = tuple(dict.fromkeys((*both, training)))
            if is_perceptual:
                needed = tuple(dict.fromkeys((both[0], training)))
            stages[label] = Stage(label, "evaluation", evaluation, needed)
            if ablation.diversity:
                label = plan.diversity(row, seed)
                settings = _diversity(changed(grpo, row.changes), prior.output, evaluation, config)
                stages[label] = Stage(label, "diversity", settings, both[:1])
    return replace(plan, stages=tuple(stages.values()))


def folder_of(config: AblateConfig, stage: str) -> Path:
    """Run folder of a training."""
    return config.output.expanduser().joinpath(*stage.split("/"))


def changed(config: T, changes: Mapping[str, Any]) -> T:
    """A configuration with the settings named by dotted names changed, checked anew."""
    groups: dict[str, dict[str, Any]] = {}
    own: dict[str, Any] = {}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    nested = {name: changed(getattr(config, name), inner) for name, inner in groups.items()}
    return replace(config, **own, **nested)  # type: ignore[type-var]


def _sampler(sampler: SamplerConfig, row: Row) -> SamplerConfig:
    try:
        found = changed(sampler, row.sampler)
        found.transitions(CosineSchedule.make(max(preset.max_t for preset in DENOISER_PRESETS.values())))
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from error
    return found


def _configuration(row: Row, grpo: GrpoConfig, perceptual: Any) -> Any:
    """The training of a row. Raises InputError naming the row."""
    classes: dict[str, type[BaselineConfig]] = {"finetune": FinetuneConfig, "dpo": DpoConfig, "reft": ReftConfig}
    try:
        if row.method == "perceptual":
            return changed(perceptual, row.changes)
        if row.method == "grpo":
            return changed(grpo, row.changes)
        return changed(_as_baseline(classes[row.method], grpo), row.changes)
    except InputError as error:
        raise InputError(f"row {row.name}: {error}") from error


def _as_baseline(config_class: type[BaselineConfig], grpo: GrpoConfig) -> BaselineConfig:
    """A baseline's configuration with all that it has in common with GRPO's: run, data, sampler, noise and rewards."""
    own = {"loss", "execution"}  # of the same name, but other things
    shared = {
        field.name: getattr(grpo, field.name)
        for field in dataclasses.fields(config_class)
        if hasattr(grpo, field.name) and field.name not in own
    }
    same = {field.name: getattr(grpo.execution, field.name) for field in dataclasses.fields(NetworkExecution)}
    return config_class(**shared, execution=NetworkExecution(**same))


def _diversity(
    grpo: GrpoConfig, prior: Path, evaluation: EvaluationSettings, config: AblateConfig
) -> DiversitySettings:
    return DiversitySettings(
        model=prior,
        sampler=grpo.sampler,
        alpha=grpo.perlin.alpha,
        per_member=grpo.perlin.per_member,
        group_size=grpo.group_size,
        share_initial_noise=grpo.share_initial_noise,
        lattice=grpo.perlin.lattice,
        octaves=grpo.perlin.octaves,
        seed=grpo.seed,
        draws=config.diversity_draws,  # type: ignore[attr-defined]
        data=evaluation.data,
        test=evaluation.test,
        windows=evaluation.windows,
    )


def settings_of(stage: Stage) -> dict[str, Any]:
    """What a stage computes, as plain data without places and devices."""
    plain = to_plain(stage.config)
    kept = {name: value for name, value in plain.items() if name not in _PLACES}
    return {"kind": stage.kind, "after": list(stage.after), "settings": kept}


def _known_then(stored: Any, stage: Stage) -> Any:
    """What :func:`settings_of` said in an older plan, which may not know all options."""
    if not isinstance(stored, Mapping) or "settings" not in stored:
        return stored
    filled = with_defaults(stored["settings"], stage.config)
    return {**stored, "settings": {name: value for name, value in filled.items() if name not in _PLACES}}


def keep_plan(plan: Plan, path: Path, *, write: bool = True) -> None:
    """Note the stages in plan.yaml, beside those of other ablations and seeds in the same folder.

    Raises InputError where a stage is there already with other settings: its results would be taken for those of the
    new ones.
    """
    stored: dict[str, Any] = {}
    if path.is_file():
        try:
            stored = yaml.safe_load(read_bytes(path, "plan"))["stages"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise InputError(f"{path} can't be read ({error}); restore it, or choose another --output") from error
    now = {stage.name: settings_of(stage) for stage in plan.stages}
    before_now = {stage.name: _known_then(stored[stage.name], stage) for stage in plan.stages if stage.name in stored}
    found = [
        f"  {name}, {what.removeprefix('settings.')}: {before} in the folder, {after} now"
        for name, known in before_now.items()
        for what, before, after in differences(known, now[name], may_change=_NOT_COMPARED)
    ]
    if found:
        more = f"\n  ... and {len(found) - 8} more" if len(found) > 8 else ""
        raise InputError(
            f"{path.parent} holds stages with other settings:\n" + "\n".join(found[:8]) + more + "\n"
            "Give the same options, or choose another --output"
        )
    if write:
        text = yaml.safe_dump({"stages": stored | now}, sort_keys=False, allow_unicode=True, width=100)
        atomic_write(path, text)
