"""What every source needs before its numbers are poses: times that rise, quaternions that are unit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mgrpo.errors import InputError

TIME_UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
"""Nanoseconds in a unit of time."""

MOST_BACKWARD = 0.1
"""Largest share of rows out of order that is repaired; with more, the column is no time."""


class CleanPoses(NamedTuple):
    """Rows that can be used."""

    times_ns: np.ndarray
    """``(M,)`` int64, rising."""
    quats: np.ndarray
    """Unit quaternions ``(M, 4)``, in the order they came in."""
    positions: np.ndarray
    """``(M, 3)``."""
    kept: np.ndarray
    """Which rows of the source these are ``(M,)``."""
    notes: tuple[str, ...]
    """What was left out, and what to do."""


def nanoseconds(times: np.ndarray, unit: str, where: str) -> np.ndarray:
    """Times ``(N,)`` in ``unit`` (a key of :data:`TIME_UNITS`) as int64 nanoseconds. ``where`` names the source.

    Raises:
        InputError: not finite, or beyond what an int64 holds.
    """
    if not np.issubdtype(times.dtype, np.number) or times.ndim != 1:
        raise InputError(f"{where}: times must be one row of numbers, got {times.dtype} of shape {times.shape}")
    if np.issubdtype(times.dtype, np.integer):
        limit = (1 << 62) // TIME_UNITS[unit]
        if len(times) and (int(times.max()) > limit or int(times.min()) < -limit):
            raise InputError(f"{where}: times reach {int(times.max())} {unit}; is the unit right? See --time-unit")
        return times.astype(np.int64) * TIME_UNITS[unit]
    if not np.isfinite(times).all():
        raise InputError(f"{where}: time {int(np.argmin(np.isfinite(times)))} is not finite; repair or cut it")
    scaled = times.astype(np.float64) * TIME_UNITS[unit]
    if len(scaled) and np.abs(scaled).max() > 4e18:
        raise InputError(f"{where}: times reach {times.max():g} {unit}; is the unit right? See --time-unit")
    return np.rint(scaled).astype(np.int64)


def rising(times_ns: np.ndarray, where: str, what: str = "poses") -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices of the rows that are later than all before them, and what a person should know of the others.

    Rows that repeat a time are left out quietly (recorders write a pose twice). Raises InputError where more than
    :data:`MOST_BACKWARD` of them go back.
    """
    latest = np.maximum.accumulate(times_ns)
    keep = np.concatenate(([True], times_ns[1:] > latest[:-1])) if len(times_ns) else np.zeros(0, bool)
    back = np.concatenate(([False], times_ns[1:] < latest[:-1])) if len(times_ns) else keep
    count = int(back.sum())
    if count > MOST_BACKWARD * len(times_ns):
        raise InputError(
            f"{where}: time goes backwards in {count} of {len(times_ns)} rows, first in row "
            f"{int(np.argmax(back)) + 1}; sort the rows, or name the column that is the time"
        )
    notes: tuple[str, ...] = ()
    if count:
        row = int(np.argmax(back))
        notes = (
            f"WARNING: time goes backwards in {count} of {len(times_ns)} rows of {what}, first in row {row + 1} by "
            f"{(latest[row] - times_ns[row]) / 1e9:.3f} s; they were left out. If a clock was set or two recordings "
            "were joined there, cut the file",
        )
    return np.flatnonzero(keep), notes


def clean_poses(times_ns: np.ndarray, quats: np.ndarray, positions: np.ndarray, where: str) -> CleanPoses:
    """Rows in time's order with unit quaternions.

    Args:
        times_ns: ``(N,)`` int64.
        quats: ``(N, 4)``, of length one to a percent.
        positions: ``(N, 3)``.
        where: the source, for messages.
    Raises:
        InputError: shapes that don't fit, values that are not finite, quaternions that are none, or times out of order.
    """
    if times_ns.shape != (len(quats),) or quats.shape != (len(quats), 4) or positions.shape != (len(quats), 3):
        raise InputError(
            f"{where}: times {times_ns.shape}, quaternions {quats.shape} and positions {positions.shape} don't fit; "
            "expected (N,), (N, 4) and (N, 3)"
        )
    for name, values in (("orientation", quats), ("position", positions)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise InputError(
                f"{where}: the {name} of row {int(np.argmax(bad)) + 1} is not finite (NaN or infinity), as of "
                f"{int(bad.sum())} rows in all; tracking was lost there: leave these rows out, gaps are dealt with"
            )
    length = np.linalg.norm(quats, axis=1)
    bad = np.abs(length - 1) > 1e-2
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"{where}: the quaternion of row {row + 1} has length {length[row]:.4f}, not 1 ({int(bad.sum())} such "
            "rows); are these columns wxyz (or xyzw), and did tracking hold there?"
        )
    keep, notes = rising(times_ns, where)
    if len(keep) < 2:
        if len(times_ns) > 1:
            raise InputError(
                f"{where}: all {len(times_ns)} head poses have one time; name the column that is the time, and its "
                "unit (--time-unit)"
            )
        raise InputError(f"{where}: {len(keep)} head pose(s); at least 2 are needed. Is the recording cut off?")
    return CleanPoses(times_ns[keep], (quats / length[:, None])[keep], positions[keep], keep, notes)
