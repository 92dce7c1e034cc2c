"""Putting the clips of a pack on the body: realigned, scaled, on the floor, labelled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.body.placement import place_on_root
from mgrpo.body.skeleton import BODY_JOINT_NAMES, PARENTS_BODY, ROOT_NAME, TOE_JOINTS
from mgrpo.data.augment import resample
from mgrpo.data.clip import MotionClip
from mgrpo.data.contacts import contact_labels, joint_speeds
from mgrpo.data.floor import PLANTED_SPEED_M_S, densest_height
from mgrpo.data.packs.pack import MotionPack
from mgrpo.data.rate import TARGET_FPS
from mgrpo.errors import InputError
from mgrpo.geometry import quat_conjugate, quat_multiply, quat_normalize, quat_to_rotmat
from mgrpo.kernels import forward_kinematics

PLANTED_RANGE_M = 0.03
"""How near slow toes must be to the skeleton's usual height of a planted toe, metres, to count as planted."""

_FEWEST_PLANTED = 3
_CHUNK_FRAMES = 16384
_PARENT_ROWS = torch.tensor([parent + 1 for parent in PARENTS_BODY])
_TOE_ROWS = [joint + 1 for joint in TOE_JOINTS]

# The joint towards which each bone points; rotations are realigned so that these directions are kept. Feet, spine,
# neck and head keep their own axes (soles stay flat), wrists go along with the forearm.
_BONE_TIP = {
    "left_hip": "left_knee",
    "right_hip": "right_knee",
    "left_knee": "left_ankle",
    "right_knee": "right_ankle",
    "left_collar": "left_shoulder",
    "right_collar": "right_shoulder",
    "left_shoulder": "left_elbow",
    "right_shoulder": "right_elbow",
    "left_elbow": "left_wrist",
    "right_elbow": "right_wrist",
}


def fit_pack(pack: MotionPack, body: BodyModel) -> list[MotionClip]:
    """Clips of a pack on ``body`` at 30 fps: realigned, scaled, put on the floor, labelled.

    A bone whose rest direction differs between the skeletons gets its rotation multiplied by the smallest rotation
    between the two directions, so that arms and legs point where they did; feet, spine and head keep their
    orientation. The root path is scaled by the ratio of leg lengths. The floor is found in the *source*, where it is a
    property of the skeleton: slow toes near the height at which this skeleton's slow toes usually are. Each clip is
    then shifted as a whole so that those toes are ``body.toe_clearance`` high on average; jumps keep their height, and
    a clip without planted toes is shifted as far as a standing person would be.

    Raises:
        InputError: a clip too short to be brought to 30 fps.
    """
    body = body.to(device="cpu", dtype=torch.float32).body_only()
    if pack.fps != TARGET_FPS:
        pack = _resampled(pack)
    source = _source_skeletons(pack, body)
    frames = _fitted_frames(pack, source, body)
    rows_of = pack.rows
    speeds = torch.cat([joint_speeds(frames.source_toes[rows], TARGET_FPS) for rows in rows_of])
    clips: list[MotionClip | None] = [None] * len(pack.names)
    for skeleton in range(len(source.scale)):
        members = np.flatnonzero(source.of_clip == skeleton)
        mine = torch.cat([torch.arange(rows.start, rows.stop) for rows in (rows_of[clip] for clip in members)])
        usual = _usual_toe_height(frames.source_toes[mine, :, 2], speeds[mine])
        standing = _standing_toe_height(source, skeleton, usual, body)
        for clip in members:
            rows = rows_of[clip]
            planted = _planted(frames.source_toes[rows, :, 2], speeds[rows], usual)
            toes = frames.joints[rows][:, _TOE_ROWS, 2]
            height = float(toes[planted].mean()) if int(planted.sum()) >= _FEWEST_PLANTED else standing
            shift = torch.tensor([0.0, 0.0, body.toe_clearance - height])
            root, path = torch.from_numpy(pack.quats[rows, 0]), torch.from_numpy(pack.trans[rows])
            clips[clip] = MotionClip(
                name=pack.names[clip],
                fps=TARGET_FPS,
                T_world_root=torch.cat((root, path * source.scale[skeleton] + shift), dim=1),
                body_quats=frames.body_quats[rows].clone(),
                betas=torch.zeros(NUM_BETAS),
                contacts=contact_labels(frames.joints[rows] + shift, TARGET_FPS, toe_clearance=body.toe_clearance),
                loop=bool(pack.loop[clip]),
            )
    return [clip for clip in clips if clip is not None]


class _Skeletons(NamedTuple):
    """The S different skeletons of a pack, beside the body of shape zero that they are fitted to."""

    of_clip: np.ndarray
    """Each clip's skeleton, ``(C,)``."""
    rest: Tensor
    """In the zero pose, ``(S, 22, 3)`` metres."""
    turns: Tensor
    """What orientations must be followed by, ``(S, 22, 4)``; see :func:`_realignment`."""
    offsets: Tensor
    """From each joint's parent, ``(S, 21, 3)``."""
    scale: Tensor
    """The body's legs over this skeleton's, ``(S,)``."""


def _source_skeletons(pack: MotionPack, body: BodyModel) -> _Skeletons:
    _, first, of_clip = np.unique(np.round(pack.rest_joints, 4), axis=0, return_index=True, return_inverse=True)
    rest, betas = torch.from_numpy(pack.rest_joints[first]), torch.zeros(NUM_BETAS)
    target = body.rest_joints(betas)
    offsets = rest[:, 1:] - rest[:, _PARENT_ROWS]
    legs = offsets[:, [3, 4, 6, 7]].norm(dim=-1).sum(1) / 2
    turns = torch.stack([_realignment(one, target) for one in rest])
    return _Skeletons(of_clip.reshape(-1), rest, turns, offsets, body.leg_length(betas) / legs)


class _Frames(NamedTuple):
    """All N frames of a pack."""

    body_quats: Tensor
    """The 21 local rotations on the body, ``(N, 21, 4)``."""
    joints: Tensor
    """The body's joints ``(N, 22, 3)``, the floor not yet found."""
    source_toes: Tensor
    """The source's toes ``(N, 2, 3)``."""


def _fitted_frames(pack: MotionPack, source: _Skeletons, body: BodyModel) -> _Frames:
    skeleton = torch.from_numpy(np.repeat(source.of_clip, pack.lengths))
    quats, trans = torch.from_numpy(pack.quats), torch.from_numpy(pack.trans)
    before, betas = quat_conjugate(source.turns[:, _PARENT_ROWS]), torch.zeros(NUM_BETAS)
    local = torch.empty(len(quats), len(BODY_JOINT_NAMES), 4)
    toes, joints = torch.empty(len(quats), 2, 3), torch.empty(len(quats), 1 + len(BODY_JOINT_NAMES), 3)
    for start in range(0, len(quats), _CHUNK_FRAMES):
        rows = slice(start, start + _CHUNK_FRAMES)
        which = skeleton[rows]
        turned = quat_multiply(quat_multiply(before[which], quats[rows, 1:]), source.turns[which, 1:])
        local[rows] = quat_normalize(turned)
        R_root = quat_to_rotmat(quats[rows, :1])
        posed = forward_kinematics(quat_to_rotmat(quats[rows, 1:]), source.offsets[which], PARENTS_BODY).joints
        toes[rows] = posed[:, list(TOE_JOINTS)] @ R_root[:, 0].mT + trans[rows, None]
        root = torch.cat((quats[rows, 0], trans[rows] * source.scale[which, None]), dim=1)
        joints[rows] = place_on_root(body, quat_to_rotmat(local[rows]), betas, root).joints
    return _Frames(local, joints, toes)


def _usual_toe_height(heights: Tensor, speeds: Tensor) -> float:
    """Where the slow toes of one skeleton usually are, from all its ``heights (F, 2)``; a skeleton that never stands
    still gets the lowest tenth of its toe heights."""
    slow = speeds < PLANTED_SPEED_M_S
    if int(slow.sum()) >= _FEWEST_PLANTED:
        return densest_height(heights[slow].numpy())
    return float(torch.quantile(heights.min(1).values[:1000000], 0.1))


def _standing_toe_height(source: _Skeletons, skeleton: int, usual: float, body: BodyModel) -> float:
    """Height of the body's toes on a floor where the source's are ``usual`` high, if both stood straight: the pelvis
    is as far above the planted toe as in the rest pose."""
    rest, target = source.rest[skeleton], body.rest_joints(torch.zeros(NUM_BETAS))
    standing = float(source.scale[skeleton]) * (usual - float(rest[_TOE_ROWS, 1].mean() - rest[0, 1]))
    return standing + float(target[_TOE_ROWS, 1].mean() - target[0, 1])


def _planted(heights: Tensor, speeds: Tensor, usual: float) -> Tensor:
    """Which toes ``(F, 2)`` of a clip stand on the floor; where hardly any does, faster ones count as well."""
    near = (heights - usual).abs() < PLANTED_RANGE_M
    planted = near & (speeds < PLANTED_SPEED_M_S)
    return planted if int(planted.sum()) >= _FEWEST_PLANTED else near & (speeds < 2 * PLANTED_SPEED_M_S)


def _realignment(source_rest: Tensor, target_rest: Tensor) -> Tensor:
    """Per joint the rotation ``(22, 4)`` by which orientations made for one rest skeleton must be followed for
    another."""
    names = (ROOT_NAME, *BODY_JOINT_NAMES)
    turns = torch.zeros(len(names), 4)
    turns[:, 0] = 1.0
    for name, tip in _BONE_TIP.items():
        joint, end = names.index(name), names.index(tip)
        turns[joint] = _smallest_rotation(target_rest[end] - target_rest[joint], source_rest[end] - source_rest[joint])
    for side in ("left", "right"):
        turns[names.index(f"{side}_wrist")] = turns[names.index(f"{side}_elbow")]
    return turns


def _smallest_rotation(start: Tensor, end: Tensor) -> Tensor:
    """Quaternion of the smallest rotation that takes direction ``start (3,)`` to ``end (3,)``; not for opposite
    directions."""
    start, end = start.to(torch.float64), end.to(torch.float64)
    start, end = start / start.norm(), end / end.norm()
    quat = torch.cat(((1 + start @ end)[None], torch.linalg.cross(start, end)))
    if float(quat.norm()) < 1e-3:
        raise InputError(
            "a bone of rest_joints points the opposite way to the body's; rest_joints must be in the zero pose "
            "(T-pose, y up, +x left)"
        )
    return (quat / quat.norm()).to(torch.float32)


def _resampled(pack: MotionPack) -> MotionPack:
    """The pack at 30 fps."""
    parts: list[MotionClip] = []
    for name, rows, loop in zip(pack.names, pack.rows, pack.loop):
        root = torch.from_numpy(np.concatenate([pack.quats[rows, 0], pack.trans[rows]], axis=1))
        clip = MotionClip(
            name=name,
            fps=pack.fps,
            T_world_root=root,
            body_quats=torch.from_numpy(pack.quats[rows, 1:]),
            betas=torch.zeros(NUM_BETAS),
            contacts=torch.zeros(rows.stop - rows.start, len(BODY_JOINT_NAMES)),
            loop=bool(loop),
        )
        parts.append(resample(clip, TARGET_FPS))
    quats = [torch.cat((clip.T_world_root[:, None, :4], clip.body_quats), dim=1).numpy() for clip in parts]
    return pack._replace(
        lengths=np.array([len(clip) for clip in parts], np.int64),
        trans=np.concatenate([clip.T_world_root[:, 4:].numpy() for clip in parts]),
        quats=np.concatenate(quats),
        fps=TARGET_FPS,
    )
