"""Where a posed body stands: from the pose of its root, or from the pose of its eyes (the central pupil frame, CPF)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgrpo.body.model import HEAD_ROW, BodyModel
from mgrpo.errors import InputError
from mgrpo.geometry import quat_normalize, quat_to_rotmat, rotmat_to_quat, se3_from_rotmat
from mgrpo.kernels import forward_kinematics
from mgrpo.kernels._shapes import broadcast_shape


class PlacedBody(NamedTuple):
    """A posed body in the world; z is up, metres."""

    T_world_root: Tensor
    """Pose of the pelvis ``(*b, 7)``; its translation is the pelvis joint, not SMPL's ``trans``."""
    joints: Tensor
    """Joint positions ``(*b, 1 + J, 3)``, root first."""
    R_world_joint: Tensor
    """Joint orientations ``(*b, 1 + J, 3, 3)``, root first."""


def _checked(
    body: BodyModel, local_rotmats: Tensor, betas: Tensor, pose: Tensor
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Rotations expanded to the common batch, bone offsets of the first J joints, and the batch's shape."""
    count = local_rotmats.shape[-3] if local_rotmats.ndim >= 3 else -1
    if tuple(local_rotmats.shape[-2:]) != (3, 3) or not HEAD_ROW <= count <= body.num_joints:
        raise InputError(
            f"local_rotmats must have shape (*batch, J, 3, 3) with {HEAD_ROW} <= J <= {body.num_joints} joints of "
            f"body '{body.name}', "
            f"got {tuple(local_rotmats.shape)}"
        )
    if pose.shape[-1] != 7:
        raise InputError(f"poses must have shape (*batch, 7) (wxyz and xyz), got {tuple(pose.shape)}")
    try:
        shape = broadcast_shape(local_rotmats.shape[:-3], betas.shape[:-1], pose.shape[:-1])
    except ValueError as error:
        raise InputError(
            f"batch axes must broadcast: local_rotmats {tuple(local_rotmats.shape)}, betas {tuple(betas.shape)}, "
            f"pose {tuple(pose.shape)}"
        ) from error
    offsets = body.t_parent_joint(betas)[..., :count, :].to(local_rotmats.dtype)
    return local_rotmats.expand(*shape, count, 3, 3), offsets, shape


def _with_root(
    body: BodyModel, local_rotmats: Tensor, offsets: Tensor, R_root: Tensor, t_root: Tensor
) -> tuple[Tensor, Tensor]:
    """World positions ``(*b, 1 + J, 3)`` and orientations, the root being the first joint of a tree that hangs from
    the world."""
    shape, count = local_rotmats.shape[:-3], local_rotmats.shape[-3]
    rotmats = torch.cat((R_root.expand(*shape, 3, 3).unsqueeze(-3), local_rotmats), dim=-3)
    translations = torch.cat((t_root.expand(*shape, 3).unsqueeze(-2), offsets.expand(*shape, count, 3)), dim=-2)
    result = forward_kinematics(rotmats, translations, (-1, *(parent + 1 for parent in body.parents[:count])))
    return result.joints, result.R_world_joint


def place_on_root(body: BodyModel, local_rotmats: Tensor, betas: Tensor, T_world_root: Tensor) -> PlacedBody:
    """Forward kinematics with the pelvis at a given pose.

    Args:
        body: skeleton; its first ``J`` joints are used.
        local_rotmats: rotations of the joints relative to their parents, ``(*b, J, 3, 3)``, J = 21 or 51.
        betas: shape numbers, ``(*#b, 16)``, broadcast.
        T_world_root: pelvis pose, ``(*#b, 7)``; its quaternion is normalised.
    Raises:
        InputError: a shape that doesn't fit the body.
    """
    local_rotmats, offsets, shape = _checked(body, local_rotmats, betas, T_world_root)
    T_world_root = torch.cat((quat_normalize(T_world_root[..., :4]), T_world_root[..., 4:]), -1).expand(*shape, 7)
    joints, R_world_joint = _with_root(
        body, local_rotmats, offsets, quat_to_rotmat(T_world_root[..., :4]), T_world_root[..., 4:]
    )
    return PlacedBody(T_world_root, joints, R_world_joint)


def place_on_cpf(body: BodyModel, local_rotmats: Tensor, betas: Tensor, T_world_cpf: Tensor) -> PlacedBody:
    """Place a posed body so that its central pupil frame is exactly the given one.

    ``T_world_root = T_world_cpf  T_head_cpf(betas)^-1  T_root_head^-1``, the base model's rule. Positions and
    orientations are computed from matrices throughout, so their gradients don't pass through a quaternion.

    Args:
        body: skeleton; its first ``J`` joints are used.
        local_rotmats: rotations of the joints relative to their parents, ``(*b, J, 3, 3)``, J = 21 or 51; proper
            rotations.
        betas: shape numbers, ``(*#b, 16)``, broadcast.
        T_world_cpf: pose of the central pupil frame, ``(*#b, 7)``.
    Raises:
        InputError: a shape that doesn't fit the body.
    """
    local_rotmats, offsets, _ = _checked(body, local_rotmats, betas, T_world_cpf)
    # Only the spine is needed to know the root; the whole tree is then posed once.
    joint = HEAD_ROW - 1
    R_root_head = local_rotmats[..., joint, :, :]
    t_head_cpf = body.t_head_cpf(betas).to(local_rotmats.dtype)
    t_root_cpf = offsets[..., joint, :] + (R_root_head @ t_head_cpf.unsqueeze(-1)).squeeze(-1)
    while (parent := body.parents[joint]) >= 0:
        R_root_head = local_rotmats[..., parent, :, :] @ R_root_head
        t_root_cpf = offsets[..., parent, :] + (local_rotmats[..., parent, :, :] @ t_root_cpf.unsqueeze(-1)).squeeze(-1)
        joint = parent
    R_world_root = quat_to_rotmat(T_world_cpf[..., :4]) @ R_root_head.mT
    t_world_root = T_world_cpf[..., 4:] - (R_world_root @ t_root_cpf.unsqueeze(-1)).squeeze(-1)
    joints, R_world_joint = _with_root(body, local_rotmats, offsets, R_world_root, t_world_root)
    return PlacedBody(se3_from_rotmat(R_world_root, t_world_root), joints, R_world_joint)


def cpf_of(body: BodyModel, placed: PlacedBody, betas: Tensor) -> Tensor:
    """Central pupil frame ``T_world_cpf (*b, 7)`` of a placed body: the head's pose moved by the eyes' offset in the
    head's axes.

    Args:
        body: the body that was placed.
        placed: its joints and orientations, root first.
        betas: shape numbers, ``(*#b, 16)``.
    """
    R_world_head = placed.R_world_joint[..., HEAD_ROW, :, :]
    offset = body.t_head_cpf(betas).to(placed.joints.dtype)
    origin = placed.joints[..., HEAD_ROW, :] + (R_world_head @ offset.unsqueeze(-1)).squeeze(-1)
    quat = quat_normalize(rotmat_to_quat(R_world_head))
    return torch.cat((quat, origin), dim=-1)
