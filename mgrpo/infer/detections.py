"""What was found of the hands in a recording's images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class HamerHands(NamedTuple):
    """The hands of one side, N in K images."""

    times_ns: np.ndarray
    """Times of the images ``(K,)`` int64, rising."""
    frame: np.ndarray
    """Image of each hand ``(N,)`` int64, rising."""
    keypoints_3d: np.ndarray
    """``(N, 21, 3)`` metres in the camera's frame, wrist first."""
    mano_hand_pose: np.ndarray
    """Local rotations ``(N, 15, 3, 3)``."""
    mano_hand_global_orient: np.ndarray
    """Wrist's rotation in the camera's frame ``(N, 3, 3)``."""
    mano_hand_betas: np.ndarray
    """``(N, 10)``."""


class HamerDetections(NamedTuple):
    """Hands of both sides of one recording."""

    hands: tuple[HamerHands, HamerHands]
    """Left, right."""
    T_cpf_cam: np.ndarray
    """Pose of the camera in the central pupil frame ``(7,)``."""
    T_device_cam: np.ndarray
    """Pose of the camera in the device's frame ``(7,)``."""
