"""The head joint: its place depends on body shape and pose even though the pupil frame is matched exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.body.skeleton import HEAD

from .batch import RewardBatch, mean_over_frames


def head_error(batch: RewardBatch) -> Tensor:
    """Mean distance of the head joint to the recorded one, metres; ``(B, G)``."""
    distance = (batch.prediction.joints22[..., 1 + HEAD, :] - batch.target.joints[:, None, :, 1 + HEAD]).norm(dim=-1)
    return mean_over_frames(distance, batch.frame_mask)


def head_position(batch: RewardBatch) -> Tensor:
    """exp(-slope * head error), ``(B, G)`` in (0, 1]."""
    return torch.exp(-batch.scales.head * head_error(batch))
