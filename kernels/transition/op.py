"""Registers the transitions with dispatch, and gives the likelihood ratio its closed-form gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._library import define_op
from . import reference

for _name in ("sde_step", "sde_log_prob", "sde_log_ratio", "sde_kl"):
    define_op(_name)


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

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x0_pred = None
        if ctx.needs_input_grad[0]:
            grad_x0_pred = reference.log_ratio_backward(grad, *ctx.saved_tensors, ctx.drop_quadratic)
        return grad_x0_pred, None, None, None, None, None, None, None
