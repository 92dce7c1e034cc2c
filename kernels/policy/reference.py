"""Group statistics, advantages and the clipped surrogate in plain torch operations; the maths is in README.md.

Nothing here reads a tensor's value on the host: masks multiply, shapes never depend on data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GDPO_EPS = 1e-4
"""Added to the batch standard deviation of the whitened advantage (GDPO, arXiv 2601.05242)."""


class Moments(NamedTuple):
    """Mean and standard deviation of the counted elements; where too few are counted, std is 0 and enough False."""

    mean: Tensor
    std: Tensor
    enough: Tensor


def masked_moments(values: Tensor, counted: Tensor, dim: int | tuple[int, ...], ddof: int) -> Moments:
    """Moments of ``values`` over ``dim`` (kept with size 1) among the elements where ``counted``.

    The mean is corrected by the mean of what differs from it: equal values then have exactly no spread, whatever their
    sum is rounded to.
    """
    count = counted.sum(dim=dim, keepdim=True).to(values.dtype)
    clean = torch.where(counted, values, 0.0)
    mean = clean.sum(dim=dim, keepdim=True) / count.clamp_min(1.0)
    mean = mean + torch.where(counted, values - mean, 0.0).sum(dim=dim, keepdim=True) / count.clamp_min(1.0)
    squares = torch.where(counted, values - mean, 0.0).square().sum(dim=dim, keepdim=True)
    enough = count > ddof
    std = torch.where(enough, (squares / (count - ddof).clamp_min(1.0)).sqrt(), 0.0)
    return Moments(mean, std, enough)


def trimmed(values: Tensor, counted: Tensor, trim: float) -> Tensor:
    """``counted`` (B, G, K) without the floor(trim n) largest and smallest of each group's n counted values."""
    count = counted.sum(dim=1, keepdim=True)
    cut = (count.to(values.dtype) * trim).floor().to(count.dtype)
    order = torch.where(counted, values, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    return counted & (rank >= cut) & (rank < count - cut)


def win_rates(values: Tensor, counted: Tensor) -> Tensor:
    """Share of the other counted members of its group that each (B, G, K) value beats, a tie counting half."""
    own, other = values[:, :, None], values[:, None]
    points = torch.where(own > other, 1.0, torch.where(own == other, 0.5, 0.0)).to(values.dtype)
    others = counted[:, None].to(values.dtype)
    # A member ties with itself.
    won = (points * others).sum(dim=2) - 0.5
    return torch.where(counted, won / (counted.sum(dim=1, keepdim=True) - 1).clamp_min(1), 0.0)


def standardise(
    values: Tensor,
    counted: Tensor,
    *,
    by: str,
    ddof: int,
    eps: float,
    std_floor_ratio: float,
    dead_ratio: float,
    dead_abs: float,
    trim: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre (B, G, K) values in their groups and divide by a spread.

    Args:
        values: float64.
        counted: bool; other elements enter no statistic and get 0.
        by: "group" (the group's std with its floor), "batch" (the batch's std), "one" (no division).
        ddof, eps, std_floor_ratio, dead_ratio, dead_abs, trim: as in ``group_advantages``.

    Returns:
        (B, G, K) result with dead groups at 0, (B, 1, K) the divisor, (B, 1, K) group std, (B, 1, K) dead.
    """
    moments = masked_moments(values, trimmed(values, counted, trim) if trim > 0 else counted, 1, ddof)
    batch_std = masked_moments(values, counted, (0, 1), ddof).std
    threshold = torch.clamp_min(batch_std * dead_ratio, dead_abs)
    # A group of one has std 0 as well, with ddof 0.
    dead = ~moments.enough | (moments.std < threshold) | (moments.std == 0)
    if by == "group":
        divisor = (moments.std.square() + (std_floor_ratio * batch_std).square()).sqrt() + eps
    elif by == "batch":
        divisor = (batch_std + eps).expand_as(moments.std)
    else:
        divisor = torch.ones_like(moments.std)
    # Dead groups may have divisor 0 (eps 0): divide by 1 there, the result is discarded.
    result = (values - moments.mean) / torch.where(dead, 1.0, divisor)
    return torch.where(counted & ~dead, result, 0.0), divisor, moments.std, dead


def group_advantages(
    rewards: Tensor,
    valid: Tensor,
    weights: Tensor,
    *,
    scheme: str,
    ddof: int,
    eps: float,
    std_floor_ratio: float,
    dead_ratio: float,
    dead_abs: float,
    trim: float,
    clamp: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Advantages (B, G), per_reward (B, G, K), std (B, K), dead (B, K), alive (B,); float64 ``rewards`` (B, G, K)."""
    scored = torch.isfinite(rewards)
    # A member that lacks a reward which matters has no total, so it leaves the group for every reward.
    scorable = (scored | (weights == 0)).all(dim=2) & valid
    counted = scored & scorable[:, :, None]
    rewards = torch.where(counted, rewards, 0.0)
    limits = {
        "ddof": ddof,
        "eps": eps,
        "std_floor_ratio": std_floor_ratio,
        "dead_ratio": dead_ratio,
        "dead_abs": dead_abs,
        "trim": trim,
    }
    by = {"center_only": "one", "batch_std": "batch"}.get(scheme, "group")
    per_reward, _, std, dead = standardise(rewards, counted, by=by, **limits)
    if scheme == "win_rate":
        # Ranks have their full spread however small that of the rewards is: those say whether the group is dead.
        always = limits | {"dead_ratio": 0.0, "dead_abs": 0.0}
        per_reward, _, _, level = standardise(win_rates(rewards, counted), counted, by="group", **always)
        dead = dead | level
        per_reward = torch.where(dead, 0.0, per_reward)
    if scheme == "sum_then_normalize":
        total = (rewards * weights).sum(dim=2, keepdim=True)
        summed, divisor, _, total_dead = standardise(total, scorable[:, :, None], by="group", **limits)
        # Centred by the members that the total's mean counts, so that the contributions add up to the advantage.
        kept = trimmed(total, scorable[:, :, None], trim) if trim > 0 else scorable[:, :, None]
        centred = rewards - masked_moments(rewards, counted & kept, 1, ddof).mean
        per_reward = torch.where(counted & ~total_dead, centred / torch.where(total_dead, 1.0, divisor), 0.0)
        advantages = summed[:, :, 0]
        alive = ~total_dead[:, 0, 0]
    else:
        advantages = (per_reward * weights).sum(dim=2)
        alive = (~dead & (weights != 0))[:, 0].any(dim=1)
    if scheme == "gdpo":
        live = scorable & alive[:, None]
        whole = masked_moments(advantages, live, (0, 1), ddof)
        advantages = torch.where(live, (advantages - whole.mean) / (whole.std + GDPO_EPS), 0.0)
    if clamp is not None:
        advantages = advantages.clamp(-clamp, clamp)
    return advantages, per_reward, std[:, 0], dead[:, 0], alive


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per-element loss max(-A r, -A clip(r)), ratio r, and where the clip is active below and above.

    The comparison is made on expm1(log_ratio), which resolves a clip range of 1e-4 that float32's r - 1 would blur.
    The gradient with respect to log_ratio is -A r where the clip is inactive, exactly 0 where it is active.
    """
    ratio = log_ratio.exp()
    change = torch.expm1(log_ratio.detach())
    high = (advantages > 0) & (change > clip_high)
    low = (advantages < 0) & (change < -clip_low)
    bound = torch.where(high, torch.full_like(change, 1.0 + clip_high), 1.0 - clip_low)
    clipped = high | low
    # Where the ratio does not matter its exponential is cut before the product: an infinite one stays harmless.
    free = torch.where(clipped | (advantages == 0), 0.0, log_ratio).exp()
    return -advantages * torch.where(clipped, bound, free), ratio.detach(), low, high


def k3(log_ratio: Tensor) -> Tensor:
    """r - 1 - ln r of each element (float64 ``log_ratio``), >= 0, without cancellation near r = 1.

    Schulman's low-variance estimator of KL(old || new) from samples of the old policy.
    """
    return torch.expm1(log_ratio) - log_ratio


def grpo_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    valid: Tensor | None,
    weights: Tensor | None,
    kl: Tensor | None,
    denominator: float | Tensor | None,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, ratio, clip fractions below and above, approximate KL; see :func:`mgrpo.kernels.grpo_loss`.

    All tensors have the shape and dtype of ``log_ratio`` but ``valid`` (bool) and ``denominator`` (a number, a ()
    float64 tensor, or None for the number of valid elements).
    """
    dtype = log_ratio.dtype
    if valid is None:
        valid = torch.ones_like(log_ratio, dtype=torch.bool)
    count = valid.sum(dtype=torch.float64).clamp_min(1.0)
    if denominator is None:
        denominator = count
    elif isinstance(denominator, Tensor):
        # An all-reduced count may be 0 when every group is dead; the sum is 0 then as well.
        denominator = torch.where(denominator > 0, denominator, 1.0)

    # Zeros take the place of what is not valid, before any arithmetic: a NaN there reaches neither value nor gradient.
    log_ratio = torch.where(valid, log_ratio, 0.0)
    surrogate, ratio, clipped_low, clipped_high = clipped_surrogate(
        log_ratio, torch.where(valid, advantages, 0.0), clip_low, clip_high
    )
    if weights is not None:
        surrogate = surrogate * torch.where(valid, weights, 0.0)
    total = surrogate.sum(dtype=torch.float64)
    if kl is not None:
        total = total + kl_coef * torch.where(valid, kl, 0.0).sum(dtype=torch.float64)
    loss = (total / denominator).to(dtype)
    with torch.no_grad():
        low, high = ((side.sum(dtype=torch.float64) / count).to(dtype) for side in (clipped_low, clipped_high))
        approx_kl = (k3(log_ratio.double()).sum() / count).to(dtype)
    return loss, ratio, low, high, approx_kl
