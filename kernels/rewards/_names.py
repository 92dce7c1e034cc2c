"""Names of the rewards and their variants. Their order is the number that the registered operators take."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

JOINT_REWARDS = (
    "position",
    "aligned_position",
    "rotation",
    "velocity",
    "foot_skate",
    "ground_penetration",
    "jitter",
    "head_position",
)
"""Rewards that follow from joints and rotations."""

DEFAULT_SLOPES: Mapping[str, float] = MappingProxyType(
    {
        "position": 1.0,
        "aligned_position": 1.0,
        "rotation": 1.0,
        "velocity": 0.2,
        "foot_skate": 1.0,
        "ground_penetration": 10.0,
        "jitter": 0.002,
        "head_position": 10.0,
    }
)
"""Slope w of each reward exp(-w error), per unit of the error."""

ROTATION_ERRORS = ("geodesic", "axis_angle", "frobenius")
"""Ways to compare rotations."""

ALIGNMENTS = ("standard", "egoallo")
"""What is aligned with what in ``aligned_position``."""

REPRESENTATIONS = ("matrix", "quaternion", "rot6d", "state")
"""What ``motion_rewards`` takes for a motion."""
