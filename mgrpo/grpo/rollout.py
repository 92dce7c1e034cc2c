"""Sampling groups from the policy, and keeping what the update needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mgrpo.diffusion.sampler import NoiseKeys, sample
from mgrpo.diffusion.transition import Transitions
from mgrpo.models.state import StateLayout

from .policy import Policy


@dataclass(frozen=True)
class Rollout:
    """B conditions, M encodings per condition (1 when the group shares its condition), G members, S steps.

    The noise of a step is not stored: it is drawn again from its counter.
    """

    cond: Tensor
    """Encoded conditions that the policy saw, (B, T, d_cond), or (B * G, T, d_cond) with one condition per member."""
    x_t: list[Tensor]
    """State before each of the S steps, (R, M, T, D) with R * M = B * G."""
    x0_pred: list[Tensor]
    """What the policy predicted and each step used (projected where the sampler projects), (R, M, T, D)."""
    x0: Tensor
    """Final sample, (B, G, T, D)."""
    keys: NoiseKeys
    transitions: Transitions
    layout: StateLayout
    project_rotations: bool


@torch.no_grad()
def roll_out(
    policy: Policy,
    cond: Tensor,
    transitions: Transitions,
    keys: NoiseKeys,
    layout: StateLayout,
    *,
    group_size: int,
    project_rotations: bool,
) -> Rollout:
    """Draw a group of samples for each condition. ``cond`` is ``(B, 1 or G, T, d_cond)``: shared by the group or one
    per member."""
    conditions, encodings = cond.shape[:2]
    if encodings not in (1, group_size):
        raise ValueError(f"roll_out(): cond must have shape (B, 1 or {group_size}, T, d_cond), got {tuple(cond.shape)}")
    flat = cond.flatten(0, 1)
    row_keys = keys if encodings == 1 else keys.one_row_per_member()
    result = sample(
        policy, flat, transitions, row_keys, layout=layout, project_rotations=project_rotations, record="all"
    )
    frames, channels = result.x0.shape[-2:]
    return Rollout(
        cond=flat,
        x_t=result.x_t,
        x0_pred=result.x0_pred,
        x0=result.x0.reshape(conditions, group_size, frames, channels),
        keys=row_keys,
        transitions=transitions,
        layout=layout,
        project_rotations=project_rotations,
    )
