"""Errors frame by frame, for plots and for finding where a motion goes wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mgrpo.kernels.metrics import reference as formulas

from .alignment import Align, align
from .metrics import HEAD_22
from .pairing import Pair

FRAME_COLUMNS: tuple[str, ...] = (
    "mpjpe_mm",
    "pa_mpjpe_mm",
    "root_mm",
    "head_position_mm",
    "mpjre_geodesic_deg",
    "depth_below_floor_mm",
)
"""What is measured of every frame; the last is of the prediction alone, before any alignment."""


@dataclass(frozen=True, eq=False)
class FrameErrors:
    """Errors of one clip of one prediction."""

    prediction: str
    """Name of the prediction."""
    clip: str
    """Name of the clip."""
    fps: float
    """Frames per second."""
    frames: Tensor
    """Numbers of the frames that were measured ``(F,)``, from 0 at the first common one."""
    values: dict[str, Tensor]
    """``(S, F)`` for each of :data:`FRAME_COLUMNS`; rotations are missing where an input has none."""


def frame_errors(both: Pair, rows: tuple[int, ...], kind: Align, *, prediction: str, clip: str) -> FrameErrors:
    """Errors of every frame that both motions have, over the joints of ``rows``."""
    moved = align(both.pred, both.truth, kind, both.mask)
    kept = torch.arange(len(moved)) if both.mask is None else both.mask.nonzero()[:, 0]
    joints = list(rows)
    # Each frame becomes a clip of one frame, (S, F, 1, J, 3).
    pred, truth = (one.joints[:, kept][:, :, None] for one in (moved, both.truth))
    values = {
        "mpjpe_mm": formulas.mpjpe_mm(pred[..., joints, :], truth[..., joints, :], None),
        "pa_mpjpe_mm": formulas.pa_mpjpe_mm(pred[..., joints, :], truth[..., joints, :], None),
        "root_mm": formulas.mpjpe_mm(pred[..., :1, :], truth[..., :1, :], None),
        "head_position_mm": formulas.head_position_mm(pred, truth, None, HEAD_22),
        "depth_below_floor_mm": formulas.gp_mean_mm(both.pred.joints[:, kept][:, :, None], None),
    }
    local = [row - 1 for row in rows if row > 0]
    if moved.body_rotmats is not None and both.truth.body_rotmats is not None and local:
        turned = (one.body_rotmats[:, kept][:, :, None, local] for one in (moved, both.truth))
        values["mpjre_geodesic_deg"] = formulas.mpjre_geodesic_deg(*turned, None)
    ordered = {name: values[name] for name in FRAME_COLUMNS if name in values}
    return FrameErrors(prediction, clip, both.fps, kept, ordered)
