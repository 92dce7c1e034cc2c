"""Joint positions after each frame has been aligned by the best similarity transform."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.kernels import procrustes_align

from .batch import RewardBatch, mean_over_frames


def aligned_position_error(batch: RewardBatch) -> Tensor:
    """Mean distance of the 22 joints after per-frame similarity alignment, metres; ``(B, G)``.

    ``standard`` aligns the prediction onto the recorded joints. ``egoallo`` aligns the *recorded* joints onto the
    prediction and measures how far they moved, which is what the published tables contain (facts: the base model's
    section 0, item 1).
    """
    prediction = batch.prediction.joints22
    target = batch.target.joints[:, None].expand_as(prediction)
    if batch.alignment == "standard":
        aligned = procrustes_align(prediction, target).aligned
    else:
        aligned = procrustes_align(target, prediction).aligned
    return mean_over_frames((aligned - target).norm(dim=-1).mean(-1), batch.frame_mask)


def aligned_position(batch: RewardBatch) -> Tensor:
    """R_pa = exp(-slope * aligned mean distance), ``(B, G)`` in (0, 1] (paper section 3.3)."""
    return torch.exp(-batch.scales.aligned_position * aligned_position_error(batch))
