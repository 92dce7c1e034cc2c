"""Motion from files: packs of clips of another skeleton, fitted to the body; clip files; folders of both; the shipped
demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import NUM_BETAS, BodyModel
from mgrpo.body.placement import place_on_root
from mgrpo.body.skeleton import BODY_JOINT_NAMES, PARENTS_BODY, ROOT_NAME, TOE_JOINTS
from mgrpo.data.augment import resample
from mgrpo.data.clip import CLIP_KEYS, MIN_FRAMES, QUATERNION_TOLERANCE, MotionClip, check_unique_names, load_clip
from mgrpo.data.contacts import contact_labels, joint_speeds
from mgrpo.data.floor import densest_height
from mgrpo.data.hdf5.dataset import hdf5_files, load_hdf5_clips
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError, in_file
from mgrpo.geometry import quat_conjugate, quat_multiply, quat_normalize, quat_to_rotmat
from mgrpo.kernels import forward_kinematics
from mgrpo.npz import npz_keys, read_npz

DEMO = "demo"
"""Name of the motion that ships with the package."""

DEMO_ASSET = "deepmimic.npz"
"""Its file in ``mgrpo/assets``."""

TARGET_FPS = 30.0
"""Frames per second of all loaded motion."""

PACK_KEYS = ("names", "lengths", "trans", "quats_wxyz_i16", "rest_joints", "fps")
"""Arrays that a pack must have; ``joint_names`` (checked) and ``loop`` may be there too."""

PLANTED_SPEED_M_S = 0.3
"""Toes slower than this show where the floor is, metres per second."""

PLANTED_RANGE_M = 0.03
"""... if they are this near to the skeleton's usual height of a planted toe, metres."""

_CHUNK_FRAMES = 16384
_NUM_JOINTS = len(BODY_JOINT_NAMES) + 1

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


class MotionPack(NamedTuple):
    """Clips of a source skeleton, end to end, as read from a file and checked."""

    names: tuple[str, ...]
    """``C`` clip names."""
    lengths: np.ndarray
    """Frames of each, ``(C,)``."""
    trans: np.ndarray
    """Pelvis position ``(N, 3)`` metres, z up, floor at 0."""
    quats: np.ndarray
    """Unit quaternions wxyz ``(N, 22, 4)`` float32: root in the world, then the 21 local rotations."""
    rest_joints: np.ndarray
    """Each clip's skeleton in the zero pose ``(C, 22, 3)`` metres, y up."""
    fps: float
    """Frames per second."""
    loop: np.ndarray
    """Whether each clip loops, ``(C,)`` bool."""


def load_motion(path: str | Path, body: BodyModel) -> list[MotionClip]:
    """Motion clips on ``body`` at 30 fps, in a fixed order (files by name, clips as in the file).

    Args:
        path: ``"demo"`` (15 clips that ship with the package), a pack, a clip file that ``save_clip`` wrote (taken as
            it is, it must have been made for this body), a folder in which every ``*.npz``, at any depth, is one of
            these; or an HDF5 file in EgoAllo's layout, or a folder of them, if it is small
            (:func:`mgrpo.data.hdf5.dataset.load_hdf5_clips`).
        body: the body to fit packs to: rotations are realigned to its rest directions, root paths scaled by leg
            length, planted toes put at ``body.toe_clearance`` above z = 0, contacts labelled. Betas are zero.
    Raises:
        InputError: nothing there, an empty folder, an unknown layout, missing arrays, wrong shapes, NaN, quaternions
            that are not unit, two clips of one name.
    """
    if str(path) == DEMO:
        with resources.as_file(resources.files("mgrpo") / "assets" / DEMO_ASSET) as asset:
            return fit_pack(read_pack(asset), body)
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"{path}: no such file or folder; give '{DEMO}', a motion npz, an HDF5 file, or a folder of them"
        )
    if hdf5_files(path):
        return load_hdf5_clips(path, body)
    if not path.is_dir():
        return _load_file(path, body)
    files = sorted(file for file in path.rglob("*.npz") if file.is_file())
    if not files:
        kinds = sorted({file.suffix or "(none)" for file in path.rglob("*") if file.is_file()})
        there = f"only files ending in {', '.join(kinds[:6])}" if kinds else "nothing"
        raise InputError(
            f"{path}: the folder has no motion files (*.npz, *.hdf5), it holds {there}; give a folder with "
            f"packs or clips, or '{DEMO}'"
        )
    groups = [(file, _load_file(file, body)) for file in files]
    names = [clip.name for _, clips in groups for clip in clips]
    if len(set(names)) != len(names):
        # Several packs may use the same names; the file's name tells them apart.
        groups = [
            (
                file,
                [
                    replace(clip, name=f"{file.relative_to(path).with_suffix('').as_posix()}/{clip.name}")
                    for clip in clips
                ],
            )
            for file, clips in groups
        ]
    clips = [clip for _, group in groups for clip in group]
    with in_file(path):
        check_unique_names(clips)
    return clips


def _load_file(path: Path, body: BodyModel) -> list[MotionClip]:
    keys = set(npz_keys(path, "motion file"))
    with in_file(path):
        if keys.issuperset(PACK_KEYS):
            return fit_pack(read_pack(path), body)
        if keys.issuperset(CLIP_KEYS):
            return [resample(load_clip(path), TARGET_FPS)]
    layouts = {"pack": PACK_KEYS, "clip": CLIP_KEYS}
    nearest = max(layouts, key=lambda kind: len(keys.intersection(layouts[kind])))
    missing = [key for key in layouts[nearest] if key not in keys]
    raise InputError(
        f"{path}: not a motion file. A pack has the arrays {', '.join(PACK_KEYS)}; a clip {', '.join(CLIP_KEYS)}. "
        f"This file has: {', '.join(sorted(keys)) or 'nothing'}. Nearest to a {nearest}, missing: {', '.join(missing)}"
    )


def read_pack(path: str | Path) -> MotionPack:
    """Read and check a pack. Raises InputError with the clip's name and frame where something is wrong."""
    arrays = read_npz(path, "motion pack", PACK_KEYS, ("joint_names", "loop"))
    for key in PACK_KEYS[1:]:
        if arrays[key].dtype.kind not in "fiu":
            raise InputError(f"{path}: {key} must be numeric, got dtype {arrays[key].dtype}")
    names = tuple(str(name) for name in arrays["names"].reshape(-1))
    count, total = len(names), int(arrays["trans"].shape[0]) if arrays["trans"].ndim else 0
    expected = {
        "lengths": (count,),
        "trans": (total, 3),
        "quats_wxyz_i16": (total, _NUM_JOINTS, 4),
        "rest_joints": (count, _NUM_JOINTS, 3),
        "fps": (),
    }
    for key, shape in expected.items():
        if tuple(arrays[key].shape) != shape:
            raise InputError(
                f"{path}: {key} must have shape {shape} for {count} names and {total} rows of trans, got "
                f"{tuple(arrays[key].shape)}"
            )
    if count == 0:
        raise InputError(f"{path}: the pack has no clips")
    lengths = arrays["lengths"].astype(np.int64)
    if int(lengths.sum()) != total:
        raise InputError(
            f"{path}: lengths add up to {int(lengths.sum())} frames, but trans and quats_wxyz_i16 have {total}"
        )
    short = np.flatnonzero(lengths < MIN_FRAMES)
    if len(short):
        raise InputError(
            f"{path}: clip '{names[short[0]]}' has {int(lengths[short[0]])} frame(s); a clip needs at least "
            f"{MIN_FRAMES}"
        )
    if len(set(names)) != count:
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: two clips are called '{twice}'; names must differ")
    fps = require_fps(float(arrays["fps"]), f"{path}: fps")
    order = (ROOT_NAME, *BODY_JOINT_NAMES)
    if "joint_names" in arrays and tuple(str(name) for name in arrays["joint_names"]) != order:
        raise InputError(
            f"{path}: joint_names must be {', '.join(order)} in this order, got "
            f"{', '.join(map(str, arrays['joint_names']))}"
        )
    loop = arrays.get("loop", np.zeros(count, bool))
    if tuple(loop.shape) != (count,):
        raise InputError(f"{path}: loop must have shape ({count},), got {tuple(loop.shape)}")

    ends = np.cumsum(lengths)

    def where(row: int) -> str:
        clip = int(np.searchsorted(ends, row, side="right"))
        return f"clip '{names[clip]}', frame {row - int(ends[clip] - lengths[clip])}"

    trans = arrays["trans"].astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(trans).all(1))
    if len(bad):
        raise InputError(
            f"{path}: trans is not finite (NaN or infinity) in {where(int(bad[0]))} and {len(bad) - 1} more "
            "frame(s); cut or repair it"
        )
    rest = arrays["rest_joints"].astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(rest).all((1, 2)))
    if len(bad):
        raise InputError(f"{path}: rest_joints is not finite (NaN or infinity) for clip '{names[bad[0]]}'")
    bones = np.linalg.norm(rest[:, [4, 5, 7, 8]] - rest[:, [1, 2, 4, 5]], axis=-1)
    bad = np.flatnonzero(bones.min(1) < 1e-3)
    if len(bad):
        raise InputError(
            f"{path}: rest_joints of clip '{names[bad[0]]}' has a leg bone shorter than 1 mm; is it in metres, in "
            "the zero pose?"
        )
    quats = arrays["quats_wxyz_i16"]
    quats = quats.astype(np.float32) / (32767.0 if quats.dtype.kind in "iu" else 1.0)
    norm = np.linalg.norm(quats, axis=-1)
    bad = np.argwhere(~(np.abs(norm - 1) <= QUATERNION_TOLERANCE))
    if len(bad):
        row, joint = (int(i) for i in bad[0])
        raise InputError(
            f"{path}: quats_wxyz_i16 must hold unit quaternions (w, x, y, z) times 32767; in {where(row)}, joint "
            f"'{order[joint]}' the length is "
            f"{norm[row, joint]:.4f} after dividing"
        )
    quats /= norm[..., None]
    return MotionPack(names, lengths, trans, quats, rest, fps, loop.astype(bool))


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
    rest = torch.from_numpy(pack.rest_joints)
    skeletons, skeleton_of = np.unique(np.round(pack.rest_joints, 4), axis=0, return_inverse=True)
    skeleton_of = skeleton_of.reshape(-1)
    first_clip = [int(np.flatnonzero(skeleton_of == index)[0]) for index in range(len(skeletons))]
    betas = torch.zeros(NUM_BETAS)
    target_rest = body.rest_joints(betas)
    turns = torch.stack([_realignment(rest[clip], target_rest) for clip in first_clip])  # (S, 22, 4)
    parent_rows = torch.tensor([parent + 1 for parent in PARENTS_BODY])
    before = quat_conjugate(turns[:, parent_rows])  # (S, 21, 4)
    source_offsets = torch.stack([rest[clip, 1:] - rest[clip, parent_rows] for clip in first_clip])
    source_leg = source_offsets[:, [3, 4, 6, 7]].norm(dim=-1).sum(1) / 2
    scale = body.leg_length(betas) / source_leg  # (S,)

    frame_skeleton = torch.from_numpy(np.repeat(skeleton_of, pack.lengths))
    quats, trans = torch.from_numpy(pack.quats), torch.from_numpy(pack.trans)
    local = torch.empty(len(quats), len(BODY_JOINT_NAMES), 4)
    source_toes = torch.empty(len(quats), 2, 3)
    joints = torch.empty(len(quats), _NUM_JOINTS, 3)
    toe_rows = [joint + 1 for joint in TOE_JOINTS]
    for start in range(0, len(quats), _CHUNK_FRAMES):
        rows = slice(start, start + _CHUNK_FRAMES)
        which = frame_skeleton[rows]
        local[rows] = quat_normalize(quat_multiply(quat_multiply(before[which], quats[rows, 1:]), turns[which, 1:]))
        R_root = quat_to_rotmat(quats[rows, :1])
        source = forward_kinematics(quat_to_rotmat(quats[rows, 1:]), source_offsets[which], PARENTS_BODY).joints
        source_toes[rows] = source[:, list(TOE_JOINTS)] @ R_root[:, 0].mT + trans[rows, None]
        root = torch.cat((quats[rows, 0], trans[rows] * scale[which, None]), dim=1)
        joints[rows] = place_on_root(body, quat_to_rotmat(local[rows]), betas, root).joints

    ends = np.cumsum(pack.lengths)
    slices = [slice(int(end - length), int(end)) for end, length in zip(ends, pack.lengths)]
    speeds = torch.cat([joint_speeds(source_toes[rows], TARGET_FPS) for rows in slices])
    clips: list[MotionClip | None] = [None] * len(pack.names)
    for skeleton, representative in enumerate(first_clip):
        members = np.flatnonzero(skeleton_of == skeleton)
        # A skeleton that never stands still gets the lowest tenth of its toe heights.
        mine = torch.cat([torch.arange(slices[clip].start, slices[clip].stop) for clip in members])
        heights = source_toes[mine, :, 2]
        slow = speeds[mine] < PLANTED_SPEED_M_S
        usual = (
            densest_height(heights[slow].numpy())
            if int(slow.sum()) >= 3
            else float(torch.quantile(heights.min(1).values[:1000000], 0.1))
        )
        # Standing straight: the pelvis is as far above the planted toe as in the rest pose.
        standing = float(scale[skeleton]) * (
            usual - float(rest[representative, toe_rows, 1].mean() - rest[representative, 0, 1])
        )
        standing += float(target_rest[toe_rows, 1].mean() - target_rest[0, 1])
        for clip in members:
            rows = slices[clip]
            near = (source_toes[rows, :, 2] - usual).abs() < PLANTED_RANGE_M
            planted = near & (speeds[rows] < PLANTED_SPEED_M_S)
            if int(planted.sum()) < 3:
                planted = near & (speeds[rows] < 2 * PLANTED_SPEED_M_S)
            height = float(joints[rows][:, toe_rows, 2][planted].mean()) if int(planted.sum()) >= 3 else standing
            shift = torch.tensor([0.0, 0.0, body.toe_clearance - height])
            position = trans[rows] * scale[skeleton] + shift
            clips[clip] = MotionClip(
                name=pack.names[clip],
                fps=TARGET_FPS,
                T_world_root=torch.cat((quats[rows, 0], position), dim=1),
                body_quats=local[rows].clone(),
                betas=betas,
                contacts=contact_labels(joints[rows] + shift, TARGET_FPS, toe_clearance=body.toe_clearance),
                loop=bool(pack.loop[clip]),
            )
    return [clip for clip in clips if clip is not None]


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
    ends = np.cumsum(pack.lengths)
    parts: list[MotionClip] = []
    for name, end, length, loop in zip(pack.names, ends, pack.lengths, pack.loop):
        rows = slice(int(end - length), int(end))
        root = torch.from_numpy(np.concatenate([pack.quats[rows, 0], pack.trans[rows]], axis=1))
        clip = MotionClip(
            name=name,
            fps=pack.fps,
            T_world_root=root,
            body_quats=torch.from_numpy(pack.quats[rows, 1:]),
            betas=torch.zeros(NUM_BETAS),
            contacts=torch.zeros(int(length), len(BODY_JOINT_NAMES)),
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


def clip_names(clips: Sequence[MotionClip]) -> tuple[str, ...]:
    """Names of the clips, in order."""
    return tuple(clip.name for clip in clips)
