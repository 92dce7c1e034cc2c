"""SMPL's parameters of a motion: axis angles of 52 joints and the translation, which AMASS and .smpl files hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.export.frames import FileFrame, Up
from mgrpo.export.motion import JOINT_NAMES, PosedMotion
from mgrpo.geometry import quat_multiply, quat_to_axis_angle


class SmplParameters(NamedTuple):
    """One motion as SMPL-H takes it, float64."""

    poses: np.ndarray
    """Axis angles ``(T, 52, 3)`` in radians, at most half a turn: root in the world, body, left hand, right hand."""
    trans: np.ndarray
    """SMPL's translation ``(T, 3)`` in metres: the pelvis joint minus the rest pelvis of the shape."""
    betas: np.ndarray
    """Shape ``(16,)`` for SMPL-H; zeros where the body's shape numbers are not SMPL-H's."""


def smpl_parameters(motion: PosedMotion, up: Up) -> SmplParameters:
    """Parameters of a motion of one shape, in a world with that axis up.

    The rest pose of SMPL has its own axes whatever the world's up axis is, so the turn of the world goes into the root
    alone. Fingers that are not posed are straight. The default body's shape numbers mean nothing to SMPL-H:
    its motion is written for the mean shape.
    """
    own = has_smpl_shape(motion.body)
    betas = motion.betas[0] if own else torch.zeros(NUM_BETAS, dtype=torch.float64)
    frame = FileFrame(up)
    pelvis = frame.points(motion.T_world_root[:, 4:])
    poses = torch.zeros(len(motion), len(JOINT_NAMES), 3, dtype=torch.float64)
    poses[:, 0] = quat_to_axis_angle(quat_multiply(frame.q_file_world, motion.T_world_root[:, :4]))
    for rows in motion.chunks():
        poses[rows, 1 : motion.num_joints + 1] = quat_to_axis_angle(motion.rotations(rows))
    trans = pelvis - motion.skeleton.rest_joints(betas)[0]
    return SmplParameters(poses.numpy(), trans.numpy(), betas.numpy())


def has_smpl_shape(body: BodyModel) -> bool:
    """Whether a body's shape numbers are SMPL-H's."""
    return body.name.startswith("smplh")
