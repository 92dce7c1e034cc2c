"""Oracle of the rewards: each error by its own few lines of torch, after decoding and placing the bodies.

Frames that do not count are replaced by harmless values first, so that whatever they hold reaches neither a result nor
a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._autocast import without_autocast
from .._rotations import quat_matrix, quat_normalised, rot6d_matrix, rotation_vector, unit_quaternion
from ..kinematics import forward_kinematics
from ..procrustes import procrustes_align
from ..so3 import project_so3


class Pose(NamedTuple):
    """Decoded bodies."""

    rotmats: Tensor
    """(B, G, T, J, 3, 3) local rotations."""
    t_parent_joint: Tensor
    """(..., J, 3) joint origins in their parents' frames, metres; leading axes broadcast to (B, G, T)."""
    t_head_cpf: Tensor
    """(..., 3) origin of the CPF in the head's axes, metres."""


@without_autocast
def decode(
    rotations: Tensor,
    betas: Tensor | None,
    t_parent_joint: Tensor,
    t_head_cpf: Tensor,
    t_parent_joint_shapedirs: Tensor | None,
    t_head_cpf_shapedirs: Tensor | None,
    parents: tuple[int, ...],
    *,
    representation: str,
    project: bool,
    valid: Tensor,
) -> Pose:
    """``rotations`` (B, G, T, J K) with K numbers per joint, ``betas`` (B, G, T, S), ``valid`` (B, 1 or G, T)."""
    size = {"matrix": 9, "quaternion": 4, "rot6d": 6}[representation]
    neutral = torch.zeros(size, dtype=rotations.dtype, device=rotations.device)
    neutral[0 if size == 4 else slice(None, None, 4)] = 1.0  # w, or the diagonal
    numbers = torch.where(valid[..., None, None], rotations.unflatten(-1, (len(parents), size)), neutral)
    if representation == "matrix":
        rotmats = numbers.unflatten(-1, (3, 3))
        if project:
            rotmats = project_so3(rotmats, backend="reference")
    elif representation == "quaternion":
        rotmats = quat_matrix(quat_normalised(numbers))
    else:
        rotmats = rot6d_matrix(numbers)
    if betas is not None:
        betas = torch.where(valid[..., None], betas, 0.0)
        t_parent_joint = t_parent_joint + torch.einsum("jxs,...s->...jx", t_parent_joint_shapedirs, betas)
        t_head_cpf = t_head_cpf + torch.einsum("xs,...s->...x", t_head_cpf_shapedirs, betas)
    return Pose(rotmats, t_parent_joint, t_head_cpf)


@without_autocast
def place(pose: Pose, T_world_cpf: Tensor, parents: tuple[int, ...], head: int, valid: Tensor) -> Tensor:
    """Joints (B, G, T, 1 + J, 3), root first, of bodies whose CPF is ``T_world_cpf`` (B, T, 7)."""
    neutral = torch.zeros(7, dtype=T_world_cpf.dtype, device=T_world_cpf.device)
    neutral[0] = 1.0
    T_world_cpf = torch.where(valid.any(1)[..., None], T_world_cpf, neutral)[:, None]
    # From the head down to the root: only this chain is needed to know where the root is.
    joint, R_root_head = head, pose.rotmats[..., head, :, :]
    t_root_cpf = pose.t_parent_joint[..., head, :] + _apply(R_root_head, pose.t_head_cpf)
    while (parent := parents[joint]) >= 0:
        R_parent = pose.rotmats[..., parent, :, :]
        R_root_head = R_parent @ R_root_head
        t_root_cpf = pose.t_parent_joint[..., parent, :] + _apply(R_parent, t_root_cpf)
        joint = parent
    R_root = quat_matrix(quat_normalised(T_world_cpf[..., :4])) @ R_root_head.mT
    t_root = T_world_cpf[..., 4:] - _apply(R_root, t_root_cpf)
    # The root becomes the first joint of a tree that hangs from the world.
    batch = pose.rotmats.shape[:-3]
    rotmats = torch.cat((R_root.unsqueeze(-3), pose.rotmats), dim=-3)
    offsets = pose.t_parent_joint.expand(*batch, *pose.t_parent_joint.shape[-2:])
    offsets = torch.cat((t_root.unsqueeze(-2), offsets), dim=-2)
    tree = (-1, *(parent + 1 for parent in parents))
    return forward_kinematics(rotmats, offsets, tree, backend="reference").joints


def _apply(R: Tensor, t: Tensor) -> Tensor:
    return (R @ t.unsqueeze(-1)).squeeze(-1)


def errors(
    joints: Tensor | None,
    target_joints: Tensor | None,
    rotmats: Tensor | None,
    target_rotmats: Tensor | None,
    valid: Tensor,
    *,
    names: Sequence[str],
    fps: float,
    rotation_error: str,
    alignment: str,
    head: int,
    feet: Sequence[int],
    foot_heights: Sequence[float],
) -> Tensor:
    """(B, G, K) errors; ``valid`` (B, 1 or G, T), ``head`` and ``feet`` are rows of ``joints``."""
    x = y = None
    if joints is not None and target_joints is not None:
        y = torch.where(valid.any(1)[..., None, None], target_joints, 0.0)[:, None]
        x = torch.where(valid[..., None, None], joints, y)
    columns = []
    for name in names:
        if name == "position":
            column = mean_over_frames((x - y).norm(dim=-1).mean(-1), valid)
        elif name == "aligned_position":
            column = mean_over_frames(aligned_distance(x, y.expand_as(x), alignment), valid)
        elif name == "rotation":
            target = torch.where(valid.any(1)[..., None, None, None], target_rotmats, 0.0)[:, None]
            clean = torch.where(valid[..., None, None, None], rotmats, target)
            column = mean_over_frames(rotation_difference(clean, target, rotation_error), valid)
        elif name == "velocity":
            speed = (x - y).diff(dim=2).norm(dim=-1).mean(-1) * fps
            column = mean_over_frames(speed, valid[..., 1:] & valid[..., :-1])
        elif name == "foot_skate":
            slid = sum(_slide(x[..., foot, :], height) for foot, height in zip(feet, foot_heights))
            column = mean_over_frames(slid * (fps / len(feet)), valid[..., 1:] & valid[..., :-1])
        elif name == "ground_penetration":
            column = mean_over_frames((-x[..., 2]).amax(-1).clamp_min(0), valid)
        elif name == "jitter":
            four = valid[..., 3:] & valid[..., 2:-1] & valid[..., 1:-2] & valid[..., :-3]
            jerk = _jerk(x, four, fps)
            # Where that overflows it is above the recording's, which may overflow as well.
            recorded = torch.where(jerk == math.inf, 0.0, _jerk(y, four, fps))
            column = (jerk - recorded).abs()
        else:
            column = mean_over_frames((x[..., head, :] - y[..., head, :]).norm(dim=-1), valid)
        columns.append(column)
    return torch.stack(columns, dim=-1)


def rewards(errors: Tensor, slopes: Sequence[float]) -> Tensor:
    """exp(-slope * error) of (B, G, K)."""
    return torch.stack([torch.exp(-slope * error) for slope, error in zip(slopes, errors.unbind(-1))], dim=-1)


def mean_over_frames(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of (B, 1 or G, T) over the frames that count, (B, 1 or G, T) bool; NaN where there is none."""
    values, counted = torch.broadcast_tensors(values, counted)
    return torch.where(counted, values, 0.0).sum(-1) / counted.sum(-1)


def aligned_distance(x: Tensor, y: Tensor, alignment: str) -> Tensor:
    """Mean over the joints of (B, G, T, N, 3) after each frame's alignment."""
    source, onto = (x, y) if alignment == "standard" else (y, x)
    moves = procrustes_align(source, onto, backend="reference").aligned - y
    # In units of the frame's longest move: squares of metres overflow long before metres do.
    longest = moves.detach().abs().amax((-1, -2)).clamp_min(torch.finfo(y.dtype).tiny)
    return longest * (moves / longest[..., None, None]).norm(dim=-1).mean(-1)


@without_autocast
def rotation_difference(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Mean over the joints of (B, G, T, J, 3, 3)."""
    if kind == "frobenius":
        return (a - b).flatten(-2).norm(dim=-1).mean(-1)
    if kind == "axis_angle":
        difference = rotation_vector(unit_quaternion(a)) - rotation_vector(unit_quaternion(b))
        return (torch.remainder(difference + math.pi, 2 * math.pi) - math.pi).abs().mean((-1, -2))
    relative = a.mT @ b
    # atan2 of sine and cosine: the arc cosine of the trace would lose half of the digits near zero.
    sine = _axial(relative).norm(dim=-1)
    angle = torch.atan2(sine, relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    return torch.where(sine.isinf(), math.nan, angle).mean(-1)  # of two infinities there is an angle, 45 degrees


def _axial(a: Tensor) -> Tensor:
    return torch.stack((a[..., 2, 1] - a[..., 1, 2], a[..., 0, 2] - a[..., 2, 0], a[..., 1, 0] - a[..., 0, 1]), -1)


def _slide(foot: Tensor, limit: float) -> Tensor:
    """(B, G, T - 1) metres per frame that (B, G, T, 3) slides, weighed by how near the floor it arrives."""
    weight = 2 - torch.exp2(foot[..., 1:, 2].clamp(0, limit) / limit)
    # Held finite where squares overflow, because a weight may be zero.
    return weight * foot[..., :2].diff(dim=-2).norm(dim=-1).clamp_max(torch.finfo(foot.dtype).max)


def _jerk(joints: Tensor, counted: Tensor, fps: float) -> Tensor:
    return mean_over_frames(joints.diff(n=3, dim=2).norm(dim=-1).mean(-1) * fps**3, counted)
