"""Options that every post-training has: the run, the network's execution, and what motion is trained on, with which
sampler, perturbation and rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.eval.metrics import METRICS
from mgrpo.execution.precision import RatioPrecision
from mgrpo.grpo.perturbation import PerlinConfig
from mgrpo.options import MOST_COUNT, MOST_MEMBERS, option, require
from mgrpo.rewards import REWARDS, RewardScales
from mgrpo.runs.tracking import Track

from .motion_data import MotionDataConfig
from .start import require_sound, unused_without_resume

_SLOPES = {"ground_penetration": "penetration", "head_position": "head"}
"""Names of slopes that differ from those of their rewards."""


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each reward's advantage; 0 leaves the reward out."""

    visual: float = 1.0
    """Perceptual model."""
    position: float = 1.0
    """Joint positions in the world."""
    aligned_position: float = 1.0
    """Joint positions after Procrustes alignment."""
    rotation: float = 1.0
    """Local joint rotations."""
    velocity: float = 1.0
    """Joint velocities."""
    foot_skate: float = 0.0
    """Sliding feet."""
    ground_penetration: float = 0.0
    """Joints below the floor."""
    jitter: float = 0.0
    """Jerk that differs from the recording's."""
    head_position: float = 0.0
    """Head joint."""

    def __post_init__(self) -> None:
        require(self, *REWARDS)

    def active(self) -> dict[str, float]:
        """The rewards in use, in the order of the REWARDS table."""
        return {name: getattr(self, name) for name in REWARDS if getattr(self, name) != 0}


@dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages."""

    scheme: Literal["normalize_then_sum", "sum_then_normalize", "gdpo", "center_only", "batch_std", "win_rate"] = (
        "normalize_then_sum"
    )
    """Each reward normalised in its group and then summed (paper), or the other schemes of docs/conventions.md."""
    eps: float = 1e-8
    """Added to the standard deviation."""
    std_floor_ratio: float = 0.05
    """Floor of a group's standard deviation as a share of the batch's, so that rounding is not blown up to unit
    advantages (paper: 0)."""
    dead_ratio: float = 1e-3
    """A group whose spread in a reward is below this share of the batch's has nothing to say about it (paper: 0)."""
    dead_abs: float = 1e-6
    """The same, as an absolute spread of the reward (paper: 0)."""
    clamp: float = 5.0
    """Largest absolute advantage after the sum."""

    def __post_init__(self) -> None:
        require(self, "eps", "std_floor_ratio", "dead_ratio", "dead_abs", at_least=0)
        require(self, "clamp", above=0)

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        scheme = f"with {option(self, 'scheme')} {self.scheme}"
        unused = {"center_only": ("eps", "std_floor_ratio"), "batch_std": ("std_floor_ratio",)}
        return dict.fromkeys(unused.get(self.scheme, ()), scheme)


@dataclass(frozen=True)
class NetworkExecution:
    """How the same computation is carried out: faster, or in less memory."""

    micro_conditions: int = 0
    """Conditions that pass through the network together; 0: all of a process, in GRPO as many as memory allows."""
    precision: RatioPrecision = "fp32"
    """Numbers that the network computes with: fp32; tf32, bf16 (faster on GPUs of compute capability 8 or more).
    States, noise, log-probs and rewards stay float32. There is no fp16: its loss scale, which changes between
    iterations, would have to enter the ratio."""
    checkpoint_blocks: bool = False
    """Forget what the network's blocks compute and compute it again for the gradient: a third more time for a fraction
    of the memory."""
    compile: bool = False
    """Compile the network: faster after a first iteration that takes a minute or more."""
    prefetch: int = 1
    """Batches of windows drawn in advance by a thread; the result is the same."""

    def __post_init__(self) -> None:
        require(self, "micro_conditions", "prefetch", at_least=0)
        offered = get_args(RatioPrecision)
        if self.precision not in offered:
            raise InputError(f"{option(self, 'precision')} must be one of {', '.join(offered)}, got {self.precision!r}")


@dataclass(frozen=True)
class RunConfig:
    """A run: what it writes, how long it is, its optimiser, when it evaluates and ends."""

    output: Path = Path("runs/grpo")
    """Run folder: configuration, logs and checkpoints."""
    iterations: int = 2000
    """Rollouts, each followed by its optimiser steps."""
    conditions: int = 64
    """Conditions (head trajectories) in a rollout."""
    group_size: int = 16
    """Samples for each condition."""
    learning_rate: float = 1e-5
    """AdamW learning rate after the warm-up."""
    warmup: int = 0
    """Iterations over which the learning rate rises from zero (paper: 0)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant (paper), or a cosine down to zero at the last iteration."""
    weight_decay: float = 1e-4
    """AdamW weight decay."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is saved as the model; 0: none
    (paper)."""
    share_initial_noise: bool = True
    """Give all members of a group the same initial noise (paper)."""
    seed: int = 0
    """Seed of conditions, noise and perturbation."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1 ... With several processes, cuda gives each its own GPU."""
    validate_every: int = 50
    """Iterations between evaluations on the validation clips with fixed noise (0: never)."""
    gold: str = "mpjpe_mm"
    """Measure of the validation that decides which checkpoint is the best one, and when to stop early."""
    gold_better: Literal["min", "max"] = "min"
    """Whether a smaller or a larger value of --gold is better."""
    patience: int = 0
    """Stop when this many evaluations in a row were no better than the best one (0: never). --resume with more patience
    goes on."""
    checkpoint_every: int = 25
    """Iterations between checkpoints."""
    profile: bool = False
    """Write a split of the time by phase, network calls, samples per second, FLOPs and peak memory to profile.json; on
    a GPU the phases are waited for, which costs a little."""
    track: Track = "none"
    """Also send the metrics to an experiment tracker: wandb, trackio (the package must be installed). A resumed run
    goes on in the tracker's run that it began."""
    track_project: str = "mgrpo"
    """Project at the tracker."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    resume_from: str = "last"
    """Where --resume goes on: last, best, a step, or the path of one of the run's checkpoints. What came after it is
    forgotten."""

    def __post_init__(self) -> None:
        require_sound(self)
        require(self, "conditions", at_least=1, at_most=MOST_COUNT)
        require(self, "patience", at_least=0)
        require(self, "ema", at_least=0, below=1)
        if self.group_size < 2:
            raise InputError(
                f"--group-size must be at least 2 (a group of one has no spread to learn from), got {self.group_size}"
            )
        require(self, "group_size", at_most=MOST_MEMBERS)
        if self.patience and not self.validate_every:
            raise InputError("--patience needs evaluations to count: give --validate-every")

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        unused = unused_without_resume(self)
        if self.track == "none":
            unused["track_project"] = f"without {option(self, 'track')}"
        if not self.validate_every:
            unused |= dict.fromkeys(("gold", "gold_better"), f"with {option(self, 'validate_every')} 0")
        return unused


@dataclass(frozen=True)
class MotionTaskConfig(RunConfig):
    """A run on motion: prior, clips, sampler, perturbation and rewards, see
    :class:`mgrpo.train.motion_task.MotionTask`."""

    prior: Path = Path("runs/prior")
    """Prior to start from: run folder, checkpoint, EgoAllo checkpoint, or folder written by save_pretrained."""
    use_ema: bool = False
    """Start from the averaged weights of a prior trained with --ema, instead of its last ones."""
    perceptual: Path | None = Path("runs/perceptual")
    """Run folder, checkpoint or save_pretrained folder of the perceptual model; needed while the visual reward has a
    weight."""
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    train_windows: int = 0
    """Train on this many windows, drawn once and gone through in turn; 0: draw new windows for every rollout."""
    freeze_condition_projection: bool = True
    """Keep the network's first layer on the condition fixed."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    perlin: PerlinConfig = field(default_factory=PerlinConfig)
    rewards: RewardWeights = field(default_factory=RewardWeights)
    scales: RewardScales = field(default_factory=RewardScales)
    rotation_error: Literal["geodesic", "axis_angle", "frobenius"] = "geodesic"
    """Error behind the rotation reward (paper's early code: axis_angle)."""
    alignment: Literal["standard", "egoallo"] = "standard"
    """Error behind the aligned reward: the prediction aligned to the recording, or EgoAllo's published defect."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_measure(self)
        require(self, "train_windows", at_least=0)
        if self.train_windows and self.train_windows % self.conditions:
            raise InputError(
                f"--train-windows ({self.train_windows}) must be a multiple of --conditions ({self.conditions}), or 0"
            )
        if self.needs_rewards and not self.rewards.active():
            raise InputError(f"{option(self, 'rewards')}: every weight is 0; give at least one reward a weight")
        if self.needs_perceptual and self.perceptual is None:
            raise InputError(
                "--perceptual: the visual reward has a weight but no perceptual model is given; train one, or set "
                "--rewards.visual 0"
            )

    @property
    def needs_rewards(self) -> bool:
        """Whether samples are scored at all."""
        return True

    @property
    def needs_perceptual(self) -> bool:
        """Whether samples are scored by the perceptual model."""
        return self.needs_rewards and self.rewards.visual != 0

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        shaped = {f"scales.{_SLOPES.get(name, name)}": name for name in REWARDS}
        shaped |= {"perceptual": "visual", "rotation_error": "rotation", "alignment": "aligned_position"}
        return {
            **super().unused_options(),
            **{
                name: f"while the reward has no weight ({option(self, f'rewards.{reward}')} 0)"
                for name, reward in shaped.items()
                if not getattr(self.rewards, reward)
            },
        }


def _require_measure(config: MotionTaskConfig) -> None:
    """Raise InputError for a ``gold`` that evaluations of motion don't have, or that is read the wrong way round: now,
    and not when the first evaluation comes."""
    # The others need a perceptual model or several samples.
    known = {name: info for name, info in METRICS.items() if info.better != "none" and not name.startswith("score")}
    measure, direction = option(config, "gold"), option(config, "gold_better")
    if config.gold not in known:
        raise InputError(
            f"{measure} must be a measure of the validation, one of {', '.join(known)}; got {config.gold!r}"
        )
    better = known[config.gold].better
    wanted = "min" if better == "lower" else "max"
    if config.gold_better != wanted:
        raise InputError(
            f"{direction} {config.gold_better}: of {config.gold} the {better} value is the better one; "
            f"give {direction} {wanted}"
        )
