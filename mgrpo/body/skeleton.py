"""The skeleton of 21 body and 30 hand joints in SMPL-H order, and what is known of it without a body file.

Joint indices here leave out the root (the pelvis), as the base model does; index ``i`` is joint ``i + 1`` of the 22 or
52 that have the root first. Rest axes: +x the body's left, +y up, +z forward.
"""

from __future__ import annotations

BODY_JOINT_NAMES: tuple[str, ...] = (
    "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle", "spine3",
    "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
"""The 21 body joints; ``left_foot`` and ``right_foot`` are at the toes."""

HAND_JOINT_NAMES: tuple[str, ...] = tuple(
    f"{side}_{finger}{segment}"
    for side in ("left", "right")
    for finger in ("index", "middle", "pinky", "ring", "thumb")
    for segment in (1, 2, 3)
)
"""The 30 finger joints, left hand first."""

ROOT_NAME = "pelvis"
"""Name of the root, which has no index here."""

PARENTS_BODY: tuple[int, ...] = (-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12, 13, 15, 16, 17, 18)
"""Parent of each body joint; -1 is the root."""

PARENTS_FULL: tuple[int, ...] = PARENTS_BODY + tuple(
    (19 + side) if segment == 0 else 21 + 15 * side + 3 * finger + segment - 1
    for side in (0, 1)
    for finger in range(5)
    for segment in range(3)
)
"""Parent of each of the 51 joints (body, left hand, right hand); -1 is the root."""

HEAD = 14
"""Index of the head joint, with which the central pupil frame is rigid."""

FOOT_JOINTS: tuple[int, ...] = (6, 7, 9, 10)
"""Ankles, then toes (left, right)."""

FOOT_CONTACT_HEIGHTS_M: tuple[float, ...] = (0.08, 0.08, 0.04, 0.04)
"""Height in metres under which each of :data:`FOOT_JOINTS` counts as near the floor."""

TOE_JOINTS: tuple[int, ...] = (9, 10)
"""Left and right toe."""

CONTACT_JOINTS: tuple[int, ...] = (3, 4, 6, 7, 9, 10, 19, 20)
"""Knees, ankles, toes, wrists: the only joints whose contact label is ever set."""


def _mirror_permutation(names: tuple[str, ...]) -> tuple[int, ...]:
    swap = {"left": "right", "right": "left"}
    partner = [
        "_".join((swap[name.split("_")[0]], *name.split("_")[1:])) if name.split("_")[0] in swap else name
        for name in names
    ]
    return tuple(names.index(name) for name in partner)


MIRROR_BODY: tuple[int, ...] = _mirror_permutation(BODY_JOINT_NAMES)
"""``mirrored[i] = original[MIRROR_BODY[i]]``: left and right exchanged."""

MIRROR_HANDS: tuple[int, ...] = _mirror_permutation(HAND_JOINT_NAMES)
"""The same for the 30 hand joints, counted from 0."""
