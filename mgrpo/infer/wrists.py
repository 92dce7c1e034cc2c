"""Wrist tracks from what sources have: controllers in the hands, tracked wrists, hands in images."""

from __future__ import annotations

import numpy as np
import torch

from mgrpo.errors import InputError
from mgrpo.geometry import quat_to_rotmat
from mgrpo.infer.cleaning import rising
from mgrpo.infer.trajectory import SIDES, HeadTrajectory, WristTrack

CONTROLLER_OFFSETS = {
    "none": (0.0, 0.0, 0.0),
    "grip": (0.0, 0.08, 0.0),
    "wand": (0.0, 0.045, 0.135),
}
"""About where the wrist is in the axes of a controller, metres: ``grip`` is OpenXR's grip pose (origin in the palm, y
from there to the wrist), ``wand`` the raw pose of a Vive wand or similar (origin at its head, z along the handle)."""


def controller_offset(text: str, option: str = "--controller-offset") -> np.ndarray:
    """The offset ``(3,)`` that a user means: a name of :data:`CONTROLLER_OFFSETS`, or x,y,z in metres. Raises
    InputError."""
    if text in CONTROLLER_OFFSETS:
        return np.array(CONTROLLER_OFFSETS[text])
    try:
        offset = np.array([float(cell) for cell in text.split(",")])
    except ValueError:
        offset = np.zeros(0)
    if offset.shape != (3,) or not np.linalg.norm(offset) < 0.5:
        raise InputError(
            f"{option}: expected {', '.join(CONTROLLER_OFFSETS)} or x,y,z in metres (below 0.5), got {text!r}"
        )
    return offset


def controller_track(
    times_ns: np.ndarray, T_world_device: np.ndarray, offset: np.ndarray, where: str
) -> tuple[WristTrack | None, tuple[str, ...]]:
    """The wrist behind a controller, and notes.

    Args:
        times_ns: ``(M,)`` int64.
        T_world_device: poses of the controller ``(M, 7)`` in the trajectory's world. Rows that stand exactly at the
            world's origin, as recorders write them for a controller that is off, are left out; so are those that are
            NaN.
        offset: wrist in the controller's axes ``(3,)``, metres.
        where: the source, for messages.
    """
    seen = np.linalg.norm(T_world_device[:, 4:], axis=1) > 1e-9
    times_ns, T_world_device = times_ns[seen], T_world_device[seen]
    if len(times_ns) == 0:
        return None, (f"{where}: never tracked",)
    keep, notes = rising(times_ns, where)
    R = quat_to_rotmat(torch.from_numpy(T_world_device[keep, :4])).numpy()
    positions = T_world_device[keep, 4:] + R @ offset
    return WristTrack(times_ns[keep], positions, np.ones(len(keep)), "controller", R_world_device=R), notes


def seen_track(times_ns: np.ndarray, positions: np.ndarray, source: str = "track") -> WristTrack | None:
    """A track of the rows of ``positions (M, 3)`` that are finite; None where none is."""
    seen = np.isfinite(positions).all(axis=1)
    if not seen.any():
        return None
    return WristTrack(times_ns[seen], positions[seen], np.ones(int(seen.sum())), source)


def swapped_hands(trajectory: HeadTrajectory) -> str | None:
    """A warning where the left wrist is mostly right of the head and the right one left of it; None otherwise."""
    sides = []
    for track in trajectory.wrists:
        if track is None:
            return None
        nearest = np.clip(np.searchsorted(trajectory.times_ns, track.times_ns), 0, len(trajectory) - 1)
        pose = trajectory.T_world_cpf[nearest]
        left = quat_to_rotmat(torch.from_numpy(pose[:, :4])).numpy()[:, :, 0]
        sides.append(float(np.median(((track.positions - pose[:, 4:]) * left).sum(axis=1))))
    if sides[0] > -0.05 or sides[1] < 0.05:
        return None
    return (
        f"WARNING: the {SIDES[0]} wrist is mostly {-sides[0]:.2f} m to the right of the head and the {SIDES[1]} one "
        f"{sides[1]:.2f} m to its left; if the controllers changed hands, give --swap-hands (or leave it out, where it "
        "was given)"
    )
