"""Aria Digital Twin: which files a sequence has, and reading its trajectory, skeleton and points.

Facts: section I. ``aria_trajectory.csv`` is in a world with y up at about 30 Hz; the gravity columns say so, with or
without ``_world`` in their names. Quaternions are xyzw there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mgrpo.data.csv_columns import read_columns
from mgrpo.errors import InputError

SKELETON_JOINTS: tuple[str, ...] = (
    "Skeleton", "Ab", "Chest", "Neck", "Head", "LShoulder", "LUArm", "LFArm", "LHand",
    *(f"L{finger}{k}" for finger in ("Thumb", "Index", "Middle", "Ring", "Pinky") for k in (1, 2, 3)),
    "RShoulder", "RUArm", "RFArm", "RHand",
    *(f"R{finger}{k}" for finger in ("Thumb", "Index", "Middle", "Ring", "Pinky") for k in (1, 2, 3)),
    "LThigh", "LShin", "LFoot", "LToe", "RThigh", "RShin", "RFoot", "RToe",
)  # fmt: skip
"""The 51 joints of a skeleton frame, in order, as the dataset's tools name them."""

MAX_JSON_BYTES = 2 << 30
"""Largest skeleton file that is read (ten minutes at 120 Hz are about 0.9 GB)."""


class AdtFiles(NamedTuple):
    """The files of one sequence that were found."""

    trajectory: Path
    skeleton: Path | None
    points: Path | None
    """Point cloud, in the world of ``points_trajectory``."""
    points_trajectory: Path | None
    """The closed-loop trajectory beside the points."""


class Trajectory(NamedTuple):
    """Poses of the device."""

    times_ns: np.ndarray
    """Device time in nanoseconds ``(N,)``, int64, increasing."""
    T_world_device: np.ndarray
    """Poses ``(N, 7)``, wxyz and xyz in metres, float64, in the file's world."""
    gravity: np.ndarray
    """Direction of gravity in the file's world, ``(3,)``, length 1."""


class Skeleton(NamedTuple):
    """Frames of the motion capture."""

    times_ns: np.ndarray
    """Device time in nanoseconds ``(N,)``, int64, increasing."""
    joints: np.ndarray
    """Positions ``(N, 51, 3)`` in metres, float64, in the file's world."""


def find_adt(folder: Path, skeleton: str = "auto") -> AdtFiles:
    """The files of the sequence in ``folder``.

    Args:
        folder: one sequence.
        skeleton: ``auto`` (the only one, or the one that wore the device), ``none``, or a name (``Skeleton_T``, or
            ``T``).
    Raises:
        InputError: not a sequence, or a part of the download is missing: which, and what it is good for.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of one Aria Digital Twin sequence")
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    trajectories = [path for path in there if path.name.endswith("aria_trajectory.csv")]
    skeletons = [path for path in there if path.suffix == ".json" and "Skeleton_" in path.stem]
    if not trajectories:
        hint = ""
        if any(path.suffix == ".vrs" for path in there):
            hint = "; the recording (vrs) is there, the ground truth is a separate part of the download"
        elif any(path.name == "closed_loop_trajectory.csv" for path in there):
            hint = "; only the machine perception (mps) part is there, the ground truth is a separate part"
        raise InputError(
            f"{folder}: the device's ground-truth trajectory (aria_trajectory.csv) is missing{hint}. Download the "
            "sequence's ground truth, or give the folder of one sequence"
        )
    if len(trajectories) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in trajectories[:4])
        raise InputError(f"{folder}: {len(trajectories)} trajectories ({names} ...); give the folder of one sequence")
    points = [path for name in ("semidense_points.csv", "global_points.csv") for path in there if name in path.name]
    beside = points[0].parent / "closed_loop_trajectory.csv" if points else None
    return AdtFiles(
        trajectories[0],
        None if skeleton == "none" else _choose_skeleton(folder, there, skeletons, skeleton),
        points[0] if points else None,
        beside if beside is not None and beside.is_file() else None,
    )


def _choose_skeleton(folder: Path, there: list[Path], skeletons: list[Path], wanted: str) -> Path:
    names = ", ".join(path.stem for path in skeletons)
    if wanted != "auto":
        fits = [path for path in skeletons if path.stem.rpartition("Skeleton_")[2] == wanted.removeprefix("Skeleton_")]
        if len(fits) == 1:
            return fits[0]
        raise InputError(f"{folder}: no skeleton is called '{wanted}'; there are: {names or 'none'}")
    if len(skeletons) == 1:
        return skeletons[0]
    if not skeletons:
        raise InputError(
            f"{folder}: the body's ground truth (Skeleton_*.json) is missing. Not every sequence has it; download the "
            "sequence's ground truth, or take the head alone with --skeleton none"
        )
    owner = _wearer(there)
    if owner is not None:
        fits = [path for path in skeletons if path.stem.endswith(f"Skeleton_{owner.removeprefix('Skeleton_')}")]
        if len(fits) == 1:
            return fits[0]
    raise InputError(
        f"{folder}: {len(skeletons)} skeletons ({names}), and no file says which wore the device; choose one with "
        "--skeleton"
    )


def _wearer(there: list[Path]) -> str | None:
    """Name of the skeleton that wore this sequence's device, by its two small JSON files; None where they don't say."""
    found: dict[str, Any] = {}
    for name in ("metadata.json", "skeleton_aria_association.json"):
        for path in there:
            if path.name.endswith(name) and name not in found and path.stat().st_size < 1 << 20:
                try:
                    found[name] = json.loads(path.read_text("utf-8"))
                except (ValueError, OSError, RecursionError):
                    return None
    metadata, association = found.get("metadata.json"), found.get("skeleton_aria_association.json")
    if not isinstance(metadata, dict) or not isinstance(association, dict):
        return None
    serials = metadata.get("device_serial", metadata.get("serial"))
    for entry in association.get("SkeletonMetadata") or []:
        if isinstance(entry, dict) and serials is not None and entry.get("AssociatedDeviceSerial") == serials:
            return str(entry.get("SkeletonName"))
    return None


def read_trajectory(path: Path) -> Trajectory:
    """Read an Aria trajectory (ground truth, or closed loop). Rows with the time of the row before are dropped.

    Raises:
        InputError: columns missing, damaged rows, quaternions that are not unit, time running backwards.
    """
    axes = "xyz"
    wanted = [("tracking_timestamp_us",)]
    wanted += [(f"t{axis}_world_device",) for axis in axes] + [(f"q{axis}_world_device",) for axis in "wxyz"]
    wanted += [(f"gravity_{axis}_world", f"gravity_{axis}") for axis in axes]
    rows = read_columns(path, "device trajectory", wanted)
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} pose(s); at least 2 are needed. Is the file cut off?")
    steps = np.diff(rows[:, 0])
    if (steps < 0).any():
        raise InputError(f"{path}: time runs backwards in data row {int(np.argmax(steps < 0)) + 2}")
    rows = rows[np.concatenate(([True], steps > 0))]
    norm = np.linalg.norm(rows[:, 4:8], axis=1)
    bad = np.flatnonzero(np.abs(norm - 1) > 1e-2)
    if len(bad):
        raise InputError(f"{path}: the quaternion of data row {int(bad[0]) + 1} has length {norm[bad[0]]:.4f}, not 1")
    gravity = np.median(rows[:, 8:], axis=0)
    size = float(np.linalg.norm(gravity))
    if not 9 < size < 10.5:
        raise InputError(f"{path}: gravity has length {size:.3g} m/s², expected 9.8; the up axis can't be known")
    poses = np.concatenate((rows[:, 4:8] / np.linalg.norm(rows[:, 4:8], axis=1, keepdims=True), rows[:, 1:4]), axis=1)
    return Trajectory(np.rint(rows[:, 0]).astype(np.int64) * 1000, poses, gravity / size)


def read_skeleton(path: Path) -> Skeleton:
    """Read a skeleton file, frame by frame. Frames out of order are put in order, double times dropped.

    Raises:
        InputError: not such a file, cut off, other joints than 51, values that are not finite.
    """
    times, joints = [], []
    for number, frame in enumerate(_frames(path)):
        where = f"{path}: frame {number}"
        if not isinstance(frame, dict) or not {"joints", "timestamp_ns"} <= frame.keys():
            raise InputError(f"{where} has no joints or no timestamp_ns; is this a skeleton file?")
        time, values = frame["timestamp_ns"], frame["joints"]
        if isinstance(time, bool) or not isinstance(time, int) or not 0 <= time < 1 << 62:
            raise InputError(f"{where}: timestamp_ns must be a whole number of nanoseconds, got {str(time)[:40]}")
        if not isinstance(values, list) or len(values) != len(SKELETON_JOINTS):
            count = len(values) if isinstance(values, list) else type(values).__name__
            raise InputError(f"{where} has {count} joints; an Aria Digital Twin skeleton has {len(SKELETON_JOINTS)}")
        try:
            array = np.array(values, np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.shape != (len(SKELETON_JOINTS), 3) or not np.isfinite(array).all():
            raise InputError(f"{where}: joints must be {len(SKELETON_JOINTS)} times 3 finite numbers")
        times.append(time)
        joints.append(array)
    if len(times) < 2:
        raise InputError(f"{path}: {len(times)} frame(s); at least 2 are needed")
    order = np.argsort(np.array(times, np.int64), kind="stable")
    ordered = np.array(times, np.int64)[order]
    keep = np.concatenate(([True], np.diff(ordered) > 0))
    return Skeleton(ordered[keep], np.stack(joints)[order][keep])


def _frames(path: Path) -> Iterator[Any]:
    """The elements of the array ``frames`` of a JSON object, one at a time: the whole would take ten times the file's
    size in memory."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: larger than {MAX_JSON_BYTES >> 30} GiB; is this a skeleton file?")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({error}); expected a skeleton file (JSON)") from error
    decoder = json.JSONDecoder()

    def skip(place: int) -> int:
        while place < len(text) and text[place] in " \t\r\n":
            place += 1
        return place

    def expect(place: int, signs: str) -> int:
        if place >= len(text) or text[place] not in signs:
            problem = "ends too early: it is cut off" if place >= len(text) else f"is damaged at character {place}"
            raise InputError(f"{path}: the file {problem}; expected a skeleton file (JSON). Download it again")
        return place

    found = False
    try:
        place = skip(expect(skip(0), "{") + 1)
        while expect(place, '"}') is not None and text[place] == '"':
            key, place = decoder.raw_decode(text, place)
            place = skip(expect(skip(place), ":") + 1)
            if key == "frames" and not found:
                found = True
                place = skip(expect(place, "[") + 1)
                while place >= len(text) or text[place] != "]":
                    frame, place = decoder.raw_decode(text, expect(place, "{"))
                    yield frame
                    place = skip(place)
                    if text[expect(place, ",]")] == ",":
                        place = skip(place + 1)
                place += 1
            else:
                _, place = decoder.raw_decode(text, place)
            place = skip(place)
            if text[expect(place, ",}")] == ",":
                place = skip(place + 1)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not whole JSON ({error}); the skeleton file is cut off or damaged, download it again"
        ) from error
    if not found:
        raise InputError(f"{path}: there is no 'frames' in it; expected a skeleton file")
