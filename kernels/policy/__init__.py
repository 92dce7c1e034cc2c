"""Group-relative policy optimisation: advantages of groups with several rewards, and the clipped loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._checks import STATE_DTYPES, check_choice, check_device, check_integer, check_number, check_tensor
from .._dispatch import resolve
from .._library import call_op
from .._numbers import as_tensor, listed_on, varies
from . import op as _op  # noqa: F401  (registers the operators)
from . import reference

__all__ = ["ADVANTAGE_SCHEMES", "GroupAdvantages", "GrpoLoss", "group_advantages", "grpo_loss"]

ADVANTAGE_SCHEMES = ("normalize_then_sum", "sum_then_normalize", "gdpo", "center_only", "batch_std", "win_rate")
"""How rewards become advantages, see :func:`group_advantages`."""


class GroupAdvantages(NamedTuple):
    """Result of :func:`group_advantages`; float tensors have the rewards' dtype (float32 for half precision)."""

    advantages: Tensor
    """(B, G); 0 for members that cannot be scored and for dead groups."""
    per_reward: Tensor
    """(B, G, K) each reward's unweighted part: before whitening and clamp, advantages = sum_k weights_k per_reward."""
    std: Tensor
    """(B, K) spread inside the group of each reward, without floor or eps; 0 with fewer than two scored members."""
    dead: Tensor
    """(B, K) bool, the group says nothing about this reward."""
    alive: Tensor
    """(B,) bool, some advantage of the group differs from 0; use it to mask groups out of a loss's denominator."""


class GrpoLoss(NamedTuple):
    """Result of :func:`grpo_loss`. Only ``loss`` carries a gradient."""

    loss: Tensor
    """() surrogate plus KL term, over the denominator."""
    ratio: Tensor
    """(...) exp(log_ratio), 1 where not valid."""
    clip_fraction_low: Tensor
    """() share of valid elements whose gradient is cut below: advantage < 0 and ratio < 1 - clip_range."""
    clip_fraction_high: Tensor
    """() share of valid elements whose gradient is cut above: advantage > 0 and ratio > 1 + clip_range."""
    approx_kl: Tensor
    """() mean over valid elements of r - 1 - ln r (k3), >= 0, computed in float64 without cancellation."""


def group_advantages(
    rewards: Tensor,
    *,
    scheme: str = "normalize_then_sum",
    weights: Tensor | Sequence[float] | None = None,
    ddof: int = 1,
    eps: float = 1e-8,
    std_floor_ratio: float = 0.0,
    dead_ratio: float = 1e-3,
    dead_abs: float = 1e-6,
    trim: float = 0.0,
    clamp: float | None = None,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> GroupAdvantages:
    """How much better each member is than its group.

    With m_k, std_k the mean and spread of reward k in the group, batch_k its spread over the whole batch, and
    std_eff = sqrt(std^2 + (std_floor_ratio batch)^2):

    * ``normalize_then_sum`` (MotionGRPO; DanceGRPO's aggregation): sum_k w_k (r_k - m_k) / (std_eff_k + eps)
    * ``sum_then_normalize`` (Flow-GRPO): with R = sum_k w_k r_k, (R - m_R) / (std_eff_R + eps)
    * ``gdpo`` (arXiv 2601.05242): the first, then minus its batch mean and over its batch std + 1e-4
    * ``center_only`` (Dr. GRPO): sum_k w_k (r_k - m_k)
    * ``batch_std``: sum_k w_k (r_k - m_k) / (batch_k + eps)
    * ``win_rate`` (after Pref-GRPO): ``normalize_then_sum`` of the share of the other scored members that a member
      beats, a tie counting half, instead of r_k; outliers and the rewards' units lose their influence

    Where each reward shall be clipped by itself, hand ``per_reward`` to :func:`grpo_loss`: ``log_ratio[..., None]``
    expanded to K, ``weights_k per_reward_k`` as advantages, and the denominator of one reward.

    A reward is dead in a group where std_k < max(dead_abs, dead_ratio batch_k), std_k = 0, or fewer than two members
    are scored; its part is then exactly 0, instead of rounding noise promoted to unit size. ``sum_then_normalize``
    applies the rule to R, ``win_rate`` to the rewards themselves. No gradient passes to ``rewards``; everything is
    computed in float64.

    Args:
        rewards: (B, G, K), or (B, G) for one reward; higher is better. A member with a NaN or infinite reward (of a
            weight other than 0) cannot be scored and is treated like ``valid`` False.
        scheme: one of the above.
        weights: (K,) importance of each reward; None: all 1.
        ddof: 1 for the unbiased std, 0 for the biased.
        eps: added to the divisor, in the reward's unit.
        std_floor_ratio: floor of a group's spread, as a share of the batch's.
        dead_ratio, dead_abs: see above; both 0 masks only groups without any spread.
        trim: share in [0, 0.5) of a group's scored members, rounded down, that the mean and std leave out at each end
            (MixGRPO). Those members still get advantages.
        clamp: bound on the size of the summed (and whitened) advantage; None: no bound. One reward with the unbiased
            std never exceeds (G - 1) / sqrt(G), a sum of K rewards K times that.
        valid: (B, G) bool, False leaves a member out of all statistics, with advantage 0.
        backend: see :mod:`mgrpo.kernels`.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or value; no reward; G < 2, as a single member has nothing to
            compare with.
    """
    function = "group_advantages"
    check_tensor(function, "rewards", rewards, dtypes=STATE_DTYPES)
    if rewards.dim() not in (2, 3):
        raise ValueError(f"{function}(): rewards must have shape (B, G, K) or (B, G), got {tuple(rewards.shape)}")
    if rewards.shape[1] < 2:
        raise ValueError(
            f"{function}(): rewards must have groups of G >= 2 members to compare, got {tuple(rewards.shape)} with "
            f"G = {rewards.shape[1]}"
        )
    if rewards.dim() == 3 and rewards.shape[2] == 0:
        raise ValueError(f"{function}(): rewards must have K >= 1 rewards, got {tuple(rewards.shape)} with K = 0")
    check_choice(function, "scheme", scheme, ADVANTAGE_SCHEMES)
    ddof = check_integer(function, "ddof", ddof, minimum=0)
    if ddof > 1:
        raise ValueError(f"{function}(): ddof must be 0 or 1, got {ddof}")
    for name, value in (
        ("eps", eps), ("std_floor_ratio", std_floor_ratio), ("dead_ratio", dead_ratio), ("dead_abs", dead_abs)
    ):  # fmt: skip
        check_number(function, name, value, minimum=0.0)
    check_number(function, "trim", trim, minimum=0.0)
    if trim >= 0.5:
        raise ValueError(f"{function}(): trim must be < 0.5, got {trim!r}")
    if clamp is not None:
        check_number(function, "clamp", clamp, minimum=0.0, exclusive_minimum=True)
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    values = rewards.detach().to(dtype)
    values = values[:, :, None] if values.dim() == 2 else values
    batch, group, kinds = values.shape
    if valid is not None:
        check_tensor(function, "valid", valid, ("B", "G"), dtypes=(torch.bool,), sizes={"B": batch, "G": group})
        check_device(function, "valid", valid, "rewards", rewards.device)
    reward_weights = _check_weights(function, weights, kinds, rewards)
    chosen = resolve(function, backend, values)
    if chosen == "reference":
        if valid is None:
            valid = torch.ones((batch, group), dtype=torch.bool, device=rewards.device)
        result = reference.group_advantages(
            values.double(), valid, reward_weights, scheme=scheme, ddof=ddof, eps=eps, std_floor_ratio=std_floor_ratio,
            dead_ratio=dead_ratio, dead_abs=dead_abs, trim=trim, clamp=clamp,
        )  # fmt: skip
        return GroupAdvantages(*(part.to(dtype) for part in result[:3]), *result[3:])
    bound = math.inf if clamp is None else clamp
    return GroupAdvantages(
        *call_op("group_advantages",
            values, valid, reward_weights, ADVANTAGE_SCHEMES.index(scheme), ddof, eps, std_floor_ratio, dead_ratio,
            dead_abs, trim, bound, chosen,
        )
    )  # fmt: skip


def grpo_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    clip_range: float | tuple[float, float],
    valid: Tensor | None = None,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
    backend: str | None = None,
) -> GrpoLoss:
    """Clipped surrogate (PPO, Schulman et al. 2017): sum over valid elements of w max(-A r, -A clip(r)) + kl_coef kl,
    over the denominator.

    r = exp(log_ratio), clipped to [1 - low, 1 + high]. The gradient with respect to log_ratio is -w A r / denominator,
    and exactly 0 where the clip is active or the element is not valid, even if it is NaN there.

    Args:
        log_ratio: (...) any shape, ln p_new - ln p_old; gradient flows here. Half precision is computed in float32.
        advantages: same shape (expand it over diffusion steps), constants.
        clip_range: width on both sides, or (low, high); > 0. MotionGRPO and DanceGRPO use 1e-4.
        valid: same shape, bool; False leaves an element out of the sum, the denominator and the statistics. Dead
            groups (``GroupAdvantages.alive``) belong here.
        weights: same shape, >= 0, on the surrogate (diffusion step weights; mean 1 keeps the scale). They do not
            enter the denominator and do not weigh ``kl``.
        denominator: number, or () tensor, to divide by: the count over all micro-batches and ranks when the loss is
            accumulated. None: the number of valid elements here; 0 elements give loss 0.
        kl: same shape, divergence to a reference policy per element, differentiable; see ``sde_kl``.
        kl_coef: its factor, >= 0.
        backend: see :mod:`mgrpo.kernels`.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value; kl_coef > 0 without kl.
    """
    function = "grpo_loss"
    check_tensor(function, "log_ratio", log_ratio, dtypes=STATE_DTYPES)
    dtype = torch.float64 if log_ratio.dtype == torch.float64 else torch.float32
    low, high = _check_clip_range(function, clip_range)
    check_number(function, "kl_coef", kl_coef, minimum=0.0)
    if kl is None and kl_coef > 0:
        raise ValueError(f"{function}(): kl must be a tensor when kl_coef > 0, got None with kl_coef = {kl_coef:g}")
    for name, value in (("advantages", advantages), ("weights", weights), ("kl", kl)):
        if value is not None or name == "advantages":
            _check_same(function, name, value, log_ratio, STATE_DTYPES)
    if valid is not None:
        _check_same(function, "valid", valid, log_ratio, (torch.bool,))
    fixed, counted = _check_denominator(function, denominator, log_ratio)
    kl = None if kl_coef == 0 else kl
    log_ratio = log_ratio.to(dtype)
    advantages, weights = (None if x is None else x.detach().to(dtype) for x in (advantages, weights))
    kl = None if kl is None else kl.to(dtype)
    if kl is not None and varies(kl_coef):
        kl, kl_coef = kl * kl_coef, 1.0
    chosen = resolve(function, backend, log_ratio)
    if chosen == "reference":
        divisor = fixed if fixed > 0 else counted
        return GrpoLoss(*reference.grpo_loss(log_ratio, advantages, valid, weights, kl, divisor, low, high, kl_coef))
    loss, *statistics, _ = call_op(
        "grpo_loss", log_ratio, advantages, valid, weights, kl, counted, fixed, low, high, float(kl_coef), chosen
    )
    return GrpoLoss(loss, *(value.detach() for value in statistics))


def _check_same(function: str, name: str, value: object, log_ratio: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    check_tensor(function, name, value, dtypes=dtypes)
    if value.shape != log_ratio.shape:
        raise ValueError(
            f"{function}(): {name} must have the shape of log_ratio {tuple(log_ratio.shape)}, got {tuple(value.shape)}"
        )
    check_device(function, name, value, "log_ratio", log_ratio.device)


def _check_weights(function: str, weights: Tensor | Sequence[float] | None, kinds: int, rewards: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(kinds, dtype=torch.float64, device=rewards.device)
    listed = None if isinstance(weights, Tensor) else [float(w) for w in weights]
    if listed is not None:
        weights = torch.tensor(listed, dtype=torch.float64)
    else:
        check_tensor(function, "weights", weights, dtypes=STATE_DTYPES)
        check_device(function, "weights", weights, "rewards", rewards.device)
        weights = weights.detach().double()
    if weights.shape != (kinds,):
        raise ValueError(f"{function}(): weights must have shape (K,) with K = {kinds}, got {tuple(weights.shape)}")
    if _checks.readable(weights) and not bool(torch.isfinite(weights).all()):
        raise ValueError(f"{function}(): weights must be finite, got {weights.tolist()}")
    return weights if listed is None else listed_on(listed, rewards.device)


def _check_clip_range(function: str, clip_range: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(clip_range, (tuple, list)):
        if len(clip_range) != 2:
            raise ValueError(f"{function}(): clip_range must be a number or (low, high), got {clip_range!r}")
        low, high = clip_range
    else:
        low = high = clip_range
    for value in (low, high):
        check_number(function, "clip_range", value, minimum=0.0, exclusive_minimum=True)
    return float(low), float(high)


def _check_denominator(
    function: str, denominator: float | Tensor | None, log_ratio: Tensor
) -> tuple[float, Tensor | None]:
    """A positive number, or 0.0 and the () float64 count; 0.0 and None ask for the number of valid elements."""
    if denominator is None:
        return 0.0, None
    if isinstance(denominator, Tensor):
        check_tensor(function, "denominator", denominator, (), dtypes=(*STATE_DTYPES, torch.int32, torch.int64))
        check_device(function, "denominator", denominator, "log_ratio", log_ratio.device)
        return 0.0, denominator.detach().double()
    check_number(function, "denominator", denominator, minimum=0.0, exclusive_minimum=True)
    if varies(denominator):
        return 0.0, as_tensor(denominator, (), log_ratio)
    return float(denominator), None
