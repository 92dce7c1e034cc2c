"""Joint positions in the world."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import RewardBatch, mean_over_frames


def position_error(batch: RewardBatch) -> Tensor:
    """Mean distance of the 22 joints to the recorded ones, world frame, metres; ``(B, G)``."""
    distance = (batch.prediction.joints22 - batch.target.joints[:, None]).norm(dim=-1).mean(-1)
    return mean_over_frames(distance, batch.frame_mask)


def joint_position(batch: RewardBatch) -> Tensor:
    """R_pos = exp(-slope * mean distance), ``(B, G)`` in (0, 1] (paper section 3.3; facts: method, section 3)."""
    return torch.exp(-batch.scales.position * position_error(batch))
