"""Rewards of a decoded motion in one pass of :func:`mgrpo.kernels.motion_rewards`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from mgrpo.body.skeleton import FOOT_CONTACT_HEIGHTS_M, FOOT_JOINTS, HEAD
from mgrpo.kernels import MotionRewards, RewardSkeleton, motion_rewards

from .batch import RewardBatch

if TYPE_CHECKING:
    from mgrpo.body.model import BodyModel


class FusedReward(NamedTuple):
    """A reward as the kernels know it."""

    kernel: str
    """Its name there, one of :data:`mgrpo.kernels.JOINT_REWARDS`."""
    slope: str
    """The field of RewardScales that holds its slope."""


def reward_skeleton(body: BodyModel) -> RewardSkeleton:
    """The 21 body joints of a body in the form that the kernels take."""
    body = body.body_only()
    return RewardSkeleton(
        t_parent_joint=body.offset_template,
        t_head_cpf=body.cpf_template,
        t_parent_joint_shapedirs=body.offset_shapedirs,
        t_head_cpf_shapedirs=body.cpf_shapedirs,
        parents=body.parents,
        head=HEAD,
        feet=FOOT_JOINTS,
        foot_heights=FOOT_CONTACT_HEIGHTS_M,
    )


def fused_rewards(
    batch: RewardBatch,
    body: BodyModel,
    rewards: Sequence[FusedReward],
    *,
    extra_rewards: Tensor | None = None,
    with_advantages: bool = True,
    advantage_options: Mapping[str, Any] | None = None,
) -> MotionRewards:
    """Errors, rewards and advantages (unless without) of a batch whose motion was decoded with ``body``;
    ``extra_rewards (B, G, E)`` are appended to the rewards.

    Reads the motion's rotations and shape. They are rotations already, so they are not projected again, which would
    cost more than all the rest; the joints are posed anew, which costs less than reading them.
    """
    prediction, target = batch.prediction, batch.target
    return motion_rewards(
        prediction.body_rotmats,
        target.T_world_cpf,
        target.joints,
        target.body_rotmats,
        reward_skeleton(body),
        target.mask,
        representation="matrix",
        betas=prediction.betas,
        project=False,
        rewards=tuple(reward.kernel for reward in rewards),
        fps=batch.fps,
        slopes={reward.kernel: getattr(batch.scales, reward.slope) for reward in rewards},
        rotation_error=batch.rotation_error,
        alignment=batch.alignment,
        extra_rewards=extra_rewards,
        with_advantages=with_advantages,
        advantage_options=advantage_options,
    )
