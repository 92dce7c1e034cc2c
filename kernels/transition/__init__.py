"""One step of the sampler as a policy: x_prev ~ N(A x_t + B x0_pred, s^2), its log-density, ratio and divergence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_integer
from .._dispatch import resolve
from .._library import call_op
from .._noise_key import NoiseKey
from . import reference
from .arguments import (
    as_double,
    check_key_rows,
    check_noisy_states,
    check_scalar,
    check_states,
    check_std,
    check_step_scalars,
    check_weighting,
    drawn_noise,
    flattened,
    log_std,
    noise_arguments,
    scalar_arguments,
    spread,
    tensors_among,
    used_noise,
)
from .op import keeps_residual, log_ratio

__all__ = [
    "ProjectedStep",
    "SdeStep",
    "projected_sde_step",
    "sde_kl",
    "sde_log_prob",
    "sde_log_ratio",
    "sde_step",
]

REDUCTIONS = ("mean", "sum")


class SdeStep(NamedTuple):
    """A step and how likely it was."""

    x_prev: Tensor
    """(N, *) the next state."""
    log_prob: Tensor
    """(N,) its log-density in nats; carries no gradient."""


class ProjectedStep(NamedTuple):
    """A step from a prediction whose rotation matrices were projected."""

    x_prev: Tensor
    """(N, *) the next state."""
    x0_pred: Tensor
    """(N, *) the prediction that entered it, with rotations where it had 3x3 matrices."""


def sde_step(
    x_t: Tensor,
    x0_pred: Tensor,
    A: float | Tensor,
    B: float | Tensor,
    s: float | Tensor,
    noise: Tensor | NoiseKey | None,
    *,
    return_log_prob: bool = False,
    reduction: str = "mean",
    channel_weights: Tensor | Sequence[float] | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | SdeStep:
    """x_prev = A x_t + B x0_pred + s noise: every sampler of the family is this with three scalars per step.

    The operations are rounded one by one, ((x_t A) + (x0_pred B)) + (noise s), with A, B and s rounded to the result's
    dtype first. So x_prev has the same bits in every backend, and the same bits whether the noise is given or drawn
    from its key.

    Args:
        x_t: (N, *) state; float32, float64, bfloat16 or float16.
        x0_pred: (N, *) the network's estimate of the clean state.
        A, B, s: numbers or (N,) tensors; s >= 0 is the standard deviation.
        noise: (N, *) standard normal; or a :class:`NoiseKey` of N rows, whose numbers are drawn on the way and never
            stored; None where s is the number 0 (a deterministic step).
        return_log_prob: also return the log-density of the step that was drawn, from the noise, in the same pass over
            memory. It is what :func:`sde_log_prob` gives for x_prev, without the rounding of x_prev.
        reduction, channel_weights, mask: how that log-density is reduced, as in :func:`sde_log_prob`; they do not
            touch x_prev.
        backend: see :mod:`mgrpo.kernels`.

    Returns:
        (N, *) x_prev in float32, or float64 if an input is; differentiable in the states and the noise (on the
        ``reference`` backend also in A, B and s). With ``return_log_prob`` an :class:`SdeStep`.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; s < 0; noise None although s is not 0; a log-density
            asked of a step without noise. BackendError: ``backend`` cannot serve the call.
    """
    function = "sde_step"
    given, noise, key, shape = check_noisy_states(function, x_t, x0_pred, noise)
    A, B, s = check_step_scalars(function, x_t, A, B, s, exclusive=return_log_prob)
    noise, key = used_noise(function, noise, key, s)
    weights = None
    if return_log_prob:
        check_choice(function, "reduction", reduction, REDUCTIONS)
        mask, weights = check_weighting(function, x_t, shape, mask, channel_weights)
    elif mask is not None or channel_weights is not None:
        name = "mask" if mask is not None else "channel_weights"
        raise ValueError(f"{function}(): {name} must be None unless return_log_prob is True, got a value")
    chosen = resolve(function, backend, *given, *tensors_among(A, B, s))
    if chosen != "reference":
        x_prev, log_prob = call_op(
            "sde_step",
            flattened(x_t, shape),
            flattened(x0_pred, shape),
            *noise_arguments(noise, key, shape),
            *scalar_arguments(A, B, s),
            mask,
            weights,
            reduction == "mean",
            return_log_prob,
            chosen,
        )
        x_prev = x_prev.view(x_t.shape)
        return SdeStep(x_prev, log_prob) if return_log_prob else x_prev
    dtype = reference.compute_dtype(*given)
    noise = drawn_noise(noise, key, shape)
    states = [None if x is None else flattened(x, shape).to(dtype) for x in (x_t, x0_pred, noise)]
    scalars = [spread(value, dtype) for value in (A, B, s)]
    x_prev = reference.step(states[0], states[1], *scalars, states[2]).view(x_t.shape)
    if not return_log_prob:
        return x_prev
    weight = reference.total_weight(shape, mask, weights, x_t)
    scale = reference.row_scale(weight, reduction)
    with torch.no_grad():
        log_prob = reference.noise_log_prob(states[2], log_std(s, weight), scale, weight, mask, weights)
    return SdeStep(x_prev, log_prob)


def projected_sde_step(
    x_t: Tensor,
    x0_pred: Tensor,
    A: float | Tensor,
    B: float | Tensor,
    s: float | Tensor,
    noise: Tensor | NoiseKey | None,
    *,
    first_channel: int,
    matrices: int,
    fix_det: bool = True,
    backend: str | None = None,
) -> ProjectedStep:
    """:func:`sde_step` from a prediction whose 3x3 matrices are first replaced by their nearest rotations.

    Channels first_channel, ..., first_channel + 9 matrices - 1 of every frame are row-major 3x3 matrices; each becomes
    what :func:`project_so3` makes of it, all else stays. One pass over memory does what EgoAllo's sampler does between
    the network and the next state (its ``project_rotmats_via_svd``, then the update).

    Args:
        x_t, A, B, s, noise, backend: as in :func:`sde_step`.
        x0_pred: (N, T, D) or (N, *), D the last axis.
        first_channel: where the first matrix begins, >= 0.
        matrices: how many there are per frame, >= 1; they must fit into D.
        fix_det: True makes proper rotations, False keeps reflections as EgoAllo does; see :func:`project_so3`.

    Returns:
        :class:`ProjectedStep` in float32, or float64 if an input is. Both parts are differentiable in the states and
        the noise. x_prev is exactly :func:`sde_step` of the returned prediction.

    Raises:
        TypeError, ValueError: as :func:`sde_step`; matrices that do not fit. BackendError: ``backend`` cannot serve
            the call.
    """
    function = "projected_sde_step"
    given, noise, key, shape = check_noisy_states(function, x_t, x0_pred, noise)
    A, B, s = check_step_scalars(function, x_t, A, B, s)
    noise, key = used_noise(function, noise, key, s)
    first_channel = check_integer(function, "first_channel", first_channel, minimum=0)
    matrices = check_integer(function, "matrices", matrices, minimum=1)
    if first_channel + 9 * matrices > shape[2]:
        raise ValueError(
            f"{function}(): first_channel + 9 matrices must be <= D = {shape[2]}, got {first_channel} + 9 x {matrices}"
        )
    chosen = resolve(function, backend, *given, *tensors_among(A, B, s))
    dtype = reference.compute_dtype(*given)
    x0_pred = flattened(x0_pred, shape).to(dtype)
    if chosen != "reference":
        x_prev, projected = call_op(
            "projected_sde_step",
            flattened(x_t, shape),
            x0_pred,
            *noise_arguments(noise, key, shape),
            *scalar_arguments(A, B, s),
            first_channel,
            matrices,
            fix_det,
            chosen,
        )
    else:
        noise = drawn_noise(noise, key, shape)
        projected = reference.project_matrices(x0_pred, first_channel, matrices, fix_det)
        states = [
            flattened(x_t, shape).to(dtype),
            projected,
            None if noise is None else flattened(noise, shape).to(dtype),
        ]
        scalars = [spread(value, dtype) for value in (A, B, s)]
        x_prev = reference.step(states[0], states[1], *scalars, states[2])
    return ProjectedStep(x_prev.view(x_t.shape), projected.view(x_t.shape))


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
        (N,) in float32, or float64 if an input is; differentiable in the states (on the ``reference`` backend also in
        A, B and s). Half-precision inputs are computed in float32, sums in float64.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device; s <= 0 (for s on a GPU only under ``MGRPO_DEBUG=1``,
            since the check reads values; there such a row is not finite).
    """
    function = "sde_log_prob"
    check_choice(function, "reduction", reduction, REDUCTIONS)
    shape = check_states(function, x_prev=x_prev, x_t=x_t, x0_pred=x0_pred)
    A, B = (check_scalar(function, name, value, x_t) for name, value in (("A", A), ("B", B)))
    s = check_std(function, s, x_t)
    mask, weights = check_weighting(function, x_t, shape, mask, channel_weights)
    chosen = resolve(function, backend, x_prev, x_t, x0_pred, *tensors_among(A, B, s))
    if chosen != "reference":
        log_prob, _ = call_op(
            "sde_log_prob",
            flattened(x_prev, shape),
            flattened(x_t, shape),
            flattened(x0_pred, shape),
            *scalar_arguments(A, B, s),
            mask,
            weights,
            reduction == "mean",
            keeps_residual(x_prev, x_t, x0_pred),
            chosen,
        )
        return log_prob
    dtype = reference.compute_dtype(x_prev, x_t, x0_pred)
    states = [flattened(x, shape).to(dtype) for x in (x_prev, x_t, x0_pred)]
    weight = reference.total_weight(shape, mask, weights, x_t)
    scale = reference.row_scale(weight, reduction)
    scalars = [spread(value, dtype) for value in (A, B, s)]
    return reference.log_prob(*states, *scalars, log_std(s, weight), scale, weight, mask, weights)


def sde_log_ratio(
    x0_pred: Tensor,
    x0_pred_old: Tensor,
    noise: Tensor | NoiseKey,
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
        noise: same shape, the standard normal numbers of the step (constants); or the :class:`NoiseKey` that they were
            drawn with, which draws them again, forward and backward, instead of keeping them.
        B, s: numbers or (N,) tensors; s = 0 is refused as in :func:`sde_log_prob`.
        reduction, channel_weights, mask, backend: as in :func:`sde_log_prob`.
        drop_quadratic: leave delta^2 / 2 out, which removes the ratio's shift below 1 (GRPO-Guard's observation).

    Returns:
        (N,) in float32, or float64 if a prediction is.

    Raises:
        TypeError, ValueError: as :func:`sde_log_prob`.
    """
    function = "sde_log_ratio"
    key = noise if isinstance(noise, NoiseKey) else None
    states = {"x0_pred": x0_pred, "x0_pred_old": x0_pred_old}
    shape = check_states(function, **(states if key is not None else states | {"noise": noise}))
    if key is not None:
        check_key_rows(function, key, x0_pred)
        noise = None
    return _innovations(
        function,
        x0_pred,
        x0_pred_old,
        noise,
        key,
        shape,
        B,
        s,
        reduction,
        channel_weights,
        mask,
        drop_quadratic,
        backend,
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
    shape = check_states("sde_kl", x0_pred=x0_pred, x0_pred_ref=x0_pred_ref)
    return _innovations(
        "sde_kl", x0_pred, x0_pred_ref, None, None, shape, B, s, reduction, channel_weights, mask, False, backend
    )


def _innovations(
    function: str,
    x0_pred: Tensor,
    other: Tensor,
    noise: Tensor | None,
    key: NoiseKey | None,
    shape: tuple[int, int, int],
    B: float | Tensor,
    s: float | Tensor,
    reduction: str,
    channel_weights: Tensor | Sequence[float] | None,
    mask: Tensor | None,
    drop_quadratic: bool,
    backend: str | None,
) -> Tensor:
    """Log-ratio, or the divergence where there is neither noise nor a key."""
    check_choice(function, "reduction", reduction, REDUCTIONS)
    B = check_scalar(function, "B", B, x0_pred)
    s = check_std(function, s, x0_pred)
    mask, weights = check_weighting(function, x0_pred, shape, mask, channel_weights)
    chosen = resolve(function, backend, x0_pred, other, *tensors_among(noise))
    gain = as_double(B) / as_double(s)
    if isinstance(gain, Tensor):
        gain = gain.detach()
    if noise is not None:
        noise = flattened(noise, shape).detach()
    if chosen != "reference":
        if noise is not None and noise.dtype == torch.float64:
            noise = noise.to(reference.compute_dtype(x0_pred, other))
        return call_op(
            function,
            flattened(x0_pred, shape),
            flattened(other, shape).detach(),
            *noise_arguments(noise, key, shape),
            *scalar_arguments(gain),
            mask,
            weights,
            reduction == "mean",
            drop_quadratic,
            chosen,
        )
    weight = reference.total_weight(shape, mask, weights, x0_pred)
    ratio = log_ratio(
        flattened(x0_pred, shape),
        flattened(other, shape).detach(),
        drawn_noise(noise, key, shape),
        torch.zeros_like(weight) + gain,
        reference.row_scale(weight, reduction),
        mask,
        weights,
        drop_quadratic,
    )
    # Without noise the log-ratio's mean is minus the divergence. 0 - x rather than -x, so that it never is -0.
    return 0.0 - ratio if noise is None and key is None else ratio
