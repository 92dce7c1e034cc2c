"""What the readers of skeleton files have in common: a moving skeleton in its file's own names, axes and unit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

AXES = "xyz"


class SourceMotion(NamedTuple):
    """``T`` frames of a skeleton of ``J`` joints as a file gives them. float64, column vectors, file axes and unit."""

    names: tuple[str, ...]
    """Joint names; an end site is named after its joint with ``.End`` behind."""
    parents: tuple[int, ...]
    """Parent of each joint, parents first; -1 for the root."""
    times: np.ndarray
    """Seconds since the first frame ``(T,)``, increasing; steps differ where the file leaves frames out."""
    fps: float
    """Nominal frames per second."""
    R_world_joint: np.ndarray
    """Orientations ``(T, J, 3, 3)``."""
    positions: np.ndarray
    """Positions ``(T, J, 3)`` in the file's unit."""
    zero_positions: np.ndarray
    """Positions ``(J, 3)`` in the pose where all rotations are zero (all orientations are then the identity)."""
    metres: float | None
    """Metres per unit where the file says it; None where it must be found out."""
    notes: tuple[str, ...] = ()
    """What a person should know about how the file was read."""


def axis_rotation(axis: str, radians: np.ndarray) -> np.ndarray:
    """Rotation matrices ``(…, 3, 3)`` about the axis ``x``, ``y`` or ``z`` by ``radians (…)``."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    cosine, sine = np.cos(radians), np.sin(radians)
    rotmat = np.zeros((*np.shape(radians), 3, 3))
    rotmat[..., AXES.index(axis), AXES.index(axis)] = 1.0
    rotmat[..., first, first], rotmat[..., second, second] = cosine, cosine
    rotmat[..., first, second], rotmat[..., second, first] = -sine, sine
    return rotmat


def rotation_sequence(axes: str, radians: np.ndarray) -> np.ndarray:
    """``R(axes[0]) R(axes[1]) …`` for angles ``(…, len(axes))``: each turn about an axis that the turns before it in
    the product have already moved."""
    rotmat = np.broadcast_to(np.eye(3), (*np.shape(radians)[:-1], 3, 3))
    for index, axis in enumerate(axes):
        rotmat = rotmat @ axis_rotation(axis, radians[..., index])
    return rotmat
