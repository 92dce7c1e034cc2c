"""Which recordings and which of their frames are used (facts, section F, steps 1, 2 and 4).

All rules look at the name under which a recording goes into the HDF5 file (older subset name first), so they hold for
both generations of folder names.
"""

from __future__ import annotations

MIN_SECONDS = 1.0
"""Recordings shorter than this after the trim are left out."""

_HANDBALL_FPS = 240.0
_SLOW_FPS = 59.0
_SLOW_SESSIONS = ("20160930_50032", "20161014_50033")
_SKATING = "dg/HDM_dg_07-01"


def skip_reason(name: str) -> str | None:
    """Why a recording is left out by its name; None where it is used. This is the whole of the base model's filter
    against sliding feet: treadmills, and inline skates."""
    subset, _, inside = name.partition("/")
    if subset == "BioMotionLab_NTroje" and "treadmill" in inside:
        return "treadmill"
    if subset == "BioMotionLab_NTroje" and "normal_" in inside:
        return "walk on a treadmill (normal_)"
    if subset == "MPI_HDM05" and _SKATING in name:
        return "inline skating"
    return None


def corrected_fps(name: str, fps: float) -> float:
    """The rate of a recording, Hz: that of its file, save for subsets and sessions whose files are known to be
    wrong."""
    if name.startswith("BMLhandball/"):
        return _HANDBALL_FPS
    if any(session in name for session in _SLOW_SESSIONS):
        return _SLOW_FPS
    return fps


def trimmed(frames: int) -> slice:
    """The frames that are used: without the first and last tenth, where people walk to their places."""
    return slice(int(0.1 * frames), int(0.9 * frames))


def long_enough(frames: int, fps: float) -> bool:
    """Whether so many frames, after the trim, last :data:`MIN_SECONDS`."""
    return frames >= MIN_SECONDS * fps
