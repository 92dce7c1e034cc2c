"""Options of `mgrpo ablate`, and its three sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from mgrpo.data import AugmentConfig
from mgrpo.diffusion.config import SamplerConfig
from mgrpo.diffusion.transition import Kernel
from mgrpo.errors import InputError
from mgrpo.execution.seeding import require_seed
from mgrpo.grpo.update import PolicyLossConfig
from mgrpo.grpo.window import StepWindowConfig
from mgrpo.options import option, require
from mgrpo.train.grpo_config import GRPO_PRESETS, GrpoConfig
from mgrpo.train.motion_data import MotionDataConfig
from mgrpo.train.perceptual import PERCEPTUAL_TRAINING_PRESETS, PerceptualTrainingConfig
from mgrpo.train.prior import PRIOR_PRESETS, PriorConfig

_FOR_ALL = ("output", "data", "seed", "device", "resume", "resume_from", "sampler", "prior", "perceptual")
"""Options of the stages that the ablation sets itself, where a stage has them."""

ConfigT = TypeVar("ConfigT", bound="AblateConfig")


def _data() -> MotionDataConfig:
    return MotionDataConfig(
        length=32, short_clips="drop", augment=AugmentConfig(mirror_prob=0.5, betas_std=0.5, weighting="clips")
    )


def _prior() -> PriorConfig:
    return PriorConfig(
        iterations=900, learning_rate=1e-3, warmup=50, schedule="cosine", validate_every=300, checkpoint_every=150
    )


def _perceptual() -> PerceptualTrainingConfig:
    return replace(PERCEPTUAL_TRAINING_PRESETS["tiny"], iterations=160, validate_every=40, checkpoint_every=40)


def _grpo() -> GrpoConfig:
    return GrpoConfig(
        iterations=60,
        train_windows=64,
        conditions=64,
        group_size=4,
        warmup=5,
        loss=PolicyLossConfig(step_weight="inv_snr"),
        window=StepWindowConfig(size=4),
        validate_every=20,
        checkpoint_every=20,
    )


@dataclass(frozen=True)
class BaselineOptions:
    """What the methods of Table 5 have of their own; all else they share with --grpo."""

    beta: float = 2000.0
    """DPO: strength of the preference, see --beta of `mgrpo train dpo`."""
    refresh_every: int = 1
    """Online DPO: iterations for which the same state of the policy draws the groups."""
    levels: int = 1
    """Fine-tuning and DPO: noise levels at which a motion or a pair is learned in an optimiser step."""
    last_steps: int = 1
    """Back-propagated rewards: steps of the sampler that the gradient passes through."""

    def __post_init__(self) -> None:
        require(self, "beta", above=0)
        require(self, "refresh_every", "levels", "last_steps", at_least=1)


@dataclass(frozen=True)
class AblateConfig:
    """What all ablations have. A second start goes on where the first one ended."""

    scale: Literal["demo", "small", "paper"] = "demo"
    """Sizes of networks, data and training; other options then change them. demo: minutes for a row on a CPU. small:
    minutes for a row on a GPU. paper: the published sizes, days on a GPU."""
    output: Path = Path("runs/ablate")
    """Folder for all runs and results. Ablations in the same folder share priors and perceptual models."""
    data_train: str = "demo"
    """Motion to train on: `demo` (ships with the package), a pack or clip npz, a folder of them, or an HDF5 file in
    EgoAllo's layout."""
    data_test: str = ""
    """Motion to evaluate on, all of it (of HDF5 files the held-out part); none: the held-out clips of --data-train."""
    data: MotionDataConfig = field(default_factory=_data)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; each has its own prior and perceptual model. More may be added later."""
    rows: tuple[str, ...] = ()
    """Rows to run, by name; none: all. What they are compared with is always among them."""
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=10))
    prior: PriorConfig = field(default_factory=_prior)
    perceptual: PerceptualTrainingConfig = field(default_factory=_perceptual)
    grpo: GrpoConfig = field(default_factory=_grpo)
    test_windows: int = 0
    """Most windows to evaluate on, spread evenly over all; 0: all."""
    evaluation_seeds: int = 2
    """Noise seeds of the evaluation."""
    evaluation_samples: int = 2
    """Samples for each window and noise seed."""
    jobs: int = 1
    """Stages to run side by side, each in a process of its own."""
    devices: tuple[str, ...] = ("auto",)
    """Where to compute: auto, cpu, cuda, cuda:0 cuda:1 ...; --jobs takes them in turn."""
    estimate: bool = True
    """Time a few iterations of each kind of training first, and say how long all will take."""
    dry_run: bool = False
    """Print the plan and end."""
    summarise: bool = False
    """Make the tables anew from what is finished, and end."""

    def __post_init__(self) -> None:
        if self.scale not in SCALE_NAMES:
            raise InputError(f"{option(self, 'scale')} must be one of {', '.join(SCALE_NAMES)}, got {self.scale!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"--seeds must be different whole numbers, at least one, got {_listed(self.seeds)}")
        for seed in self.seeds:
            require_seed(seed, "--seeds")
        if not self.devices:
            raise InputError("--devices needs at least one device")
        require(self, "jobs", "evaluation_seeds", "evaluation_samples", at_least=1)
        require(self, "test_windows", at_least=0)
        if len(self.devices) > self.jobs:
            raise InputError(
                f"--devices names {len(self.devices)} devices, but --jobs {self.jobs} uses no more than "
                f"{self.jobs}: give --jobs {len(self.devices)}"
            )
        if self.dry_run and self.summarise:
            raise InputError("--dry-run and --summarise exclude each other: choose one")
        if self.data.motion != MotionDataConfig().motion:
            raise InputError("--data.motion: give --data-train instead")
        for stage in ("prior", "perceptual", "grpo"):
            _refuse_owned(stage, getattr(self, stage))

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        for way in ("dry_run", "summarise"):
            if getattr(self, way):
                return dict.fromkeys(("jobs", "devices", "estimate"), f"with {option(self, way)}")
        return {}


def _refuse_owned(stage: str, given: Any) -> None:
    usual = type(given)()
    for name in _FOR_ALL:
        if hasattr(given, name) and getattr(given, name) != getattr(usual, name):
            flag = name.replace("_", "-")
            shared = {"seed": "--seeds", "device": "--devices", "output": "--output", "sampler": "--sampler"}
            hint = f"give {shared[name]} instead" if name in shared else "the ablation chooses it"
            raise InputError(f"--{stage}.{flag}: all stages share it, so it can't be set for one; {hint}")


def _listed(values: tuple[Any, ...]) -> str:
    return " ".join(map(str, values)) or "none"


def _different(config: AblateConfig, name: str, *, least: float | None = 0.0) -> None:
    values = getattr(config, name)
    flag = option(config, name)
    if not values or len(set(values)) != len(values):
        raise InputError(f"{flag} must be different values, at least one, got {_listed(values)}")
    if least is not None and not all(value >= least for value in values):
        raise InputError(f"{flag} must be at least {least:g}, got {_listed(values)}")


@dataclass(frozen=True)
class Table2Config(AblateConfig):
    """The parts of the method: prior, vanilla GRPO, + visual reward, + Perlin noise (the paper's Table 2)."""


@dataclass(frozen=True)
class Table3Config(AblateConfig):
    """Diversity inside groups under Perlin noise, and what GRPO makes of it (the paper's Table 3)."""

    alphas: tuple[float, ...] = (0.0, 0.05, 0.1)
    """Amplitudes of the noise, metres; each shared by a group, and drawn for every member."""
    diversity_draws: int = 2
    """Draws of the noise at which the diversity of the prior's groups is measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _different(self, "alphas")
        require(self, "diversity_draws", at_least=1)


@dataclass(frozen=True)
class Table4Config(AblateConfig):
    """The perceptual model against samples of the prior or against noisy recordings (the paper's Table 4). GRPO
    takes no part."""

    sigmas: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Standard deviations of the noise: radians on every local rotation's vector, and units of the shape."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _different(self, "sigmas")

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        return {**super().unused_options(), "grpo": "here: only perceptual models are compared"}


@dataclass(frozen=True)
class Table5Config(AblateConfig):
    """GRPO against fine-tuning, DPO and back-propagated rewards, at equal optimiser steps and at equal network calls
    (the paper's Table 5)."""

    baselines: BaselineOptions = field(default_factory=BaselineOptions)


@dataclass(frozen=True)
class SamplerAblationConfig(AblateConfig):
    """GRPO with each transition kernel, evaluated with the same one, against the prior with the same one."""

    kernels: tuple[Kernel, ...] = ("egoallo", "ddim", "dance", "cps")
    """Transition kernels."""
    etas: tuple[float, ...] = (0.4, 0.8)
    """Noise parameters of the kernels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _different(self, "kernels", least=None)
        _different(self, "etas")


PRESET_PARTS = ("loss", "window", "advantage", "rotation_error", "alignment", "optimizer_steps")
"""What the presets of GRPO differ in, besides whether the sampler projects and how gradients are taken."""


@dataclass(frozen=True)
class PresetsConfig(AblateConfig):
    """The presets of `mgrpo train grpo` at equal optimiser steps, and at the network calls of `paper`. They set
    --grpo.loss, --grpo.window and the like; sizes, rewards and noise are --grpo's."""

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        set_by_rows = (*(f"grpo.{part}" for part in PRESET_PARTS), "grpo.execution.reuse_graphs")
        return {**super().unused_options(), **dict.fromkeys(set_by_rows, "here: each row has its preset's")}


@dataclass(frozen=True)
class StepWeightsConfig(AblateConfig):
    """Weights of the sampler's steps in the loss, and how many steps are trained."""

    window_sizes: tuple[int, ...] = (0, 4)
    """Trained steps, the noisiest ones; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _different(self, "window_sizes")


SCALE_NAMES = ("demo", "small", "paper")


def scales(config_class: type[ConfigT]) -> dict[str, ConfigT]:
    """The three sizes of an ablation."""
    return {
        "demo": config_class(),
        "small": config_class(
            scale="small",
            data=replace(_data(), length=64),
            prior=replace(_prior(), iterations=10_000, batch_size=256, warmup=500, validate_every=1000),
            perceptual=replace(_perceptual(), iterations=2000, clips=16, validate_every=200, checkpoint_every=200),
            grpo=replace(_grpo(), iterations=300, train_windows=0, group_size=8, warmup=10, validate_every=50),
            test_windows=512,
            evaluation_samples=4,
        ),
        "paper": config_class(
            scale="paper",
            data=PRIOR_PRESETS["egoallo"].data,
            sampler=SamplerConfig(),
            prior=replace(PRIOR_PRESETS["egoallo"], data=MotionDataConfig()),
            perceptual=PERCEPTUAL_TRAINING_PRESETS["paper"],
            grpo=replace(GRPO_PRESETS["paper"], sampler=SamplerConfig()),
            evaluation_seeds=5,
            evaluation_samples=1,
        ),
    }


TABLE2_SCALES = scales(Table2Config)
TABLE3_SCALES = scales(Table3Config)
TABLE4_SCALES = scales(Table4Config)
TABLE5_SCALES = scales(Table5Config)
SAMPLER_SCALES = scales(SamplerAblationConfig)
PRESETS_SCALES = scales(PresetsConfig)
STEPWEIGHTS_SCALES = scales(StepWeightsConfig)
