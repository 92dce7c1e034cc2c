"""Files of inferred motion: EgoAllo's npz and AMASS's (facts: section I; ecosystem: 1)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mgrpo.body.model import BodyModel
from mgrpo.data.rate import TARGET_FPS
from mgrpo.export.amass import amass_arrays as motion_arrays
from mgrpo.export.motion import PosedMotion
from mgrpo.geometry import rotmat_to_quat
from mgrpo.models.motion import PredictedMotion

NUM_FINGERS = 30

PER_SAMPLE = {
    "Ts_world_root": (7,),
    "body_quats": (21, 4),
    "left_hand_quats": (15, 4),
    "right_hand_quats": (15, 4),
    "contacts": (21,),
    "betas": (16,),
}
"""Arrays of EgoAllo's files that are ``(S, T, …)``, and their last axes; float32."""


def egoallo_arrays(
    motion: PredictedMotion, T_world_cpf: Tensor, frame_nums: np.ndarray, timestamps_ns: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays of EgoAllo's output files, from motions ``(1, S, T, …)`` of one head trajectory.

    ``Ts_world_cpf (T, 7)``, ``Ts_world_root (S, T, 7)``, ``body_quats (S, T, 21, 4)``, ``left_hand_quats`` and
    ``right_hand_quats (S, T, 15, 4)`` (straight fingers where the model has no hands), ``contacts (S, T, 21)``,
    ``betas (S, T, 16)``, ``frame_nums (T,)``, ``timestamps_ns (T,)``. Poses are wxyz + xyz, metres, z up.
    """
    samples, frames = motion.joints22.shape[1:3]
    if motion.hand_rotmats is None:
        hand_quats = torch.zeros(samples, frames, NUM_FINGERS, 4)
        hand_quats[..., 0] = 1.0
    else:
        hand_quats = rotmat_to_quat(motion.hand_rotmats[0])
    tensors = {
        "Ts_world_cpf": T_world_cpf,
        "Ts_world_root": motion.T_world_root[0],
        "body_quats": rotmat_to_quat(motion.body_rotmats[0]),
        "left_hand_quats": hand_quats[..., :15, :],
        "right_hand_quats": hand_quats[..., 15:, :],
        "contacts": motion.contacts[0],
        "betas": motion.betas[0],
    }
    arrays = {name: tensor.detach().to("cpu", torch.float32).numpy() for name, tensor in tensors.items()}
    return arrays | {
        "frame_nums": np.asarray(frame_nums, np.int64),
        "timestamps_ns": np.asarray(timestamps_ns, np.int64),
    }


def amass_arrays(
    arrays: Mapping[str, np.ndarray], sample: int, frames: slice, body: BodyModel, floor_m: float = 0.0
) -> dict[str, np.ndarray]:
    """One motion of EgoAllo's arrays in AMASS's form, z up and floor at 0: ``poses (N, 156)`` axis angles, ``trans (N,
    3)``, ``betas (16,)``, ``dmpls (N, 8)`` (zeros), ``gender``, ``mocap_framerate``.

    AMASS has one shape for a motion: that is the mean over ``frames``, and the body is placed anew, so that its eyes
    stay where the head was recorded. ``trans`` is the pelvis less the shape's rest pelvis. For a body other than SMPL-H
    the shape is left out (zeros: the mean person), because its numbers mean nothing to who reads the file; the pelvis
    stays where it was.

    Args:
        arrays: of :func:`egoallo_arrays`, or of the file.
        sample: which of the S.
        frames: which of the T; without gaps in time.
        body: that the motion was made for.
        floor_m: height of the floor in the arrays' world.
    """
    rows = {name: torch.from_numpy(np.array(arrays[name][sample, frames], np.float64)) for name in PER_SAMPLE}
    cpf = torch.from_numpy(np.array(arrays["Ts_world_cpf"][frames], np.float64))
    for poses in (cpf, rows["Ts_world_root"]):
        poses[:, 6] -= floor_m
    quats = [rows["body_quats"]]
    if body.num_joints > rows["body_quats"].shape[1]:
        quats += [rows["left_hand_quats"], rows["right_hand_quats"]]
    times = torch.arange(len(cpf), dtype=torch.float64) / TARGET_FPS
    motion = PosedMotion(
        "inferred motion", TARGET_FPS, body, rows["Ts_world_root"], torch.cat(quats, dim=1), rows["betas"], times,
        torch.arange(len(cpf)), T_world_cpf=cpf,
    )  # fmt: skip
    return motion_arrays(motion.with_one_shape()[0])


def stretches_of(frame_nums: np.ndarray) -> list[slice]:
    """Parts of the frames without gaps."""
    edges = [0, *(np.flatnonzero(np.diff(frame_nums) != 1) + 1).tolist(), len(frame_nums)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
