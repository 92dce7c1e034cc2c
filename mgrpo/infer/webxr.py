"""Recordings of VR sessions in a browser, as A-Frame's motion capture writes them: headset and both controllers.

One mapping per tracked thing (``camera``, ``left``, ``right``), each with ``poses``: records of a ``timestamp`` in
milliseconds, a ``position`` in metres, and a ``rotation`` in degrees as Euler angles applied in the order YXZ. World: y
up, floor at zero; things: x right, y up, -z forward. The sides are the mapping's keys; what a gamepad says of its
``hand`` contradicts them in real files and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mgrpo.errors import InputError
from mgrpo.geometry import quat_multiply, quat_normalize
from mgrpo.infer.poses_json import record_axes, record_number

CAMERA_KEYS = ("camera", "head", "viewer", "headset")
SIDE_KEYS = {
    "left": ("left", "leftHand", "left-hand", "leftController"),
    "right": ("right", "rightHand", "right-hand", "rightController"),
}


class RecordedThing(NamedTuple):
    """One tracked thing, in the file's axes."""

    times_ms: np.ndarray
    """``(N,)``."""
    quats: np.ndarray
    """Unit quaternions wxyz ``(N, 4)``."""
    positions: np.ndarray
    """``(N, 3)``, metres."""


class WebxrRecording(NamedTuple):
    """A session."""

    head: RecordedThing
    left: RecordedThing | None
    right: RecordedThing | None


def is_webxr(content: Any) -> bool:
    """Whether JSON contents are such a recording."""
    return isinstance(content, Mapping) and any(_is_thing(content.get(key)) for key in CAMERA_KEYS)


def _is_thing(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("poses"), list)


def webxr_from_json(path: Path, content: Mapping[str, Any]) -> WebxrRecording:
    """The things in a recording. Raises InputError for records that are not as described above, or no poses at all."""
    camera = next(key for key in CAMERA_KEYS if _is_thing(content.get(key)))
    head = _thing(path, camera, content[camera])
    if head is None:
        raise InputError(f"{path}: '{camera}' has no poses; was the headset on when this was recorded?")
    sides = []
    for names in SIDE_KEYS.values():
        key = next((name for name in names if _is_thing(content.get(name))), None)
        sides.append(None if key is None else _thing(path, key, content[key]))
    return WebxrRecording(head, sides[0], sides[1])


def _thing(path: Path, key: str, thing: Mapping[str, Any]) -> RecordedThing | None:
    poses = thing["poses"]
    if not poses:
        return None
    where = f"{path}: '{key}'"
    times, quats, positions = [], [], []
    for index, pose in enumerate(poses):
        if not isinstance(pose, dict):
            raise InputError(f"{where}: record {index}: expected a mapping, got {type(pose).__name__}")
        times.append(float(record_number(where, index, pose, "timestamp")))
        positions.append(record_axes(where, index, pose, "position", "xyz"))
        if "rotation" in pose:
            quats.append(_euler_yxz(np.radians(record_axes(where, index, pose, "rotation", "xyz"))))
        else:
            quats.append(np.array(record_axes(where, index, pose, "orientation", "wxyz")))
    return RecordedThing(np.array(times), np.stack(quats), np.array(positions))


def _euler_yxz(radians: np.ndarray) -> np.ndarray:
    """Quaternion wxyz of angles about x, y, z, for the matrix Ry Rx Rz."""
    half = radians / 2
    about = [
        torch.tensor([np.cos(half[axis]), *(np.sin(half[axis]) * np.eye(3)[axis])], dtype=torch.float64)
        for axis in (1, 0, 2)
    ]
    return quat_normalize(quat_multiply(quat_multiply(about[0], about[1]), about[2])).numpy()
