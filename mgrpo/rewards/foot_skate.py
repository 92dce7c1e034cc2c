"""Feet that slide while they are near the ground."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.body.skeleton import FOOT_CONTACT_HEIGHTS_M, FOOT_JOINTS

from .batch import RewardBatch, mean_over_frames


def foot_skate_error(batch: RewardBatch) -> Tensor:
    """Mean horizontal speed of the ankles and toes, weighted by how near the ground they are, m/s; ``(B, G)``.

    The weight is EgoAllo's ``2 - 2^(z/H)`` below the contact height H and 0 above it (facts: the base model's section
    G), here with the true floor at z = 0 and averaged over frames and feet, so that long and short sequences compare.
    """
    feet = batch.prediction.joints22[..., [1 + joint for joint in FOOT_JOINTS], :]
    height = feet[..., 1:, :, 2]
    limit = torch.tensor(FOOT_CONTACT_HEIGHTS_M, dtype=feet.dtype, device=feet.device)
    weight = (2 - torch.exp2(height.clamp_min(0) / limit)).clamp_min(0)
    speed = feet[..., :2].diff(dim=-3).norm(dim=-1) * batch.fps
    mask = batch.frame_mask
    return mean_over_frames((weight * speed).mean(-1), mask[..., 1:] & mask[..., :-1])


def foot_skate(batch: RewardBatch) -> Tensor:
    """exp(-slope * skating speed), ``(B, G)`` in (0, 1]."""
    return torch.exp(-batch.scales.foot_skate * foot_skate_error(batch))
