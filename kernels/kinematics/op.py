"""The registered operators ``mgrpo::forward_kinematics`` and ``mgrpo::forward_kinematics_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import Kernel, define_op, native, native_cpu


def _fake(
    local_rotmats: Tensor, t_parent_joint: Tensor, R_root: Tensor, t_root: Tensor, parents: list[int], backend: str
) -> tuple[Tensor, Tensor]:
    return local_rotmats.new_empty(local_rotmats.shape[:-1]), local_rotmats.new_empty(local_rotmats.shape)


def _fake_backward(
    grad_joints: Tensor,
    grad_R_world_joint: Tensor,
    local_rotmats: Tensor,
    t_parent_joint: Tensor,
    R_root: Tensor,
    R_world_joint: Tensor,
    parents: list[int],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = local_rotmats.shape[:-3]
    return (
        local_rotmats.new_empty(local_rotmats.shape),
        local_rotmats.new_empty(t_parent_joint.shape),
        local_rotmats.new_empty((*batch, 3, 3)),
        local_rotmats.new_empty((*batch, 3)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    local_rotmats, t_parent_joint, R_root, _, ctx.parents, ctx.backend = inputs
    ctx.save_for_backward(local_rotmats, t_parent_joint, R_root, output[1])


def _gradient(ctx: Any, grad_joints: Tensor, grad_R_world_joint: Tensor) -> tuple[Any, ...]:
    local_rotmats, t_parent_joint, R_root, R_world_joint = ctx.saved_tensors
    grads = torch.ops.mgrpo.forward_kinematics_backward(
        grad_joints, grad_R_world_joint, local_rotmats, t_parent_joint, R_root, R_world_joint, ctx.parents, ctx.backend
    )
    return *grads, None, None


# Every tensor has the full batch here: the public function expands (without copying), and autograd's expand sums.
define_op(
    "forward_kinematics",
    implementations={"cpp": native_cpu(["forward_kinematics_fwd", "forward_kinematics_bwd"])},
    forward=Kernel(
        "(Tensor local_rotmats, Tensor t_parent_joint, Tensor R_root, Tensor t_root, int[] parents, str backend)"
        " -> (Tensor, Tensor)",
        fake=_fake,
        backends={"cpp": native("forward_kinematics_fwd")},
    ),
    backward=Kernel(
        "(Tensor grad_joints, Tensor grad_R_world_joint, Tensor local_rotmats, Tensor t_parent_joint, Tensor R_root,"
        " Tensor R_world_joint, int[] parents, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        backends={"cpp": native("forward_kinematics_bwd")},
    ),
    setup_context=_setup_context,
    gradient=_gradient,
)
