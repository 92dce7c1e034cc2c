"""Which joints touch something: slow and near the floor."""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.body.skeleton import BODY_JOINT_NAMES, CONTACT_JOINTS, TOE_JOINTS
from mgrpo.errors import InputError

CONTACT_SPEED_M_S = 0.3
"""Joints slower than this can be in contact, metres per second."""

TOE_HEIGHT_M = 0.04
"""Toes lower than this above a planted toe can be in contact, metres."""

OTHER_HEIGHT_M = 0.08
"""The same for ankles, knees and wrists, metres."""


def joint_speeds(joints: Tensor, fps: float) -> Tensor:
    """Speed ``(F, N)`` in metres per second of ``joints (F, N, 3)``: forward difference, the last one repeated."""
    steps = (joints[1:] - joints[:-1]).norm(dim=-1) * fps
    return torch.cat((steps, steps[-1:]), dim=0)


def contact_labels(
    joints22: Tensor, fps: float, *, toe_clearance: float = 0.01, speed_m_s: float = CONTACT_SPEED_M_S
) -> Tensor:
    """Contact labels ``(F, 21)``, 0 or 1, of ``joints22 (F, 22, 3)``, root first, floor at z = 0, metres.

    A joint is in contact where it moves slower than ``speed_m_s`` and is lower than 0.04 m (toes) or 0.08 m (ankles,
    knees, wrists) above the height of a planted toe, which is ``toe_clearance``. Other joints are never in contact.

    The base model's preprocessing uses the same heights but a displacement of 0.005 m *per frame of the source*: 0.3
    m/s at 60 fps, 0.6 m/s at 120 fps, so its labels depend on the recording's rate. Here the threshold is a speed, by
    default that of 60 fps; ``speed_m_s=0.005 * fps`` gives the base model's labels for a recording at ``fps``.

    Raises:
        InputError: wrong shape, fewer than two frames, or a rate that is not positive.
    """
    if joints22.ndim != 3 or tuple(joints22.shape[1:]) != (len(BODY_JOINT_NAMES) + 1, 3) or joints22.shape[0] < 2:
        raise InputError(
            f"contact_labels(): joints22 must have shape (F, 22, 3) with F >= 2, got {tuple(joints22.shape)}"
        )
    if not fps > 0:
        raise InputError(f"contact_labels(): fps must be positive, got {fps}")
    joints = joints22[:, 1:]
    height = joints[..., 2] - toe_clearance
    limit = torch.full((len(BODY_JOINT_NAMES),), -torch.inf, dtype=joints.dtype, device=joints.device)
    limit[list(CONTACT_JOINTS)] = OTHER_HEIGHT_M
    limit[list(TOE_JOINTS)] = TOE_HEIGHT_M
    return ((joint_speeds(joints, fps) < speed_m_s) & (height < limit)).to(joints.dtype)
