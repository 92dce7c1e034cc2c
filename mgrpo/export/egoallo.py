"""EgoAllo's output npz: S samples of one head trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mgrpo.body.skeleton import BODY_JOINT_NAMES, HAND_JOINT_NAMES
from mgrpo.errors import InputError
from mgrpo.export.motion import PosedMotion
from mgrpo.npz import write_npz

_BODY, _HAND = len(BODY_JOINT_NAMES), len(HAND_JOINT_NAMES) // 2


def egoallo_arrays(motions: Sequence[PosedMotion]) -> dict[str, np.ndarray]:
    """The arrays of EgoAllo's output files, float32 and z up in metres, of one or more samples of the same frames.

    ``Ts_world_cpf (T, 7)``, ``Ts_world_root (S, T, 7)``, ``body_quats (S, T, 21, 4)``, ``left_hand_quats`` and
    ``right_hand_quats (S, T, 15, 4)`` (identity where no fingers are posed), ``contacts (S, T, 21)`` (zeros where they
    are not known), ``betas (S, T, 16)``, ``frame_nums (T,)`` and ``timestamps_ns (T,)`` int64.

    Raises InputError for samples of different lengths.
    """
    first = motions[0]
    if any(len(one) != len(first) for one in motions):
        raise InputError(f"samples of one file must be equally long, got {', '.join(str(len(one)) for one in motions)}")
    hands = torch.zeros(len(motions), len(first), 2 * _HAND, 4)
    hands[..., 0] = 1.0
    contacts = torch.zeros(len(motions), len(first), _BODY)
    for row, one in enumerate(motions):
        if one.num_joints > _BODY:
            hands[row] = one.local_quats[:, _BODY:]
        if one.contacts is not None:
            contacts[row] = one.contacts
    tensors = {
        "Ts_world_cpf": first.head_trajectory(),
        "Ts_world_root": torch.stack([one.T_world_root.float() for one in motions]),
        "body_quats": torch.stack([one.local_quats[:, :_BODY].float() for one in motions]),
        "left_hand_quats": hands[..., :_HAND, :],
        "right_hand_quats": hands[..., _HAND:, :],
        "contacts": contacts,
        "betas": torch.stack([one.betas.float() for one in motions]),
    }
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    stamps = np.rint(first.times.numpy() * 1e9).astype(np.int64)
    return arrays | {"frame_nums": first.frame_nums.numpy(), "timestamps_ns": stamps}


def write_egoallo(path: str | Path, motions: Sequence[PosedMotion]) -> None:
    """Write samples as EgoAllo's output npz. Raises InputError where they don't fit together or the place can't be
    written to."""
    write_npz(path, egoallo_arrays(motions))
