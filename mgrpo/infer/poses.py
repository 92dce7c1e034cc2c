"""Plain head poses: tables (CSV, npy) and named arrays (npz; JSON by :mod:`mgrpo.infer.poses_json`).

What there must be: a time and a pose in every row. In a table with a header, columns are known by their names; without
one, rows are ``t, qw, qx, qy, qz, x, y, z``. In npz and JSON, arrays are. Which names are understood stands in
``docs/infer.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mgrpo.data.csv_columns import csv_cells, csv_lines, numbers_of
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, rotmat_to_quat
from mgrpo.infer.trajectory import SIDES
from mgrpo.npz import npz_keys, read_npz

TIME_NAMES = {
    "t": "s", "time": "s", "times": "s", "timestamp": "s", "timestamps": "s", "seconds": "s",
    **{f"{name}_{unit}": unit for name in ("t", "time", "times", "timestamp", "timestamps", "tracking_timestamp")
       for unit in ("s", "ms", "us", "ns")},
}  # fmt: skip
"""Names of times, and their units."""

POSE_NAMES = (
    "T_world_cpf", "Ts_world_cpf", "T_world_device", "Ts_world_device", "T_world_head", "T_world_camera", "poses",
)  # fmt: skip
"""Names of arrays of whole poses, ``(N, 7)`` (quaternion and position) or ``(N, 4, 4)``."""

QUAT_NAMES = {"wxyz": "wxyz", "quat_wxyz": "wxyz", "xyzw": "xyzw", "quat_xyzw": "xyzw"} | dict.fromkeys(
    ("quat", "quats", "quaternion", "quaternions", "orientation", "orientations", "rotation", "rotations"), ""
)
"""Names of arrays of quaternions ``(N, 4)``, and their order; "" where the name doesn't tell it."""

POSITION_NAMES = ("xyz", "position", "positions", "translation", "translations", "pos")

WRIST_NAMES = tuple(f"{side}_{name}" for side in SIDES for name in ("wrist", "hand"))
CONTROLLER_NAMES = tuple(f"{side}_controller" for side in SIDES)

_QUAT_COLUMN = re.compile(r"(?:q|r|quat|quaternion|rot|rotation|orientation)([wxyz])(?:worlddevice|worldcpf|world)?")
_PLACE_COLUMN = re.compile(r"(?:t|p|pos|position|translation|)([xyz])(?:worlddevice|worldcpf|world)?")
_WRIST_COLUMN = re.compile(r"(left|right)(?:wrist|hand)([xyz])")


class PlainPoses(NamedTuple):
    """What a file holds, in its own axes and units."""

    times: np.ndarray
    """``(N,)``."""
    time_unit: str
    """Unit of the times by their name: s, ms, us, ns; "" for seconds made from a rate, which has no other."""
    quats: np.ndarray
    """``(N, 4)`` in the file's order, or wxyz where ``quat_order`` says so."""
    quat_order: str
    """``wxyz`` or ``xyzw`` where the file tells; "" where it doesn't."""
    positions: np.ndarray
    """``(N, 3)``."""
    wrists: tuple[np.ndarray | None, np.ndarray | None]
    """Left and right wrist ``(N, 3)``, NaN where not seen."""
    controllers: tuple[np.ndarray | None, np.ndarray | None]
    """Left and right controller ``(N, 7)``, quaternion (in its order of ``controller_orders``) and position, NaN where
    not seen."""
    is_cpf: bool
    """Whether the file says that these are central pupil frames with z up."""
    controller_orders: tuple[str, str] = ("", "")
    """As ``quat_order``."""


def read_poses(path: Path) -> PlainPoses:
    """Read a file of head poses, by its ending: csv, txt (also .gz), npz, npy; for json see
    :mod:`mgrpo.infer.poses_json`.

    Raises:
        InputError: not such a file, damaged, or without a time or a pose.
    """
    ending = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: {'expected a file, got a folder' if path.is_dir() else 'no such file'}")
    if ending in (".csv", ".txt", ".csv.gz", ".txt.gz"):
        return _from_table(path)
    if ending == ".npz":
        return poses_from_arrays(
            path, read_npz(path, "file of head poses", [], known_names(npz_keys(path, "file of head poses")))
        )
    if ending == ".npy":
        return _from_npy(path)
    raise InputError(f"{path}: head poses are read from csv, npz, npy and json files, not from '{path.suffix}'")


def known_names(keys: tuple[str, ...]) -> list[str]:
    """Those of ``keys`` that mean something here."""
    names = {*TIME_NAMES, *POSE_NAMES, *QUAT_NAMES, *POSITION_NAMES, *WRIST_NAMES, *CONTROLLER_NAMES, "fps"}
    return [key for key in keys if key in names]


# --- tables


def _from_table(path: Path) -> PlainPoses:
    what = "table of head poses"
    lines = csv_lines(path, what)
    number, first = next(lines, (0, ""))
    header = csv_cells(first)
    if not number:
        raise InputError(f"{path}: the file is empty; expected a {what}")
    if all(_is_number(cell) for cell in header):
        return _from_rows(path, numbers_of(path, _chain(number, first, lines), range(len(header)), len(header), header))
    names = _column_names(header)
    flat = [name.replace("_", "") for name in names]
    times = [(place, TIME_NAMES[name]) for place, name in enumerate(names) if name in TIME_NAMES]
    if len(header) == 1:
        raise InputError(
            f"{path}: the first line has no commas: {first[:100]!r}. Expected a table of head poses whose first line "
            "has the names of the columns (or the first row of numbers) and whose cells are separated by commas; "
            "semicolons, tabs and blanks are not read as such"
        )
    if not times:
        raise InputError(
            f"{path}: no column is a time: expected one called t (seconds), timestamp_ns, timestamp_us or the like; "
            f"the header has: {', '.join(header)[:400]}"
        )
    quats = _axes(flat, _QUAT_COLUMN, "wxyz")
    if quats is None and flat.count("w") == 1:  # t, w, x, y, z, x, y, z
        start = flat.index("w")
        quats = list(range(start, start + 4)) if flat[start : start + 4] == list("wxyz") else None
    if quats is None:
        raise InputError(
            f"{path}: no four columns are a quaternion: expected qw, qx, qy, qz; the header has: "
            f"{', '.join(header)[:400]}"
        )
    rest = [name if place not in quats else "" for place, name in enumerate(flat)]
    positions = _axes(rest, _PLACE_COLUMN, "xyz")
    if positions is None:
        raise InputError(
            f"{path}: no three columns are a position: expected x, y, z (or tx, px, position_x ...); the header has: "
            f"{', '.join(header)[:400]}"
        )
    wrists = [_wrist_columns(flat, side) for side in SIDES]
    places = [times[0][0], *quats, *positions, *(place for wrist in wrists if wrist for place in wrist)]
    seen = {place for wrist in wrists if wrist for place in wrist}
    values = numbers_of(
        path, lines, places, len(header), [header[place] for place in places], [place not in seen for place in places]
    )
    columns = iter(values.T[8:])
    found = [np.stack([next(columns) for _ in range(3)], axis=1) if wrist else None for wrist in wrists]
    return PlainPoses(
        values[:, 0],
        times[0][1],
        values[:, 1:5],
        "wxyz",
        values[:, 5:8],
        (found[0], found[1]),
        (None, None),
        all(flat[place].endswith("worldcpf") for place in (*quats, *positions)),
    )


def _column_names(header: list[str]) -> list[str]:
    """Names of columns without their spelling: ``Time [ms]`` is ``time_ms``."""
    return [re.sub(r"[^a-z0-9]+", "_", cell.lower()).strip("_") for cell in header]


def _chain(number: int, first: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield number, first
    yield from lines


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _axes(names: list[str], pattern: re.Pattern[str], axes: str) -> list[int] | None:
    """Places of the columns that ``pattern`` matches, one for each of ``axes``; None where one is missing."""
    found = {match[1]: place for place, name in reversed(list(enumerate(names))) if (match := pattern.fullmatch(name))}
    return [found[axis] for axis in axes] if set(axes) <= set(found) else None


def _wrist_columns(names: list[str], side: str) -> list[int] | None:
    rows = [(place, match) for place, name in enumerate(names) if (match := _WRIST_COLUMN.fullmatch(name))]
    found = {match[2]: place for place, match in rows if match[1] == side}
    return [found[axis] for axis in "xyz"] if len(found) == 3 else None


def _from_rows(path: Path, values: np.ndarray) -> PlainPoses:
    if values.ndim != 2 or values.shape[1] != 8:
        raise InputError(
            f"{path}: rows without a header must have 8 numbers (t, qw, qx, qy, qz, x, y, z), got shape {values.shape}"
        )
    return PlainPoses(values[:, 0], "s", values[:, 1:5], "", values[:, 5:], (None, None), (None, None), False)


def _from_npy(path: Path) -> PlainPoses:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: not an array of numbers ({error}); expected (N, 8): t, qw, qx, qy, qz, x, y, z"
        ) from error
    if not _is_real(values):
        raise InputError(f"{path}: expected numbers (N, 8): t, qw, qx, qy, qz, x, y, z; got {values.dtype}")
    return _from_rows(path, values.astype(np.float64))


# --- arrays


def _is_real(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)


def poses_from_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> PlainPoses:
    """Poses from arrays by name. Raises InputError for those that don't fit, or where a time or a pose is missing."""
    there = f"it has: {', '.join(sorted(arrays)) or 'none of the known names'}"
    for name, array in arrays.items():
        if not _is_real(array):
            raise InputError(f"{path}: {name} must hold numbers, got {array.dtype}")
    whole = next((name for name in POSE_NAMES if name in arrays), None)
    if whole is not None:
        quats, positions, order = _split_poses(path, whole, arrays[whole])
    else:
        quat = next((name for name in QUAT_NAMES if name in arrays), None)
        place = next((name for name in POSITION_NAMES if name in arrays), None)
        if quat is None or place is None:
            raise InputError(
                f"{path}: no head poses: expected wxyz (N, 4) and xyz (N, 3), or T_world_cpf (N, 7) or (N, 4, 4); "
                f"{there}"
            )
        quats, order = _numbers(path, quat, arrays[quat], 4), QUAT_NAMES[quat]
        positions = _numbers(path, place, arrays[place], 3)
    times, unit = _times(path, arrays, len(quats), there)
    wrists = [
        next((_numbers(path, name, arrays[name], 3, len(quats)) for name in _wrist_names(side) if name in arrays), None)
        for side in SIDES
    ]
    held = [_controller(path, arrays, name, len(quats)) for name in CONTROLLER_NAMES]
    return PlainPoses(
        times,
        unit,
        quats,
        order,
        positions,
        (wrists[0], wrists[1]),
        (held[0][0], held[1][0]),
        whole in ("T_world_cpf", "Ts_world_cpf"),
        (held[0][1], held[1][1]),
    )


def _wrist_names(side: str) -> list[str]:
    return [name for name in WRIST_NAMES if name.startswith(side)]


def _controller(path: Path, arrays: Mapping[str, np.ndarray], name: str, count: int) -> tuple[np.ndarray | None, str]:
    if name not in arrays:
        return None, ""
    if len(arrays[name]) != count:
        raise InputError(f"{path}: {name} has {len(arrays[name])} poses, the head has {count}")
    quats, positions, order = _split_poses(path, name, arrays[name])
    return np.concatenate((quats, positions), axis=1), order


def _numbers(path: Path, name: str, array: np.ndarray, width: int, rows: int | None = None) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] != width or rows not in (None, len(array)):
        wanted = f"({'N' if rows is None else rows}, {width})"
        raise InputError(f"{path}: {name} must have shape {wanted}, got {array.shape}")
    return array.astype(np.float64)


def _split_poses(path: Path, name: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    if array.ndim == 2 and array.shape[1] == 7:
        return array[:, :4].astype(np.float64), array[:, 4:].astype(np.float64), "wxyz" if name.startswith("T") else ""
    if array.ndim == 3 and array.shape[1:] in ((4, 4), (3, 4)):
        R = torch.from_numpy(array[:, :3, :3].astype(np.float64))
        off = (R @ R.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2)) if len(R) else torch.zeros(0)
        if bool((off > 1e-2).any()) or bool((torch.linalg.det(R) < 0).any()):
            row = int(((off > 1e-2) | (torch.linalg.det(R) < 0)).int().argmax())
            raise InputError(f"{path}: {name}: the 3x3 part of matrix {row} is no rotation; expected rigid transforms")
        below = np.abs(array[:, 3:] - np.array([0.0, 0.0, 0.0, 1.0])).reshape(len(array), -1)  # nothing for 3x4
        if bool((below > 1e-2).any()):
            row = int((below > 1e-2).any(axis=1).argmax())
            raise InputError(
                f"{path}: {name}: the last row of matrix {row} is not 0, 0, 0, 1. If matrices are written column by "
                "column, as WebXR and three.js do, transpose them"
            )
        return quat_normalize(rotmat_to_quat(R)).numpy(), array[:, :3, 3].astype(np.float64), "wxyz"
    raise InputError(f"{path}: {name} must have shape (N, 7) (wxyz and xyz) or (N, 4, 4), got {array.shape}")


def _times(path: Path, arrays: Mapping[str, np.ndarray], count: int, there: str) -> tuple[np.ndarray, str]:
    name = next((name for name in TIME_NAMES if name in arrays), None)
    if name is not None:
        if arrays[name].shape != (count,):
            raise InputError(f"{path}: {name} must have shape ({count},), got {arrays[name].shape}")
        return arrays[name], TIME_NAMES[name]
    if "fps" in arrays:
        fps = float(arrays["fps"].reshape(-1)[0]) if arrays["fps"].size == 1 else float("nan")
        if not 1 <= fps <= 10_000:
            raise InputError(f"{path}: fps must be one number from 1 to 10000, got {arrays['fps']}")
        return np.arange(count) / fps, ""
    raise InputError(f"{path}: no times: expected t (seconds), timestamps_ns, or fps; {there}")


def read_wrist_file(path: Path) -> tuple[np.ndarray, str, tuple[np.ndarray | None, np.ndarray | None]]:
    """Times, their unit, and left and right wrist ``(N, 3)`` (NaN where not seen) of a file of its own: a table with a
    header (``t, left_wrist_x, ...``) or an npz (``t, left_wrist, right_wrist``). Raises InputError."""
    what = "file of wrists"
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path, what, [], known_names(npz_keys(path, what)))
        count = max((len(arrays[name]) for side in SIDES for name in _wrist_names(side) if name in arrays), default=0)
        times, unit = _times(path, arrays, count, f"it has: {', '.join(sorted(arrays))}")
        wrists = [
            next((_numbers(path, name, arrays[name], 3, count) for name in _wrist_names(side) if name in arrays), None)
            for side in SIDES
        ]
    else:
        lines = csv_lines(path, what)
        header = csv_cells(next(lines, (0, ""))[1])
        names = _column_names(header)
        columns = [_wrist_columns([name.replace("_", "") for name in names], side) for side in SIDES]
        stamped = [(place, TIME_NAMES[name]) for place, name in enumerate(names) if name in TIME_NAMES]
        places = [place for found in columns if found for place in found]
        if not stamped:
            raise InputError(f"{path}: no column is a time (t, timestamp_ns ...); the header has: {', '.join(header)}")
        places = [stamped[0][0], *places]
        finite = [True] + [False] * (len(places) - 1)
        values = numbers_of(path, lines, places, len(header), [header[place] for place in places], finite)
        times, unit = values[:, 0], stamped[0][1]
        rest = iter(values.T[1:])
        wrists = [np.stack([next(rest) for _ in range(3)], axis=1) if found else None for found in columns]
    if wrists[0] is None and wrists[1] is None:
        raise InputError(f"{path}: no wrists: expected left_wrist and right_wrist (columns left_wrist_x, _y, _z)")
    return times, unit, (wrists[0], wrists[1])
