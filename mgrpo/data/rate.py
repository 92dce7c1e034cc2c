"""The frame rates that motion may have: told by options and read from files alike."""

from __future__ import annotations

from mgrpo.errors import InputError

TARGET_FPS = 30.0
"""Frames per second of all motion that networks see, and of what is loaded for them."""

FPS_RANGE = (0.1, 10_000.0)
"""Lowest and highest rate, frames per second. Motion capture has 20 to 2000; one far outside is a mistake, and would
turn a short motion into more frames than fit into memory."""


def require_fps(value: float, what: str) -> float:
    """The rate, if motion may have it. ``what`` begins the message of the InputError that is raised otherwise, such as
    ``--fps`` or ``clip 'walk': fps``; NaN is refused too."""
    low, high = FPS_RANGE
    if not low <= value <= high:
        raise InputError(f"{what} must be {low:g} to {high:g} frames per second, got {value:g}")
    return float(value)
