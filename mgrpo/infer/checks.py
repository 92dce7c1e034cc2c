"""Does a trajectory look like a person's head? Each finding says what to do about it.

Nothing here changes a number: a recording may be of a handstand. What is measured: height above the floor, the head's
axes against gravity and against the way it moves, speed, steps, gaps, rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mgrpo.data.floor import HEAD_HEIGHTS_M
from mgrpo.geometry import quat_conjugate, quat_multiply, quat_to_axis_angle, quat_to_rotmat
from mgrpo.infer.devices import DEVICES, UNITS, DeviceFrame
from mgrpo.infer.floor import standing_height
from mgrpo.infer.resampling import FRAME_NS, Gap, HeadMotion
from mgrpo.infer.trajectory import Floor, HeadTrajectory
from mgrpo.infer.wrists import swapped_hands

LONG_S = 10.0
"""Seconds at an unusual height that are worth a word."""

UPRIGHT = 0.5
"""Mean of the head's up axis along the world's, below which the axes are doubted; people looking around have 0.85 to 1.
"""

JUMP_M, JUMP_RADIANS = 0.35, 1.05
"""Longest step and turn of a head from one frame at 30 Hz to the next: 10 m/s, 1800 degrees/s."""

FASTEST_M_S = 4.0
"""Median speed above which a unit is doubted."""

_HEADING_SPEED, _HEADING_S, _BACKWARD = 0.4, 2.0, -0.3
_FIXED_M_PER_RADIAN = 0.005
_SLOW_HZ = 15.0
_LISTED = 4
_POSES = 100_000  # at a time: there are millions in an hour of Aria


def find_jumps(trajectory: HeadTrajectory, motions: Sequence[HeadMotion]) -> np.ndarray:
    """Times ``(K,)`` int64 after which a head jumps: moves or turns further within a frame than heads do.

    Where it jumps from one pose of ``trajectory`` to the next, that is the former's time, whatever part of the jump
    falls into which frame; where it takes several poses, the time of the frame of ``motions`` before.
    """
    found = []
    for motion in motions:
        frames = np.concatenate((motion.times_ns[:1] - round(FRAME_NS), motion.times_ns))
        low = max(int(np.searchsorted(trajectory.times_ns, frames[0], side="right")) - 1, 0)
        high = int(np.searchsorted(trajectory.times_ns, frames[-1])) + 1
        times, sharp = trajectory.times_ns[low:high], []
        for begin in range(0, len(times) - 1, _POSES):
            step, turn = _steps(trajectory.T_world_cpf[low:high][begin : begin + _POSES + 1])
            longer = np.maximum(np.diff(times[begin : begin + _POSES + 1]) / FRAME_NS, 1.0)
            sharp.append(begin + np.flatnonzero((step > JUMP_M * longer) | (turn > JUMP_RADIANS * longer)))
        before = np.concatenate(sharp) if sharp else np.zeros(0, np.int64)
        step, turn = _steps(motion.T_world_cpf_all)
        far = np.flatnonzero((step > JUMP_M) | (turn > JUMP_RADIANS))
        begun = np.searchsorted(times[before], frames[far + 1])  # sharp ones that begin before the frame's end
        ended = np.searchsorted(times[before + 1], frames[far], side="right")  # and those that end before it begins
        found.append(np.sort(np.concatenate((times[before], frames[far[begun <= ended]]))))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _steps(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres and radians from each pose to the next."""
    step = np.linalg.norm(np.diff(poses[:, 4:], axis=0), axis=1)
    quats = torch.from_numpy(poses[:, :4])
    turn = quat_to_axis_angle(quat_multiply(quat_conjugate(quats[:-1]), quats[1:])).norm(dim=-1).numpy()
    return step, turn


def check_motion(
    trajectory: HeadTrajectory,
    motions: Sequence[HeadMotion],
    gaps: Sequence[Gap],
    floor: Floor,
    *,
    cut_jumps: bool = False,
) -> tuple[str, ...]:
    """Warnings about a trajectory and its stretches at 30 Hz, in words for a person.

    Heights are taken from ``floor`` in the trajectory's world. ``cut_jumps``: whether the stretches will be cut where
    the head jumps.
    """
    poses = np.concatenate([motion.T_world_cpf for motion in motions])
    findings = [
        *_heights(trajectory, poses[:, 6] - floor.height, floor),
        *_gravity(poses),
        *_heading(motions),
        *_speed(motions),
        *_gaps(gaps),
        *_jumps(trajectory, motions, cut_jumps),
        *_rate(trajectory),
    ]
    swapped = swapped_hands(trajectory)
    return tuple(f"WARNING: {finding}" for finding in findings) + ((swapped,) if swapped else ())


def _heights(trajectory: HeadTrajectory, heights: np.ndarray, floor: Floor) -> list[str]:
    outside = (heights < HEAD_HEIGHTS_M[0]) | (heights > HEAD_HEIGHTS_M[1])
    if not outside.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate(([0], outside.astype(int), [0]))))
    longest = float((edges[1::2] - edges[::2]).max()) * FRAME_NS / 1e9
    if longest < LONG_S and outside.mean() < 0.5:
        return []
    told = f"the head is {np.median(heights):.2f} m above the floor (median) and for {longest:.0f} s on end outside "
    told += f"{HEAD_HEIGHTS_M[0]} to {HEAD_HEIGHTS_M[1]} m; the floor is at {floor.height:+.2f} m ({floor.source})"
    height = standing_height(trajectory) - (floor.height if floor.source != "standing" else 0.0)
    unit = next((name for name, metres in UNITS.items() if name != "m" and 1.4 <= height * metres <= 2.0), None)
    if unit is not None and height > HEAD_HEIGHTS_M[1]:
        return [f"{told}. Positions look like {unit}: give --unit {unit}"]
    return [
        f"{told}. If that is wrong, give --floor or --eye-height; bodies that sit, lie or climb are guessed worse, "
        "because the model has learned mostly standing ones"
    ]


def _axes(poses: np.ndarray) -> np.ndarray:
    return quat_to_rotmat(torch.from_numpy(poses[:, :4])).numpy()


def _gravity(poses: np.ndarray) -> list[str]:
    up = _axes(poses)[:, :, 1].mean(axis=0)
    if up[2] >= UPRIGHT:
        return []
    axis = int(np.abs(up).argmax())
    seen = f"{'-' if up[axis] < 0 else ''}{'xyz'[axis]}" if abs(up[axis]) > UPRIGHT else "no axis in particular"
    return [
        f"gravity axis: the head's up direction is mostly along {seen} of the z-up world (mean along z {up[2]:.2f}, "
        "people have 0.85 to 1). Was the right --axes named, and the right order of quaternions (--quaternion)?"
    ]


def _heading(motions: Sequence[HeadMotion]) -> list[str]:
    """Somebody who walks looks ahead; one who always looks back was read with the wrong hand."""
    total, seconds = 0.0, 0.0
    for motion in motions:
        velocity = np.diff(motion.T_world_cpf_all[:, 4:6], axis=0) * (1e9 / FRAME_NS)
        speed = np.linalg.norm(velocity, axis=1)
        forward = _axes(motion.T_world_cpf)[:, :2, 2]
        length = np.linalg.norm(forward, axis=1)
        fast = (speed > _HEADING_SPEED) & (speed < FASTEST_M_S) & (length > 0.3)
        total += float(((velocity * forward).sum(axis=1)[fast] / (speed * length)[fast]).sum())
        seconds += float(fast.sum()) * FRAME_NS / 1e9
    if seconds < _HEADING_S or total / (seconds * 1e9 / FRAME_NS) > _BACKWARD:
        return []
    return [
        f"while walking ({seconds:.0f} s) the head looks back rather than ahead. If the file is left-handed (Unity), "
        "give --axes unity; if it was read as unity and is not, name its own device"
    ]


def _speed(motions: Sequence[HeadMotion]) -> list[str]:
    steps, turns = (np.concatenate(parts) for parts in zip(*(_steps(motion.T_world_cpf_all) for motion in motions)))
    speed = float(np.median(steps)) * 1e9 / FRAME_NS
    if speed > FASTEST_M_S:
        return [
            f"the head's median speed is {speed:.1f} m/s, which nobody keeps up. Are positions in metres (--unit) and "
            "times in seconds (--time-unit)?"
        ]
    if turns.sum() > 3.0 and steps.sum() < _FIXED_M_PER_RADIAN * turns.sum():
        return [
            f"the head turns by {turns.sum():.0f} rad but moves by {steps.sum() * 1000:.0f} mm in all. The device "
            "tracks orientation only (nothing can be guessed from that), or positions are in another unit (--unit)"
        ]
    return []


def _gaps(gaps: Sequence[Gap]) -> list[str]:
    holes = [gap for gap in gaps if gap.why == "no poses"]
    if not holes:
        return []
    listed = ", ".join(f"{gap.start_s:.2f} to {gap.end_s:.2f} s" for gap in holes[:_LISTED])
    return [
        f"{len(holes)} gap(s) without poses: {listed}{' ...' if len(holes) > _LISTED else ''}. Each side is guessed on "
        "its own, and the frames between are missing in the result; --max-gap bridges longer ones"
    ]


def _jumps(trajectory: HeadTrajectory, motions: Sequence[HeadMotion], cut: bool) -> list[str]:
    jumps = find_jumps(trajectory, motions)
    if not len(jumps):
        return []
    listed = ", ".join(f"{(time - trajectory.times_ns[0]) / 1e9:.2f} s" for time in jumps[:_LISTED])
    advice = "The motion is cut there" if cut else "--cut-jumps guesses each side on its own"
    return [
        f"the head jumps {len(jumps)} time(s) (over {JUMP_M} m or {np.degrees(JUMP_RADIANS):.0f} degrees within a "
        f"frame) at {listed}{' ...' if len(jumps) > _LISTED else ''}: tracking was lost or the origin was set anew. "
        f"{advice}; --start and --end take a part"
    ]


def _rate(trajectory: HeadTrajectory) -> list[str]:
    rate = 1e9 / float(np.median(np.diff(trajectory.times_ns)))
    if rate >= _SLOW_HZ:
        return []
    return [
        f"there are only {rate:.2g} poses per second; what lies between is interpolated, and quick motion is lost. "
        "If there are more in truth, the times have another unit: give --time-unit"
    ]


def other_readings(quats: np.ndarray, frame: DeviceFrame, order: str, *, order_is_told: bool) -> str | None:
    """Advice where orientations don't stand upright as read, and do under another preset or order of quaternions.

    Args:
        quats: unit quaternions as they stand in the file ``(N, 4)``.
        frame, order: how they are read; ``order`` is ``wxyz`` or ``xyzw``.
        order_is_told: whether the file's names say the order, so that no other is considered.
    """
    if _uprightness(quats, frame, order) >= UPRIGHT:
        return None
    orders = (order,) if order_is_told else ("wxyz", "xyzw")
    better = [
        (_uprightness(quats, other, this), _flags(other, this, frame, order))
        for this in orders
        for other in DEVICES.values()
        if other.name in _KINDS or other is frame
    ]
    best = [flags for score, flags in better if score > 0.8]
    if not best:
        return None
    listed = " or ".join(dict.fromkeys(best))
    return f"WARNING: read this way, the head does not stand upright. It does with {listed}"


_KINDS = ("cpf", "aria", "openxr", "unity")


def _flags(other: DeviceFrame, this: str, frame: DeviceFrame, order: str) -> str:
    changed = [f"--axes {other.name}"] if other.name != frame.name else []
    changed += [f"--quaternion {this}"] if this != order else []
    return " ".join(changed)


def _uprightness(quats: np.ndarray, frame: DeviceFrame, order: str) -> float:
    """Mean of the head's up axis along the world's, and of how level it looks: 1 for a head held straight."""
    ordered = quats if order == "wxyz" else quats[:, [3, 0, 1, 2]]
    R = _axes(frame.to_world(ordered, np.zeros((len(quats), 3))))
    return float(min(R[:, 2, 1].mean(), 1.0 - np.abs(R[:, 2, 2]).mean() + 0.25))
