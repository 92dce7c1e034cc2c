"""Turning a world so that z is up."""

from __future__ import annotations

import numpy as np


def up_rotation(gravity: np.ndarray) -> np.ndarray:
    """Rotation ``(3, 3)`` to z up from a world where gravity points along ``gravity (3,)``: exactly a quarter turn
    about x for y up, nothing for z up, otherwise the smallest."""
    for down, turn in (
        ((0.0, 0.0, -1.0), np.eye(3)),
        ((0.0, -1.0, 0.0), np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])),
    ):
        if gravity @ np.array(down) > np.cos(np.radians(1.0)):
            return turn
    return turn_to_z_up(-gravity / np.linalg.norm(gravity))


def turn_to_z_up(up: np.ndarray) -> np.ndarray:
    """The smallest rotation ``(3, 3)`` that takes the unit vector ``up (3,)`` to z; half a turn about x from -z."""
    axis, cosine = np.cross(up, (0.0, 0.0, 1.0)), float(up[2])
    if cosine < -1 + 1e-9:
        return np.diag((1.0, -1.0, -1.0))
    K = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + K + K @ K / (1 + cosine)
