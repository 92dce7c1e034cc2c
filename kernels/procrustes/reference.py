"""Oracle of :func:`mgrpo.kernels.procrustes_align` and ``procrustes_residual``: Umeyama's closed form, step by step.

Each cloud is written as ``anchor + size * points``, so that nothing below over- or underflows and a cloud far from the
origin loses no digits. Anchors and sizes are constants to the gradient: the results do not depend on them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._autocast import without_autocast
from .._polar import nearest_rotation

COINCIDENT = 4.0
"""A cloud is one point when all of it lies within this many roundings of its first point's coordinates."""
FAR = {torch.float32: 1e12, torch.float64: 1e100}
"""A point of weight zero is ignored where it is not finite or farther from the others than this many cloud sizes."""


class Cloud(NamedTuple):
    """Points moved and scaled so that neither their place nor their size costs digits."""

    anchor: Tensor
    """(*batch, 3) the first point that has weight; zero if none has."""
    extent: Tensor
    """(*batch) largest coordinate difference from the anchor, over the points with weight."""
    size: Tensor
    """(*batch) the extent, held above the smallest normal number; one where it is zero."""
    points: Tensor
    """(*batch, N, 3) seen from the anchor, in units of the size."""


class Fit(NamedTuple):
    """``aligned = factor * R (x - x_mean) + target_mean``; x and x_mean in units of the source's size."""

    source: Cloud
    target: Cloud
    ignored: Tensor
    """(*batch, N)"""
    shares: Tensor
    """(*batch, N) weights over their sum; zero without any weight."""
    x_mean: Tensor
    """(*batch, 1, 3)"""
    y_mean: Tensor
    """(*batch, 1, 3)"""
    R: Tensor
    scale: Tensor
    factor: Tensor


@without_autocast
def procrustes_align(
    source: Tensor, target: Tensor, weights: Tensor, *, with_scale: bool = True, fix_det: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``weights`` (*batch, N); all arguments with their full batch. Returns aligned, R, t, scale."""
    N = source.shape[-2]
    fit = _fit(source, target, weights, with_scale, fix_det)
    source_mean, target_mean = _restored(fit.source, fit.x_mean), _restored(fit.target, fit.y_mean)
    t = target_mean - fit.scale[..., None, None] * _turned(fit.R, source_mean)

    def move(points: Tensor) -> Tensor:
        return fit.factor[..., None, None] * _turned(fit.R, points - fit.x_mean) + target_mean

    # An ignored point goes where the others take it, but no gradient comes back from there.
    taken_along = move(fit.source.points).detach()
    part = _without(fit.ignored, fit.source.points)
    aligned = torch.where(fit.ignored[..., None], taken_along, move(part))
    return aligned[..., :N, :], fit.R, t[..., 0, :], fit.scale


@without_autocast
def procrustes_residual(
    source: Tensor, target: Tensor, weights: Tensor, *, with_scale: bool = True, fix_det: bool = True
) -> Tensor:
    """The same arguments. Returns (*batch) the weighted mean distance of the aligned points from the target."""
    fit = _fit(source, target, weights, with_scale, fix_det)
    x = _without(fit.ignored, fit.source.points) - fit.x_mean
    y = _without(fit.ignored, fit.target.points) - fit.y_mean
    unit = torch.maximum(fit.factor.detach(), fit.target.size)
    moved = (fit.factor / unit)[..., None, None] * _turned(fit.R, x)
    difference = moved - (fit.target.size / unit)[..., None, None] * y
    squared = difference.square().sum(-1)
    apart = squared != 0
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)  # at distance zero the gradient is zero
    return unit * (fit.shares * distance).sum(-1)


def _fit(source: Tensor, target: Tensor, weights: Tensor, with_scale: bool, fix_det: bool) -> Fit:
    if source.shape[-2] == 0:  # a point without weight changes nothing, and spares an empty maximum
        source, target, weights = pad(source, (0, 0, 0, 1)), pad(target, (0, 0, 0, 1)), pad(weights, (0, 1))
    weights = weights / weights.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    used = weights.detach() != 0
    source_cloud, target_cloud = _cloud(source, used), _cloud(target, used)
    far = FAR[source.dtype]
    near = (_largest(source_cloud.points, -1) <= far) & (_largest(target_cloud.points, -1) <= far)
    ignored = ~used & ~near

    w = torch.where(ignored, 0.0, weights)
    total = w.sum(-1, keepdim=True)
    weightless = total == 0
    shares = torch.where(weightless, 0.0, w / torch.where(weightless, 1.0, total))
    x, y = _without(ignored, source_cloud.points), _without(ignored, target_cloud.points)
    x_mean = (shares[..., None] * x).sum(-2, keepdim=True)
    y_mean = (shares[..., None] * y).sum(-2, keepdim=True)
    x, y = x - x_mean, y - y_mean
    spread = (w * x.square().sum(-1)).sum(-1)
    cross_covariance = (w[..., None] * y).transpose(-1, -2) @ x

    rounding = COINCIDENT * torch.finfo(source.dtype).eps * _largest(source_cloud.anchor, -1)
    one_point = ((source_cloud.extent <= rounding) & ~torch.isnan(spread)) | (spread == 0)
    cross_covariance = torch.where(one_point[..., None, None], 0.0, cross_covariance)
    R = nearest_rotation(cross_covariance, fix_det)
    scale, factor = torch.ones_like(spread), source_cloud.size
    if with_scale:
        best = (R * cross_covariance).sum((-2, -1)) / torch.where(one_point, 1.0, spread)
        factor = torch.where(one_point, factor, best * target_cloud.size)
        scale = torch.where(one_point, 1.0, factor / source_cloud.size)
    return Fit(source_cloud, target_cloud, ignored, shares, x_mean, y_mean, R, scale, factor)


def _cloud(points: Tensor, used: Tensor) -> Cloud:
    first = used.int().argmax(-1)[..., None, None].expand(*used.shape[:-1], 1, 3)
    anchor = torch.where(used.any(-1)[..., None], points.detach().gather(-2, first)[..., 0, :], 0.0)
    offsets = points - anchor[..., None, :]
    extent = torch.where(used, _largest(offsets, -1), 0.0).amax(-1)
    size = torch.where(extent == 0, 1.0, extent.clamp(min=torch.finfo(points.dtype).tiny))
    return Cloud(anchor, extent, size, offsets / size[..., None, None])


def _largest(values: Tensor, axis: int) -> Tensor:
    return values.detach().abs().amax(axis)


def _without(ignored: Tensor, points: Tensor) -> Tensor:
    return torch.where(ignored[..., None], 0.0, points)


def _turned(R: Tensor, points: Tensor) -> Tensor:
    """(*batch, 3, 3), (*batch, N, 3) -> R x for every point x."""
    return points @ R.transpose(-1, -2)


def _restored(cloud: Cloud, point: Tensor) -> Tensor:
    """A point (*batch, 1, 3) given in units of the cloud."""
    return cloud.anchor[..., None, :] + cloud.size[..., None, None] * point
