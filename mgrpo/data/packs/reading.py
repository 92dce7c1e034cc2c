"""Reading motion packs: every array checked, what is wrong named by clip and frame."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mgrpo.body.skeleton import BODY_JOINT_NAMES, ROOT_NAME
from mgrpo.data.clip import MIN_FRAMES, QUATERNION_TOLERANCE
from mgrpo.data.packs.pack import PACK_KEYS, SCALE, MotionPack
from mgrpo.data.rate import require_fps
from mgrpo.errors import InputError, in_file
from mgrpo.npz import read_npz

_NUM_JOINTS = len(BODY_JOINT_NAMES) + 1
_ORDER = (ROOT_NAME, *BODY_JOINT_NAMES)


def read_pack(path: str | Path) -> MotionPack:
    """Read and check a pack. Raises InputError with the clip's name and frame where something is wrong."""
    arrays = read_npz(path, "motion pack", PACK_KEYS, ("joint_names", "loop"))
    with in_file(path):
        names = _check_shapes(arrays)
        pack = MotionPack(
            names=names,
            lengths=arrays["lengths"].astype(np.int64),
            trans=arrays["trans"].astype(np.float32),
            quats=_quaternions(arrays["quats_wxyz_i16"]),
            rest_joints=arrays["rest_joints"].astype(np.float32),
            fps=require_fps(float(arrays["fps"]), "fps"),
            loop=arrays.get("loop", np.zeros(len(names), bool)).astype(bool),
        )
        _check_clips(pack)
        _check_numbers(pack)
    return pack._replace(quats=pack.quats / np.linalg.norm(pack.quats, axis=-1)[..., None])


def _quaternions(stored: np.ndarray) -> np.ndarray:
    return stored.astype(np.float32) / (SCALE if stored.dtype.kind in "iu" else 1.0)


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Refuse arrays that don't belong together, and joints in another order. Returns the names of the clips."""
    for key in PACK_KEYS[1:]:
        if arrays[key].dtype.kind not in "fiu":
            raise InputError(f"{key} must be numeric, got dtype {arrays[key].dtype}")
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
                f"{key} must have shape {shape} for {count} names and {total} rows of trans, got "
                f"{tuple(arrays[key].shape)}"
            )
    if "joint_names" in arrays and tuple(str(name) for name in arrays["joint_names"]) != _ORDER:
        raise InputError(
            f"joint_names must be {', '.join(_ORDER)} in this order, got {', '.join(map(str, arrays['joint_names']))}"
        )
    if "loop" in arrays and tuple(arrays["loop"].shape) != (count,):
        raise InputError(f"loop must have shape ({count},), got {tuple(arrays['loop'].shape)}")
    return names


def _check_clips(pack: MotionPack) -> None:
    """Refuse a pack without clips, clips that are too short or don't fill it, and two of one name."""
    total = len(pack.trans)
    if not pack.names:
        raise InputError("the pack has no clips")
    if int(pack.lengths.sum()) != total:
        raise InputError(
            f"lengths add up to {int(pack.lengths.sum())} frames, but trans and quats_wxyz_i16 have {total}"
        )
    short = np.flatnonzero(pack.lengths < MIN_FRAMES)
    if len(short):
        raise InputError(
            f"clip '{pack.names[short[0]]}' has {int(pack.lengths[short[0]])} frame(s); a clip needs at least "
            f"{MIN_FRAMES}"
        )
    if len(set(pack.names)) != len(pack.names):
        twice = next(name for name in pack.names if pack.names.count(name) > 1)
        raise InputError(f"two clips are called '{twice}'; names must differ")


def _check_numbers(pack: MotionPack) -> None:
    """Refuse NaN, a skeleton that is none, and quaternions that are not unit."""
    ends = np.cumsum(pack.lengths)

    def where(row: int) -> str:
        clip = int(np.searchsorted(ends, row, side="right"))
        return f"clip '{pack.names[clip]}', frame {row - pack.rows[clip].start}"

    bad = np.flatnonzero(~np.isfinite(pack.trans).all(1))
    if len(bad):
        raise InputError(
            f"trans is not finite (NaN or infinity) in {where(int(bad[0]))} and {len(bad) - 1} more frame(s); cut or "
            "repair it"
        )
    rest = pack.rest_joints
    bad = np.flatnonzero(~np.isfinite(rest).all((1, 2)))
    if len(bad):
        raise InputError(f"rest_joints is not finite (NaN or infinity) for clip '{pack.names[bad[0]]}'")
    bones = np.linalg.norm(rest[:, [4, 5, 7, 8]] - rest[:, [1, 2, 4, 5]], axis=-1)
    bad = np.flatnonzero(bones.min(1) < 1e-3)
    if len(bad):
        raise InputError(
            f"rest_joints of clip '{pack.names[bad[0]]}' has a leg bone shorter than 1 mm; is it in metres, in the "
            "zero pose?"
        )
    norm = np.linalg.norm(pack.quats, axis=-1)
    bad = np.argwhere(~(np.abs(norm - 1) <= QUATERNION_TOLERANCE))
    if len(bad):
        row, joint = (int(i) for i in bad[0])
        raise InputError(
            f"quats_wxyz_i16 must hold unit quaternions (w, x, y, z) times {SCALE}; in {where(row)}, joint "
            f"'{_ORDER[joint]}' the length is {norm[row, joint]:.4f} after dividing"
        )
