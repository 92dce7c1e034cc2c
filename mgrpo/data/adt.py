"""Aria Digital Twin sequences: device and skeleton in one world (z up, floor at 0) on one clock, at 30 Hz.

The ground-truth world has y up (facts: section I and K); gravity in the file decides how it is turned. The device's
central pupil frame takes the place of a synthetic one, the body comes from the 51 joints of the motion capture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mgrpo.body.model import BodyModel
from mgrpo.body.skeleton import BODY_JOINT_NAMES, PARENTS_BODY, ROOT_NAME
from mgrpo.data.adt_files import SKELETON_JOINTS, AdtFiles, Trajectory, read_skeleton, read_trajectory
from mgrpo.data.floor import densest_height
from mgrpo.data.joint_fit import fit_joints
from mgrpo.data.packs import TARGET_FPS, MotionPack
from mgrpo.data.point_cloud import read_points
from mgrpo.data.pose_track import sample_points, sample_poses, turned_poses
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, quat_to_rotmat, rotmat_to_quat, se3_multiply

NOMINAL_DEVICE_CPF = np.array(
    [[-0.03186, -0.99863, -0.04152, 0.00495],
     [0.79335, 0.0, -0.60876, -0.04915],
     [0.60793, -0.05234, 0.79227, -0.04919]]
)  # fmt: skip
"""Pose of the central pupil frame in the device's of an Aria of size S, metres: from its construction, rounded. A
recording's own calibration (in its vrs file) differs by up to a centimetre."""

MAX_GAP_S = 0.2
"""Longest time without a pose or a skeleton that is bridged by interpolation; at longer ones the clip is cut."""

TOE_HEIGHTS_M = (-0.01, 0.12)
"""Where planted toe joints must be above the floor, metres, for the world's zero to be taken as the floor."""

HEAD_HEIGHTS_M = (1.0, 2.2)
"""Usual heights of the eyes above the floor, metres; outside, a warning is given."""

_NAMES = (ROOT_NAME, *BODY_JOINT_NAMES)
_OURS = {
    "pelvis": "Skeleton", "spine1": "Ab", "spine3": "Chest", "neck": "Neck", "head": "Head",
} | {
    f"{side}_{ours}": letter + theirs
    for side, letter in (("left", "L"), ("right", "R"))
    for ours, theirs in {
        "hip": "Thigh", "knee": "Shin", "ankle": "Foot", "foot": "Toe",
        "collar": "Shoulder", "shoulder": "UArm", "elbow": "FArm", "wrist": "Hand",
    }.items()
}  # fmt: skip


class AdtClip(NamedTuple):
    """An unbroken stretch of a sequence at 30 Hz. World: z up, floor at z = 0, metres."""

    times_ns: np.ndarray
    """Device time ``(F,)``, int64."""
    T_world_device: np.ndarray
    """``(F, 7)``, wxyz and xyz."""
    T_world_cpf: np.ndarray
    """``(F, 7)``."""
    joints: np.ndarray | None
    """The 51 joints of the motion capture ``(F, 51, 3)``; None where only the head was asked for."""


class AdtSequence(NamedTuple):
    """A sequence."""

    clips: tuple[AdtClip, ...]
    floor_m: float
    """Height of the floor in the file's world."""
    floor_from: str
    """``points``, ``world zero``, ``toes`` or ``option``."""
    notes: tuple[str, ...]
    """Warnings and what else a person should know."""


def joints22(joints51: np.ndarray) -> np.ndarray:
    """Our 22 joints ``(…, 22, 3)`` of ``(…, 51, 3)``: by name; spine2, which the motion capture lacks, half way between
    its neighbours."""
    row = {name: index for index, name in enumerate(SKELETON_JOINTS)}
    parts = []
    for name in _NAMES:
        if name == "spine2":
            parts.append((joints51[..., row["Ab"], :] + joints51[..., row["Chest"], :]) / 2)
        else:
            parts.append(joints51[..., row[_OURS[name]], :])
    return np.stack(parts, axis=-2)


def read_device_cpf(path: Path) -> np.ndarray:
    """``T_device_cpf (7,)`` from a JSON file: 7 numbers (wxyz and metres) or a 3x4 or 4x4 matrix. Raises InputError."""
    try:
        if path.stat().st_size > 1 << 16:
            raise InputError(f"{path}: too large for a pose")
        values = np.array(json.loads(path.read_text("utf-8")), float)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: can't be read as a pose ({error})") from error
    if not np.isfinite(values).all():
        raise InputError(f"{path}: a pose must be finite")
    if values.shape == (7,) and abs(np.linalg.norm(values[:4]) - 1) < 1e-2:
        return np.concatenate((values[:4] / np.linalg.norm(values[:4]), values[4:]))
    if values.shape in ((3, 4), (4, 4)):
        R = values[:3, :3]
        upright = np.allclose(values[3:], [0.0, 0.0, 0.0, 1.0], atol=1e-2)  # one written column by column is not
        if upright and np.allclose(R @ R.T, np.eye(3), atol=1e-2) and np.linalg.det(R) > 0:
            return _pose_from_matrix(values[:3])
    raise InputError(
        f"{path}: expected 7 numbers (unit quaternion wxyz, then metres) or a rigid 3x4 or 4x4 matrix, row by row"
    )


def _pose_from_matrix(matrix: np.ndarray) -> np.ndarray:
    U, _, Vt = np.linalg.svd(matrix[:, :3])
    quat = quat_normalize(rotmat_to_quat(torch.from_numpy(U @ Vt))).numpy()
    return np.concatenate((quat, matrix[:, 3]))


def up_rotation(gravity: np.ndarray) -> np.ndarray:
    """Rotation ``(3, 3)`` to z up from a world where gravity points along ``gravity (3,)``: exactly a quarter turn
    about x for y up, nothing for z up, otherwise the smallest."""
    for down, turn in (
        ((0.0, 0.0, -1.0), np.eye(3)),
        ((0.0, -1.0, 0.0), np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])),
    ):
        if gravity @ np.array(down) > np.cos(np.radians(1.0)):
            return turn
    up = -gravity / np.linalg.norm(gravity)
    axis, cosine = np.cross(up, (0.0, 0.0, 1.0)), float(up[2])
    if cosine < -1 + 1e-9:
        return np.diag((1.0, -1.0, -1.0))
    K = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + K + K @ K / (1 + cosine)


def load_adt(files: AdtFiles, *, T_device_cpf: np.ndarray | None = None, floor: str = "auto") -> AdtSequence:
    """Read a sequence and bring it to one clock and one world.

    Args:
        files: from :func:`mgrpo.data.adt_files.find_adt`.
        T_device_cpf: pose of the central pupil frame ``(7,)``; None: :data:`NOMINAL_DEVICE_CPF`.
        floor: ``auto`` (from the point cloud where it and its trajectory are there; else the world's zero, the ground
            plane of the motion capture, if planted toes are just above it; else from the toes), or a height in metres.
    Raises:
        InputError: damaged files, or streams that don't overlap in time.
    """
    notes = []
    trajectory = read_trajectory(files.trajectory)
    turn = up_rotation(trajectory.gravity)
    poses = turned_poses(trajectory.T_world_device, turn)
    streams = [trajectory.times_ns]
    joints = None
    if files.skeleton is not None:
        skeleton = read_skeleton(files.skeleton)
        joints = skeleton.joints @ turn.T
        streams.append(skeleton.times_ns)
        _check_near(files, poses, trajectory.times_ns, joints, skeleton.times_ns)
    if T_device_cpf is None:
        notes.append("central pupil frame from the device's construction; give the recording's own with --device-cpf")
        T_device_cpf = _pose_from_matrix(NOMINAL_DEVICE_CPF)
    body = None if joints is None else (streams[1], joints)
    height, floor_from = floor_height(files, floor, trajectory, turn, body, notes)
    clips = []
    for times in _stretches(streams, files):
        device = sample_poses(trajectory.times_ns, poses, times)
        device[:, 6] -= height
        cpf = se3_multiply(torch.from_numpy(device), torch.from_numpy(T_device_cpf)).numpy()
        here = None
        if joints is not None:
            here = sample_points(streams[1], joints, times) - np.array([0.0, 0.0, height])
        clips.append(AdtClip(times, device, cpf, here))
    eyes = float(np.median(np.concatenate([clip.T_world_cpf[:, 6] for clip in clips])))
    if not HEAD_HEIGHTS_M[0] <= eyes <= HEAD_HEIGHTS_M[1]:
        notes.append(
            f"WARNING: the eyes are {eyes:.2f} m above the floor (usual: {HEAD_HEIGHTS_M[0]} to {HEAD_HEIGHTS_M[1]} "
            "m); is the floor right? Set it with --floor"
        )
    if len(clips) > 1:
        notes.append(f"cut into {len(clips)} clips at gaps of more than {MAX_GAP_S} s")
    return AdtSequence(tuple(clips), height, floor_from, tuple(notes))


def _check_near(
    files: AdtFiles, poses: np.ndarray, pose_times: np.ndarray, joints: np.ndarray, times: np.ndarray
) -> None:
    """The device must be on the skeleton's head, or the two belong to different people or sequences."""
    start, end = max(pose_times[0], times[0]), min(pose_times[-1], times[-1])
    inside = times[(times >= start) & (times <= end)]
    if len(inside) == 0:
        return  # said with the times later
    inside = inside[:: max(1, len(inside) // 200)]
    device = sample_points(pose_times, poses[:, 4:], inside)
    head = sample_points(times, joints[:, SKELETON_JOINTS.index("Head")], inside)
    apart = float(np.median(np.linalg.norm(device - head, axis=1)))
    if apart > 0.5:
        raise InputError(
            f"{files.skeleton}: its head is {apart:.2f} m from the device (median); another person wore it. Choose "
            "with --skeleton"
        )


def _stretches(streams: list[np.ndarray], files: AdtFiles) -> list[np.ndarray]:
    """Times at 30 Hz of every unbroken stretch that all streams cover, nanoseconds."""
    start, end = max(int(times[0]) for times in streams), min(int(times[-1]) for times in streams)
    if end - start < 1e9 / TARGET_FPS:
        raise InputError(
            f"{files.trajectory.parent}: trajectory ({_span(streams[0])}) and skeleton ({_span(streams[-1])}) don't "
            "overlap in time; they belong to different sequences"
            if len(streams) > 1
            else f"{files.trajectory}: shorter than two frames at {TARGET_FPS:g} Hz ({_span(streams[0])})"
        )
    holes = []
    for times in streams:
        wide = np.flatnonzero(np.diff(times) > MAX_GAP_S * 1e9)
        holes += [(int(times[at]), int(times[at + 1])) for at in wide]
    stretches, begin = [], start
    for hole_start, hole_end in [*sorted(holes), (end, end)]:
        stop = min(hole_start, end)
        count = int((stop - begin) * TARGET_FPS / 1e9 + 1e-6) + 1
        if stop > begin and count >= 2:
            stretches.append(begin + np.rint(np.arange(count) * (1e9 / TARGET_FPS)).astype(np.int64))
        begin = max(begin, hole_end)
    if not stretches:
        raise InputError(f"{files.trajectory.parent}: gaps leave no stretch of two frames at {TARGET_FPS:g} Hz")
    return stretches


def _span(times: np.ndarray) -> str:
    return f"{times[0] / 1e9:.3f} to {times[-1] / 1e9:.3f} s"


def floor_height(
    files: AdtFiles,
    floor: str,
    trajectory: Trajectory,
    turn: np.ndarray,
    skeleton: tuple[np.ndarray, np.ndarray] | None,
    notes: list[str],
) -> tuple[float, str]:
    """Height of the floor in the ground-truth world with z up, metres, and where it is known from: as ``floor`` of
    :func:`load_adt` says.

    Args:
        turn: from the file's world to that with z up ``(3, 3)``.
        skeleton: times and joints in that world; None without.
        notes: what a person should know is added.
    Raises:
        InputError: ``floor`` is neither auto nor a height.
    """
    if floor != "auto":
        try:
            height = float(floor)
        except ValueError:
            height = float("nan")
        if not abs(height) < 1e3:
            raise InputError(f"--floor must be auto or a height in metres, got {floor!r}")
        return height, "option"
    if files.points is not None and files.points_trajectory is not None:
        height_points = _floor_of_points(files.points, files.points_trajectory, trajectory, turn)
        if height_points is not None:
            return height_points, "points"
        notes.append(f"{files.points.name} was not used: too few certain points, or no common time")
    elif files.points is not None:
        notes.append(f"{files.points.name} was not used: closed_loop_trajectory.csv, which places it, is missing")
    if skeleton is None:
        return 0.0, "world zero"
    times, joints = skeleton
    toes = joints[:, [SKELETON_JOINTS.index("LToe"), SKELETON_JOINTS.index("RToe")]]
    speed = np.linalg.norm(np.diff(toes, axis=0), axis=-1) / (np.diff(times) / 1e9)[:, None]
    usual = densest_height(toes[1:, :, 2][speed < 0.3])
    if usual is None or TOE_HEIGHTS_M[0] <= usual <= TOE_HEIGHTS_M[1]:
        return 0.0, "world zero"
    notes.append(
        f"WARNING: planted toes are at {usual:.2f} m, so the world's zero is not the floor; taken from the toes"
    )
    return usual - 0.05, "toes"


def _floor_of_points(points: Path, beside: Path, trajectory: Trajectory, turn: np.ndarray) -> float | None:
    """Floor's height in the turned ground-truth world from points of another world, through the device's heights in
    both."""
    other = read_trajectory(beside)
    start, end = max(trajectory.times_ns[0], other.times_ns[0]), min(trajectory.times_ns[-1], other.times_ns[-1])
    times = trajectory.times_ns[(trajectory.times_ns >= start) & (trajectory.times_ns <= end)]
    if len(times) < 2:
        return None
    other_turn = up_rotation(other.gravity)
    heights = sample_points(trajectory.times_ns, trajectory.T_world_device[:, 4:] @ turn.T, times)[:, 2]
    other_heights = sample_points(other.times_ns, other.T_world_device[:, 4:] @ other_turn.T, times)[:, 2]
    found = read_points(points).floor(other_turn)
    return None if found is None else found + float(np.median(heights - other_heights))


def adt_pack(sequence: AdtSequence, name: str, body: BodyModel) -> tuple[MotionPack, dict[str, np.ndarray], float]:
    """A pack of the sequence's clips, further arrays for it, and the largest distance in metres by which its joints
    miss the motion capture's.

    The further arrays are, frame by frame: ``T_world_cpf`` (the device's, which differs from that of a fitted body),
    ``T_world_device``, ``timestamps_ns``, ``source_joints22``.

    Raises:
        InputError: the sequence was read without its skeleton.
    """
    if any(clip.joints is None for clip in sequence.clips):
        raise InputError("adt_pack(): the sequence has no skeleton")
    joints51 = np.concatenate([clip.joints for clip in sequence.clips if clip.joints is not None])
    cpf = np.concatenate([clip.T_world_cpf for clip in sequence.clips])
    joints = joints22(joints51)
    R_head = quat_to_rotmat(torch.from_numpy(cpf[:, :4])).numpy()
    known = {"head": R_head, "left_wrist": _palm(joints51, "L"), "right_wrist": _palm(joints51, "R")}
    fitted = fit_joints(joints, _straight_rest(body), known)
    R = fitted.R_world_joint
    local = R.copy()
    for row, parent in enumerate(PARENTS_BODY, 1):
        local[:, row] = R[:, parent + 1].transpose(0, 2, 1) @ R[:, row]
    lengths = np.array([len(clip.times_ns) for clip in sequence.clips])
    names = (name,) if len(lengths) == 1 else tuple(f"{name}_{index:02d}" for index in range(len(lengths)))
    pack = MotionPack(
        names=names,
        lengths=lengths,
        trans=joints[:, 0].astype(np.float32),
        quats=quat_normalize(rotmat_to_quat(torch.from_numpy(local))).float().numpy(),
        rest_joints=np.repeat(fitted.rest_joints[None], len(lengths), 0).astype(np.float32),
        fps=TARGET_FPS,
        loop=np.zeros(len(lengths), bool),
    )
    return pack, head_arrays(sequence) | {"source_joints22": joints.astype(np.float32)}, fitted.error_m


def _straight_rest(body: BodyModel) -> np.ndarray:
    """The body's zero pose ``(22, 3)`` with its trunk upright in one plane, which is how the motion capture's skeleton
    stands when nothing is turned: a body's own curves would otherwise be taken for a bent back."""
    joints = body.rest_joints(torch.zeros(1))[: len(_NAMES)].double().numpy()
    straight = np.zeros_like(joints)
    for row, parent in enumerate(PARENTS_BODY, 1):
        way = joints[row] - joints[parent + 1]
        if _NAMES[row] in ("spine1", "spine2", "spine3", "neck", "head"):
            way = np.array([0.0, np.linalg.norm(way), 0.0])
        elif _NAMES[row].endswith(("hip", "collar")):
            way = way * np.array([1.0, 1.0, 0.0])
        straight[row] = straight[parent + 1] + way
    return straight


def head_arrays(sequence: AdtSequence) -> dict[str, np.ndarray]:
    """``T_world_cpf (N, 7)``, ``T_world_device (N, 7)`` and ``timestamps_ns (N,)`` of all clips, end to end."""
    return {
        "T_world_cpf": np.concatenate([clip.T_world_cpf for clip in sequence.clips]).astype(np.float32),
        "T_world_device": np.concatenate([clip.T_world_device for clip in sequence.clips]).astype(np.float32),
        "timestamps_ns": np.concatenate([clip.times_ns for clip in sequence.clips]),
    }


def _palm(joints51: np.ndarray, letter: str) -> np.ndarray:
    """Orientations ``(F, 3, 3)`` of a hand: fingers point to the side in the rest pose, the index finger lies ahead."""
    row = {name: index for index, name in enumerate(SKELETON_JOINTS)}
    along = joints51[:, row[f"{letter}Middle1"]] - joints51[:, row[f"{letter}Hand"]]
    ahead = joints51[:, row[f"{letter}Index1"]] - joints51[:, row[f"{letter}Pinky1"]]
    x = along / np.linalg.norm(along, axis=1, keepdims=True) * (1.0 if letter == "L" else -1.0)
    z = ahead - x * (ahead * x).sum(1, keepdims=True)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9)
    return np.stack((x, np.cross(z, x), z), axis=-1)
