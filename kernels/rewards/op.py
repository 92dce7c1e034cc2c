"""The registered operators ``mgrpo::group_rewards`` and ``mgrpo::motion_rewards`` with their backward operators.

Rewards are a second result beside the errors, so that one launch gives both; the backward operators take both
gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._dispatch import Implementation
from .._library import Kernel, call_op, cuda, define_op, native, native_cpu, native_cuda
from .._triton import triton_backend, triton_call
from .._vmap import rows

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
_GROUP_ROWS = ("joints", "target_joints", "rotmats", "target_rotmats", "mask")
_MOTION_ROWS = ("rotations", "betas", "T_world_cpf", "target_joints", "target_rotmats", "mask")
_GRADS = "Tensor grad_errors, Tensor grad_rewards, Tensor rewards, "
_GRAD_ROWS = ("grad_errors", "grad_rewards", "rewards")
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


def _shaped(backward: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A native backward of group_rewards with its gradients in the shapes of what they are for."""

    def call(*arguments: Any) -> tuple[Tensor, Tensor]:
        given, wanted = (arguments[3], arguments[5]), arguments[-2:]
        return tuple(
            grad.view(x.shape) if want and x is not None else grad
            for grad, x, want in zip(backward(*arguments), given, wanted)
        )

    return call


def _group_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:5])
    ctx.options = inputs[5:]


def _group_gradient(ctx: Any, grad_errors: Tensor, grad_rewards: Tensor) -> tuple[Any, ...]:
    *options, backend = ctx.options
    wanted = [bool(ctx.needs_input_grad[i]) for i in (0, 2)]
    grads = call_op("group_rewards_backward", grad_errors, grad_rewards, *ctx.saved_tensors, *options, *wanted, backend)
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
    grads = call_op(
        "motion_rewards_backward", grad_errors, grad_rewards, *ctx.saved_tensors, *options, *wanted, backend
    )
    rotations, betas = (grad if want else None for grad, want in zip(grads, wanted))
    return rotations, betas, *(None,) * 20


GROUP_OPERATORS = ("group_rewards_fwd", "group_rewards_bwd")
MOTION_OPERATORS = ("motion_rewards_fwd", "motion_rewards_bwd")
_SHARED_MEMORY = 240
"""Joints of a body times bytes of a number: what the CUDA kernels keep of a frame must fit into shared memory."""


def _too_many(joints: int, like: Tensor) -> str | None:
    most = _SHARED_MEMORY // like.dtype.itemsize
    return f"takes at most {most} joints in this dtype, got {joints}" if joints > most else None


def _cuda_group() -> Implementation:
    """The CUDA backend of group_rewards; the first tensor is a prediction (B, G, T, N, ...)."""
    common = native_cuda(GROUP_OPERATORS)

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        reason = common.refuses(tensors)
        if reason is None and tensors[0].dim() > 3:
            reason = _too_many(tensors[0].shape[3], tensors[0])
        return reason

    return Implementation(unavailable=common.unavailable, refuses=refuses)


def _cuda_motion() -> Implementation:
    """The CUDA backend of motion_rewards; the tensors are the motion, the skeleton's offsets (J, 3) and, if the shape
    has an influence, its directions (J, 3, S) and the shape numbers."""
    common = native_cuda(MOTION_OPERATORS)

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        reason = common.refuses(tensors)
        if reason is None and len(tensors) > 1:
            reason = _too_many(1 + tensors[1].shape[0], tensors[0])
        if reason is None and len(tensors) > 2 and tensors[2].shape[-1] > 16:
            reason = f"takes at most 16 shape numbers, got {tensors[2].shape[-1]}"
        return reason

    return Implementation(unavailable=common.unavailable, refuses=refuses)


define_op(
    "group_rewards",
    implementations={"cpp": native_cpu(GROUP_OPERATORS), "triton": triton_backend(), "cuda": _cuda_group()},
    forward=Kernel(
        f"({_GROUP}, str backend){_RESULT}",
        fake=_fake_group,
        backends={
            "cpp": native("group_rewards_fwd"),
            "triton": triton_call(__package__, "group_rewards_forward"),
            "cuda": cuda("group_rewards_fwd"),
        },
        vmap=rows(*_GROUP_ROWS),
    ),
    backward=Kernel(
        f"({_GRADS}{_GROUP}, bool want_joints, bool want_rotmats, str backend){_RESULT}",
        fake=_fake_group_backward,
        backends={
            "cpp": _shaped(native("group_rewards_bwd")),
            "triton": triton_call(__package__, "group_rewards_backward"),
            "cuda": _shaped(cuda("group_rewards_bwd")),
        },
        vmap=rows(*_GRAD_ROWS, *_GROUP_ROWS),
    ),
    setup_context=_group_setup,
    gradient=_group_gradient,
)

define_op(
    "motion_rewards",
    implementations={"cpp": native_cpu(MOTION_OPERATORS), "triton": triton_backend(), "cuda": _cuda_motion()},
    forward=Kernel(
        f"({_MOTION}, str backend){_RESULT}",
        fake=_fake_motion,
        backends={
            "cpp": native("motion_rewards_fwd"),
            "triton": triton_call(__package__, "motion_rewards_forward"),
            "cuda": cuda("motion_rewards_fwd"),
        },
        vmap=rows(*_MOTION_ROWS),
    ),
    backward=Kernel(
        f"({_GRADS}{_MOTION}, bool want_rotations, bool want_betas, str backend){_RESULT}",
        fake=_fake_motion_backward,
        backends={
            "cpp": native("motion_rewards_bwd"),
            "triton": triton_call(__package__, "motion_rewards_backward"),
            "cuda": cuda("motion_rewards_bwd"),
        },
        vmap=rows(*_GRAD_ROWS, *_MOTION_ROWS),
    ),
    setup_context=_motion_setup,
    gradient=_motion_gradient,
)
