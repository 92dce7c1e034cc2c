"""Plain head poses in JSON: arrays by name, or a list of records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError
from mgrpo.infer.poses import (
    CONTROLLER_NAMES,
    POSE_NAMES,
    POSITION_NAMES,
    QUAT_NAMES,
    TIME_NAMES,
    WRIST_NAMES,
    PlainPoses,
    known_names,
    poses_from_arrays,
)

MAX_JSON_BYTES = 1 << 30
"""Largest JSON file that is read."""


def load_json(path: Path) -> Any:
    """The contents of a JSON file within limits. Raises InputError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: larger than {MAX_JSON_BYTES >> 30} GiB; is this a file of head poses?")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        advice = "is the file cut off?"
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            advice = "is it one record a line? Put them into one list, [..., ...]"
        raise InputError(f"{path}: not valid JSON ({error}); {advice}") from error


def poses_from_json(path: Path, content: Any) -> PlainPoses:
    """Poses from what a JSON file holds: arrays by name (as in npz), or a list of records with a time, a position and a
    quaternion (or a whole pose) each, and perhaps hands, alone or below ``poses`` or ``frames``. Raises InputError."""
    if isinstance(content, dict):
        listed = next((content[key] for key in ("poses", "frames") if _is_records(content.get(key))), None)
        if listed is None:
            named = known_names(tuple(content))
            return poses_from_arrays(path, {key: _array(path, key, content[key]) for key in named})
        content = listed
    if not _is_records(content):
        raise InputError(
            f"{path}: expected arrays by name (t, wxyz, xyz), or a list of records such as "
            '{"t": 0.0, "wxyz": [1, 0, 0, 0], "xyz": [0, 0, 1.6]}'
        )
    return _from_records(path, content)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _array(path: Path, name: str, value: Any) -> np.ndarray:
    if isinstance(value, list) and None in value:  # null: not seen
        seen = next((row for row in value if row is not None), float("nan"))
        nothing = np.full(np.shape(seen), np.nan).tolist()
        value = [nothing if row is None else row for row in value]
    try:
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"{path}: {name}: rows of different lengths") from error
    if not np.issubdtype(array.dtype, np.number):
        if array.dtype == object and None in array.reshape(-1).tolist():
            with_nan = np.array([np.nan if entry is None else entry for entry in array.reshape(-1).tolist()])
            if np.issubdtype(with_nan.dtype, np.number):
                return with_nan.reshape(array.shape)
        raise InputError(f"{path}: {name} must be numbers, row by row")
    return array


def _from_records(path: Path, records: list[dict[str, Any]]) -> PlainPoses:
    """Records as arrays by name, of which each has the fields of the first; hands may be in some of them only."""
    first = records[0]
    named = known_names(tuple(dict.fromkeys(key for record in records for key in record)))
    time = next((name for name in TIME_NAMES if name in first), None)
    whole = next((name for name in POSE_NAMES if name in first), None)
    quat = next((name for name in QUAT_NAMES if name in first), None)
    place = next((name for name in POSITION_NAMES if name in first), None)
    needed = {"time": time} | ({} if whole else {"quaternion": quat, "position": place})
    missing = [what for what, name in needed.items() if name is None]
    if time is None or missing:
        raise InputError(
            f"{path}: record 0 has no {' and no '.join(missing)}; it has: {', '.join(map(str, first))[:200]}. Expected "
            "t, wxyz and xyz (or timestamp_ns, quaternion, position ...), or T_world_cpf"
        )
    # whole numbers stay so: nanoseconds since 1970 don't fit into a float
    arrays = {time: np.array([record_number(path, index, record, time) for index, record in enumerate(records)])}
    if whole is not None:
        arrays[whole] = _whole_poses(path, records, whole)
    elif quat is not None and place is not None:
        order = "wxyz" if isinstance(first[quat], dict) else quat
        arrays[order] = _numbers(path, records, quat, "wxyz")
        arrays[place] = _numbers(path, records, place, "xyz")
    for name in named:
        if name in WRIST_NAMES:
            arrays[name] = _numbers(path, records, name, "xyz", needed=False)
        elif name in CONTROLLER_NAMES:
            arrays[name] = _whole_poses(path, records, name, needed=False)
    return poses_from_arrays(path, arrays)


def _numbers(path: Path, records: list[dict[str, Any]], name: str, axes: str, *, needed: bool = True) -> np.ndarray:
    """Lists or mappings of numbers, one of each record; NaN where a record has none and needs none."""
    unseen = [float("nan")] * len(axes)
    return np.array(
        [
            unseen if not needed and record.get(name) is None else record_axes(path, index, record, name, axes)
            for index, record in enumerate(records)
        ]
    )


def _whole_poses(path: Path, records: list[dict[str, Any]], name: str, *, needed: bool = True) -> np.ndarray:
    for index, record in enumerate(records):
        if needed and record.get(name) is None:
            raise InputError(f"{path}: record {index}: no {name}, which record 0 has")
    return _array(path, name, [record.get(name) for record in records])


def record_number(path: Path | str, index: int, record: Mapping[str, Any], name: str) -> float | int:
    """The number called ``name`` in record ``index`` of a file. Raises InputError where there is none."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
        raise InputError(f"{path}: record {index}: {name} must be a number, got {str(value)[:60]!r}")
    return value


def record_axes(path: Path | str, index: int, record: Mapping[str, Any], name: str, axes: str) -> list[float]:
    """The numbers along ``axes`` of the list or mapping called ``name`` in record ``index``. Raises InputError."""
    value = record.get(name)
    if isinstance(value, list) and len(value) == len(axes):
        value = dict(zip(axes, value))
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: record {index}: {name} must be {len(axes)} numbers or a mapping of {', '.join(axes)}, got "
            f"{str(value)[:60]!r}"
        )
    return [float(record_number(path, index, value, axis)) for axis in axes]
