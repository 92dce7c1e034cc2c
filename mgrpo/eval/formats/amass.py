"""AMASS npz: SMPL-H (``poses (N, 156)``) and SMPL-X (``root_orient``, ``pose_body``), both spellings of the rate."""

from __future__ import annotations

import numpy as np

from mgrpo.errors import InputError

from .container import Container
from .rotations import RotationMotion
from .tracks import ReadOptions, axis_angles, numbers

FRAME_RATES = ("mocap_framerate", "mocap_frame_rate")
"""SMPL-H's spelling, SMPL-X's spelling."""

_HANDS_FROM = {156: 66, 165: 75}
"""First of the 90 columns of the fingers: SMPL-X has jaw and eyes before them."""


def matches(file: Container) -> bool:
    """Whether the file has AMASS's names."""
    keys = set(file.keys)
    return "trans" in keys and ("poses" in keys or {"root_orient", "pose_body"} <= keys)


def read(file: Container, options: ReadOptions) -> list[RotationMotion]:
    """One motion. z up, metres; ``trans`` is the pelvis minus the rest pelvis of the shape."""
    separate = {"root_orient", "pose_body"} <= set(file.keys)
    names = ("trans", "root_orient", "pose_body") if separate else ("trans", "poses")
    arrays = file.arrays(names, ("betas", *FRAME_RATES, "surface_model_type", "gender", "pose_hand"))
    trans = numbers(arrays["trans"], "trans", (None, 3))
    frames = len(trans)
    if separate:
        root = numbers(arrays["root_orient"], "root_orient", (frames, 3))
        pose = numbers(arrays["pose_body"], "pose_body", (frames, 63))
        hands = numbers(arrays["pose_hand"], "pose_hand", (frames, 90)) if "pose_hand" in arrays else None
    else:
        poses = numbers(arrays["poses"], "poses", (frames, None))
        if poses.shape[1] not in (66, 72, 156, 165):
            raise InputError(
                f"poses must have 66, 72 (SMPL), 156 (SMPL-H) or 165 (SMPL-X) columns of axis angles, "
                f"got {tuple(poses.shape)}"
            )
        root, pose = poses[:, :3], poses[:, 3:66]
        hands = poses[:, _HANDS_FROM[poses.shape[1]] :][:, :90] if poses.shape[1] in _HANDS_FROM else None
    betas = arrays.get("betas", np.zeros(16))
    told = next((key for key in FRAME_RATES if key in arrays and arrays[key].size), None)
    rate = None if told is None else float(numbers(arrays[told].reshape(-1)[:1], told, (1,))[0])
    rate = options.fps or rate
    if rate is None:
        raise InputError(f"it lacks {' and '.join(FRAME_RATES)}; give the frame rate by {options.flag('fps')}")
    notes: list[str] = []
    model = _text(arrays.get("surface_model_type", np.array("smplx" if separate else "smplh")))
    gender = _text(arrays.get("gender", np.array("neutral")))
    if gender not in ("neutral", "", "unknown"):
        notes.append(f"made on the {gender} body; its joints are computed on the body of --body")
    return [
        RotationMotion(
            root_quats=axis_angles(root)[None, :, 0],
            positions=trans[None],
            body_quats=axis_angles(pose)[None],
            betas=numbers(betas.reshape(-1), "betas", (None,)).expand(1, frames, -1),
            options=options,
            fps=rate,
            positions_are="smpl trans",
            foreign_shape="" if model == "smplh" else "SMPL-X" if model.startswith("smplx") else model.upper(),
            format="AMASS",
            notes=notes,
            hand_quats=None if hands is None else axis_angles(hands)[None],
            gender=gender if gender not in ("", "unknown") else "neutral",
        )
    ]


def _text(array: np.ndarray) -> str:
    value = array.reshape(-1)[0] if array.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
