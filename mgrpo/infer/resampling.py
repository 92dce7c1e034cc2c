"""Head trajectories at 30 Hz: exact times, gaps told and kept, wrists and hands on the same frames.

EgoAllo takes every n-th pose, which is 30.3 Hz of 1 kHz and nothing of 29.9 Hz. Here frame k is at exactly k/30 s after
the first pose; orientations are interpolated along the shorter way.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mgrpo.data.pose_track import between, sample_poses
from mgrpo.data.rate import TARGET_FPS
from mgrpo.errors import InputError
from mgrpo.infer.hamer import match_hands
from mgrpo.infer.trajectory import HeadTrajectory, WristTrack

FRAME_NS = 1e9 / TARGET_FPS
"""Nanoseconds from a frame to the next (not a whole number)."""

BRIDGED_WRIST_S = 0.1
"""Longest time between two sights of a wrist across which it is interpolated."""

SURE_WRIST = 0.7
"""Confidence above which a wrist counts as seen."""


@dataclass(frozen=True, eq=False)
class HeadMotion:
    """An unbroken stretch at 30 Hz, with the pose before its first frame. World: z up, metres, floor as the
    trajectory's."""

    first_frame: int
    """Number of the first frame on the recording's own count, where 0 is its first pose; at least 1."""
    times_ns: np.ndarray
    """Times of the frames ``(F,)`` int64."""
    T_world_cpf_all: np.ndarray
    """Poses ``(F + 1, 7)`` float64, beginning with that before the first frame."""
    wrists: np.ndarray
    """Left and right wrist ``(F, 2, 3)`` metres, NaN where not seen."""
    wrist_confidence: np.ndarray
    """``(F, 2)``, 0 where not seen."""
    R_world_wrist: np.ndarray | None
    """Orientation of the wrists ``(F, 2, 3, 3)``, NaN where not known; None where no source tells it."""
    R_world_device: np.ndarray | None
    """Orientation of the controllers ``(F, 2, 3, 3)``, NaN where not known; None without controllers."""
    hands: np.ndarray | None
    """Row of HaMeR's hand for each frame and side ``(F, 2)``, -1 for none; None without HaMeR."""

    def __len__(self) -> int:
        return len(self.times_ns)

    @property
    def T_world_cpf(self) -> np.ndarray:
        """Poses of the frames ``(F, 7)``."""
        return self.T_world_cpf_all[1:]

    @property
    def frame_nums(self) -> np.ndarray:
        """Numbers of the frames ``(F,)`` int64."""
        return np.arange(self.first_frame, self.first_frame + len(self), dtype=np.int64)


class Gap(NamedTuple):
    """Where a trajectory is broken."""

    start_s: float
    """Seconds from the recording's first pose to the last one before the gap."""
    end_s: float
    """To the first one after it."""
    why: str
    """``no poses``, or ``jump``."""


def resample(
    trajectory: HeadTrajectory,
    *,
    max_gap_s: float,
    start_s: float = 0.0,
    end_s: float = float("inf"),
    breaks_ns: np.ndarray | None = None,
) -> tuple[list[HeadMotion], list[Gap]]:
    """The stretches of a trajectory at 30 Hz, and the gaps between them.

    Args:
        trajectory: any times.
        max_gap_s: longest time between two poses across which is interpolated, seconds; at longer ones it is cut.
        start_s, end_s: part to take, seconds from the first pose.
        breaks_ns: further places to cut ``(K,)``: after the last pose at or before each of these times.
    Raises:
        InputError: nothing of two frames and the pose before them is left.
    """
    times, begin = trajectory.times_ns, int(trajectory.times_ns[0])
    low = begin + max(0.0, start_s) * 1e9
    high = min(begin + end_s * 1e9, float(times[-1])) if np.isfinite(end_s) else float(times[-1])
    wide = np.diff(times) > max_gap_s * 1e9
    cut = wide.copy()
    if breaks_ns is not None and len(breaks_ns):
        at = np.searchsorted(times, breaks_ns, side="right") - 1
        cut[np.clip(at, 0, len(cut) - 1)] = True
    edges = [-1, *np.flatnonzero(cut).tolist(), len(times) - 1]
    motions = []
    for before, last in pairwise(edges):
        first_ns, last_ns = max(float(times[before + 1]), low), min(float(times[last]), high)
        first = int(np.ceil((first_ns - begin) / FRAME_NS - 1e-6))
        count = int(np.floor((last_ns - begin) / FRAME_NS + 1e-6)) - first + 1
        if count >= 3:
            motions.append(_at(trajectory, begin, first, count))
    gaps = [
        Gap((times[at] - begin) / 1e9, (times[at + 1] - begin) / 1e9, "no poses" if wide[at] else "jump")
        for at in np.flatnonzero(cut)
        if times[at + 1] > low and times[at] < high
    ]
    if not motions:
        usual = float(np.median(np.diff(times))) / 1e9
        advice = "take another part (--start, --end), or bridge longer gaps (--max-gap)"
        if usual > max_gap_s:
            advice = (
                f"its poses are {usual:.3g} s apart. If they are so in truth, bridge the time between (--max-gap); "
                "if not, times have another unit: give --time-unit"
            )
        elif trajectory.seconds < 3 * FRAME_NS / 1e9:
            advice = "if it is longer in truth, its times have another unit: give --time-unit"
        raise InputError(
            f"{trajectory.name}: no stretch of three poses at {TARGET_FPS:g} Hz is left of {trajectory.seconds:.3f} s; "
            f"{advice}"
        )
    return motions, gaps


def _at(trajectory: HeadTrajectory, begin: int, first: int, count: int) -> HeadMotion:
    times = begin + np.rint(np.arange(first, first + count) * FRAME_NS).astype(np.int64)
    poses = sample_poses(trajectory.times_ns, trajectory.T_world_cpf, times)
    sights = [_sight(track, times[1:]) for track in trajectory.wrists]
    return HeadMotion(
        first + 1,
        times[1:],
        poses,
        np.stack([sight.positions for sight in sights], axis=1),
        np.stack([sight.confidence for sight in sights], axis=1),
        _both(sights, [None if track is None else track.R_world_wrist for track in trajectory.wrists]),
        _both(sights, [None if track is None else track.R_world_device for track in trajectory.wrists]),
        None if trajectory.hamer is None else match_hands(trajectory.hamer, times[1:]),
    )


class _Sight(NamedTuple):
    """One wrist in the frames of a stretch."""

    positions: np.ndarray
    confidence: np.ndarray
    row: np.ndarray
    """Row of the track that is nearest in time ``(F,)``, -1 where the wrist was not seen."""


def _sight(track: WristTrack | None, times: np.ndarray) -> _Sight:
    """Between two sights that are near enough in time, else the nearest one within a frame, else NaN and 0."""
    places, sure, row = np.full((len(times), 3), np.nan), np.zeros(len(times)), np.full(len(times), -1)
    seen = np.zeros(0, np.int64) if track is None else np.flatnonzero(track.confidence > SURE_WRIST)
    if track is None or len(seen) == 0:
        return _Sight(places, sure, row)
    stamps, taken = track.times_ns[seen], track.positions[seen]
    low, part = between(stamps, times)
    high = np.minimum(low + 1, len(seen) - 1)
    nearest = np.where(part < 0.5, low, high)
    near = np.abs(stamps[nearest] - times) <= FRAME_NS
    inside = (stamps[low] <= times) & (times <= stamps[high]) & (stamps[high] - stamps[low] <= BRIDGED_WRIST_S * 1e9)
    places[near] = taken[nearest[near]]
    places[inside] = (taken[low] + part[:, None] * (taken[high] - taken[low]))[inside]
    found = near | inside
    row[found] = seen[nearest[found]]
    sure[found] = track.confidence[row[found]]
    return _Sight(places, sure, row)


def _both(sights: list[_Sight], rotations: list[np.ndarray | None]) -> np.ndarray | None:
    """Orientations of both sides at their sights ``(F, 2, 3, 3)``; None where neither side has any."""
    if all(one is None for one in rotations):
        return None
    result = np.full((len(sights[0].row), 2, 3, 3), np.nan)
    for side, (sight, rotation) in enumerate(zip(sights, rotations)):
        if rotation is not None:
            found = sight.row >= 0
            result[found, side] = rotation[sight.row[found]]
    return result
