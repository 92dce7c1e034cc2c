"""The oracle of every op, for users who want to check the fast backends: ``reference.<op>`` with the op's arguments.

Each is the public function bound to ``backend="reference"``: readable torch, clean in float64, and twice differentiable
where the op is differentiable.
"""

from __future__ import annotations

from functools import partial

from . import guidance, kinematics, metrics, perlin, policy, procrustes, rewards, rng, so3, transition

forward_kinematics = partial(kinematics.forward_kinematics, backend="reference")
group_advantages = partial(policy.group_advantages, backend="reference")
group_rewards = partial(rewards.group_rewards, backend="reference")
grpo_loss = partial(policy.grpo_loss, backend="reference")
joint_offsets = partial(kinematics.joint_offsets, backend="reference")
motion_guidance = partial(guidance.motion_guidance, backend="reference")
motion_metrics = partial(metrics.motion_metrics, backend="reference")
motion_rewards = partial(rewards.motion_rewards, backend="reference")
perlin_noise = partial(perlin.perlin_noise, backend="reference")
philox_normal = partial(rng.philox_normal, backend="reference")
philox_uniform = partial(rng.philox_uniform, backend="reference")
procrustes_align = partial(procrustes.procrustes_align, backend="reference")
procrustes_residual = partial(procrustes.procrustes_residual, backend="reference")
project_so3 = partial(so3.project_so3, backend="reference")
projected_sde_step = partial(transition.projected_sde_step, backend="reference")
sde_kl = partial(transition.sde_kl, backend="reference")
sde_log_prob = partial(transition.sde_log_prob, backend="reference")
sde_log_ratio = partial(transition.sde_log_ratio, backend="reference")
sde_step = partial(transition.sde_step, backend="reference")

__all__ = [
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
    "sde_kl",
    "sde_log_prob",
    "sde_log_ratio",
    "sde_step",
]
