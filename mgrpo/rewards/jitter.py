"""Smoothness: the third difference of the joint paths."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import RewardBatch, mean_over_frames


def jitter_error(batch: RewardBatch) -> Tensor:
    """Difference between the mean jerk of the prediction and that of the recording, m/s³; ``(B, G)``.

    Two-sided: less jerk than the recording is as wrong as more, or a frozen body would win.
    """
    mask = batch.frame_mask
    valid = mask[..., 3:] & mask[..., 2:-1] & mask[..., 1:-2] & mask[..., :-3]

    def jerk(joints: Tensor) -> Tensor:
        return mean_over_frames(joints.diff(n=3, dim=-3).norm(dim=-1).mean(-1) * batch.fps**3, valid)

    return (jerk(batch.prediction.joints22) - jerk(batch.target.joints[:, None])).abs()


def jitter(batch: RewardBatch) -> Tensor:
    """exp(-slope * jerk difference), ``(B, G)`` in (0, 1]."""
    return torch.exp(-batch.scales.jitter * jitter_error(batch))
