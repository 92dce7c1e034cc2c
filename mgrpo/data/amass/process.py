"""From a recording to what the base model trains on: facts, section F, steps 3 to 12, in their order.

The plain recording and its mirror image go through the same steps. The body is the neutral one throughout. Computed in
float64 and stored as float32. With ``parity`` every habit of the original is kept; without, these are mended:

=====================  ===============================================  ============================================
step                   parity                                           default
=====================  ===============================================  ============================================
5 mirror image         fingers stay as they are: the left hand keeps    fingers are mirrored like the body
                       the left hand's pose
7, 8 static joints     below 0.005 m per source frame                   below 0.3 m/s at every rate
7 floor                heights without a cluster count as one           they are left out
10 first, last frame   left out of everything but the fingers, which    left out of everything
                       are one source frame early
11 30 fps              frames picked at ``linspace(0, n - 1, int(30     exact times ``k / 30 s``: rotations by
                       n / fps))``, rounded down: 29.5 to 30.5 Hz,      spherical, positions by linear interpolation,
                       unevenly                                         labels from the nearest frame
=====================  ===============================================  ============================================

Kept in both: labels and floor come from the rate of the recording (steps 7 and 8 before 11), a recording without a
floor is not moved, and the first frame at 30 fps is dropped because it has no predecessor (step 12).

The original's mirror image of the root path (displacements in the body's axes, mirrored, and integrated again) is the
mirror image of the path in the plane x = 0, which is what is done here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.body.skeleton import HEAD, MIRROR_BODY, MIRROR_HANDS, PARENTS_BODY
from mgrpo.data.amass.clip_rules import corrected_fps, long_enough, trimmed
from mgrpo.data.amass.floor import find_floor
from mgrpo.data.amass.gender import BetasConversion
from mgrpo.data.amass.recording import Recording
from mgrpo.data.augment import slerp
from mgrpo.geometry import (
    axis_angle_to_quat,
    axis_angle_to_rotmat,
    quat_multiply,
    quat_to_rotmat,
    se3,
    se3_apply,
    se3_inverse,
    se3_multiply,
)
from mgrpo.kernels import forward_kinematics

TARGET_FPS = 30.0
"""Rate of the result, Hz."""

_BODY = len(PARENTS_BODY)
_CHUNK_FRAMES = 8192
_TREE = (-1, *(parent + 1 for parent in PARENTS_BODY))


@dataclass(frozen=True)
class ClipRules:
    """How recordings are prepared."""

    parity: bool = False
    """Keep the habits of the original."""
    mirror: bool = True
    """Also make the mirror image of each recording."""
    drop_terrain: bool = False
    """Leave out recordings on stairs and the like (off in the base model, on in HuMoR)."""


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """One group of the HDF5 file."""

    arrays: dict[str, np.ndarray]
    """Datasets of facts, section E.1, float32, ``(T, ...)``; betas ``(1, 16)``."""
    floor_height: float | None
    """How far the clip was lowered, metres; None where there was nothing to find the floor from."""

    @property
    def frames(self) -> int:
        """Frames at 30 fps, ``T``."""
        return len(self.arrays["T_world_root"])


@dataclass(frozen=True, eq=False)
class _Motion:
    """Frames at some rate, in the world of the recording."""

    quats: Tensor
    """Local rotations of 52 joints, ``(N, 52, 4)``, root first."""
    pelvis: Tensor
    """Pelvis joint, ``(N, 3)``."""


def prepare_recording(
    recording: Recording,
    name: str,
    body: BodyModel,
    rules: ClipRules,
    conversions: dict[str, BetasConversion] | None,
) -> tuple[list[PreparedClip | None], str | None]:
    """The recording and, if wanted, its mirror image, ready to be stored.

    Args:
        recording: as read.
        name: its name (older subset name first), which decides on its rate.
        body: the neutral body, float64 on the CPU.
        rules: what is done.
        conversions: shape numbers to the neutral body by gender; None takes them as they are.
    Returns:
        The clip and its mirror image (None where it was left out on its own), and why nothing was kept, or None.
    """
    fps = corrected_fps(name, recording.fps)
    part = trimmed(len(recording.poses))
    poses, trans = recording.poses[part], recording.trans[part]
    if not long_enough(len(poses), fps):
        return [], "shorter than 1 s after the trim"
    convert = None if conversions is None else conversions.get(recording.gender)
    betas = torch.from_numpy(recording.betas if convert is None else convert(recording.betas))
    axis_angles = torch.from_numpy(poses)
    # trans is where the pelvis stands less its place in the rest pose
    pelvis = torch.from_numpy(trans) + body.rest_joints(betas)[0]
    clips = [_prepare(body, betas, axis_angles, pelvis, fps, rules)]
    if rules.mirror:
        clips.append(_prepare(body, betas, *_mirrored(axis_angles, pelvis, hands=not rules.parity), fps, rules))
    if all(clip is None for clip in clips):
        return [], "terrain"
    return clips, None


def _mirrored(axis_angles: Tensor, pelvis: Tensor, *, hands: bool) -> tuple[Tensor, Tensor]:
    """The motion as seen in a mirror in the plane x = 0: left and right exchanged, rotations ``M R M`` with M =
    diag(-1, 1, 1)."""
    order = [0, *(joint + 1 for joint in MIRROR_BODY)]
    order += [1 + _BODY + joint for joint in (MIRROR_HANDS if hands else range(len(MIRROR_HANDS)))]
    signs = axis_angles.new_tensor((1.0, -1.0, -1.0)).expand(len(order), 3).clone()
    if not hands:
        signs[1 + _BODY :] = 1.0
    return axis_angles[:, order] * signs, pelvis * pelvis.new_tensor((-1.0, 1.0, 1.0))


def _prepare(
    body: BodyModel, betas: Tensor, axis_angles: Tensor, pelvis: Tensor, fps: float, rules: ClipRules
) -> PreparedClip | None:
    """One group, or None for a motion on terrain that is not wanted."""
    offsets = body.t_parent_joint(betas)[:_BODY]
    joints = torch.cat(
        [
            _joints(axis_angle_to_rotmat(axis_angles[rows, : 1 + _BODY]), pelvis[rows], offsets)
            for rows in _chunks(len(pelvis))
        ]
    )
    floor = find_floor(joints, fps, parity=rules.parity)
    if rules.drop_terrain and floor.terrain:
        return None
    pelvis = pelvis - pelvis.new_tensor((0.0, 0.0, floor.height))
    if rules.parity:
        motion, contacts = _picked(axis_angles, pelvis, floor.contacts, fps)
    else:
        motion, contacts = _resampled(axis_angles, pelvis, floor.contacts, fps)
    joints = torch.cat(
        [
            _joints(quat_to_rotmat(motion.quats[rows, : 1 + _BODY]), motion.pelvis[rows], offsets)
            for rows in _chunks(len(motion.pelvis))
        ]
    )
    return PreparedClip(_stored(body, betas, motion, joints, contacts), floor.height if floor.found else None)


def _chunks(frames: int) -> list[slice]:
    """Rotation matrices of all frames at once would be the largest thing in memory."""
    return [slice(start, start + _CHUNK_FRAMES) for start in range(0, frames, _CHUNK_FRAMES)]


def _joints(rotmats: Tensor, pelvis: Tensor, offsets: Tensor) -> Tensor:
    """Joints in the world ``(N, 22, 3)`` of local rotations ``(N, 22, 3, 3)``, root first."""
    translations = torch.cat((pelvis[:, None], offsets.expand(len(pelvis), *offsets.shape)), dim=1)
    return forward_kinematics(rotmats, translations, _TREE).joints


def _picked(axis_angles: Tensor, pelvis: Tensor, contacts: Tensor, fps: float) -> tuple[_Motion, Tensor]:
    """The original's frames: first and last of the source dropped, then some at nearly equal distances."""
    frames = len(pelvis) - 2
    source = torch.from_numpy(np.linspace(0, frames - 1, int(TARGET_FPS / fps * frames)).astype(np.int64))
    quats = axis_angle_to_quat(axis_angles[source + 1])
    quats[:, 1 + _BODY :] = axis_angle_to_quat(axis_angles[source, 1 + _BODY :])
    return _Motion(quats, pelvis[source + 1]), contacts[source + 1]


def _resampled(axis_angles: Tensor, pelvis: Tensor, contacts: Tensor, fps: float) -> tuple[_Motion, Tensor]:
    """Exact times at 30 per second, of the same source frames as the original uses."""
    frames = len(pelvis) - 2
    # a little more than a whole frame is rounding: 119.88 / 29.97 must not lose the last one
    count = int((frames - 1) * TARGET_FPS / fps + 1e-6) + 1
    times = 1 + torch.arange(count, dtype=torch.float64) * (fps / TARGET_FPS)
    low = times.floor().long().clamp_max(frames)
    part = times - low
    high = (low + 1).clamp_max(frames)
    a, b = axis_angle_to_quat(axis_angles[low]), axis_angle_to_quat(axis_angles[high])
    between = part[:, None]
    motion = _Motion(slerp(a, b, between), pelvis[low] + between * (pelvis[high] - pelvis[low]))
    return motion, contacts[torch.where(part >= 0.5, high, low)]


def _stored(body: BodyModel, betas: Tensor, motion: _Motion, joints: Tensor, contacts: Tensor) -> dict[str, np.ndarray]:
    """The datasets, the first frame dropped."""
    T_world_root = se3(motion.quats[:, 0], motion.pelvis)
    # orientation of the head by products of quaternions, whose signs follow those of the joints
    chain, joint = [], HEAD
    while joint >= 0:
        chain.append(joint)
        joint = PARENTS_BODY[joint]
    q_world_head = motion.quats[:, 0]
    for joint in reversed(chain):
        q_world_head = quat_multiply(q_world_head, motion.quats[:, 1 + joint])
    T_world_head = se3(q_world_head, joints[:, 1 + HEAD])
    T_world_cpf = se3(q_world_head, se3_apply(T_world_head, body.t_head_cpf(betas)))
    T_cpf_world = se3_inverse(T_world_cpf)
    after = {
        "T_world_root": T_world_root[1:],
        "contacts": contacts[1:, 1:],
        "betas": betas[None],
        "joints_wrt_cpf": se3_apply(T_cpf_world[1:, None], joints[1:, 1:]),
        "body_quats": motion.quats[1:, 1 : 1 + _BODY],
        "hand_quats": motion.quats[1:, 1 + _BODY :],
        "T_world_cpf": T_world_cpf[1:],
        "height_from_floor": T_world_cpf[1:, 6:],
        "T_cpf_tm1_cpf_t": se3_multiply(T_cpf_world[:-1], T_world_cpf[1:]),
    }
    return {name: value.to(torch.float32).contiguous().numpy() for name, value in after.items()}


def float64_body(body: BodyModel) -> BodyModel:
    """The body as :func:`prepare_recording` wants it: float64 on the CPU, without a mesh."""
    return replace(body, mesh=None).to(device="cpu", dtype=torch.float64)
