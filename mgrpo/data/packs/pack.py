"""What a motion pack is: clips of another skeleton, end to end, and how its file keeps them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PACK_KEYS = ("names", "lengths", "trans", "quats_wxyz_i16", "rest_joints", "fps")
"""Arrays that a pack must have; ``joint_names`` (checked) and ``loop`` may be there too."""

SCALE = 32767
"""Quaternions are stored as int16, this being 1: 0.02 mm at the end of a metre."""


class MotionPack(NamedTuple):
    """Clips of a source skeleton, end to end, as read from a file and checked."""

    names: tuple[str, ...]
    """``C`` clip names."""
    lengths: np.ndarray
    """Frames of each, ``(C,)``."""
    trans: np.ndarray
    """Pelvis position ``(N, 3)`` metres, z up, floor at 0."""
    quats: np.ndarray
    """Unit quaternions wxyz ``(N, 22, 4)`` float32: root in the world, then the 21 local rotations."""
    rest_joints: np.ndarray
    """Each clip's skeleton in the zero pose ``(C, 22, 3)`` metres, y up."""
    fps: float
    """Frames per second."""
    loop: np.ndarray
    """Whether each clip loops, ``(C,)`` bool."""

    @property
    def rows(self) -> list[slice]:
        """Frames of each clip among the ``N``."""
        ends = np.cumsum(self.lengths)
        return [slice(int(end - length), int(end)) for end, length in zip(ends, self.lengths)]


def pack_quats(quats: np.ndarray) -> np.ndarray:
    """Unit quaternions ``(…, 4)`` as a pack stores them: int16 of 32767 times their numbers, with w >= 0."""
    signed = np.where(quats[..., :1] < 0, -quats, quats)
    return np.round(signed * SCALE).astype(np.int16)
