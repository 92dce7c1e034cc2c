"""Made-up motion in EgoAllo's HDF5 layout, for measuring and testing what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from mgrpo import geometry
from mgrpo.body import BodyModel
from mgrpo.body.placement import cpf_of, place_on_root

CHUNK_FRAMES = 32


def made_up_sequence(body: BodyModel, frames: int, seed: int, *, hands: bool = True) -> dict[str, np.ndarray]:
    """Arrays of one sequence of somebody of a random shape who wanders smoothly, all that the layout has."""
    generator = torch.Generator().manual_seed(seed)
    poses = frames + 1
    steps = 0.02 * torch.randn(poses, 52, 3, generator=generator).cumsum(0)
    quats = geometry.axis_angle_to_quat(steps + 0.2 * torch.randn(52, 3, generator=generator))
    upright = torch.tensor([0.5, 0.5, 0.5, 0.5])
    position = 0.01 * torch.randn(poses, 3, generator=generator).cumsum(0)
    position[:, 2] = 0.95
    T_world_root = geometry.se3(geometry.quat_multiply(quats[:, 0], upright), position)
    betas = 0.5 * torch.randn(1, 16, generator=generator)
    small = body.body_only()
    placed = place_on_root(small, geometry.quat_to_rotmat(quats[:, 1:22]), betas, T_world_root)
    T_world_cpf = cpf_of(small, placed, betas)
    relative = geometry.se3_multiply(geometry.se3_inverse(T_world_cpf[:-1]), T_world_cpf[1:])
    T_cpf_world = geometry.se3_inverse(T_world_cpf[1:])[:, None]
    arrays = {
        "T_world_root": T_world_root[1:],
        "T_world_cpf": T_world_cpf[1:],
        "T_cpf_tm1_cpf_t": relative,
        "height_from_floor": T_world_cpf[1:, 6:],
        "body_quats": quats[1:, 1:22],
        "hand_quats": quats[1:, 22:],
        "contacts": (torch.rand(frames, 21, generator=generator) < 0.3).float(),
        "joints_wrt_cpf": geometry.se3_apply(T_cpf_world, placed.joints[1:, 1:]),
        "betas": betas,
    }
    return {name: array.numpy() for name, array in arrays.items() if hands or name != "hand_quats"}


def write_sequences(path: Path, sequences: Mapping[str, Mapping[str, np.ndarray]], *, listed: bool = False) -> Path:
    """Write sequences by group name, chunked as EgoAllo does; with ``listed`` the list of files beside it too."""
    with h5py.File(path, "w") as file:
        for name, arrays in sequences.items():
            group = file.create_group(name)
            for key, array in arrays.items():
                chunk = (min(CHUNK_FRAMES, array.shape[0]), *array.shape[1:])
                group.create_dataset(key, data=array, chunks=chunk)
    if listed:
        path.with_name(f"{path.stem}_files.txt").write_text("\n".join(sequences) + "\n", "utf-8")
    return path
