"""Rewards: one function per file, ``(RewardBatch) -> (B, G)``, higher is better, NaN = cannot be scored.

To add one, write the file and add a line to :data:`REWARDS`; its name is its log key and the name of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mgrpo.kernels import MotionRewards, group_advantages

from .aligned_position import aligned_position
from .batch import RewardBatch, RewardScales
from .foot_skate import foot_skate
from .fused import FusedReward, fused_rewards, reward_skeleton
from .ground_penetration import ground_penetration
from .head_position import head_position
from .jitter import jitter
from .joint_position import joint_position
from .joint_rotation import joint_rotation
from .joint_velocity import joint_velocity
from .visual import visual

if TYPE_CHECKING:
    from mgrpo.body.model import BodyModel

REWARDS: Mapping[str, Callable[[RewardBatch], Tensor]] = {
    "visual": visual,
    "position": joint_position,
    "aligned_position": aligned_position,
    "rotation": joint_rotation,
    "velocity": joint_velocity,
    "foot_skate": foot_skate,
    "ground_penetration": ground_penetration,
    "jitter": jitter,
    "head_position": head_position,
}

FUSED: Mapping[Callable[[RewardBatch], Tensor], FusedReward] = {
    joint_position: FusedReward("position", slope="position"),
    aligned_position: FusedReward("aligned_position", slope="aligned_position"),
    joint_rotation: FusedReward("rotation", slope="rotation"),
    joint_velocity: FusedReward("velocity", slope="velocity"),
    foot_skate: FusedReward("foot_skate", slope="foot_skate"),
    ground_penetration: FusedReward("ground_penetration", slope="penetration"),
    jitter: FusedReward("jitter", slope="jitter"),
    head_position: FusedReward("head_position", slope="head"),
}
"""Rewards that :func:`mgrpo.kernels.motion_rewards` computes by the same formula, and training by that operator. A test
compares the two: who changes the formula of a reward takes its line out."""


def compute_rewards(batch: RewardBatch, names: tuple[str, ...]) -> Tensor:
    """The named rewards of a batch, ``(B, G, K)`` in the order of ``names``. Raises ValueError for a name that is not
    in REWARDS, and for none."""
    _check_known(names)
    return torch.stack([REWARDS[name](batch) for name in names], dim=-1)


def score_groups(
    batch: RewardBatch, body: BodyModel, weights: Mapping[str, float], **advantage_options: Any
) -> MotionRewards:
    """Rewards and advantages of sampled groups, one column per reward in the order of ``weights``.

    The rewards are those of :func:`compute_rewards` up to rounding. What FUSED lists is computed in one pass, and only
    this has a column in ``errors``; the other rewards join it as they are.

    Args:
        batch: the motion and all else that a reward may look at.
        body: the body that the motion was decoded with.
        weights: of the rewards' advantages, by name.
        advantage_options: further keywords of :func:`mgrpo.kernels.group_advantages`.

    Raises ValueError for a name that is not in REWARDS.
    """
    names = tuple(weights)
    _check_known(names)
    fused = {name: FUSED[REWARDS[name]] for name in names if REWARDS[name] in FUSED}
    others = tuple(name for name in names if name not in fused)
    scored = (*fused, *others)
    options = {**advantage_options, "weights": [weights[name] for name in scored]}
    extra = compute_rewards(batch, others).to(batch.prediction.joints22.dtype) if others else None
    if fused:
        result = fused_rewards(batch, body, tuple(fused.values()), extra_rewards=extra, advantage_options=options)
    else:
        result = MotionRewards(extra[..., :0], extra, *group_advantages(extra, **options))
    if scored == names:
        return result
    order = [scored.index(name) for name in names]
    return result._replace(
        rewards=result.rewards[..., order],
        per_reward=result.per_reward[..., order],
        std=result.std[..., order],
        dead=result.dead[..., order],
    )


def differentiable_rewards(batch: RewardBatch, body: BodyModel, names: tuple[str, ...]) -> Tensor:
    """The named rewards ``(B, G, K)`` with gradients to the motion; those of :func:`compute_rewards` up to rounding.
    What FUSED lists is computed in one pass.

    Args:
        batch: as for :func:`score_groups`, its motion decoded with gradients.
        body: the body that the motion was decoded with.
        names: of REWARDS.

    Raises ValueError for a name that is not in REWARDS.
    """
    _check_known(names)
    fused = [name for name in names if REWARDS[name] in FUSED]
    columns = {}
    if fused:
        known = fused_rewards(batch, body, [FUSED[REWARDS[name]] for name in fused], with_advantages=False).rewards
        columns = dict(zip(fused, known.unbind(-1), strict=True))
    dtype = batch.prediction.joints22.dtype
    return torch.stack([columns[name] if name in columns else REWARDS[name](batch).to(dtype) for name in names], -1)


def _check_known(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(f"no reward is named; the known ones are {', '.join(REWARDS)}")
    unknown = [name for name in names if name not in REWARDS]
    if unknown:
        raise ValueError(f"unknown reward {', '.join(unknown)}; the known ones are {', '.join(REWARDS)}")


__all__ = [
    "FUSED",
    "REWARDS",
    "FusedReward",
    "RewardBatch",
    "RewardScales",
    "compute_rewards",
    "differentiable_rewards",
    "reward_skeleton",
    "score_groups",
]
