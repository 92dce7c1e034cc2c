"""Named parts of the skeleton, for errors over some of its joints."""

from __future__ import annotations

from collections.abc import Sequence

from mgrpo.body.skeleton import BODY_JOINT_NAMES, ROOT_NAME
from mgrpo.errors import InputError

JOINT_NAMES: tuple[str, ...] = (ROOT_NAME, *BODY_JOINT_NAMES)
"""The 22 joints, pelvis first."""

_LEGS = ("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "left_foot", "right_foot")
_ARMS = tuple(
    f"{side}_{joint}" for joint in ("collar", "shoulder", "elbow", "wrist") for side in ("left", "right")
)  # fmt: skip

JOINT_SETS: dict[str, tuple[str, ...]] = {
    "all": JOINT_NAMES,
    "upper": tuple(name for name in JOINT_NAMES if name not in (ROOT_NAME, *_LEGS)),
    "lower": (ROOT_NAME, *_LEGS),
    "legs": _LEGS,
    "arms": _ARMS,
    "feet": ("left_ankle", "right_ankle", "left_foot", "right_foot"),
    "wrists": ("left_wrist", "right_wrist"),
}
"""Joints of each named set. Their order does not matter."""


def joint_rows(names: Sequence[str]) -> tuple[int, ...]:
    """Rows among the 22 joints of sets and joints by name, each once, rising. InputError for an unknown name or
    none."""
    wanted: set[str] = set()
    for name in names:
        if name not in JOINT_SETS and name not in JOINT_NAMES:
            raise InputError(
                f"there is no joint or set of joints called {name!r}; sets: {', '.join(JOINT_SETS)}; joints: "
                f"{', '.join(JOINT_NAMES)}"
            )
        wanted.update(JOINT_SETS.get(name, (name,)))
    if not wanted:
        raise InputError("name at least one joint or set of joints, such as all, upper or lower")
    return tuple(row for row, name in enumerate(JOINT_NAMES) if name in wanted)
