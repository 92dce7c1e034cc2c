"""How different the members of a group are, with and without Perlin noise on their condition (the paper's Table 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgrpo.body import BodyModel
from mgrpo.data import MotionWindows
from mgrpo.diffusion.transition import Transitions
from mgrpo.eval.metrics import group_diversity
from mgrpo.models.denoiser import Denoiser
from mgrpo.models.motion import decode_motion

from .grpo_config import GrpoConfig
from .motion_task import sample_groups

_FIRST_DRAW = 1 << 20
"""Iteration number of the first draw: far from those of any training run, so that no noise is met twice."""


@dataclass(frozen=True)
class DiversityAt:
    """Diversity of the groups at one noise amplitude; one number for each window and draw."""

    per_member: bool
    """Whether every member has noise of its own; otherwise the group shares it."""
    alpha: float
    """Amplitude of the Perlin noise, metres."""
    values: dict[str, Tensor]
    """Measure of mgrpo.eval.metrics to ``(windows, draws)``."""


@torch.no_grad()
def diversity_by_alpha(
    policy: Denoiser,
    windows: MotionWindows,
    body: BodyModel,
    transitions: Transitions,
    config: GrpoConfig,
    *,
    alphas: Sequence[float] = (0.0, 0.05, 0.1),
    draws: int = 2,
    sharing: Sequence[bool] = (False, True),
    progress: Callable[[int, int], None] | None = None,
) -> list[DiversityAt]:
    """Sample the groups of ``config`` at each amplitude, with the same windows and the same sampler noise throughout.

    ``sharing`` says for which kinds of noise: False, shared by the group (the paper's reading: any rise is the policy's
    own uncertainty); True, drawn for each member. ``progress`` is called with (rollouts done, rollouts in all).
    """
    found = []
    cases = [(per_member, alpha) for per_member in sharing for alpha in alphas]
    for number, (per_member, alpha) in enumerate(cases):
        options = replace(config, perlin=replace(config.perlin, alpha=alpha, per_member=per_member))
        measured: dict[str, list[Tensor]] = {}
        for draw in range(draws):
            x0 = sample_groups(policy, windows, options, transitions, _FIRST_DRAW + draw)
            motion = decode_motion(policy.layout, x0, windows.T_world_cpf[:, None], body)
            for name, value in group_diversity(motion.joints22, windows.mask).items():
                measured.setdefault(name, []).append(value)
            if progress is not None:
                progress(number * draws + draw + 1, len(cases) * draws)
        found.append(
            DiversityAt(per_member, alpha, {name: torch.stack(values, 1) for name, values in measured.items()})
        )
    return found
