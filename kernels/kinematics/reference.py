"""Oracle of :func:`mgrpo.kernels.forward_kinematics`: one joint after the other, parents first."""

from __future__ import annotations

import torch
from torch import Tensor


def forward_kinematics(
    local_rotmats: Tensor, t_parent_joint: Tensor, parents: tuple[int, ...], R_root: Tensor, t_root: Tensor
) -> tuple[Tensor, Tensor]:
    """``R_root`` (*#batch, 3, 3) and ``t_root`` (*#batch, 3) place the root; other arguments as in the public op.

    Returns joints (*batch, J, 3) and R_world_joint (*batch, J, 3, 3).
    """
    batch = local_rotmats.shape[:-3]
    offsets = t_parent_joint.expand(*batch, -1, -1)
    R_root, t_root = R_root.expand(*batch, 3, 3), t_root.expand(*batch, 3)
    rotations: list[Tensor] = []
    positions: list[Tensor] = []
    for joint, parent in enumerate(parents):
        R_parent, t_parent = (R_root, t_root) if parent < 0 else (rotations[parent], positions[parent])
        rotations.append(R_parent @ local_rotmats[..., joint, :, :])
        positions.append(t_parent + (R_parent @ offsets[..., joint, :, None])[..., 0])
    return torch.stack(positions, dim=-2), torch.stack(rotations, dim=-3)
