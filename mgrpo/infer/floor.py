"""Which height is the floor: what the recording tells, what the user says, or a standing person."""

from __future__ import annotations

import math

import numpy as np

from mgrpo.data.floor import HEAD_HEIGHTS_M
from mgrpo.errors import InputError
from mgrpo.infer.trajectory import Floor, HeadTrajectory

EYE_HEIGHT_M = 1.6
"""Height of the eyes of a standing person where nothing else is known, metres."""

FLOORS = ("auto", "points", "zero", "standing")
"""Words after --floor, besides a height in metres."""

_UPRIGHT = 0.9


def standing_height(trajectory: HeadTrajectory) -> float:
    """Height of the head in the trajectory's world when its wearer stands, metres: exceeded a tenth of the time."""
    return float(np.quantile(trajectory.T_world_cpf[:, 6], _UPRIGHT))


def choose_floor(
    trajectory: HeadTrajectory, choice: str, eye_height_m: float = EYE_HEIGHT_M
) -> tuple[Floor, tuple[str, ...]]:
    """The floor in the trajectory's world, and what a person should know of it.

    Args:
        trajectory: with the floor that its reader found, if any.
        choice: ``auto`` (that one; where it is the world's zero and heads are not above it as people's are, or there is
            none, as ``standing``), ``points`` (from the recording's points, which there must be), ``zero`` (the world's
            zero), ``standing`` (the head's usual greatest height is ``eye_height_m`` above it), or a height in metres.
        eye_height_m: height of the wearer's eyes when standing.
    Raises:
        InputError: another word, or points that there are not.
    """
    if choice == "zero":
        return Floor(0.0, "option"), ()
    if choice == "points":
        if trajectory.floor is None or trajectory.floor.source != "points":
            raise InputError(
                f"--floor points: {trajectory.name} has no points that show a floor; give a height in metres, "
                "standing, or zero"
            )
        return trajectory.floor, ()
    stands = standing_height(trajectory)
    guess = Floor(stands - eye_height_m, "standing")
    if choice == "standing":
        return guess, ()
    if choice != "auto":
        try:
            height = float(choice)
        except ValueError:
            height = math.nan
        if not abs(height) < 1e3:
            raise InputError(f"--floor must be {', '.join(FLOORS)}, or a height in metres, got {choice!r}")
        return Floor(height, "option"), ()
    found = trajectory.floor
    if found is None:
        return guess, (
            f"WARNING: the recording tells no floor; taken {eye_height_m:.2f} m below the head's usual greatest height "
            "(a standing person's). Give the wearer's eye height by --eye-height, or the floor by --floor",
        )
    above = stands - found.height
    if found.source == "world zero" and not HEAD_HEIGHTS_M[0] <= above <= HEAD_HEIGHTS_M[1]:
        return guess, (
            f"WARNING: the head stands {above:.2f} m above the world's zero, so that is not the floor; the floor was "
            f"taken {eye_height_m:.2f} m below the head (a standing person's). If the wearer sat or the zero is right, "
            "give --floor zero; otherwise --eye-height or --floor",
        )
    return found, ()
