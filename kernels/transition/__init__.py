"""One step of the sampler as a policy: x_prev ~ N(A x_t + B x0_pred, s^2), its log-density, ratio and divergence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import STATE_DTYPES, check_choice, check_tensor, debug_enabled
from .._dispatch import resolve
from . import reference
from .op import LogRatio

__all__ = ["sde_kl", "sde_log_prob", "sde_log_ratio", "sde_step"]

REDUCTIONS = ("mean", "sum")


def sde_step(
    x_t: Tensor,
    x0_pred: Tensor,
    A: float | Tensor,
    B: float | Tensor,
    s: float | Tensor,
    noise: Tensor | None,
    *,
    backend: str | None = None,
) -> Tensor:
    """x_prev = A x_t + B x0_pred + s noise: every sampler of the family is this with three scalars per step.

    Args:
        x_t: (N, *) state; float32, float64, bfloat16 or float16.
        x0_pred: (N, *) the network's estimate of the clean state.
        A, B, s: numbers or (N,) tensors; s >= 0 is the standard deviation.
        noise: (N, *) standard normal; None where s is the number 0 (a deterministic step).
        backend: see :mod:`mgrpo.kernels`.

    Returns:
        (N, *) x_prev in float32, or float64 if an input is. Differentiable in all tensors.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; s < 0; noise None although s is not 0.
    """
    function = "sde_step"
    given = {"x_t": x_t, "x0_pred": x0_pred} | ({} if noise is None else {"noise": noise})
    shape = _check_states(function, **given)
    A, B = (_check_scalar(function, name, value, x_t) for name, value in (("A", A), ("B", B)))
    s = _check_scalar(function, "s", s, x_t, minimum=0.0)
    if noise is None and (isinstance(s, Tensor) or s != 0.0):
        raise ValueError(f"{function}(): noise must be a tensor unless s is the number 0, got None")
    if not isinstance(s, Tensor) and s == 0.0:
        noise = None
    resolve(function, backend, *given.values())
    dtype = reference.compute_dtype(*given.values())
    states = [None if x is None else _rows(x, shape).to(dtype) for x in (x_t, x0_pred, noise)]
    scalars = [_spread(value, dtype) for value in (A, B, s)]
    return reference.step(states[0], states[1], *scalars, states[2]).view(x_t.shape)


def sde_log_prob(
    x_prev: Tensor,
    x_t: Tensor,
    x0_pred: Tensor,
    A: float | Tensor,
    B: float | Tensor,
    s: float | Tensor,
    *,
    reduction: str = "mean",
    channel_weights: Tensor | Sequence[float] | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Log-density of x_prev under N(A x_t + B x0_pred, s^2), in nats, reduced over each row's elements.

    "sum" is sum_d w_d l_d with l_d = -(x_prev - A x_t - B x0_pred)_d^2 / (2 s^2) - ln s - ln(2 pi) / 2, and "mean" is
    that over sum_d w_d: the density to the power 1 / D, what GRPO on diffusion models uses (DanceGRPO, Flow-GRPO).
    For ratios of two policies use :func:`sde_log_ratio`, which has no cancellation.

    Args:
        x_prev, x_t, x0_pred: (N, T, D), or (N, *) with at least one axis besides N; D is the last axis.
        A, B, s: numbers or (N,) tensors. s = 0 is refused: a deterministic step has no density and is not an action.
        reduction: "mean" or "sum".
        channel_weights: (D,) weights w >= 0, not all 0; None: all 1. A channel of weight 0 is not looked at.
        mask: (N, T) bool, the shape of a state without its last axis; False leaves a frame out. None: all frames.
            A row without any frame gives 0.
        backend: see :mod:`mgrpo.kernels`.

    Returns:
        (N,) in float32, or float64 if an input is; differentiable in the states. Half-precision inputs are computed
        in float32, sums in float64.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; s <= 0 (for s on a GPU only under ``MGRPO_DEBUG=1``,
            since the check reads values; there such a row is not finite).
    """
    function = "sde_log_prob"
    check_choice(function, "reduction", reduction, REDUCTIONS)
    shape = _check_states(function, x_prev=x_prev, x_t=x_t, x0_pred=x0_pred)
    A, B = (_check_scalar(function, name, value, x_t) for name, value in (("A", A), ("B", B)))
    s = _check_std(function, s, x_t)
    mask, weights = _check_weighting(function, x_t, shape, mask, channel_weights)
    resolve(function, backend, x_prev, x_t, x0_pred)
    dtype = reference.compute_dtype(x_prev, x_t, x0_pred)
    states = [_rows(x, shape).to(dtype) for x in (x_prev, x_t, x0_pred)]
    weight = reference.total_weight(shape, mask, weights, x_t)
    log_s = s.double().log() if isinstance(s, Tensor) else torch.full_like(weight, math.log(s))
    scale = reference.row_scale(weight, reduction)
    scalars = [_spread(value, dtype) for value in (A, B, s)]
    return reference.log_prob(*states, *scalars, log_s, scale, weight, mask, weights)


def sde_log_ratio(
    x0_pred: Tensor,
    x0_pred_old: Tensor,
    noise: Tensor,
    B: float | Tensor,
    s: float | Tensor,
    *,
    reduction: str = "mean",
    channel_weights: Tensor | Sequence[float] | None = None,
    mask: Tensor | None = None,
    drop_quadratic: bool = False,
    backend: str | None = None,
) -> Tensor:
    """ln p_new(x_prev) - ln p_old(x_prev) for the x_prev that the old policy drew with ``noise``.

    The innovations form: with delta = (B / s) (x0_pred - x0_pred_old), the mean (or sum) over d of
    w_d (noise delta - delta^2 / 2). It needs neither states nor normaliser, and is exactly 0 where the two predictions
    are equal. The gradient is closed-form, with respect to ``x0_pred`` alone; a row whose incoming gradient is 0 gets
    exact zeros even where it holds NaN.

    Args:
        x0_pred: (N, T, D) or (N, *), prediction of the policy being trained.
        x0_pred_old: same shape, prediction at sampling time (a constant).
        noise: same shape, the standard normal numbers of the step (constants).
        B, s: numbers or (N,) tensors; s = 0 is refused as in :func:`sde_log_prob`.
        reduction, channel_weights, mask, backend: as in :func:`sde_log_prob`.
        drop_quadratic: leave delta^2 / 2 out, which removes the ratio's shift below 1 (GRPO-Guard's observation).

    Returns:
        (N,) in float32, or float64 if a prediction is.

    Raises:
        TypeError, ValueError: as :func:`sde_log_prob`.
    """
    _check_states("sde_log_ratio", x0_pred=x0_pred, x0_pred_old=x0_pred_old, noise=noise)
    return _innovations(
        "sde_log_ratio", x0_pred, x0_pred_old, noise, B, s, reduction, channel_weights, mask, drop_quadratic, backend
    )


def sde_kl(
    x0_pred: Tensor,
    x0_pred_ref: Tensor,
    B: float | Tensor,
    s: float | Tensor,
    *,
    reduction: str = "mean",
    channel_weights: Tensor | Sequence[float] | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Exact KL divergence of two steps with equal s: the mean (or sum) over d of w_d (B / s)^2 (difference)_d^2 / 2.

    It is the same in both directions, in nats (per element with "mean"), >= 0, and exactly 0 for equal predictions.
    Differentiable with respect to ``x0_pred`` alone, in closed form.

    Args:
        x0_pred: (N, T, D) or (N, *), prediction of the policy being trained.
        x0_pred_ref: same shape, prediction of the reference policy (a constant).
        B, s, reduction, channel_weights, mask, backend: as in :func:`sde_log_ratio`.

    Returns:
        (N,) in float32, or float64 if a prediction is.

    Raises:
        TypeError, ValueError: as :func:`sde_log_prob`.
    """
    _check_states("sde_kl", x0_pred=x0_pred, x0_pred_ref=x0_pred_ref)
    # Without noise the log-ratio's mean is minus the divergence. 0 - x rather than -x, so that it never is -0.
    return 0.0 - _innovations(
        "sde_kl", x0_pred, x0_pred_ref, None, B, s, reduction, channel_weights, mask, False, backend
    )


def _innovations(
    function: str,
    x0_pred: Tensor,
    other: Tensor,
    noise: Tensor | None,
    B: float | Tensor,
    s: float | Tensor,
    reduction: str,
    channel_weights: Tensor | Sequence[float] | None,
    mask: Tensor | None,
    drop_quadratic: bool,
    backend: str | None,
) -> Tensor:
    check_choice(function, "reduction", reduction, REDUCTIONS)
    shape = _flat_shape(x0_pred)
    B = _check_scalar(function, "B", B, x0_pred)
    s = _check_std(function, s, x0_pred)
    mask, weights = _check_weighting(function, x0_pred, shape, mask, channel_weights)
    resolve(function, backend, x0_pred, other, *(() if noise is None else (noise,)))
    weight = reference.total_weight(shape, mask, weights, x0_pred)
    scale = reference.row_scale(weight, reduction)
    gain = torch.zeros_like(weight) + _double(B) / _double(s)
    return LogRatio.apply(
        _rows(x0_pred, shape),
        _rows(other, shape).detach(),
        None if noise is None else _rows(noise, shape).detach(),
        gain.detach(),
        scale,
        mask,
        weights,
        drop_quadratic,
    )


def _check_states(function: str, **states: Tensor) -> tuple[int, int, int]:
    """Check dtype, equal shape and device of all states, and return the shape (N, T, D) that they flatten to."""
    first_name, first = next(iter(states.items()))
    for name, state in states.items():
        check_tensor(function, name, state, dtypes=STATE_DTYPES)
        if state.dim() < 2 and state is first:
            raise ValueError(f"{function}(): {name} must have shape (N, T, D) or (N, *), got {tuple(state.shape)}")
        if state.shape != first.shape:
            raise ValueError(
                f"{function}(): {name} must have the shape of {first_name} {tuple(first.shape)}, "
                f"got {tuple(state.shape)}"
            )
        if state.device != first.device:
            raise ValueError(f"{function}(): {name} must be on {first.device} like {first_name}, got {state.device}")
    return _flat_shape(first)


def _flat_shape(state: Tensor) -> tuple[int, int, int]:
    return state.shape[0], math.prod(state.shape[1:-1]), state.shape[-1]


def _rows(state: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return state.reshape(shape)


def _check_scalar(
    function: str, name: str, value: float | Tensor, like: Tensor, minimum: float = -math.inf, exclusive: bool = False
) -> float | Tensor:
    """A finite float, or an (N,) tensor on the states' device."""
    if isinstance(value, Tensor):
        if value.dim() == 0:
            value = value.expand(like.shape[0])
        check_tensor(function, name, value, dtypes=STATE_DTYPES)
        if value.shape != like.shape[:1]:
            raise ValueError(
                f"{function}(): {name} must be a number or have shape (N,) with N = {like.shape[0]}, "
                f"got {tuple(value.shape)}"
            )
        if value.device != like.device:
            raise ValueError(f"{function}(): {name} must be on {like.device} like the states, got {value.device}")
        if minimum > -math.inf and not torch.compiler.is_compiling() and _readable(value):
            wrong = value <= minimum if exclusive else value < minimum
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise ValueError(_limit(function, name, exclusive, minimum, f"{float(value[row])!r} in row {row}"))
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}(): {name} must be a number or a torch.Tensor, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{function}(): {name} must be finite, got {value!r}")
    if value < minimum or (exclusive and value == minimum):
        raise ValueError(_limit(function, name, exclusive, minimum, repr(value)))
    return float(value)


def _check_std(function: str, s: float | Tensor, like: Tensor) -> float | Tensor:
    return _check_scalar(function, "s", s, like, minimum=0.0, exclusive=True)


def _limit(function: str, name: str, exclusive: bool, minimum: float, got: str) -> str:
    note = " (a step without noise is not an action: leave it out)" if exclusive else ""
    return f"{function}(): {name} must be {'>' if exclusive else '>='} {minimum:g}{note}, got {got}"


def _readable(value: Tensor) -> bool:
    """Whether reading a value costs no wait for a device, or was asked for."""
    return value.device.type == "cpu" or debug_enabled()


def _check_weighting(
    function: str,
    state: Tensor,
    shape: tuple[int, int, int],
    mask: Tensor | None,
    channel_weights: Tensor | Sequence[float] | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The mask as (N, T) bool of the flattened shape, the weights as a (D,) tensor on the states' device."""
    if mask is not None:
        check_tensor(function, "mask", mask, dtypes=(torch.bool,))
        if mask.shape != state.shape[:-1]:
            raise ValueError(
                f"{function}(): mask must have shape (N, T), the states' without the last axis "
                f"{tuple(state.shape[:-1])}, got {tuple(mask.shape)}"
            )
        if mask.device != state.device:
            raise ValueError(f"{function}(): mask must be on {state.device} like the states, got {mask.device}")
        mask = mask.reshape(shape[:2])
    if channel_weights is None:
        return mask, None
    given = not isinstance(channel_weights, Tensor)
    if given:
        channel_weights = torch.tensor([float(w) for w in channel_weights], dtype=torch.float64)
    else:
        check_tensor(function, "channel_weights", channel_weights, dtypes=STATE_DTYPES)
    channel_weights = channel_weights.detach()
    if channel_weights.shape != (shape[2],):
        raise ValueError(
            f"{function}(): channel_weights must have shape (D,) with D = {shape[2]}, "
            f"got {tuple(channel_weights.shape)}"
        )
    if not torch.compiler.is_compiling() and _readable(channel_weights):
        smallest, total = float(channel_weights.min()), float(channel_weights.double().sum())
        if not (math.isfinite(total) and total > 0 and smallest >= 0):
            raise ValueError(
                f"{function}(): channel_weights must be finite, >= 0 and not all 0, got a minimum of {smallest:g} and "
                f"a sum of {total:g}"
            )
    if given:
        channel_weights = channel_weights.to(state.device)
    elif channel_weights.device != state.device:
        raise ValueError(
            f"{function}(): channel_weights must be on {state.device} like the states, got {channel_weights.device}"
        )
    return mask, channel_weights


def _spread(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """A per-row tensor as (N, 1, 1) of ``dtype``; a number as it is."""
    return value.to(dtype)[:, None, None] if isinstance(value, Tensor) else value


def _double(value: float | Tensor) -> float | Tensor:
    return value.double() if isinstance(value, Tensor) else value
