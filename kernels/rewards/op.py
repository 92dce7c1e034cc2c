"""The registered operators ``mgrpo::group_rewards`` and ``mgrpo::motion_rewards`` with their backward operators.

Rewards are a second result beside the errors, so that one launch gives both; the backward operators take both
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._library import Kernel, define_op, native, native_cpu

_GROUP = (
    "Tensor? joints, Tensor? target_joints, Tensor? rotmats, Tensor? target_rotmats, Tensor mask, int head, int[] feet,"
    " float[] foot_heights, int[] kinds, float[] slopes, float fps, int rotation_error, int alignment"
)
_MOTION = (
    "Tensor rotations, Tensor? betas, Tensor T_world_cpf, Tensor? target_joints, Tensor? target_rotmats, Tensor mask,"
    " Tensor t_parent_joint, Tensor t_head_cpf, Tensor? t_parent_joint_shapedirs, Tensor? t_head_cpf_shapedirs,"
    " int[] parents, int head, int[] feet, float[] foot_heights, int representation, bool project, int[] kinds,"
    " float[] slopes, float fps, int rotation_error, int alignment"
)
_GRADS = "Tensor grad_errors, Tensor grad_rewards, Tensor rewards, "
_RESULT = " -> (Tensor, Tensor)"


def _fake_scores(like: Tensor, mask: Tensor, kinds: Sequence[int]) -> tuple[Tensor, Tensor]:
    shape = (*mask.shape[:2], len(kinds))
    return like.new_empty(shape), like.new_empty(shape)


def _fake_group(*arguments: Any) -> tuple[Tensor, Tensor]:
    like = arguments[0] if arguments[0] is not None else arguments[2]
    return _fake_scores(like, arguments[4], arguments[8])


def _fake_group_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    grad, joints, rotmats, wanted = arguments[0], arguments[3], arguments[5], arguments[-3:-1]
    return tuple(
        grad.new_empty(given.shape if want and given is not None else 0)
        for given, want in zip((joints, rotmats), wanted)
    )


def _group_native_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    grads = native("group_rewards_bwd")(*arguments)
    given, wanted = (arguments[3], arguments[5]), arguments[-2:]
    return tuple(grad.view(x.shape) if want and x is not None else grad for grad, x, want in zip(grads, given, wanted))


def _group_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:5])
    ctx.options = inputs[5:]


def _group_gradient(ctx: Any, grad_errors: Tensor, grad_rewards: Tensor) -> tuple[Any, ...]:
    *options, backend = ctx.options
    wanted = [bool(ctx.needs_input_grad[i]) for i in (0, 2)]
    grads = torch.ops.mgrpo.group_rewards_backward(
        grad_errors, grad_rewards, *ctx.saved_tensors, *options, *wanted, backend
    )
    joints, rotmats = (grad if want else None for grad, want in zip(grads, wanted))
    return joints, None, rotmats, *(None,) * 11


def _fake_motion(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _fake_scores(arguments[0], arguments[5], arguments[16])


def _fake_motion_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    grad, rotations, betas, wanted = arguments[0], arguments[3], arguments[4], arguments[-3:-1]
    return tuple(
        grad.new_empty(given.shape if want and given is not None else 0)
        for given, want in zip((rotations, betas), wanted)
    )


def _motion_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:10])
    ctx.options = inputs[10:]


def _motion_gradient(ctx: Any, grad_errors: Tensor, grad_rewards: Tensor) -> tuple[Any, ...]:
    *options, backend = ctx.options
    wanted = [bool(ctx.needs_input_grad[i]) for i in (0, 1)]
    grads = torch.ops.mgrpo.motion_rewards_backward(
        grad_errors, grad_rewards, *ctx.saved_tensors, *options, *wanted, backend
    )
    rotations, betas = (grad if want else None for grad, want in zip(grads, wanted))
    return rotations, betas, *(None,) * 20


define_op(
    "group_rewards",
    implementations={"cpp": native_cpu(["group_rewards_fwd", "group_rewards_bwd"])},
    forward=Kernel(
        f"({_GROUP}, str backend){_RESULT}", fake=_fake_group, backends={"cpp": native("group_rewards_fwd")}
    ),
    backward=Kernel(
        f"({_GRADS}{_GROUP}, bool want_joints, bool want_rotmats, str backend){_RESULT}",
        fake=_fake_group_backward,
        backends={"cpp": _group_native_backward},
    ),
    setup_context=_group_setup,
    gradient=_group_gradient,
)

define_op(
    "motion_rewards",
    implementations={"cpp": native_cpu(["motion_rewards_fwd", "motion_rewards_bwd"])},
    forward=Kernel(
        f"({_MOTION}, str backend){_RESULT}", fake=_fake_motion, backends={"cpp": native("motion_rewards_fwd")}
    ),
    backward=Kernel(
        f"({_GRADS}{_MOTION}, bool want_rotations, bool want_betas, str backend){_RESULT}",
        fake=_fake_motion_backward,
        backends={"cpp": native("motion_rewards_bwd")},
    ),
    setup_context=_motion_setup,
    gradient=_motion_gradient,
)
