"""Oracle of :func:`mgrpo.kernels.forward_kinematics`: one joint after the other, parents first."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._autocast import without_autocast
from .._rotations import (
    quat_conjugate,
    quat_matrix,
    quat_multiply,
    quat_normalised,
    rot6d_matrix,
    unit_quaternion,
)


@without_autocast
def forward_kinematics(
    rotations: Tensor,
    t_parent_joint: Tensor,
    parents: tuple[int, ...],
    root: Tensor | None = None,
    t_head_cpf: Tensor | None = None,
    *,
    head: int = -1,
    representation: str = "matrix",
    output: str = "matrix",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``root`` (*#batch, 7) is T_world_cpf where ``t_head_cpf`` (*#batch, 3) is given, else T_world_root; None is the
    identity. Other arguments as in the public op.

    Returns joints (*batch, J, 3), the world rotations in the form ``output`` names (None for positions), and the root's
    pose (*batch, 7) that a CPF implies (None without one).
    """
    axes = rotations.dim() - (3 if representation == "matrix" else 2)
    batch = rotations.shape[:axes]
    offsets = t_parent_joint.expand(*batch, -1, -1)
    # Quaternions stay quaternions where the result is one: their product also fixes the result's sign.
    given_quaternions = representation == "quaternion"
    local = quat_normalised(rotations) if given_quaternions else rotation_matrices(rotations, representation)
    R_root, t_root = _root_pose(rotations, root, batch, as_quaternion=given_quaternions)
    T_world_root = None
    if t_head_cpf is not None:
        algebra = QUATERNIONS if given_quaternions else MATRICES
        R_root, t_root = _root_under_cpf(algebra, R_root, t_root, t_head_cpf, local, offsets, parents, head, axes)
        T_world_root = torch.cat([R_root if given_quaternions else unit_quaternion(R_root), t_root], dim=-1)
    as_quaternions = given_quaternions and output == "quaternion"
    if given_quaternions and not as_quaternions:  # matrices take fewer steps per joint
        local, R_root = quat_matrix(local), quat_matrix(R_root)

    algebra = QUATERNIONS if as_quaternions else MATRICES
    local_of_joint, offset_of_joint = local.unbind(axes), offsets.unbind(-2)
    world: list[Tensor] = []
    positions: list[Tensor] = []
    for joint, parent in enumerate(parents):
        R_parent, t_parent = (R_root, t_root) if parent < 0 else (world[parent], positions[parent])
        world.append(algebra.compose(R_parent, local_of_joint[joint]))
        positions.append(t_parent + algebra.rotate(R_parent, offset_of_joint[joint]))
    joints = torch.stack(positions, dim=-2)
    if output == "positions":
        return joints, None, T_world_root
    rotations_out = torch.stack(world, dim=axes)
    if output == "quaternion" and not as_quaternions:
        rotations_out = unit_quaternion(rotations_out)
    return joints, rotations_out, T_world_root


def _root_pose(like: Tensor, root: Tensor | None, batch: torch.Size, *, as_quaternion: bool) -> tuple[Tensor, Tensor]:
    """The rotation, as a unit quaternion or a matrix, and the position (*batch, 3) of a pose (*#batch, 7) or None."""
    if root is None:
        identity = (QUATERNIONS if as_quaternion else MATRICES).identity(like)
        return identity.expand(*batch, *identity.shape), like.new_zeros(3).expand(*batch, 3)
    unit = quat_normalised(root[..., :4]).expand(*batch, 4)
    return unit if as_quaternion else quat_matrix(unit), root[..., 4:].expand(*batch, 3)


def _root_under_cpf(
    algebra: Algebra,
    R_world_cpf: Tensor,
    t_world_cpf: Tensor,
    t_head_cpf: Tensor,
    local: Tensor,
    offsets: Tensor,
    parents: tuple[int, ...],
    head: int,
    axes: int,
) -> tuple[Tensor, Tensor]:
    """The root's pose under a given central pupil frame: only the joints from the head to the root matter."""
    R_root_head = local.select(axes, head)
    t_root_cpf = offsets[..., head, :] + algebra.rotate(R_root_head, t_head_cpf)
    joint = parents[head]
    while joint >= 0:
        L = local.select(axes, joint)
        R_root_head = algebra.compose(L, R_root_head)
        t_root_cpf = offsets[..., joint, :] + algebra.rotate(L, t_root_cpf)
        joint = parents[joint]
    R_world_root = algebra.compose(R_world_cpf, algebra.inverse(R_root_head))
    return R_world_root, t_world_cpf - algebra.rotate(R_world_root, t_root_cpf)


@without_autocast
def joint_offsets(t_parent_joint: Tensor, t_parent_joint_shapedirs: Tensor, betas: Tensor) -> Tensor:
    """(J, 3), (J, 3, S), (*batch, S) -> (*batch, J, 3): the offsets of bodies of shape ``betas``."""
    return t_parent_joint + (t_parent_joint_shapedirs @ betas[..., None, :, None])[..., 0]


class Algebra(NamedTuple):
    """What the recursion does with rotations."""

    identity: Callable[[Tensor], Tensor]
    compose: Callable[[Tensor, Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor], Tensor]


def quat_rotate(unit: Tensor, points: Tensor) -> Tensor:
    """Points (*batch, 3) turned by unit quaternions (*batch, 4)."""
    xyz, points = torch.broadcast_tensors(unit[..., 1:], points)
    twice = 2 * torch.linalg.cross(xyz, points)
    return points + unit[..., :1] * twice + torch.linalg.cross(xyz, twice)


MATRICES = Algebra(
    identity=lambda like: torch.eye(3, dtype=like.dtype, device=like.device),
    compose=torch.matmul,
    inverse=lambda R: R.mT,
    rotate=lambda R, points: (R @ points[..., None])[..., 0],
)
QUATERNIONS = Algebra(
    identity=lambda like: torch.cat([like.new_ones(1), like.new_zeros(3)]),
    compose=quat_multiply,
    inverse=quat_conjugate,
    rotate=quat_rotate,
)


def rotation_matrices(rotations: Tensor, representation: str) -> Tensor:
    """(*batch, J, 3, 3) from any representation; matrices are taken as they are."""
    if representation == "quaternion":
        return quat_matrix(quat_normalised(rotations))
    if representation == "rot6d":
        return rot6d_matrix(rotations)
    return rotations
