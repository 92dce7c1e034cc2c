"""Alignment of corresponding point clouds by a similarity or a rigid motion."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import broadcast_batch, check_like, check_nonnegative, check_tensor
from .._dispatch import resolve
from .._library import call_op
from . import op as _op  # noqa: F401  (registers the operators)
from . import reference


class Alignment(NamedTuple):
    """The motion ``y = scale R x + t`` and the source points after it."""

    aligned: Tensor
    """(*batch, N, 3) source points moved onto the target, metres."""
    R: Tensor
    """(*batch, 3, 3) rotation; orthogonal, perhaps a reflection, without ``fix_det``."""
    t: Tensor
    """(*batch, 3) translation, metres."""
    scale: Tensor
    """(*batch) scale, >= 0; ones when the alignment was asked for without scale."""


def procrustes_align(
    source: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    with_scale: bool = True,
    fix_det: bool = True,
    backend: str | None = None,
) -> Alignment:
    """The similarity that minimises ``sum_i w_i |scale R x_i + t - y_i|^2`` (Umeyama 1991), with gradients through it.

    Args:
        source: (*#batch, N, 3) points x, metres; float32 or float64.
        target: (*#batch, N, 3) points y, metres.
        weights: (*#batch, N), >= 0 (checked under MGRPO_DEBUG=1); None weighs all points alike.
        with_scale: False fixes the scale to 1 (rigid alignment).
        fix_det: True gives a proper rotation (determinant +1). False lets R reflect where that fits better.
        backend: see :mod:`mgrpo.kernels`; None chooses.

    Returns:
        :class:`Alignment`, contiguous; differentiable in source, target and weights.

    Degenerate clouds never give NaN. Fewer than three points, or collinear ones, leave a turn about their line open: R
    is then one of the best rotations (with the same residual on every backend). Where all source points coincide (to
    rounding), or N = 0, or all weights are zero, R is the identity and the scale 1; without any weight also t = 0.
    A reflected target gives the best proper rotation. A NaN stays in its own row. A point of weight zero changes
    nothing but its own aligned place; where it is not finite, no gradient comes from it or goes to it.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape. BackendError: ``backend`` cannot serve the call.
    """
    name = "procrustes_align"
    source, target, weights = _checked(name, source, target, weights)
    chosen = resolve(name, backend, source)
    if chosen == "reference":
        everywhere = _unit_weights(source) if weights is None else weights
        return Alignment(
            *reference.procrustes_align(source, target, everywhere, with_scale=with_scale, fix_det=fix_det)
        )
    return Alignment(*call_op("procrustes_align", source, target, weights, with_scale, fix_det, chosen))


def procrustes_residual(
    source: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    *,
    with_scale: bool = True,
    fix_det: bool = True,
    backend: str | None = None,
) -> Tensor:
    """The distance that the best alignment leaves, ``sum_i w_i |scale R x_i + t - y_i| / sum_i w_i``.

    The motion is that of :func:`procrustes_align`, with the same arguments; the aligned points are never written. With
    frames of joints this is the aligned position error of motion recovery ("PA-MPJPE"), which minimises squares and
    reports the mean distance.

    Returns:
        (*batch) metres; differentiable in source, target and weights, through the alignment. A point that already
        lies on its target has gradient zero there. Zero where there is no point or no weight; one point, or a source
        that is a single point, leaves the mean distance of the target from its own mean.

    Raises:
        TypeError, ValueError: wrong type, dtype or shape. BackendError: ``backend`` cannot serve the call.
    """
    name = "procrustes_residual"
    source, target, weights = _checked(name, source, target, weights)
    chosen = resolve(name, backend, source)
    if chosen == "reference":
        everywhere = _unit_weights(source) if weights is None else weights
        return reference.procrustes_residual(source, target, everywhere, with_scale=with_scale, fix_det=fix_det)
    return call_op("procrustes_residual", source, target, weights, with_scale, fix_det, chosen)


def _checked(name: str, source: Tensor, target: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments after all checks, expanded (without copying) to their common batch."""
    sizes: dict[str, int] = {}
    check_tensor(name, "source", source, ("*#batch", "N", 3), sizes=sizes)
    check_tensor(name, "target", target, ("*#batch", "N", 3), sizes=sizes)
    check_like(name, "target", target, "source", source)
    batches = {"source": source.shape[:-2], "target": target.shape[:-2]}
    if weights is not None:
        check_tensor(name, "weights", weights, ("*#batch", "N"), sizes=sizes)
        check_like(name, "weights", weights, "source", source)
        check_nonnegative(name, "weights", weights)
        batches["weights"] = weights.shape[:-1]
    batch = broadcast_batch(name, **batches)
    source, target = source.expand(*batch, -1, -1), target.expand(*batch, -1, -1)
    return source, target, None if weights is None else weights.expand(*batch, -1)


def _unit_weights(source: Tensor) -> Tensor:
    return torch.ones((), dtype=source.dtype, device=source.device).expand(source.shape[:-1])
