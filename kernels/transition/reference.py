"""Gaussian transitions x_prev = A x_t + B x0_pred + s noise in plain torch operations; derivations in README.md.

Every function takes states flattened to (N, T, D) and computes in the dtype of its inputs, which the public wrappers
have already promoted to float32 or float64. Rows never mix: a NaN in one row stays in that row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._polar import nearest_rotation

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

Scalar = float | Tensor
"""A Python number, or an (N, 1, 1) tensor with one number per row."""


def step(x_t: Tensor, x0_pred: Tensor, A: Scalar, B: Scalar, s: Scalar, noise: Tensor | None) -> Tensor:
    """A x_t + B x0_pred (+ s noise)."""
    x_prev = x_t * A + x0_pred * B
    return x_prev if noise is None else x_prev + noise * s


def project_matrices(x0_pred: Tensor, first_channel: int, matrices: int, fix_det: bool) -> Tensor:
    """(N, T, D) with channels first_channel to first_channel + 9 matrices, row-major 3x3 each, made rotations."""
    before, blocks, after = x0_pred.split(
        (first_channel, 9 * matrices, x0_pred.shape[-1] - first_channel - 9 * matrices), dim=-1
    )
    rotations = nearest_rotation(blocks.unflatten(-1, (matrices, 3, 3)), fix_det).flatten(-3)
    return torch.cat((before, rotations, after), dim=-1)


def zero_excluded(values: Tensor, frames: Tensor | None, channel_weights: Tensor | None) -> Tensor:
    """(N, T, D) values with exact zeros where ``frames`` (broadcastable bool) is False or a channel's weight is 0.

    A multiplication by 0 would let NaN through.
    """
    if frames is not None:
        values = torch.where(frames, values, 0.0)
    return values if channel_weights is None else torch.where(channel_weights != 0, values, 0.0)


def total_weight(
    shape: tuple[int, int, int], mask: Tensor | None, channel_weights: Tensor | None, like: Tensor
) -> Tensor:
    """(N,) float64 sum of the weights of each row's elements, on the device of ``like``."""
    rows, frames, channels = shape
    if mask is None:
        count = torch.full((rows,), float(frames), dtype=torch.float64, device=like.device)
    else:
        count = mask.sum(dim=1, dtype=torch.float64)
    return count * (channels if channel_weights is None else channel_weights.double().sum())


def row_scale(weight: Tensor, reduction: str) -> Tensor:
    """(N,) factor on a row's weighted sum: 1 for "sum"; 1 / weight for "mean", 0 where a row has no weight."""
    if reduction == "sum":
        return torch.ones_like(weight)
    return torch.where(weight > 0, 1.0 / weight.clamp_min(torch.finfo(weight.dtype).tiny), 0.0)


def weighted_sum(values: Tensor, channel_weights: Tensor | None) -> Tensor:
    """(N,) float64 sum over frames and channels of (N, T, D) values (already zero where excluded)."""
    per_channel = values.sum(dim=1, dtype=torch.float64)
    return (per_channel if channel_weights is None else per_channel * channel_weights.double()).sum(dim=1)


def log_prob(
    x_prev: Tensor,
    x_t: Tensor,
    x0_pred: Tensor,
    A: Scalar,
    B: Scalar,
    s: Scalar,
    log_s: Tensor,
    scale: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    channel_weights: Tensor | None,
) -> Tensor:
    """(N,) scale * sum_d w_d [-(x_prev - A x_t - B x0_pred)^2 / (2 s^2) - ln s - ln(2 pi) / 2].

    Args:
        log_s: (N,) float64, ln s.
        scale: (N,) factor on the weighted sum.
        weight: (N,) sum_d w_d.
    """
    return noise_log_prob((x_prev - x_t * A - x0_pred * B) / s, log_s, scale, weight, mask, channel_weights)


def noise_log_prob(
    noise: Tensor, log_s: Tensor, scale: Tensor, weight: Tensor, mask: Tensor | None, channel_weights: Tensor | None
) -> Tensor:
    """(N,) the same from the step's (N, T, D) standard normal numbers (x_prev - A x_t - B x0_pred) / s."""
    z = zero_excluded(noise, None if mask is None else mask[:, :, None], channel_weights)
    quadratic = weighted_sum(z * z, channel_weights) * -0.5
    return ((quadratic - (log_s + HALF_LOG_2PI) * weight) * scale).to(noise.dtype)


def log_ratio(
    x0_pred: Tensor,
    x0_pred_old: Tensor,
    noise: Tensor | None,
    gain: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    channel_weights: Tensor | None,
    drop_quadratic: bool,
) -> Tensor:
    """(N,) scale * sum_d w_d (noise delta - delta^2 / 2), delta = gain (x0_pred - x0_pred_old).

    Args:
        noise: None leaves its term out.
        gain: (N,) B / s.
        scale: (N,) factor on the weighted sum.
        drop_quadratic: leave delta^2 / 2 out.
    """
    dtype = compute_dtype(x0_pred, x0_pred_old)
    delta = (x0_pred.to(dtype) - x0_pred_old.to(dtype)) * gain.to(dtype)[:, None, None]
    linear = torch.zeros_like(delta) if noise is None else noise.to(dtype) * delta
    values = linear if drop_quadratic else linear - delta * delta * 0.5
    values = zero_excluded(values, None if mask is None else mask[:, :, None], channel_weights)
    return (weighted_sum(values, channel_weights) * scale).to(dtype)


def log_ratio_backward(
    grad: Tensor,
    x0_pred: Tensor,
    x0_pred_old: Tensor,
    noise: Tensor | None,
    gain: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    channel_weights: Tensor | None,
    drop_quadratic: bool,
) -> Tensor:
    """Gradient of ``log_ratio`` with respect to x0_pred: grad * scale * w_d * gain * (noise - delta).

    A row whose incoming gradient is zero gets exact zeros, also where its state is not finite: such a row was excluded
    from the loss and must not poison the parameters.
    """
    dtype = compute_dtype(x0_pred, x0_pred_old)
    gain = gain.to(dtype)[:, None, None]
    factor = (grad.double() * scale).to(dtype)[:, None, None] * gain
    slope = torch.zeros((), dtype=dtype, device=x0_pred.device) if noise is None else noise.to(dtype)
    if not drop_quadratic:
        slope = slope - (x0_pred.to(dtype) - x0_pred_old.to(dtype)) * gain
    value = slope * factor
    if channel_weights is not None:
        value = value * channel_weights.to(dtype)
    frames = grad[:, None, None] != 0
    if mask is not None:
        frames = frames & mask[:, :, None]
    return zero_excluded(value, frames, channel_weights).to(x0_pred.dtype)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is, float32 otherwise."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
