"""The registered operators ``mgrpo::procrustes_align`` and ``mgrpo::procrustes_align_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import Kernel, define_op, native, native_cpu


def _fake(source: Tensor, target: Tensor, weights: Tensor, with_scale: bool, backend: str) -> tuple[Tensor, ...]:
    batch = source.shape[:-2]
    return (
        source.new_empty(source.shape),
        source.new_empty((*batch, 3, 3)),
        source.new_empty((*batch, 3)),
        source.new_empty(batch),
    )


def _fake_backward(
    grad_aligned: Tensor,
    grad_R: Tensor,
    grad_t: Tensor,
    grad_scale: Tensor,
    source: Tensor,
    target: Tensor,
    weights: Tensor,
    with_scale: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return source.new_empty(source.shape), source.new_empty(source.shape), source.new_empty(source.shape[:-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    source, target, weights, ctx.with_scale, ctx.backend = inputs
    ctx.save_for_backward(source, target, weights)


def _gradient(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    backward = torch.ops.mgrpo.procrustes_align_backward
    return *backward(*grads, *ctx.saved_tensors, ctx.with_scale, ctx.backend), None, None


# Every tensor has the full batch here: the public function expands (without copying), and autograd's expand sums.
define_op(
    "procrustes_align",
    implementations={"cpp": native_cpu(["procrustes_align_fwd", "procrustes_align_bwd"])},
    forward=Kernel(
        "(Tensor source, Tensor target, Tensor weights, bool with_scale, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        fake=_fake,
        backends={"cpp": native("procrustes_align_fwd")},
    ),
    backward=Kernel(
        "(Tensor grad_aligned, Tensor grad_R, Tensor grad_t, Tensor grad_scale, Tensor source, Tensor target,"
        " Tensor weights, bool with_scale, str backend) -> (Tensor, Tensor, Tensor)",
        fake=_fake_backward,
        backends={"cpp": native("procrustes_align_bwd")},
    ),
    setup_context=_setup_context,
    gradient=_gradient,
)
