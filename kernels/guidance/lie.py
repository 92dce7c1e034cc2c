"""Quaternions, rotation vectors and the derivatives of their logarithms, in plain torch, for the reference.

Quaternions are wxyz and of unit length; derivatives are by a right perturbation, ``q -> q exp(delta)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._rotations import quat_conjugate, quat_multiply, rotation_vector

_SMALL = {torch.float32: 1e-2, torch.float64: 1e-3}
"""Squared angle under which series stand for closed forms that would lose digits: both are good to rounding there."""


def exponential(vector: Tensor) -> Tensor:
    """Quaternions (..., 4) of rotation vectors (..., 3)."""
    square = vector.square().sum(-1, keepdim=True)
    small = square < _SMALL[vector.dtype]
    half = 0.5 * torch.where(small, 1.0, square).sqrt()
    series = 0.5 * (1.0 - square / 24.0 * (1.0 - square / 80.0))
    factor = torch.where(small, series, 0.5 * torch.sin(half) / half)
    real = torch.where(small, 1.0 - square / 8.0 * (1.0 - square / 48.0), torch.cos(half))
    return torch.cat((real, factor * vector), dim=-1)


def retract(quat: Tensor, delta: Tensor) -> Tensor:
    """``quat exp(delta)`` (..., 4), brought back to unit length."""
    moved = quat_multiply(quat, exponential(delta))
    return moved / moved.norm(dim=-1, keepdim=True)


def log_between(a: Tensor, b: Tensor) -> Tensor:
    """Rotation vectors (..., 3) of ``a^-1 b``, angle at most pi."""
    return rotation_vector(quat_multiply(quat_conjugate(a), b))


def rotmats(quat: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3)."""
    w, x, y, z = quat.unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def skew(vector: Tensor) -> Tensor:
    """Matrices (..., 3, 3) of the cross product with (..., 3) vectors."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))


def right_jacobian_inverse(vector: Tensor) -> Tensor:
    """d log(R exp(delta)) / d delta at delta = 0, (..., 3, 3), for R = exp(vector). Its transpose is the left one."""
    square = vector.square().sum(-1)[..., None, None]
    small = square < _SMALL[vector.dtype]
    half = 0.5 * torch.where(small, 1.0, square).sqrt()
    closed = (1.0 - half * torch.cos(half) / torch.sin(half)) / torch.where(small, 1.0, square)
    series = (1.0 + square / 60.0 * (1.0 + square / 42.0)) / 12.0
    cross = skew(vector)
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return identity + 0.5 * cross + torch.where(small, series, closed) * (cross @ cross)


def se3_log(quat: Tensor, translation: Tensor) -> Tensor:
    """Twists (..., 6), translation part first, of rigid transforms given as (..., 4) and (..., 3)."""
    vector = rotation_vector(quat)
    # J_l^-1 = J_r^-1 transposed takes the translation to its part of the logarithm.
    return torch.cat(((right_jacobian_inverse(vector).mT @ translation[..., None])[..., 0], vector), dim=-1)


def se3_left_jacobian_inverse(twist: Tensor) -> Tensor:
    """d log(exp(xi) T) / d xi at xi = 0, (..., 6, 6), for T = exp(twist); translation parts first."""
    rho, phi = skew(twist[..., :3]), skew(twist[..., 3:])
    square = twist[..., 3:].square().sum(-1)[..., None, None]
    # The fourth-order differences cancel almost all digits of the closed forms: series reach further out here.
    small = square < {torch.float32: 1.0, torch.float64: 0.25}[twist.dtype]
    safe = torch.where(small, 1.0, square)
    angle = safe.sqrt()
    sine, cosine = torch.sin(angle), torch.cos(angle)
    a = torch.where(small, _series(square, 6, 20, 42, 72, 110, 156), (angle - sine) / (safe * angle))
    b = torch.where(small, _series(square, 24, 30, 56, 90, 132, 182), (safe + 2.0 * cosine - 2.0) / (2.0 * safe**2))
    c = torch.where(small, _c_series(square), (2.0 * angle - 3.0 * sine + angle * cosine) / (2.0 * safe**2 * angle))
    mixed = phi @ rho @ phi
    Q = (
        0.5 * rho
        + a * (phi @ rho + rho @ phi + mixed)
        + b * (phi @ phi @ rho + rho @ phi @ phi - 3.0 * mixed)
        + c * (mixed @ phi + phi @ mixed)
    )
    inverse_left = right_jacobian_inverse(twist[..., 3:]).mT
    upper = torch.cat((inverse_left, -inverse_left @ Q @ inverse_left), dim=-1)
    lower = torch.cat((torch.zeros_like(inverse_left), inverse_left), dim=-1)
    return torch.cat((upper, lower), dim=-2)


def _series(square: Tensor, first: int, *ratios: int) -> Tensor:
    """1 / first (1 - x / r1 (1 - x / r2 (...)))."""
    total = torch.ones_like(square)
    for ratio in reversed(ratios):
        total = 1.0 - square / ratio * total
    return total / first


def _c_series(square: Tensor) -> Tensor:
    """(2 x - 3 sin x + x cos x) / (2 x^5): the sum over n of (-1)^n (2 n - 2) / (2 (2 n + 1)!) x^(2 n - 4), n >= 2."""
    total, term = torch.zeros_like(square), torch.ones_like(square) / 120.0
    for n in range(2, 10):
        total = total + (n - 1.0) * term
        term = -term * square / ((2 * n + 2) * (2 * n + 3))
    return total
