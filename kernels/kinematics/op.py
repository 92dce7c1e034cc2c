"""The registered operators of forward kinematics and of joint offsets that are linear in the shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._autocast import without_autocast
from .._dispatch import Implementation
from .._library import Kernel, call_op, cuda, define_op, native, native_cpu, native_cuda
from .._triton import triton_backend, triton_call
from .._vmap import batches

REPRESENTATIONS = ("matrix", "quaternion", "rot6d")
OUTPUTS = ("matrix", "quaternion", "positions")

NUMBERS = {"matrix": (3, 3), "quaternion": (4,), "rot6d": (6,), "positions": (0,)}
"""Trailing axes of one joint's rotation."""


def batch_of(rotations: Tensor, representation: str) -> torch.Size:
    """The leading axes of ``rotations``, which every other argument broadcasts to."""
    return rotations.shape[: rotations.dim() - (3 if representation == "matrix" else 2)]


# ---- forward_kinematics ----
#
# No argument is expanded: the kernels broadcast. A result or gradient that was not asked for comes back with no
# elements. `root` is the pose of the root, or, where `t_head_cpf` is given, that of the central pupil frame.

_INPUTS = (
    "Tensor rotations, Tensor t_parent_joint, Tensor? root, Tensor? t_head_cpf, int[] parents, int head,"
    " str representation, str output"
)
_OWN_AXES = {"rotations": "representation", "t_parent_joint": 2, "root": 1, "t_head_cpf": 1}
_BROADCAST = ("t_parent_joint", "root", "t_head_cpf")


def _fake(
    rotations: Tensor,
    t_parent_joint: Tensor,
    root: Tensor | None,
    t_head_cpf: Tensor | None,
    parents: list[int],
    head: int,
    representation: str,
    output: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, J = batch_of(rotations, representation), len(parents)
    return (
        rotations.new_empty((*batch, J, 3)),
        rotations.new_empty((0,) if output == "positions" else (*batch, J, *NUMBERS[output])),
        rotations.new_empty((0,) if t_head_cpf is None else (*batch, 7)),
    )


def _fake_backward(
    grad_joints: Tensor | None,
    grad_world: Tensor | None,
    grad_root: Tensor | None,
    rotations: Tensor,
    t_parent_joint: Tensor,
    root: Tensor | None,
    t_head_cpf: Tensor | None,
    parents: list[int],
    head: int,
    representation: str,
    output: str,
    wanted: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, J = batch_of(rotations, representation), len(parents)
    shapes = (tuple(rotations.shape), (*batch, J, 3), (*batch, 7), (*batch, 3))
    return tuple(rotations.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]
    ctx.set_materialize_grads(False)


def _gradient(
    ctx: Any, grad_joints: Tensor | None, grad_world: Tensor | None, grad_root: Tensor | None
) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    *options, representation, output, backend = ctx.options
    if tensors[3] is None:
        grad_root = None
    if output == "positions":
        grad_world = None
    wanted = list(ctx.needs_input_grad[:4])
    if grad_joints is None and grad_world is None and grad_root is None:
        return (None,) * 9
    per_pose = call_op(
        "forward_kinematics_backward",
        grad_joints,
        grad_world,
        grad_root,
        *tensors,
        *options,
        representation,
        output,
        wanted,
        backend,
    )
    # The kernels give every pose its own gradient; what several poses share gets their sum.
    grads = (grad.sum_to_size(tensor.shape) if want else None for grad, tensor, want in zip(per_pose, tensors, wanted))
    return *grads, None, None, None, None, None


_CODES = {"matrix": 0, "quaternion": 1, "rot6d": 2, "positions": 2}
"""Representations and outputs as csrc/kinematics/kinematics_modes.h numbers them."""


def _with_codes(call: Callable[..., Any]) -> Callable[..., Any]:
    """A native operator, called with the names of representation and output."""

    def run(*arguments: Any) -> Any:
        return call(*(_CODES[value] if isinstance(value, str) else value for value in arguments))

    return run


_NATIVE = ("forward_kinematics_fwd", "forward_kinematics_bwd", "joint_offsets_fwd", "joint_offsets_bwd")
_MOST_JOINTS_IN_CUDA = 256  # kMostJoints of csrc/kinematics/kinematics_cuda.h: room in shared memory


def _at_most(joints: int, implementation: Implementation) -> Implementation:
    """Refuses larger trees; dispatch is asked about (rotations, t_parent_joint)."""

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        if len(tensors) > 1 and tensors[1].shape[-2] > joints:
            return f"takes at most {joints} joints, got {tensors[1].shape[-2]}"
        return implementation.refuses(tensors)

    return Implementation(unavailable=implementation.unavailable, refuses=refuses)


define_op(
    "forward_kinematics",
    implementations={
        "cpp": native_cpu(_NATIVE),
        "triton": triton_backend(),
        "cuda": _at_most(_MOST_JOINTS_IN_CUDA, native_cuda(_NATIVE)),
    },
    forward=Kernel(
        f"({_INPUTS}, str backend) -> (Tensor, Tensor, Tensor)",
        fake=_fake,
        backends={
            "cpp": _with_codes(native("forward_kinematics_fwd")),
            "triton": _with_codes(triton_call(__package__, "forward")),
            "cuda": _with_codes(cuda("forward_kinematics_fwd")),
        },
        vmap=batches(_BROADCAST, **_OWN_AXES),
    ),
    backward=Kernel(
        f"(Tensor? grad_joints, Tensor? grad_world, Tensor? grad_root, {_INPUTS}, bool[] wanted, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        backends={
            "cpp": _with_codes(native("forward_kinematics_bwd")),
            "triton": _with_codes(triton_call(__package__, "backward")),
            "cuda": _with_codes(cuda("forward_kinematics_bwd")),
        },
        vmap=batches(_BROADCAST, grad_joints=2, grad_world="output", grad_root=1, **_OWN_AXES),
    ),
    setup_context=_setup_context,
    gradient=_gradient,
)


# ---- joint_offsets: t_parent_joint + t_parent_joint_shapedirs @ betas ----


def _offsets_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, shapedirs, betas, ctx.backend = inputs
    ctx.save_for_backward(shapedirs, betas)


@without_autocast
def _offsets_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    shapedirs, betas = ctx.saved_tensors
    for_template, for_shapedirs, for_betas, _ = ctx.needs_input_grad
    # contiguous: the order in which sums and matrix products add, and so their rounding, may depend on strides
    grad = grad.contiguous()
    flat_grad = grad.reshape(-1, shapedirs[..., 0].numel())
    flat_betas = betas.reshape(-1, betas.shape[-1]).contiguous()
    return (
        grad.sum_to_size(shapedirs.shape[:2]) if for_template else None,
        (flat_grad.mT @ flat_betas).reshape(shapedirs.shape) if for_shapedirs else None,
        call_op("joint_offsets_backward", grad, shapedirs, ctx.backend) if for_betas else None,
        None,
    )


define_op(
    "joint_offsets",
    implementations={"cpp": native_cpu(_NATIVE), "triton": triton_backend(), "cuda": native_cuda(_NATIVE)},
    forward=Kernel(
        "(Tensor t_parent_joint, Tensor shapedirs, Tensor betas, str backend) -> Tensor",
        fake=lambda t_parent_joint, shapedirs, betas, backend: betas.new_empty(
            (*betas.shape[:-1], *t_parent_joint.shape)
        ),
        backends={
            "cpp": native("joint_offsets_fwd"),
            "triton": triton_call(__package__, "joint_offsets_forward"),
            "cuda": cuda("joint_offsets_fwd"),
        },
        vmap=batches(betas=1),
    ),
    backward=Kernel(
        "(Tensor grad_offsets, Tensor shapedirs, str backend) -> Tensor",
        fake=lambda grad_offsets, shapedirs, backend: grad_offsets.new_empty(
            (*grad_offsets.shape[:-2], shapedirs.shape[-1])
        ),
        backends={
            "cpp": native("joint_offsets_bwd"),
            "triton": triton_call(__package__, "joint_offsets_backward"),
            "cuda": cuda("joint_offsets_bwd"),
        },
        vmap=batches(grad_offsets=2),
    ),
    setup_context=_offsets_setup_context,
    gradient=_offsets_gradient,
)
