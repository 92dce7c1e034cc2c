"""The registered operators ``mgrpo::procrustes_align`` and ``mgrpo::procrustes_residual``, and their backwards.

Every tensor has the full batch here: the public functions expand (without copying), and autograd's expand sums the
gradients of shared clouds. ``weights`` may be None. The backward operators get one flag per differentiable input and
return an empty tensor for an input whose gradient nobody wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .._dispatch import Implementation
from .._library import Kernel, call_op, cuda, define_op, native, native_cpu, native_cuda
from .._triton import triton_backend, triton_call
from .._vmap import batches

_INPUTS = "Tensor source, Tensor target, Tensor? weights, bool with_scale, bool fix_det"
_OWN_AXES = {"source": 2, "target": 2, "weights": 1}
_NEEDS = "bool need_source, bool need_target, bool need_weights"


def _fake_align(source: Tensor, *_: Any) -> tuple[Tensor, ...]:
    batch = source.shape[:-2]
    return (
        source.new_empty(source.shape),
        source.new_empty((*batch, 3, 3)),
        source.new_empty((*batch, 3)),
        source.new_empty(batch),
    )


def _fake_residual(source: Tensor, *_: Any) -> Tensor:
    return source.new_empty(source.shape[:-2])


def _fake_gradients(source: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor, ...]:
    shapes = (source.shape, source.shape, source.shape[:-1])
    return tuple(source.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs))


def _fake_align_backward(
    grad_aligned: Tensor, grad_R: Tensor, grad_t: Tensor, grad_scale: Tensor, source: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return _fake_gradients(source, rest[4:7])


def _fake_residual_backward(grad_residual: Tensor, source: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(source, rest[4:7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    source, target, weights, ctx.with_scale, ctx.fix_det, ctx.backend = inputs
    ctx.save_for_backward(source, target, weights)


def _gradients(ctx: Any, backward: str, *grads: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:3]
    found = call_op(backward, *grads, *ctx.saved_tensors, ctx.with_scale, ctx.fix_det, *needs, ctx.backend)
    return *(grad if need else None for grad, need in zip(found, needs)), None, None, None


def _align_gradient(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    return _gradients(ctx, "procrustes_align_backward", *grads)


def _residual_gradient(ctx: Any, grad_residual: Tensor) -> tuple[Any, ...]:
    return _gradients(ctx, "procrustes_residual_backward", grad_residual)


_ALIGN = ("procrustes_align_fwd", "procrustes_align_bwd")
_RESIDUAL = ("procrustes_residual_fwd", "procrustes_residual_bwd")


def _implementations(operators: tuple[str, str]) -> dict[str, Implementation]:
    return {"cpp": native_cpu(operators), "triton": triton_backend(), "cuda": native_cuda(operators)}


def _backends(operator: str, triton_function: str) -> dict[str, Callable[..., Any]]:
    return {
        "cpp": native(operator),
        "triton": triton_call(__package__, triton_function),
        "cuda": cuda(operator),
    }


define_op(
    "procrustes_align",
    implementations=_implementations(_ALIGN),
    forward=Kernel(
        f"({_INPUTS}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_align,
        backends=_backends("procrustes_align_fwd", "align_forward"),
        vmap=batches(**_OWN_AXES),
    ),
    backward=Kernel(
        f"(Tensor grad_aligned, Tensor grad_R, Tensor grad_t, Tensor grad_scale, {_INPUTS}, {_NEEDS}, str backend)"
        " -> (Tensor, Tensor, Tensor)",
        fake=_fake_align_backward,
        backends=_backends("procrustes_align_bwd", "align_backward"),
        vmap=batches(grad_aligned=2, grad_R=2, grad_t=1, grad_scale=0, **_OWN_AXES),
    ),
    setup_context=_setup_context,
    gradient=_align_gradient,
)

define_op(
    "procrustes_residual",
    implementations=_implementations(_RESIDUAL),
    forward=Kernel(
        f"({_INPUTS}, str backend) -> Tensor",
        fake=_fake_residual,
        backends=_backends("procrustes_residual_fwd", "residual_forward"),
        vmap=batches(**_OWN_AXES),
    ),
    backward=Kernel(
        f"(Tensor grad_residual, {_INPUTS}, {_NEEDS}, str backend) -> (Tensor, Tensor, Tensor)",
        fake=_fake_residual_backward,
        backends=_backends("procrustes_residual_bwd", "residual_backward"),
        vmap=batches(grad_residual=0, **_OWN_AXES),
    ),
    setup_context=_setup_context,
    gradient=_residual_gradient,
)
