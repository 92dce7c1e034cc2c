"""Moving a prediction onto its truth before errors are taken. Nothing is aligned unless asked: published tables differ
in what they align."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mgrpo.errors import InputError
from mgrpo.geometry import quat_to_rotmat, yaw_rotation
from mgrpo.kernels import procrustes_align

from .formats import MotionTracks

Align = Literal["none", "first-frame-yaw", "root", "rigid"]

ALIGNMENTS: dict[str, str] = {
    "none": "No alignment: positions are compared where they stand in the world",
    "first-frame-yaw": "Predictions turned about the vertical and moved: heading and pelvis of the first frame agree",
    "root": "Predictions moved in every frame so that the pelvises agree",
    "rigid": "Predictions moved by one rotation and shift for the whole clip, the best fit of all joints",
}
"""Every alignment and what it does, for tables."""

_LEFT, _RIGHT = (1, 16), (2, 17)


def align(pred: MotionTracks, truth: MotionTracks, kind: Align, mask: Tensor | None = None) -> MotionTracks:
    """The prediction moved onto its truth, see :data:`ALIGNMENTS`; rotations turn along.

    ``mask (T,)`` is False on frames that take no part. Raises InputError for an unknown kind.
    """
    if kind not in ALIGNMENTS:
        raise InputError(f"an alignment is one of {', '.join(ALIGNMENTS)}, got {kind!r}")
    if kind == "none":
        return pred
    if kind == "root":
        return replace(pred, joints=pred.joints - pred.joints[:, :, :1] + truth.joints[:, :, :1])
    if kind == "rigid":
        goal = truth.joints.expand_as(pred.joints)
        weights = torch.ones(goal.shape[:-1], dtype=goal.dtype)
        if mask is not None:
            weights = weights * mask[None, :, None]
        fit = procrustes_align(
            pred.joints.flatten(1, 2).contiguous(),
            goal.flatten(1, 2).contiguous(),
            weights.flatten(1, 2).contiguous(),
            with_scale=False,
        )
        return _moved(pred, fit.R, fit.t)
    first = 0 if mask is None else int(mask.nonzero()[0, 0])
    angle = heading(truth.joints[:, first]) - heading(pred.joints[:, first])
    R = quat_to_rotmat(yaw_rotation(angle))
    pelvis = (R @ pred.joints[:, first, 0, :, None])[..., 0]
    shift = truth.joints[:, first, 0] - pelvis
    return _moved(pred, R, shift)


def heading(joints: Tensor) -> Tensor:
    """Angle ``(…)`` about the vertical, radians, of the direction from the right to the left hip and shoulder of
    ``joints (…, 22, 3)``."""
    across = (joints[..., list(_LEFT), :] - joints[..., list(_RIGHT), :]).sum(-2)
    return torch.atan2(across[..., 1], across[..., 0])


def _moved(tracks: MotionTracks, R: Tensor, t: Tensor) -> MotionTracks:
    """Each sample moved by its rotation ``(S, 3, 3)`` and shift ``(S, 3)``."""
    world = tracks.R_world_joint
    return replace(
        tracks,
        joints=tracks.joints @ R[:, None].mT + t[:, None, None],
        R_world_joint=None if world is None else R[:, None, None] @ world,
    )
