"""Options of post-training with GRPO, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mgrpo.diffusion.config import SamplerConfig
from mgrpo.errors import InputError
from mgrpo.grpo.alarms import AlarmConfig
from mgrpo.grpo.update import PolicyLossConfig
from mgrpo.grpo.window import StepWindowConfig
from mgrpo.options import MOST_COUNT, option, require

from .run_config import AdvantageConfig, MotionTaskConfig, NetworkExecution, RewardWeights, RunConfig


@dataclass(frozen=True)
class ExecutionConfig(NetworkExecution):
    """How the same computation is carried out: faster, or in less memory."""

    reuse_graphs: Literal["auto", "yes", "no"] = "auto"
    """Keep the rollout's graphs at the trained steps and take the gradient through them, instead of running the network
    again: a third fewer network calls for their memory. Needs --optimizer-steps 1. auto: where memory allows."""
    split: Literal["auto", "conditions", "members"] = "auto"
    """What several processes share out: whole groups, or the members of every group; auto: groups where their number
    can be divided evenly."""


@dataclass(frozen=True)
class PostTrainingConfig(RunConfig):
    """What post-training needs whatever the policy and its rewards are."""

    optimizer_steps: int = 1
    """Optimiser steps for each rollout; each uses its own share of the conditions."""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    window: StepWindowConfig = field(default_factory=StepWindowConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "optimizer_steps", at_least=1, at_most=MOST_COUNT)
        if self.optimizer_steps > self.conditions:
            raise InputError(
                f"--optimizer-steps ({self.optimizer_steps}) can't exceed --conditions ({self.conditions}): each step "
                "needs a condition"
            )
        if self.optimizer_steps > 1 and self.execution.reuse_graphs == "yes":
            raise InputError(
                f"--execution.reuse-graphs yes needs --optimizer-steps 1, got {self.optimizer_steps}: after the first "
                "step the rollout's graphs are those of other weights"
            )

    def unused_options(self) -> Mapping[str, str]:
        """See :class:`mgrpo.options.HasUnusedOptions`."""
        unused = dict(super().unused_options())
        if not self.validate_every:
            never = f"with {option(self, 'validate_every')} 0"
            unused |= dict.fromkeys(("alarms.hacking", "alarms.hacking_margin"), never)
        if self.optimizer_steps == 1:  # every ratio is 1: nothing is clipped, and the quadratic term has no slope
            once = f"with {option(self, 'optimizer_steps')} 1"
            unused |= dict.fromkeys(("loss.ratio_shift_correction", "alarms.clipped"), once)
        return unused


@dataclass(frozen=True)
class GrpoConfig(MotionTaskConfig, PostTrainingConfig):
    """Post-train a prior with GRPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler.is_deterministic:
            raise InputError(
                f"{option(self, 'sampler.kernel')} {self.sampler.kernel}, {option(self, 'sampler.eta')} "
                f"{self.sampler.eta:g}, {option(self, 'sampler.steps')} {self.sampler.steps}: no step draws noise, so "
                "there is no action to train; choose another kernel, a larger eta, or more steps"
            )
        self.window.steps(tuple(range(self.sampler.steps - 1)), 0)  # the last step returns the prediction


_PAPER = GrpoConfig(
    sampler=SamplerConfig(project=False),
    loss=PolicyLossConfig(channels="all", step_weight="none"),
    advantage=AdvantageConfig(std_floor_ratio=0.0, dead_ratio=0.0, dead_abs=0.0),
    rotation_error="axis_angle",
    alignment="egoallo",
    execution=ExecutionConfig(reuse_graphs="no"),
)
_FAST = GrpoConfig(window=StepWindowConfig(size=4, quiet_outside=True))

GRPO_PRESETS: dict[str, GrpoConfig] = {"default": GrpoConfig(), "paper": _PAPER, "fast": _FAST}
"""``paper``: as faithful as is known. ``fast``: the fewest network calls. ``default``: what our own measurements favour
(docs/grpo.md)."""

CARRIED_OUT = ("execution", "profile", "patience", "alarms", "track", "track_project")
"""Settings that change a run's results by rounding at most, or only when it stops or what is told about it; a resumed
run may have others."""

__all__ = [
    "CARRIED_OUT",
    "GRPO_PRESETS",
    "AdvantageConfig",
    "ExecutionConfig",
    "GrpoConfig",
    "PostTrainingConfig",
    "RewardWeights",
]
