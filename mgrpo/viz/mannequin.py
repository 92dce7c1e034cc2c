"""A body of rounded limbs around a skeleton: which joints a limb spans and how thick it is.

Measures are rounded human anatomy in metres (own numbers). The HTML player receives the same table, so films and page
show one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgrpo.viz.comparison import BODY_PARENTS


@dataclass(frozen=True)
class Extension:
    """A point that the skeleton doesn't have: ``length`` metres from joint ``end`` on the line from joint ``start``
    through it."""

    start: int
    end: int
    length: float


@dataclass(frozen=True)
class Limb:
    """A capsule between two points (joints, or extensions counted on after the joints), its radii in metres."""

    start: int
    end: int
    start_radius: float
    end_radius: float
    side: int = 0
    """1 for the body's left, -1 for its right, 0 for the middle: the right is drawn darker, so that legs can be told
    apart."""
    torso: bool = False
    """Whether the limb belongs to the trunk, whose parts are painted as one smooth shape."""


@dataclass(frozen=True)
class Mannequin:
    """The limbs of a skeleton of ``joints`` joints, and the points added to it."""

    joints: int
    extensions: tuple[Extension, ...]
    limbs: tuple[Limb, ...]

    def points(self, joints: np.ndarray) -> np.ndarray:
        """Joint positions (…, J, 3) with the extensions' points appended: (…, J+E, 3)."""
        if not self.extensions:
            return joints
        starts = joints[..., [extension.start for extension in self.extensions], :]
        ends = joints[..., [extension.end for extension in self.extensions], :]
        lengths = np.array([extension.length for extension in self.extensions], dtype=joints.dtype)
        along = ends - starts
        norm = np.maximum(np.linalg.norm(along, axis=-1, keepdims=True), 1e-6)
        return np.concatenate((joints, ends + along / norm * lengths[:, None]), axis=-2)


_BODY_EXTENSIONS = (
    Extension(12, 15, 0.035),  # 22: chin end of the skull
    Extension(12, 15, 0.135),  # 23: crown
    Extension(18, 20, 0.09),  # 24: left fingers
    Extension(19, 21, 0.09),  # 25: right fingers
    Extension(7, 10, 0.055),  # 26: left toes
    Extension(8, 11, 0.055),  # 27: right toes
)

_BODY_LIMBS = (
    Limb(0, 3, 0.112, 0.102, torso=True),
    Limb(3, 6, 0.102, 0.108, torso=True),
    Limb(6, 9, 0.108, 0.115, torso=True),
    Limb(9, 12, 0.1, 0.05, torso=True),
    Limb(12, 15, 0.052, 0.05),
    Limb(22, 23, 0.082, 0.09),
    *(
        limb
        for side, (hip, knee, ankle, foot, toes, collar, shoulder, elbow, wrist, fingers) in (
            (1, (1, 4, 7, 10, 26, 13, 16, 18, 20, 24)),
            (-1, (2, 5, 8, 11, 27, 14, 17, 19, 21, 25)),
        )
        for limb in (
            Limb(0, hip, 0.1, 0.09, torso=True),
            Limb(hip, knee, 0.086, 0.056, side),
            Limb(knee, ankle, 0.055, 0.038, side),
            Limb(ankle, foot, 0.038, 0.034, side),
            Limb(foot, toes, 0.034, 0.024, side),
            Limb(9, collar, 0.1, 0.078, torso=True),
            Limb(collar, shoulder, 0.076, 0.058, torso=True),
            Limb(shoulder, elbow, 0.05, 0.04, side),
            Limb(elbow, wrist, 0.039, 0.027, side),
            Limb(wrist, fingers, 0.028, 0.02, side),
        )
    ),
)


def mannequin_for(parents: Sequence[int]) -> Mannequin:
    """The mannequin of a skeleton (parents, root first): the full figure for SMPL-H's 22 joints, plain rods for any
    other tree."""
    if tuple(parents) == BODY_PARENTS:
        return Mannequin(len(parents), _BODY_EXTENSIONS, _BODY_LIMBS)
    rods = tuple(Limb(parent, joint, 0.035, 0.03) for joint, parent in enumerate(parents) if parent >= 0)
    return Mannequin(len(parents), (), rods)
