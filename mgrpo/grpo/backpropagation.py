"""Samples with a gradient through the last steps of the sampler: ReFL with its last step alone, DRaFT-K with K of them
(arXiv 2304.05977, 2309.17400)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import StepOptions, reverse_step
from mgrpo.diffusion.transition import Transitions

from .policy import Policy, at_level, call
from .rollout import roll_out_groups
from .task import Batch, Task


def sample_with_gradient(
    policy: Policy, task: Task[Any], batch: Batch, transitions: Transitions, *, last: int, **options: Any
) -> Tensor:
    """The samples of :func:`mgrpo.grpo.rollout.roll_out_groups`, up to rounding, ``(B, G, T, D)``, differentiable in
    the policy's weights through the last ``last`` steps: through the network, the projection and the state that one
    step hands to the next. The steps before are constants.

    Args:
        policy, task, batch: as there.
        transitions: the sampler's S steps.
        last: from 1 to S.
        options: its further keywords.
    """
    begin = len(transitions) - last
    rollout = roll_out_groups(policy, task, batch, transitions.first(begin), **options)
    steps = StepOptions(task.layout, project_rotations=task.project_rotations)
    x = rollout.x0
    with torch.enable_grad():
        for k in range(begin, len(transitions)):
            level, A, B, s = transitions.scalars[k]
            x0_pred = call(policy, x, at_level(level, x.shape[0], x.device), rollout.cond, rollout.mask).to(x.dtype)
            x, _ = reverse_step(x, x0_pred, A, B, s, rollout.keys.step_key(k), steps, steps.project_rotations)
    return x.reshape(len(batch), -1, *x.shape[-2:])
