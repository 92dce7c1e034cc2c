"""Oracle of :func:`mgrpo.kernels.procrustes_align`: Umeyama's closed form, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from .._polar import nearest_rotation

COINCIDENT = 4.0
"""A cloud is one point when its spread is below this many roundings of its coordinates."""


def procrustes_align(
    source: Tensor, target: Tensor, weights: Tensor, *, with_scale: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``weights`` (*batch, N); all arguments with their full batch. Returns aligned, R, t, scale."""
    w = weights[..., None]
    total = w.sum(-2)
    share = torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)
    source_mean = share * (w * source).sum(-2)
    target_mean = share * (w * target).sum(-2)
    centred = source - source_mean[..., None, :]
    spread = (weights * centred.square().sum(-1)).sum(-1)
    rounding = COINCIDENT * torch.finfo(source.dtype).eps
    one_point = spread <= rounding**2 * (weights * source.square().sum(-1)).sum(-1)

    cross_covariance = (w * (target - target_mean[..., None, :])).transpose(-1, -2) @ centred
    R = nearest_rotation(torch.where(one_point[..., None, None], 0.0, cross_covariance))
    if with_scale:
        best = (R * cross_covariance).sum((-2, -1)) / torch.where(one_point, 1.0, spread)
        scale = torch.where(one_point, 1.0, best)
    else:
        scale = torch.ones_like(spread)
    B = scale[..., None, None] * R
    t = target_mean - (B @ source_mean[..., None])[..., 0]
    aligned = centred @ B.transpose(-1, -2) + target_mean[..., None, :]
    return aligned, R, t, scale
