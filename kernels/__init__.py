"""Operators of MotionGRPO that other projects may use: geometry, transitions, noise, group policy terms.

Conventions: metres, radians, seconds; column vectors; ``*batch`` stands for any leading axes, ``*#batch`` for axes that
broadcast to them; options are keyword-only; results are named tuples or tensors; inputs are never modified; nothing
draws from a global random state.

Every function takes ``backend``: one of ``reference``, ``cpp``, ``triton``, ``cuda``, or None for the order
:func:`use_backend`, environment variable ``MGRPO_BACKEND``, automatic. ``explain_backend(op)`` prints what this machine
offers. Importing never compiles anything; without the native extension everything runs on ``reference``.
"""

from __future__ import annotations

if __name__ != "mgrpo.kernels":
    # The folder is named 'kernels' in the source tree. Imported under that name it would load twice, and hide another
    # project's package.
    raise ImportError(f"import this package as mgrpo.kernels, not as {__name__}")

from ._dispatch import (
    BACKENDS,
    BackendError,
    available_backends,
    explain_backend,
    registered_ops,
    use_backend,
)
from .guidance import (
    GuidanceWeights,
    GuidedRotations,
    HandTargets,
    KeypointTargets,
    WristTargets,
    motion_guidance,
)
from .kinematics import ForwardKinematics, forward_kinematics, joint_offsets
from .metrics import MotionMetrics, motion_metrics
from .perlin import perlin_noise
from .policy import ADVANTAGE_SCHEMES, GroupAdvantages, GrpoLoss, group_advantages, grpo_loss
from .procrustes import Alignment, procrustes_align, procrustes_residual
from .rewards import (
    JOINT_REWARDS,
    GroupRewards,
    MotionRewards,
    RewardSkeleton,
    StateChannels,
    group_rewards,
    motion_rewards,
)
from .rng import (
    STREAM_DATA,
    STREAM_INIT,
    STREAM_PERLIN,
    STREAM_STEP,
    STREAM_TRAIN,
    NoiseKey,
    philox_normal,
    philox_uniform,
)
from .so3 import project_so3
from .transition import ProjectedStep, SdeStep, projected_sde_step, sde_kl, sde_log_prob, sde_log_ratio, sde_step

__all__ = [
    "ADVANTAGE_SCHEMES",
    "BACKENDS",
    "JOINT_REWARDS",
    "STREAM_DATA",
    "STREAM_INIT",
    "STREAM_PERLIN",
    "STREAM_STEP",
    "STREAM_TRAIN",
    "Alignment",
    "BackendError",
    "ForwardKinematics",
    "GroupAdvantages",
    "GroupRewards",
    "GrpoLoss",
    "GuidanceWeights",
    "GuidedRotations",
    "HandTargets",
    "KeypointTargets",
    "MotionMetrics",
    "MotionRewards",
    "NoiseKey",
    "ProjectedStep",
    "RewardSkeleton",
    "SdeStep",
    "StateChannels",
    "WristTargets",
    "available_backends",
    "explain_backend",
    "forward_kinematics",
    "group_advantages",
    "group_rewards",
    "grpo_loss",
    "joint_offsets",
    "motion_guidance",
    "motion_metrics",
    "motion_rewards",
    "perlin_noise",
    "philox_normal",
    "philox_uniform",
    "procrustes_align",
    "procrustes_residual",
    "project_so3",
    "projected_sde_step",
    "registered_ops",
    "sde_kl",
    "sde_log_prob",
    "sde_log_ratio",
    "sde_step",
    "use_backend",
]
