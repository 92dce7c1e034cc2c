"""Joint velocities: forward differences, metres per second."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import RewardBatch, mean_over_frames


def velocity_error(batch: RewardBatch) -> Tensor:
    """Mean norm of the velocity difference of the 22 joints, m/s; ``(B, G)``. Both frames of a difference must be
    valid."""
    difference = batch.prediction.joints22 - batch.target.joints[:, None]
    speed = difference.diff(dim=-3).norm(dim=-1).mean(-1) * batch.fps
    mask = batch.frame_mask
    return mean_over_frames(speed, mask[..., 1:] & mask[..., :-1])


def joint_velocity(batch: RewardBatch) -> Tensor:
    """R_vel = exp(-slope * velocity error), ``(B, G)`` in (0, 1] (paper section 3.3)."""
    return torch.exp(-batch.scales.velocity * velocity_error(batch))
