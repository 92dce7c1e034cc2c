"""The registered operators ``mgrpo::project_so3`` and ``mgrpo::project_so3_backward``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._library import Kernel, call_op, cuda, define_op, native, native_cpu, native_cuda
from .._triton import triton_backend, triton_call
from .._vmap import batches

_OPERATORS = ("project_so3_fwd", "project_so3_bwd")


def _setup_context(ctx: Any, inputs: tuple[Tensor, bool, str], output: Tensor) -> None:
    matrices, ctx.fix_det, ctx.backend = inputs
    ctx.save_for_backward(matrices, output)


def _gradient(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None, None]:
    matrices, R = ctx.saved_tensors
    grad = call_op("project_so3_backward", grad_R, matrices, R, ctx.fix_det, ctx.backend)
    return grad, None, None


define_op(
    "project_so3",
    implementations={
        "cpp": native_cpu(_OPERATORS),
        "triton": triton_backend(),
        "cuda": native_cuda(_OPERATORS),
    },
    forward=Kernel(
        "(Tensor matrices, bool fix_det, str backend) -> Tensor",
        fake=lambda matrices, fix_det, backend: matrices.new_empty(matrices.shape),
        backends={
            "cpp": native("project_so3_fwd"),
            "triton": triton_call(__package__, "project_so3_forward"),
            "cuda": cuda("project_so3_fwd"),
        },
        vmap=batches(matrices=2),
    ),
    backward=Kernel(
        "(Tensor grad_R, Tensor matrices, Tensor R, bool fix_det, str backend) -> Tensor",
        fake=lambda grad_R, matrices, R, fix_det, backend: matrices.new_empty(matrices.shape),
        backends={
            "cpp": native("project_so3_bwd"),
            "triton": triton_call(__package__, "project_so3_backward"),
            "cuda": cuda("project_so3_bwd"),
        },
        vmap=batches(grad_R=2, matrices=2, R=2),
    ),
    setup_context=_setup_context,
    gradient=_gradient,
)
