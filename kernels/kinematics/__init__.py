"""Forward kinematics of a joint tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_broadcastable, check_integer, check_like, check_tensor
from .._dispatch import resolve
from . import op as _op  # noqa: F401  (registers the operators)
from . import reference


class ForwardKinematics(NamedTuple):
    """World pose of every joint, the root left out."""

    joints: Tensor
    """(*batch, J, 3) positions, metres."""
    R_world_joint: Tensor
    """(*batch, J, 3, 3) rotations."""


def forward_kinematics(
    local_rotmats: Tensor,
    t_parent_joint: Tensor,
    parents: Sequence[int],
    T_world_root: Tensor | None = None,
    *,
    backend: str | None = None,
) -> ForwardKinematics:
    """World positions and rotations of a tree of J joints from their local rotations.

    For joint j with parent p: ``R_world_j = R_world_p local_j`` and ``x_j = x_p + R_world_p t_j``, as in EgoAllo's
    ``fncsmpl`` and SMPL-H.

    Args:
        local_rotmats: (*batch, J, 3, 3), R_parent_joint; any matrices, they are not projected. float32 or float64.
        t_parent_joint: (*#batch, J, 3), joint origins in the parent's frame, metres.
        parents: J ints, -1 for a child of the root; a parent stands before its children.
        T_world_root: (*#batch, 7), wxyz quaternion (normalised here) and translation; None is the identity.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        :class:`ForwardKinematics`, contiguous; differentiable in all three tensors.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or tree. BackendError: ``backend`` cannot serve the call.
    """
    name = "forward_kinematics"
    sizes: dict[str, int] = {}
    check_tensor(name, "local_rotmats", local_rotmats, ("*batch", "J", 3, 3), sizes=sizes)
    check_tensor(name, "t_parent_joint", t_parent_joint, ("*#batch", "J", 3), sizes=sizes)
    check_like(name, "t_parent_joint", t_parent_joint, "local_rotmats", local_rotmats)
    batch = local_rotmats.shape[:-3]
    check_broadcastable(name, "t_parent_joint", t_parent_joint.shape[:-2], batch, "local_rotmats")
    tree = _checked_parents(parents, sizes["J"])
    if T_world_root is None:
        R_root = torch.eye(3, dtype=local_rotmats.dtype, device=local_rotmats.device)
        t_root = torch.zeros(3, dtype=local_rotmats.dtype, device=local_rotmats.device)
    else:
        check_tensor(name, "T_world_root", T_world_root, ("*#batch", 7))
        check_like(name, "T_world_root", T_world_root, "local_rotmats", local_rotmats)
        check_broadcastable(name, "T_world_root", T_world_root.shape[:-1], batch, "local_rotmats")
        R_root, t_root = _root_matrix(T_world_root[..., :4]), T_world_root[..., 4:]

    chosen = resolve(name, backend, local_rotmats)
    if chosen == "reference":
        return ForwardKinematics(*reference.forward_kinematics(local_rotmats, t_parent_joint, tree, R_root, t_root))
    return ForwardKinematics(
        *torch.ops.mgrpo.forward_kinematics(
            local_rotmats,
            t_parent_joint.expand(*batch, -1, -1),
            R_root.expand(*batch, 3, 3),
            t_root.expand(*batch, 3),
            tree,
            chosen,
        )
    )


def _checked_parents(parents: Sequence[int], J: int) -> tuple[int, ...]:
    function = "forward_kinematics"
    if isinstance(parents, (str, Tensor)) or not hasattr(parents, "__len__"):
        raise TypeError(f"{function}(): parents must be a sequence of ints, got {type(parents).__name__}")
    tree = tuple(check_integer(function, f"parents[{j}]", parent) for j, parent in enumerate(parents))
    if len(tree) != J:
        raise ValueError(f"{function}(): parents must have J = {J} entries, got {len(tree)}")
    if J == 0:
        raise ValueError(f"{function}(): local_rotmats must have J >= 1 joints, got 0")
    for joint, parent in enumerate(tree):
        if not -1 <= parent < joint:
            raise ValueError(
                f"{function}(): parents[{joint}] must be -1 or the index of an earlier joint (0 to {joint - 1}), "
                f"got {parent}"
                if joint
                else f"{function}(): parents[0] must be -1, got {parent}"
            )
    return tree


def _root_matrix(wxyz: Tensor) -> Tensor:
    """(*batch, 4) quaternions of any length but zero -> (*batch, 3, 3)."""
    w, x, y, z = (wxyz / torch.linalg.vector_norm(wxyz, dim=-1, keepdim=True)).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z),
            2 * (x * y - w * z),
            2 * (x * z + w * y),
            2 * (x * y + w * z),
            1 - 2 * (x * x + z * z),
            2 * (y * z - w * x),
            2 * (x * z - w * y),
            2 * (y * z + w * x),
            1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))
