"""Writing motion packs: clips of a source skeleton, end to end, in the layout that ``read_pack`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mgrpo.body.skeleton import BODY_JOINT_NAMES, ROOT_NAME
from mgrpo.data.packs.pack import MotionPack, pack_quats
from mgrpo.errors import InputError
from mgrpo.npz import write_npz


def write_pack(path: str | Path, pack: MotionPack, extra: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a pack, atomically.

    Args:
        path: the npz file.
        pack: its clips; quaternions are stored with w >= 0.
        extra: further arrays, which ``read_pack`` leaves unread (where each clip came from, for example).
    Raises:
        InputError: shapes that don't belong together, NaN, quaternions that are not unit, or a place that can't be
            written to.
    """
    total, count, joints = int(np.sum(pack.lengths)), len(pack.names), len(BODY_JOINT_NAMES) + 1
    expected = {
        "lengths": (count,),
        "trans": (total, 3),
        "quats": (total, joints, 4),
        "rest_joints": (count, joints, 3),
        "loop": (count,),
    }
    for field, shape in expected.items():
        value = np.asarray(getattr(pack, field))
        if value.shape != shape:
            raise InputError(f"write_pack(): {field} must have shape {shape} for {count} clips, got {value.shape}")
        if not np.isfinite(value).all():
            raise InputError(f"write_pack(): {field} has values that are not finite")
    if not count:
        raise InputError("write_pack(): a pack needs at least one clip")
    quats = np.asarray(pack.quats, np.float64)
    norm = np.linalg.norm(quats, axis=-1)
    if np.abs(norm - 1).max() > 1e-3:
        raise InputError("write_pack(): quats must be unit quaternions (w, x, y, z)")
    arrays = {
        "names": np.array(pack.names),
        "lengths": np.asarray(pack.lengths, np.int32),
        "trans": np.asarray(pack.trans, np.float32),
        "quats_wxyz_i16": pack_quats(quats / norm[..., None]),
        "rest_joints": np.asarray(pack.rest_joints, np.float32),
        "fps": np.array(float(pack.fps)),
        "joint_names": np.array((ROOT_NAME, *BODY_JOINT_NAMES)),
        "loop": np.asarray(pack.loop, bool),
    }
    clash = sorted(set(arrays) & set(extra or {}))
    if clash:
        raise InputError(f"write_pack(): extra can't hold {', '.join(clash)}, which are the pack's own")
    write_npz(path, arrays | dict(extra or {}))
