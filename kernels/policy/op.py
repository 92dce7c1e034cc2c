"""The registered operators ``mgrpo::group_advantages``, ``mgrpo::grpo_loss`` and ``mgrpo::grpo_loss_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import Kernel, call_op, cuda, define_op, native, native_cpu, native_cuda

_LOSS_OPERATORS = ("grpo_loss_fwd", "grpo_loss_bwd")


def _fake_advantages(rewards: Tensor, *options: Any) -> tuple[Tensor, ...]:
    B, G, K = rewards.shape
    return (
        rewards.new_empty((B, G)),
        rewards.new_empty((B, G, K)),
        rewards.new_empty((B, K)),
        rewards.new_empty((B, K), dtype=torch.bool),
        rewards.new_empty((B,), dtype=torch.bool),
    )


define_op(
    "group_advantages",
    implementations={"cpp": native_cpu(["group_advantages_fwd"]), "cuda": native_cuda(["group_advantages_fwd"])},
    forward=Kernel(
        "(Tensor rewards, Tensor? valid, Tensor weights, int scheme, int ddof, float eps, float std_floor_ratio,"
        " float dead_ratio, float dead_abs, float trim, float clamp, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_advantages,
        backends={"cpp": native("group_advantages_fwd"), "cuda": cuda("group_advantages_fwd")},
    ),
)


def _fake_loss(log_ratio: Tensor, *options: Any) -> tuple[Tensor, ...]:
    scalars = [log_ratio.new_empty(()) for _ in range(4)]
    divisor = log_ratio.new_empty((), dtype=torch.float64)
    return scalars[0], log_ratio.new_empty(log_ratio.shape), *scalars[1:], divisor


def _fake_loss_backward(grad_loss: Tensor, log_ratio: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    with_kl = options[-2]
    return log_ratio.new_empty(log_ratio.shape), log_ratio.new_empty(log_ratio.shape if with_kl else (0,))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    log_ratio, advantages, valid, weights, kl, _, _, ctx.clip_low, ctx.clip_high, ctx.kl_coef, ctx.backend = inputs
    ctx.with_kl = kl is not None
    ctx.save_for_backward(log_ratio, advantages, valid, weights, output[-1])


def _gradient(ctx: Any, grad_loss: Tensor, *grads: Tensor) -> tuple[Any, ...]:
    *inputs, divisor = ctx.saved_tensors
    grad_log_ratio, grad_kl = call_op(
        "grpo_loss_backward",
        grad_loss,
        *inputs,
        divisor,
        ctx.clip_low,
        ctx.clip_high,
        ctx.kl_coef,
        ctx.with_kl,
        ctx.backend,
    )
    # The other results are statistics, which the public function detaches; advantages and weights are constants.
    return grad_log_ratio, None, None, None, grad_kl if ctx.with_kl else None, *[None] * 6


define_op(
    "grpo_loss",
    implementations={"cpp": native_cpu(_LOSS_OPERATORS), "cuda": native_cuda(_LOSS_OPERATORS)},
    forward=Kernel(
        "(Tensor log_ratio, Tensor advantages, Tensor? valid, Tensor? weights, Tensor? kl, Tensor? denominator,"
        " float fixed_denominator, float clip_low, float clip_high, float kl_coef, str backend)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        fake=_fake_loss,
        backends={"cpp": native("grpo_loss_fwd"), "cuda": cuda("grpo_loss_fwd")},
    ),
    backward=Kernel(
        "(Tensor grad_loss, Tensor log_ratio, Tensor advantages, Tensor? valid, Tensor? weights, Tensor divisor,"
        " float clip_low, float clip_high, float kl_coef, bool with_kl, str backend) -> (Tensor, Tensor)",
        fake=_fake_loss_backward,
        backends={"cpp": native("grpo_loss_bwd"), "cuda": cuda("grpo_loss_bwd")},
    ),
    setup_context=_setup_context,
    gradient=_gradient,
)
