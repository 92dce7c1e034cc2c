"""Local joint rotations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mgrpo.geometry import geodesic_angle, rotmat_to_axis_angle

from .batch import RewardBatch, mean_over_frames


def rotation_error(batch: RewardBatch) -> Tensor:
    """Mean difference of the 21 local joint rotations; ``(B, G)``.

    ``geodesic``: angle between the two, radians. ``axis_angle``: mean absolute difference of the wrapped
    rotation-vector components, radians (the paper's first author's early code). ``frobenius``: norm of the difference
    of the matrices.
    """
    prediction, target = batch.prediction.body_rotmats, batch.target.body_rotmats[:, None]
    if batch.rotation_error == "geodesic":
        error = geodesic_angle(prediction, target).mean(-1)
    elif batch.rotation_error == "axis_angle":
        difference = rotmat_to_axis_angle(prediction) - rotmat_to_axis_angle(target)
        wrapped = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
        error = wrapped.abs().mean((-1, -2))
    else:
        error = (prediction - target).flatten(-2).norm(dim=-1).mean(-1)
    return mean_over_frames(error, batch.frame_mask)


def joint_rotation(batch: RewardBatch) -> Tensor:
    """R_rot = exp(-slope * rotation error), ``(B, G)`` in (0, 1] (paper section 3.3)."""
    return torch.exp(-batch.scales.rotation * rotation_error(batch))
