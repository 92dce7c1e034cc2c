"""The perceptual model's verdict on the whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import RewardBatch


def visual(batch: RewardBatch) -> Tensor:
    """R_vis = exp(slope * score), ``(B, G)``, score in (0, 1) of the trajectory-conditioned perceptual model (paper
    equation 10).

    Raises ValueError when the batch carries no perceptual model.
    """
    if batch.perceptual is None:
        raise ValueError(
            "visual reward: the batch has no perceptual model; train one (mgrpo train perceptual) or leave `visual` out"
        )
    joints, rotations = batch.prediction.joints22, batch.prediction.R_world_joint22
    groups, members = joints.shape[:2]
    head = batch.target.T_world_cpf[:, None].expand(-1, members, -1, -1).flatten(0, 1)
    mask = batch.target.mask[:, None].expand(-1, members, -1).flatten(0, 1) if batch.target.padded else None
    score = batch.perceptual(rotations.flatten(0, 1), joints.flatten(0, 1), head, mask)
    return torch.exp(batch.scales.visual * score.view(groups, members))
