"""Plain head poses in JSON: arrays by name, or a list of records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mgrpo.errors import InputError
from mgrpo.infer.poses import POSITION_NAMES, QUAT_NAMES, TIME_NAMES, PlainPoses, known_names, poses_from_arrays

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
        raise InputError(f"{path}: not valid JSON ({error}); is the file cut off?") from error


def poses_from_json(path: Path, content: Any) -> PlainPoses:
    """Poses from what a JSON file holds: arrays by name (as in npz), or a list of records with a time, a position and a
    quaternion each, alone or below ``poses`` or ``frames``. Raises InputError."""
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
    try:
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"{path}: {name}: rows of different lengths") from error
    if not np.issubdtype(array.dtype, np.number):
        if array.dtype == object and None in array.reshape(-1).tolist():  # null: not seen
            with_nan = np.array([np.nan if entry is None else entry for entry in array.reshape(-1).tolist()])
            if np.issubdtype(with_nan.dtype, np.number):
                return with_nan.reshape(array.shape)
        raise InputError(f"{path}: {name} must be numbers, row by row")
    return array


def _from_records(path: Path, records: list[dict[str, Any]]) -> PlainPoses:
    first = records[0]
    time = next((name for name in TIME_NAMES if name in first), None)
    quat = next((name for name in QUAT_NAMES if name in first), None)
    place = next((name for name in POSITION_NAMES if name in first), None)
    if time is None or quat is None or place is None:
        missing = [what for what, name in (("time", time), ("quaternion", quat), ("position", place)) if name is None]
        raise InputError(
            f"{path}: record 0 has no {' and no '.join(missing)}; it has: {', '.join(map(str, first))[:200]}. Expected "
            "t, wxyz and xyz (or timestamp_ns, quaternion, position ...)"
        )
    named = isinstance(first[quat], dict)
    rows = [
        [
            record_number(path, index, record, time),
            *record_axes(path, index, record, quat, "wxyz"),
            *record_axes(path, index, record, place, "xyz"),
        ]
        for index, record in enumerate(records)
    ]
    values = np.array([row[1:] for row in rows], np.float64)
    times = np.array([row[0] for row in rows])  # whole numbers stay so: nanoseconds since 1970 don't fit into a float
    return PlainPoses(
        times,
        TIME_NAMES[time],
        values[:, :4],
        "wxyz" if named else QUAT_NAMES[quat],
        values[:, 4:],
        (None, None),
        (None, None),
        False,
    )


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
