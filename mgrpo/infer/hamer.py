"""Hands that HaMeR found in a recording's images: our npz of them, its reader, and which pose each one belongs to
(facts: section I).

The npz has ``T_device_cam`` and ``T_cpf_cam (7,)`` (wxyz and xyz), and for each side (``left``, ``right``):

=====================================  ===============  =======================================================
``SIDE_timestamps_ns``                 ``(K,)`` int64   times of all images that were looked at, rising
``SIDE_frame``                         ``(N,)`` int64   image of each hand (an index into the times), rising
``SIDE_keypoints_3d``                  ``(N, 21, 3)``   metres, in the camera's frame, OpenPose order, wrist first
``SIDE_mano_hand_pose``                ``(N, 15, 3, 3)``  MANO's local rotations
``SIDE_mano_hand_global_orient``       ``(N, 3, 3)``    rotation of the wrist in the camera's frame
``SIDE_mano_hand_betas``               ``(N, 10)``      MANO's shape numbers
=====================================  ===============  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError
from mgrpo.infer.detections import HamerDetections, HamerHands
from mgrpo.infer.trajectory import SIDES
from mgrpo.npz import read_npz

RATES_HZ = (5.0, 40.0)
"""Rates of images that are understood."""

SAME_PLACE_M = 0.1
"""A hand whose wrist is nearer than this to one of the other side is a mistake: one hand taken for both."""

_BEFORE, _AFTER = 15, 14

_SHAPES = {
    "keypoints_3d": (21, 3),
    "mano_hand_pose": (15, 3, 3),
    "mano_hand_global_orient": (3, 3),
    "mano_hand_betas": (10,),
}


def hamer_arrays(detections: HamerDetections) -> dict[str, np.ndarray]:
    """The arrays of the npz."""
    arrays: dict[str, np.ndarray] = {
        "T_device_cam": detections.T_device_cam.astype(np.float64),
        "T_cpf_cam": detections.T_cpf_cam.astype(np.float64),
    }
    for side, hands in zip(SIDES, detections.hands):
        arrays[f"{side}_timestamps_ns"] = hands.times_ns.astype(np.int64)
        arrays[f"{side}_frame"] = hands.frame.astype(np.int64)
        for name in _SHAPES:
            arrays[f"{side}_{name}"] = getattr(hands, name).astype(np.float32)
    return arrays


def read_hamer(path: Path) -> HamerDetections:
    """Read the npz. Raises InputError; for the original's pickle it names the command that converts it."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise InputError(
            f"{path}: HaMeR's pickle is not read here, because pickles can run code; convert it once, which runs none: "
            f"mgrpo data hamer {path} {path.with_suffix('.npz')}"
        )
    names = ["T_device_cam", "T_cpf_cam"]
    names += [f"{side}_{name}" for side in SIDES for name in ("timestamps_ns", "frame", *_SHAPES)]
    return detections_from_arrays(read_npz(path, "file of HaMeR's hands", names), str(path))


def detections_from_arrays(arrays: Mapping[str, np.ndarray], where: str) -> HamerDetections:
    """Detections from the arrays of the npz. Raises InputError where they are not as the module's text says."""
    poses = []
    for name in ("T_cpf_cam", "T_device_cam"):
        pose = np.asarray(arrays[name])
        if pose.shape != (7,) or not np.issubdtype(pose.dtype, np.number) or not np.isfinite(pose).all():
            raise InputError(f"{where}: {name} must be 7 numbers (wxyz and metres), got shape {pose.shape}")
        if abs(np.linalg.norm(pose[:4]) - 1) > 1e-2:
            raise InputError(f"{where}: {name}: its quaternion has length {np.linalg.norm(pose[:4]):.3f}, not 1")
        poses.append(pose.astype(np.float64))
    return HamerDetections((_hands(arrays, "left", where), _hands(arrays, "right", where)), poses[0], poses[1])


def _hands(arrays: Mapping[str, np.ndarray], side: str, where: str) -> HamerHands:
    times, frame = arrays[f"{side}_timestamps_ns"], arrays[f"{side}_frame"]
    for name, values in ((f"{side}_timestamps_ns", times), (f"{side}_frame", frame)):
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
            raise InputError(f"{where}: {name} must be one row of whole numbers, got {values.dtype} {values.shape}")
    if (np.diff(times) <= 0).any() or (np.diff(frame) < 0).any():
        raise InputError(f"{where}: {side}: times and images of hands must rise")
    if len(frame) and not 0 <= frame[0] <= frame[-1] < len(times):
        raise InputError(f"{where}: {side}_frame must be indices of the {len(times)} times, got up to {frame[-1]}")
    found: dict[str, np.ndarray] = {}
    for name, shape in _SHAPES.items():
        values = arrays[f"{side}_{name}"]
        if values.shape != (len(frame), *shape) or not np.issubdtype(values.dtype, np.number):
            raise InputError(
                f"{where}: {side}_{name} must hold numbers of shape {(len(frame), *shape)}, got {values.dtype} "
                f"{values.shape}"
            )
        if not np.isfinite(values).all():
            raise InputError(f"{where}: {side}_{name} has values that are not finite; leave these hands out")
        found[name] = values.astype(np.float64)
    return HamerHands(times.astype(np.int64), frame.astype(np.int64), **found)


def detections_from_pickle(content: Any, where: str) -> HamerDetections:
    """Detections from the contents of the original's ``hamer_outputs.pkl`` (as
    :func:`mgrpo.data.safe_pickle.load_pickle` reads them). Vertices and faces, which nothing here uses, are left out.

    Raises:
        InputError: not such contents.
    """
    keys = ("detections_left_wrt_cam", "detections_right_wrt_cam", "T_device_cam", "T_cpf_cam")
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{where}: not HaMeR's outputs as EgoAllo saves them; missing: {', '.join(missing)}")
    arrays = {name: np.asarray(content[name], np.float64).reshape(-1) for name in ("T_device_cam", "T_cpf_cam")}
    for side in SIDES:
        arrays |= _side_arrays(content[f"detections_{side}_wrt_cam"], side, where)
    return detections_from_arrays(arrays, where)


def _side_arrays(images: Any, side: str, where: str) -> dict[str, np.ndarray]:
    if not isinstance(images, dict) or not all(isinstance(key, (int, np.integer)) for key in images):
        raise InputError(f"{where}: detections_{side}_wrt_cam must be a mapping from capture times in nanoseconds")
    times = sorted(images)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _SHAPES}
    frame: list[int] = []
    for index, time in enumerate(times):
        hands = images[time]
        if hands is None:
            continue
        for name, shape in _SHAPES.items():
            values = np.asarray(hands[name]) if isinstance(hands, dict) and name in hands else None
            if values is None or values.shape[1:] != shape or values.ndim != 1 + len(shape):
                got = "nothing" if values is None else f"shape {values.shape}"
                raise InputError(f"{where}: {side} hands at {time}: {name} must have shape (n, {shape}), got {got}")
            parts[name].append(values)
        counts = {len(parts[name][-1]) for name in _SHAPES}
        if len(counts) > 1:
            raise InputError(f"{where}: {side} hands at {time}: arrays of different lengths {sorted(counts)}")
        frame += [index] * counts.pop()
    return {
        f"{side}_timestamps_ns": np.array(times, np.int64),
        f"{side}_frame": np.array(frame, np.int64),
        **{
            f"{side}_{name}": np.concatenate(parts[name]) if parts[name] else np.zeros((0, *shape))
            for name, shape in _SHAPES.items()
        },
    }


def match_hands(detections: HamerDetections, times_ns: np.ndarray) -> np.ndarray:
    """Which hand belongs to which pose: rows of the detections ``(T, 2)`` int64 (left, right), -1 for none.

    An image belongs to a pose if each is the other's nearest in time. Of its hands those count whose wrist is at least
    :data:`SAME_PLACE_M` from every hand of the other side that belongs to poses from 15 before to 14 after; the first
    such is taken.

    Args:
        detections: hands.
        times_ns: times of the poses ``(T,)`` int64, rising.
    Raises:
        InputError: images at a rate outside :data:`RATES_HZ`.
    """
    chosen = np.full((len(times_ns), 2), -1, np.int64)
    rows, targets = [], []
    for side, hands in zip(SIDES, detections.hands):
        target = _pose_of_images(hands.times_ns, times_ns, side)
        of_hand = target[hands.frame] if len(hands.frame) else np.zeros(0, np.int64)
        rows.append(np.flatnonzero(of_hand >= 0))
        targets.append(of_hand[of_hand >= 0])
    wrists = [hands.keypoints_3d[row, 0] for hands, row in zip(detections.hands, rows)]
    for own, other in ((0, 1), (1, 0)):
        first = np.searchsorted(targets[other], targets[own] - _BEFORE, side="left")
        last = np.searchsorted(targets[other], targets[own] + _AFTER, side="right")
        for hand in range(len(rows[own])):
            near = wrists[other][first[hand] : last[hand]]
            if len(near) and np.linalg.norm(near - wrists[own][hand], axis=1).min() <= SAME_PLACE_M:
                continue
            place = targets[own][hand]
            if chosen[place, own] < 0:
                chosen[place, own] = rows[own][hand]
    return chosen


def _pose_of_images(images_ns: np.ndarray, poses_ns: np.ndarray, side: str) -> np.ndarray:
    """Index of the pose that each image belongs to ``(K,)``, -1 for none."""
    target = np.full(len(images_ns), -1, np.int64)
    if len(images_ns) < 2:
        return target
    rate = len(images_ns) / (float(images_ns[-1] - images_ns[0]) / 1e9)
    if not RATES_HZ[0] < rate < RATES_HZ[1]:
        raise InputError(
            f"HaMeR's {side} hands: {rate:.3g} images per second; {RATES_HZ[0]:g} to {RATES_HZ[1]:g} are understood. "
            "Are the times nanoseconds?"
        )
    margin = round(1e9 / rate)
    inside = np.flatnonzero((images_ns >= poses_ns[0] - margin) & (images_ns <= poses_ns[-1] + margin))
    if len(inside) == 0:
        return target
    of_pose = inside[_nearest(images_ns[inside], poses_ns)]
    of_image = _nearest(poses_ns, images_ns[inside])
    mutual = of_pose[of_image] == inside
    target[inside[mutual]] = of_image[mutual]
    return target


def _nearest(sorted_times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the time nearest to each of ``wanted``, the earlier of two."""
    after = np.clip(np.searchsorted(sorted_times, wanted), 1, max(len(sorted_times) - 1, 1))
    if len(sorted_times) == 1:
        return np.zeros(len(wanted), np.int64)
    return after - (wanted - sorted_times[after - 1] <= sorted_times[after] - wanted)
