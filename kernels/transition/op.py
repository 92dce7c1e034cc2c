"""Registered operators ``mgrpo::sde_step``, ``projected_sde_step``, ``sde_log_prob``, ``sde_log_ratio``, ``sde_kl``.

The last is ``sde_log_ratio`` without noise. States come as (N, T, D), noise as a tensor, as the words of a
:class:`NoiseKey`, or not at all; a scalar as a number, which an (N,) float64 tensor replaces where it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._checks import STATE_DTYPES
from .._dispatch import Implementation
from .._library import Kernel, call_op, cuda, define_op, native, native_cpu, native_cuda
from .._vmap import rows
from . import reference

_NOISE = "Tensor? noise, Tensor? step_member, Tensor? condition, SymInt seed, SymInt iteration, int stream"
_NOISE_ROWS = ("noise", "step_member", "condition")
_SCALARS = "float A, float B, float s, Tensor? A_rows, Tensor? B_rows, Tensor? s_rows"
_SCALAR_ROWS = ("A_rows", "B_rows", "s_rows")
_WEIGHTING = "Tensor? mask, Tensor? channel_weights, bool mean"
_MATRICES = "int first_channel, int matrices, bool fix_det"


class LogRatio(torch.autograd.Function):
    """``reference.log_ratio`` with its closed-form gradient with respect to ``x0_pred``; nothing else gets one.

    It keeps references to its inputs and no intermediate array. The backward pass is itself differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x0_pred: Tensor,
        x0_pred_old: Tensor,
        noise: Tensor | None,
        gain: Tensor,
        scale: Tensor,
        mask: Tensor | None,
        channel_weights: Tensor | None,
        drop_quadratic: bool,
    ) -> Tensor:
        return reference.log_ratio(x0_pred, x0_pred_old, noise, gain, scale, mask, channel_weights, drop_quadratic)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.drop_quadratic = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x0_pred = None
        if ctx.needs_input_grad[0]:
            grad_x0_pred = reference.log_ratio_backward(grad, *ctx.saved_tensors, ctx.drop_quadratic)
        return grad_x0_pred, None, None, None, None, None, None, None


class _LogRatioForward(LogRatio):
    """The same with a forward-mode derivative, which torch.compile does not take in a function of its own."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        x0_pred, other, *rest = ctx.saved_tensors
        ones = x0_pred.new_ones(x0_pred.shape[0], dtype=reference.compute_dtype(x0_pred, other))
        slopes = reference.log_ratio_backward(ones, x0_pred, other, *rest, ctx.drop_quadratic)
        return (slopes * tangent).sum((1, 2), dtype=torch.float64).to(ones.dtype)


def log_ratio(*arguments: Any) -> Tensor:
    """:class:`LogRatio` of these arguments."""
    return (LogRatio if torch.compiler.is_compiling() else _LogRatioForward).apply(*arguments)


def _constant_scalars(implementation: Implementation) -> Implementation:
    """``implementation`` of an op whose A, B and s are constants: the one-dimensional ones among its tensors."""

    def refuses(tensors: tuple[Tensor, ...]) -> str | None:
        if torch.is_grad_enabled() and any(tensor.dim() == 1 and tensor.requires_grad for tensor in tensors):
            return "has no gradient with respect to A, B or s"
        return implementation.refuses(tensors)

    return Implementation(unavailable=implementation.unavailable, refuses=refuses)


def _implementations(operators: list[str], constant_scalars: bool = False) -> dict[str, Implementation]:
    found = {"cpp": native_cpu(operators, STATE_DTYPES), "cuda": native_cuda(operators, STATE_DTYPES)}
    return {name: _constant_scalars(one) if constant_scalars else one for name, one in found.items()}


def _backends(operator: str) -> dict[str, Callable[..., Any]]:
    return {"cpp": native(operator), "cuda": cuda(operator)}


def _empty_state(like: Tensor, *others: Tensor | None) -> Tensor:
    return like.new_empty(like.shape, dtype=reference.compute_dtype(like, *(x for x in others if x is not None)))


def _times(grad: Tensor, number: float, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (grad * (number if rows is None else rows.to(grad.dtype)[:, None, None])).to(dtype)


# The step is linear in its states, so its gradient is three scaled copies of the incoming one: plain torch, which makes
# only the wanted ones, is as fast as a kernel of ours, and has second derivatives.


def _step_fake(x_t: Tensor, x0_pred: Tensor, noise: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    x_prev = _empty_state(x_t, x0_pred, noise)
    with_log_prob = rest[-2]
    return x_prev, x_prev.new_empty((x_t.shape[0] if with_log_prob else 0,))


def _step_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
    ctx.numbers = inputs[8:11]
    ctx.inputs = len(inputs)
    ctx.save_for_backward(*inputs[11:14])
    ctx.mark_non_differentiable(output[1])


def _step_gradient(ctx: Any, grad_x_prev: Tensor, grad_log_prob: Tensor) -> tuple[Tensor | None, ...]:
    grads = [
        _times(grad_x_prev, number, rows, dtype) if needed else None
        for needed, number, rows, dtype in zip(ctx.needs_input_grad[:3], ctx.numbers, ctx.saved_tensors, ctx.dtypes)
    ]
    return *grads, *(None,) * (ctx.inputs - 3)


define_op(
    "sde_step",
    implementations=_implementations(["sde_step_fwd"], constant_scalars=True),
    forward=Kernel(
        f"(Tensor x_t, Tensor x0_pred, {_NOISE}, {_SCALARS}, {_WEIGHTING}, bool with_log_prob, str backend)"
        " -> (Tensor, Tensor)",
        fake=_step_fake,
        backends=_backends("sde_step_fwd"),
        vmap=rows("x_t", "x0_pred", *_NOISE_ROWS, *_SCALAR_ROWS, "mask"),
    ),
    setup_context=_step_context,
    gradient=_step_gradient,
)


def _projected_fake(x_t: Tensor, x0_pred: Tensor, noise: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty_state(x_t, x0_pred, noise), _empty_state(x_t, x0_pred, noise)


def _projected_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
    ctx.numbers = inputs[8:11]
    ctx.options = inputs[14:]
    ctx.save_for_backward(*inputs[11:14], inputs[1], output[1])
    ctx.set_materialize_grads(False)


def _projected_gradient(ctx: Any, grad_x_prev: Tensor | None, grad_projected: Tensor | None) -> tuple[Any, ...]:
    *scalar_rows, x0_pred, projected = ctx.saved_tensors
    grads: list[Tensor | None] = [None, None, None]
    if ctx.needs_input_grad[1] and not (grad_x_prev is None and grad_projected is None):
        grads[1] = call_op(
            "projected_sde_step_backward",
            grad_x_prev,
            grad_projected,
            x0_pred,
            projected,
            ctx.numbers[1],
            scalar_rows[1],
            *ctx.options,
        )
    for i in (0, 2):
        if ctx.needs_input_grad[i] and grad_x_prev is not None:
            grads[i] = _times(grad_x_prev, ctx.numbers[i], scalar_rows[i], ctx.dtypes[i])
    return *grads, *(None,) * (11 + len(ctx.options))


define_op(
    "projected_sde_step",
    implementations=_implementations(["projected_sde_step_fwd", "projected_sde_step_bwd"], constant_scalars=True),
    forward=Kernel(
        f"(Tensor x_t, Tensor x0_pred, {_NOISE}, {_SCALARS}, {_MATRICES}, str backend) -> (Tensor, Tensor)",
        fake=_projected_fake,
        backends=_backends("projected_sde_step_fwd"),
        vmap=rows("x_t", "x0_pred", *_NOISE_ROWS, *_SCALAR_ROWS),
    ),
    backward=Kernel(
        "(Tensor? grad_x_prev, Tensor? grad_projected, Tensor x0_pred, Tensor projected, float B, Tensor? B_rows, "
        f"{_MATRICES}, str backend) -> Tensor",
        fake=lambda grad_x_prev, grad_projected, x0_pred, *rest: x0_pred.new_empty(x0_pred.shape),
        backends=_backends("projected_sde_step_bwd"),
        vmap=rows("grad_x_prev", "grad_projected", "x0_pred", "projected", "B_rows"),
    ),
    setup_context=_projected_context,
    gradient=_projected_gradient,
)


# The three gradients of the density are multiples of (x_prev - mean) / unit. With `keep` the forward pass writes these
# numbers, so that the backward pass reads one array in the place of three states.


def keeps_residual(x_prev: Tensor, x_t: Tensor, x0_pred: Tensor) -> bool:
    """Whether ``sde_log_prob`` should keep what its gradient needs: where there will be one, and where the states are
    as wide as what would be kept. Of half-precision states the three are read again in fewer bytes."""
    states = (x_prev, x_t, x0_pred)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in states)
    return wanted and x_t.dtype == x_prev.dtype == x0_pred.dtype == reference.compute_dtype(*states)


def _log_prob_fake(x_prev: Tensor, x_t: Tensor, x0_pred: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype, keep = reference.compute_dtype(x_prev, x_t, x0_pred), rest[-2]
    return x_prev.new_empty((x_prev.shape[0],), dtype=dtype), x_prev.new_empty(
        x_prev.shape if keep else (0,), dtype=dtype
    )


def _log_prob_backward_fake(
    grad: Tensor, x_prev_or_kept: Tensor, x_t: Tensor | None, x0_pred: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    states, needs = (x if x is not None else x_prev_or_kept for x in (x_prev_or_kept, x_t, x0_pred)), rest[-4:-1]
    return tuple(x.new_empty(x.shape if needed else (0,)) for x, needed in zip(states, needs))


def _log_prob_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.numbers = inputs[3:6]
    ctx.mean, keep, ctx.backend = inputs[11:]
    states = (output[1], None, None) if keep else inputs[:3]
    # What was kept depends on the states, so it stays differentiable: a second derivative then meets the backward
    # operator, which refuses it, instead of a constant.
    ctx.save_for_backward(*states, *inputs[6:11])
    ctx.set_materialize_grads(False)  # its first gradient is None, and zeros would be as large as a state


def _log_prob_gradient(ctx: Any, grad: Tensor | None, grad_kept: None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 14
    saved = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads = call_op("sde_log_prob_backward", grad, *saved[:3], *ctx.numbers, *saved[3:], ctx.mean, *needs, ctx.backend)
    return *(g if needed else None for g, needed in zip(grads, needs)), *(None,) * 11


define_op(
    "sde_log_prob",
    implementations=_implementations(["sde_log_prob_fwd", "sde_log_prob_bwd"], constant_scalars=True),
    forward=Kernel(
        f"(Tensor x_prev, Tensor x_t, Tensor x0_pred, {_SCALARS}, {_WEIGHTING}, bool keep, str backend)"
        " -> (Tensor, Tensor)",
        fake=_log_prob_fake,
        backends=_backends("sde_log_prob_fwd"),
        vmap=rows("x_prev", "x_t", "x0_pred", *_SCALAR_ROWS, "mask"),
    ),
    backward=Kernel(
        f"(Tensor grad, Tensor x_prev_or_kept, Tensor? x_t, Tensor? x0_pred, {_SCALARS}, {_WEIGHTING}, "
        "bool needs_x_prev, bool needs_x_t, bool needs_x0_pred, str backend) -> (Tensor, Tensor, Tensor)",
        fake=_log_prob_backward_fake,
        backends=_backends("sde_log_prob_bwd"),
        vmap=rows("grad", "x_prev_or_kept", "x_t", "x0_pred", *_SCALAR_ROWS, "mask"),
    ),
    setup_context=_log_prob_context,
    gradient=_log_prob_gradient,
)


def _log_ratio_fake(x0_pred: Tensor, other: Tensor, *rest: Any) -> Tensor:
    return x0_pred.new_empty((x0_pred.shape[0],), dtype=reference.compute_dtype(x0_pred, other))


def _log_ratio_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.numbers = inputs[5:9]
    ctx.options = inputs[12:]
    ctx.save_for_backward(*inputs[:5], *inputs[9:12])


def _log_ratio_gradient(operator: str, ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_x0_pred = None
    if ctx.needs_input_grad[0]:
        saved = ctx.saved_tensors
        grad_x0_pred = call_op(operator, grad, *saved[:5], *ctx.numbers, *saved[5:], *ctx.options)
    return grad_x0_pred, *(None,) * (11 + len(ctx.options))


for _name in ("sde_log_ratio", "sde_kl"):  # the same kernels; two operators, so that refusals name what was called
    define_op(
        _name,
        implementations=_implementations(["sde_log_ratio_fwd", "sde_log_ratio_bwd"]),
        forward=Kernel(
            f"(Tensor x0_pred, Tensor other, {_NOISE}, float gain, Tensor? gain_rows, {_WEIGHTING}, "
            "bool drop_quadratic, str backend) -> Tensor",
            fake=_log_ratio_fake,
            backends=_backends("sde_log_ratio_fwd"),
            vmap=rows("x0_pred", "other", *_NOISE_ROWS, "gain_rows", "mask"),
        ),
        backward=Kernel(
            f"(Tensor grad, Tensor x0_pred, Tensor other, {_NOISE}, float gain, Tensor? gain_rows, {_WEIGHTING}, "
            "bool drop_quadratic, str backend) -> Tensor",
            fake=lambda grad, x0_pred, *rest: x0_pred.new_empty(x0_pred.shape),
            backends=_backends("sde_log_ratio_bwd"),
            vmap=rows("grad", "x0_pred", "other", *_NOISE_ROWS, "gain_rows", "mask"),
        ),
        setup_context=_log_ratio_context,
        gradient=partial(_log_ratio_gradient, f"{_name}_backward"),
    )
