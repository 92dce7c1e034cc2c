"""Joints below the floor."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import RewardBatch, mean_over_frames


def penetration_error(batch: RewardBatch) -> Tensor:
    """Mean over frames of the deepest joint's depth below z = 0, metres; ``(B, G)`` (paper equation 20, averaged over
    time)."""
    depth = (-batch.prediction.joints22[..., 2]).amax(-1).clamp_min(0)
    return mean_over_frames(depth, batch.frame_mask)


def ground_penetration(batch: RewardBatch) -> Tensor:
    """exp(-slope * mean depth), ``(B, G)`` in (0, 1]."""
    return torch.exp(-batch.scales.penetration * penetration_error(batch))
