"""Bringing a prediction and its truth onto the same frames: one rate, one stretch of time, gaps marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mgrpo.data.augment import slerp
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, quat_to_rotmat, rotmat_to_quat

from .formats import MotionTracks

Trim = Literal["off", "auto", "times", "numbers", "start"]

MOST_FRAMES = 4_000_000
"""Most frames that a motion is brought to; a day and a half at 30 per second."""

_SAME_RATE = 1e-3


@dataclass(frozen=True, eq=False)
class Pair:
    """A prediction and its truth, frame by frame."""

    pred: MotionTracks
    """S motions of T frames."""
    truth: MotionTracks
    """One motion of T frames."""
    mask: Tensor | None
    """``(T,)`` bool, False where either has no frame; None: all are there."""
    notes: tuple[str, ...]
    """What was done: resampling, cutting."""

    @property
    def fps(self) -> float:
        """Frames per second of both."""
        return self.truth.fps


def pair(pred: MotionTracks, truth: MotionTracks, *, fps: float | None = None, trim: Trim = "off") -> Pair:
    """Put a prediction and its truth on the same frames.

    Args:
        pred: S samples.
        truth: one motion.
        fps: rate at which they are compared; None: the truth's. Positions are interpolated linearly, rotations
            spherically.
        trim: ``off``: both must have the same number of frames (and the same frame numbers where both have them);
            ``times``: the stretch of time that both cover, by their time stamps, without gaps; ``numbers``: the frame
            numbers that both have, where one file has none it counts from 0; ``start``: from the first frame to the end
            of the shorter; ``auto``: the first of these that the files allow.

    Raises:
        InputError: a truth of several samples, lengths that differ without ``trim``, nothing in common, a motion with
            gaps that would have to be resampled, more than :data:`MOST_FRAMES` frames.
    """
    if truth.samples != 1:
        raise InputError(f"the truth must be one motion, got {truth.samples} samples")
    if trim == "auto":
        both = pred.times is not None and truth.times is not None
        overlap = both and max(pred.times[0], truth.times[0]) < min(pred.times[-1], truth.times[-1])
        numbered = pred.frame_nums is not None or truth.frame_nums is not None
        trim = "times" if overlap else "numbers" if numbered and _same_rate(pred, truth) else "start"
    if trim == "times":
        return _by_times(pred, truth, fps or truth.fps)
    if trim == "numbers":
        return _by_numbers(pred, truth, fps or truth.fps)
    notes: list[str] = []
    if trim == "off":
        if pred.frame_nums is not None and truth.frame_nums is not None:
            if not np.array_equal(pred.frame_nums, truth.frame_nums):
                raise InputError(
                    f"the frame numbers differ ({_span(pred)} and {_span(truth)}); --trim numbers compares those that "
                    "both have, --trim start ignores them"
                )
            return _by_numbers(pred, truth, fps or truth.fps)
        if len(pred) != len(truth) and _same_rate(pred, truth):
            raise InputError(
                f"the prediction has {len(pred)} frames, the truth {len(truth)}; --trim auto compares what both have "
                "(by time stamps, frame numbers or from the start)"
            )
    for one in (pred, truth):
        _refuse_gaps(one)
    pred, truth = resampled(pred, fps or truth.fps, notes), resampled(truth, fps or truth.fps, notes)
    if len(pred) != len(truth):
        if trim == "off":
            raise InputError(
                f"at {truth.fps:g} per second the prediction has {len(pred)} frames, the truth {len(truth)}; --trim "
                "auto compares what both have, and --pred-fps and --gt-fps tell rates that the files have wrong"
            )
        count = min(len(pred), len(truth))
        notes.append(f"compared from the start: the first {count} of {len(pred)} and {len(truth)} frames")
        pred, truth = _rows(pred, slice(0, count)), _rows(truth, slice(0, count))
    return Pair(pred, truth, None, tuple(notes))


def _refuse_too_many(count: int, what: str) -> None:
    if count > MOST_FRAMES:
        raise InputError(
            f"{what}, would be {count:,} frames, more than {MOST_FRAMES:,}; is a rate or a time stamp wrong? --fps, "
            "--pred-fps and --gt-fps say the rates"
        )


def _same_rate(pred: MotionTracks, truth: MotionTracks) -> bool:
    return abs(pred.fps - truth.fps) <= _SAME_RATE * truth.fps


def _span(tracks: MotionTracks) -> str:
    numbers = tracks.frame_nums if tracks.frame_nums is not None else np.arange(len(tracks))
    return f"{numbers[0]} to {numbers[-1]}, {len(numbers)} frames"


def _gaps(tracks: MotionTracks) -> bool:
    return tracks.frame_nums is not None and bool((np.diff(tracks.frame_nums) != 1).any())


def _refuse_gaps(tracks: MotionTracks) -> None:
    if _gaps(tracks):
        raise InputError(
            f"its frame numbers have gaps ({_span(tracks)}), so its frames can't be taken in order; --trim numbers "
            "compares those that both have, at the rate of the files"
        )


def _by_times(pred: MotionTracks, truth: MotionTracks, fps: float) -> Pair:
    if pred.times is None or truth.times is None:
        raise InputError(
            "--trim times needs time stamps in both files, which --pred-fps and --gt-fps overrule; --trim start "
            "compares from the first frame"
        )
    start, end = max(pred.times[0], truth.times[0]), min(pred.times[-1], truth.times[-1])
    count = int(np.floor((end - start) * fps + 1e-6)) + 1
    if count < 1:
        raise InputError(
            f"the times of prediction ({pred.times[0]:.3f} to {pred.times[-1]:.3f} s) and truth "
            f"({truth.times[0]:.3f} to {truth.times[-1]:.3f} s) have nothing in common; are they of one clock? --trim "
            "start ignores them"
        )
    _refuse_too_many(count, f"{(end - start):.4g} s at {fps:g} frames per second")
    grid = start + np.arange(count) / fps
    parts = [_at(one, np.interp(grid, one.times, np.arange(len(one))), fps) for one in (pred, truth)]
    notes = [f"compared at the times that both cover: {count} frames, {(end - start):.2f} s"]
    missing = _in_gaps(pred.times, grid) | _in_gaps(truth.times, grid)
    gone = int(missing.sum())
    if gone == count:
        raise InputError(
            f"at every time that both cover ({start:.3f} to {end:.3f} s) one of them has a gap; are they of one clock? "
            "--trim start ignores the times"
        )
    if gone:
        notes.append(f"{gone} of them lie in gaps of the time stamps; these and steps across them are not measured")
    return Pair(*parts, torch.from_numpy(~missing) if gone else None, tuple(notes))


def _in_gaps(times: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Which moments of ``grid (N,)`` lie where a motion with stamps ``times (T,)`` lost frames: between two stamps that
    are further apart than one and a half usual steps. Seconds; ``(N,)`` bool."""
    if len(times) < 3:
        return np.zeros(len(grid), bool)
    steps = np.diff(times)
    usual = float(np.median(steps))
    low = np.clip(np.searchsorted(times, grid, side="right") - 1, 0, len(steps) - 1)
    # of two stamps, what is nearer to one than a hundredth of a step is that one
    inside = np.minimum(grid - times[low], times[low + 1] - grid) > 0.01 * usual
    return (steps[low] > 1.5 * usual) & inside


def _by_numbers(pred: MotionTracks, truth: MotionTracks, fps: float) -> Pair:
    if not _same_rate(pred, truth):
        raise InputError(
            f"--trim numbers needs one frame rate, got {pred.fps:g} and {truth.fps:g}; --trim start compares by time "
            "from the first frame, and --pred-fps and --gt-fps tell rates that the files have wrong"
        )
    numbers = [one.frame_nums if one.frame_nums is not None else np.arange(len(one)) for one in (pred, truth)]
    common = np.intersect1d(*numbers)
    if not len(common):
        raise InputError(
            f"prediction ({_span(pred)}) and truth ({_span(truth)}) have no frame number in common; --trim start "
            "ignores the numbers"
        )
    notes: list[str] = []
    if any(len(found) != len(common) for found in numbers):
        notes.append(
            f"compared by frame number, {common[0]} to {common[-1]}: {len(common)} frames of {len(pred)} and "
            f"{len(truth)}"
        )
    count = int(common[-1] - common[0]) + 1
    if count > 4 * len(common) + 1000:
        raise InputError(f"frame numbers {common[0]} to {common[-1]} for {len(common)} frames are mostly gaps")
    # A frame that is not there repeats the one before it, outside the mask.
    grid = common[0] + np.arange(count)
    held = np.searchsorted(common, grid, side="right") - 1
    parts = []
    for one, found in zip((pred, truth), numbers):
        rows = torch.from_numpy(np.searchsorted(found, common[held]))
        parts.append(_rows(one, rows))
    mask = None
    if count != len(common):
        mask = torch.from_numpy(np.isin(grid, common))
        notes.append(f"{count - len(common)} frame numbers are missing; steps across a gap are not measured")
        if abs(fps - truth.fps) > _SAME_RATE * fps:
            raise InputError(
                "a motion with gaps in its frame numbers can't be brought to another rate; leave out --fps"
            )
        return Pair(replace(parts[0], fps=truth.fps), parts[1], mask, tuple(notes))
    parts = [resampled(part, fps, notes) for part in parts]
    return Pair(*parts, mask, tuple(notes))


def _rows(tracks: MotionTracks, rows: slice | Tensor) -> MotionTracks:
    """Some frames, without their numbers and times."""
    return replace(
        tracks,
        joints=tracks.joints[:, rows],
        body_rotmats=None if tracks.body_rotmats is None else tracks.body_rotmats[:, rows],
        R_world_joint=None if tracks.R_world_joint is None else tracks.R_world_joint[:, rows],
        frame_nums=None,
        times=None,
    )


def resampled(tracks: MotionTracks, fps: float, notes: list[str] | None = None) -> MotionTracks:
    """The motion at another rate, its first frame kept; itself where the rates agree to a thousandth."""
    if abs(tracks.fps - fps) <= _SAME_RATE * fps:
        return replace(tracks, fps=fps)
    count = int((len(tracks) - 1) * fps / tracks.fps + 1e-6) + 1
    _refuse_too_many(count, f"{len(tracks)} frames at {tracks.fps:g} per second, brought to {fps:g}")
    if notes is not None:
        notes.append(f"{tracks.format or 'motion'}: {tracks.fps:g} to {fps:g} frames per second")
    return _at(tracks, np.arange(count) * (tracks.fps / fps), fps)


def _at(tracks: MotionTracks, positions: np.ndarray, fps: float) -> MotionTracks:
    """The motion between its frames, at ``positions`` counted in frames."""
    low = np.clip(np.floor(positions + 1e-9).astype(np.int64), 0, max(len(tracks) - 2, 0))
    high = torch.from_numpy(np.minimum(low + 1, len(tracks) - 1))
    part = torch.from_numpy(np.clip(positions - low, 0.0, 1.0))
    low = torch.from_numpy(low)

    def turned(rotmats: Tensor | None) -> Tensor | None:
        if rotmats is None:
            return None
        quats = quat_normalize(rotmat_to_quat(rotmats))
        return quat_to_rotmat(slerp(quats[:, low], quats[:, high], part[:, None]))

    joints = tracks.joints[:, low] + part[:, None, None] * (tracks.joints[:, high] - tracks.joints[:, low])
    return replace(
        tracks,
        joints=joints,
        body_rotmats=turned(tracks.body_rotmats),
        R_world_joint=turned(tracks.R_world_joint),
        fps=fps,
        frame_nums=None,
        times=None,
    )
