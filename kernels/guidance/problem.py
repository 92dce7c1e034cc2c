"""What the guidance optimiser minimises: weights, targets, and which joints depend on each other.

Everything here is independent of the backend. Joints are counted without the root, in SMPL-H's order: 21 of the body,
then 15 of the left and 15 of the right hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from torch import Tensor

BODY_JOINTS = 21
HAND_JOINTS = 15
HEAD = 14
TORSO = (0, 1, 2, 5, 8)
"""Joints that the position prior holds: hips and spine."""
FEET = (6, 7, 9, 10)
"""Joints that slide: ankles and toes."""
WRISTS = (19, 20)
KEYPOINT_JOINTS = ((19, *range(21, 36)), (20, *range(36, 51)))
"""Joints of each hand that are seen as image points: wrist, then the finger joints in their order."""

WristForm = Literal["split", "se3"]


@dataclass(frozen=True)
class GuidanceWeights:
    """Factors of the residuals (so they enter the cost squared); the defaults are EgoAllo's. A factor of 0 switches a
    term off."""

    rotation_prior: float = 1.0
    """Rotation from the start, per body joint, rad."""
    position_prior: float = 5.0
    """Position from the start, of hips and spine joints, m."""
    delta_smoothness: float = 10.0
    """Change of the correction from frame to frame, per body joint, rad."""
    smoothness: float = 1.0
    """Rotation from frame to frame, per body joint, rad."""
    velocity_smoothness: float = 5.0
    """Change of that rotation from frame to frame, per body joint, rad."""
    foot_skating: float = 30.0
    """Motion of ankles and toes from frame to frame times their contact, m."""
    hand_prior: float = 0.1
    """Rotation from the start, per finger joint, rad."""
    hand_smoothness: float = 1.0
    """Rotation from frame to frame, per finger joint, rad."""
    hand_rotations: float = 5.0
    """Rotation from the observed one, per finger joint, rad."""
    wrist_position: float = 50.0
    """Position of the wrist from the observed one, m (for ``form="se3"``: the translation part of the logarithm)."""
    wrist_orientation: float = 10.0
    """Orientation of the wrist from the observed one, rad."""
    keypoints: float = 1.0
    """Image points from the observed ones, in units of the focal length."""


class WristTargets(NamedTuple):
    """Where the wrists were seen."""

    T_world_wrist: Tensor
    """Poses (B, T, 2, 7) of the left and the right wrist joint, wxyz and xyz."""
    confidence: Tensor
    """(B, T, 2): factor of the residuals, 0 where a wrist was not seen (whatever its pose then says)."""
    form: WristForm = "split"
    """Residual: ``split`` is [p - p_obs; log(R_obs^-1 R)], ``se3`` the logarithm of T^-1 T_obs."""


class HandTargets(NamedTuple):
    """Finger rotations that were seen."""

    rotmats: Tensor
    """Local rotations (B, T, 30, 3, 3), left hand first; proper rotations where seen."""
    confidence: Tensor
    """(B, T, 2) of the left and the right hand: factor of the residuals, 0 where it was not seen."""


class KeypointTargets(NamedTuple):
    """Image points of the hands."""

    uv: Tensor
    """(B, T, 2, 16, 2): x / z and y / z in the camera's frame, of the joints :data:`KEYPOINT_JOINTS`."""
    confidence: Tensor
    """(B, T, 2) of the left and the right hand: factor of the residuals, 0 where it was not seen."""
    T_world_cam: Tensor
    """Poses of the camera (B, T, 7), z forward."""


class Tree(NamedTuple):
    """The kinematic tree seen from a head that does not move."""

    parents: tuple[int, ...]
    coupled: tuple[int, ...]
    """Joints whose rotations move a point that has a cost, in ascending order; the others are free: each has costs of
    its own alone."""
    ancestors: tuple[int, ...]
    """For every joint the bits of its strict ancestors."""
    spine: int
    """Bits of the joints between root and head, and the head."""


@lru_cache(maxsize=16)
def tree_of(parents: tuple[int, ...], wrists: bool, keypoints: bool) -> Tree:
    """The tree of a skeleton, and what is coupled by the points that have costs.

    With the head nailed to its place, a rotation between root and head moves all that does *not* hang from it, the
    other way round. A joint that is on this path and above a point as well does not move it.
    """
    ancestors: list[int] = []
    for parent in parents:
        ancestors.append(0 if parent < 0 else ancestors[parent] | 1 << parent)
    spine = ancestors[HEAD] | 1 << HEAD
    moving = 0
    for joint in (*TORSO, *FEET):
        moving |= ancestors[joint] ^ spine
    if wrists:
        for joint in WRISTS:
            moving |= (ancestors[joint] | 1 << joint) ^ spine
    if keypoints:
        for joints in KEYPOINT_JOINTS:
            for joint in joints:
                moving |= ancestors[joint] ^ spine
    coupled = tuple(joint for joint in range(len(parents)) if moving >> joint & 1)
    return Tree(parents, coupled, tuple(ancestors), spine)


class DampingRule(NamedTuple):
    """How the damping follows from the quality of a step: the fall of the cost over what the linearised residuals
    promised."""

    good: float
    """Above this quality the damping is multiplied by ``less``."""
    poor: float
    """Below this quality, and after a step that was not taken, it is multiplied by ``more``; in between it stays."""
    less: float
    more: float


DAMPING_RULES = {
    "adaptive": DampingRule(good=0.75, poor=0.25, less=0.5, more=4.0),
    "egoallo": DampingRule(good=0.0, poor=0.0, less=0.5, more=2.0),
}
"""``egoallo`` is the original's: halved by a step that is taken, doubled by one that is not. On problems that are far
from linear it tries every other step in vain. ``adaptive`` is the same where steps are good, and does not."""
