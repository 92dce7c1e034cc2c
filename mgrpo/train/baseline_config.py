"""Options of the methods that GRPO is compared with: fine-tuning, DPO, and rewards back-propagated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mgrpo.diffusion.loss import LossWeights
from mgrpo.errors import InputError
from mgrpo.options import option, require

from .run_config import AdvantageConfig, MotionTaskConfig, NetworkExecution

GEOMETRIC_ERRORS = ("position", "aligned_position", "rotation", "velocity")
"""The four joint errors of the hybrid reward, which the geometric loss adds."""


@dataclass(frozen=True)
class BaselineConfig(MotionTaskConfig):
    """What all baselines have."""

    execution: NetworkExecution = field(default_factory=NetworkExecution)


@dataclass(frozen=True)
class GeometricConfig:
    """Joint errors of the predicted clean motion, added to the denoising loss. The default weights are the rewards'
    slopes."""

    level: int = 300
    """Highest noise level at which they are added: predictions from more noise are means of many motions, and no
    motion."""
    position: float = 1.0
    """Weight of the joint positions, per metre."""
    aligned_position: float = 1.0
    """Weight of the joint positions after Procrustes alignment, per metre."""
    rotation: float = 1.0
    """Weight of the local joint rotations, per radian."""
    velocity: float = 0.2
    """Weight of the joint velocities, per metre per second."""

    def __post_init__(self) -> None:
        require(self, "level", at_least=1)
        require(self, *GEOMETRIC_ERRORS, at_least=0)
        if not self.active():
            raise InputError(
                f"{', '.join(option(self, name) for name in GEOMETRIC_ERRORS)}: every weight is 0; give at least one "
                "error a weight"
            )

    def active(self) -> dict[str, float]:
        """The errors in use and their weights."""
        return {name: getattr(self, name) for name in GEOMETRIC_ERRORS if getattr(self, name)}


@dataclass(frozen=True)
class FinetuneConfig(BaselineConfig):
    """Go on training a prior with its denoising loss on the clips of post-training."""

    output: Path = Path("runs/finetune")
    """Run folder: configuration, logs and checkpoints."""
    variant: Literal["denoise", "geometric", "best-of-group"] = "denoise"
    """What is learned: the recordings (denoise), the same with joint errors added at low noise levels (geometric), or
    the best member of each group that the policy itself draws (best-of-group, rejection sampling)."""
    levels: int = 1
    """Noise levels, each with its noise, at which every motion is learned in an optimiser step."""
    loss: LossWeights = field(default_factory=LossWeights)
    geometric: GeometricConfig = field(default_factory=GeometricConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "levels", at_least=1)
        if self.variant not in ("denoise", "geometric", "best-of-group"):
            raise InputError(
                f"{option(self, 'variant')} must be denoise, geometric or best-of-group, got {self.variant!r}"
            )
        _require_spread(self, self.needs_rewards)

    @property
    def needs_rewards(self) -> bool:
        """Whether samples are scored at all."""
        return self.variant == "best-of-group"

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        variant = f"with {option(self, 'variant')} {self.variant}"
        unused = dict(super().unused_options()) | _UNCLAMPED
        if self.variant != "geometric":
            unused["geometric"] = variant
        if self.variant != "best-of-group":
            sampling = ("group_size", "share_initial_noise", "perlin", "rewards", "scales", "perceptual", "advantage")
            unused |= dict.fromkeys(sampling, f"{variant}, which draws no samples")
            if not self.validate_every:
                unused["sampler"] = f"{variant} and {option(self, 'validate_every')} 0"
            for name, error in (("rotation_error", "rotation"), ("alignment", "aligned_position")):
                unused[name] = variant
                if self.variant == "geometric":
                    del unused[name]
                    if not getattr(self.geometric, error):
                        unused[name] = f"with {option(self.geometric, error)} 0"
        return unused


@dataclass(frozen=True)
class DpoConfig(BaselineConfig):
    """Post-train a prior with Diffusion-DPO on the best and the worst member of each group."""

    output: Path = Path("runs/dpo")
    """Run folder: configuration, logs and checkpoints."""
    mode: Literal["offline", "online"] = "offline"
    """Who draws the groups: the prior, unchanged (offline), or the policy (online). The reference is always the
    prior."""
    refresh_every: int = 1
    """Online: iterations for which the same state of the policy draws the groups."""
    winner: Literal["best", "truth"] = "best"
    """The winner of a pair: the best member of the group, or the recording (truth), which is more supervision than a
    reward gives. The loser is the worst member."""
    beta: float = 2000.0
    """Strength of the preference per unit of the weighted error; choose it such that dpo/z_std is about 1 after some
    hundred steps."""
    levels: int = 1
    """Noise levels, each with its noise, at which every pair is compared in an optimiser step."""
    loss: LossWeights = field(default_factory=LossWeights)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "beta", above=0)
        require(self, "levels", "refresh_every", at_least=1)
        for name, known in (("mode", ("offline", "online")), ("winner", ("best", "truth"))):
            if getattr(self, name) not in known:
                raise InputError(f"{option(self, name)} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        _require_spread(self, True)
        if self.perlin.per_member and self.perlin.alpha:
            raise InputError(
                f"{option(self, 'perlin.per_member')}: the two motions of a pair are compared under one condition; "
                "leave it out"
            )

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        unused = dict(super().unused_options()) | _UNCLAMPED
        if self.mode == "offline":
            unused["refresh_every"] = f"with {option(self, 'mode')} offline"
        return unused


@dataclass(frozen=True)
class ReftConfig(BaselineConfig):
    """Post-train a prior by the gradient of its samples' rewards, through the last steps of the sampler."""

    output: Path = Path("runs/reft")
    """Run folder: configuration, logs and checkpoints."""
    last_steps: int = 1
    """Steps of the sampler, counted from its end, that the gradient passes through (1: ReFL; K: DRaFT-K)."""
    normalize: bool = True
    """Divide each reward by its spread in the group, a constant, as GRPO's advantages do: the weights then mean the
    same."""
    min_spread: float = 1e-3
    """Smallest spread that a reward is divided by, in units of the reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "last_steps", at_least=1)
        require(self, "min_spread", above=0)
        _require_spread(self, self.normalize)
        if self.last_steps > self.sampler.steps:
            raise InputError(
                f"{option(self, 'last_steps')} ({self.last_steps}) can't exceed {option(self, 'sampler.steps')} "
                f"({self.sampler.steps})"
            )

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        unused = dict(super().unused_options())
        if not self.normalize:
            unused["min_spread"] = "with --no-normalize"
        return unused


_UNCLAMPED = {"advantage.clamp": "here, where members are ranked by it"}


def _require_spread(config: MotionTaskConfig, drawn: bool) -> None:
    """Members that are all alike have no best one."""
    if drawn and config.sampler.is_deterministic and config.share_initial_noise and not _own_conditions(config):
        raise InputError(
            f"{option(config, 'sampler.kernel')} {config.sampler.kernel}, {option(config, 'sampler.eta')} "
            f"{config.sampler.eta:g}, {option(config, 'sampler.steps')} {config.sampler.steps}: no step draws noise, "
            "so the members of a group are all alike; choose another sampler, or --no-share-initial-noise"
        )


def _own_conditions(config: MotionTaskConfig) -> bool:
    return config.perlin.per_member and config.perlin.alpha > 0
