"""The nearest rotation of a 3x3 matrix in plain torch, with its closed-form derivative.

Shared by the reference backends of :mod:`mgrpo.kernels.so3` (which documents the mathematics) and
:mod:`mgrpo.kernels.procrustes`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._autocast import without_autocast

GRADIENT_FLOOR = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Lower bound of a gradient's denominators s_i + s_j, relative to the largest singular value."""


class _Polar(torch.autograd.Function):
    """M -> (R, U, s, V^T) with R the nearest rotation; only R is differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrices: Tensor, fix_det: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = matrices.abs().amax((-2, -1), keepdim=True)
        usable = torch.isfinite(size) & (size > 0)
        # R does not depend on the size of M, so rescaling costs nothing and keeps tiny and huge entries apart from
        # underflow and overflow. Zero becomes the identity, whose projection is the identity.
        identity = torch.eye(3, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
        scaled = torch.where(usable, matrices / torch.where(usable, size, 1.0), identity)
        U, s, Vh = torch.linalg.svd(scaled)
        handedness = torch.linalg.det(U @ Vh).sign()
        if fix_det:
            flip = handedness
        else:
            # A singular M is as near to a rotation as to a reflection: take the rotation.
            flip = torch.where(s[..., 2] > 0, 1.0, handedness)
        last = torch.stack([torch.ones_like(flip), torch.ones_like(flip), flip], dim=-1)
        R = (U * last[..., None, :]) @ Vh
        signed = s * last if fix_det else s
        return torch.where(torch.isfinite(size), R, torch.nan), U, signed, Vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: tuple[Tensor, ...]) -> None:
        matrices, _ = inputs
        R, U, signed, Vh = output
        ctx.mark_non_differentiable(U, signed, Vh)
        ctx.save_for_backward(matrices, R, signed, Vh)
        ctx.save_for_forward(matrices, R, signed, Vh)

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        matrices, R, signed, Vh = ctx.saved_tensors
        return polar_gradient(grad_R, matrices, R, signed, Vh), None


class _PolarForward(_Polar):
    """The same with a forward-mode derivative, which torch.compile does not take in a function of its own."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, None, None, None]:
        # The derivative is symmetric: dL/dM from dL/dR is what dR from dM is.
        matrices, R, signed, Vh = ctx.saved_tensors
        return polar_gradient(tangent, matrices, R, signed, Vh), None, None, None


def axial(skew_twice: Tensor) -> Tensor:
    """(*batch, 3, 3) matrix A -> (*batch, 3) vector a with A - A^T = [a]x."""
    return torch.stack(
        [
            skew_twice[..., 2, 1] - skew_twice[..., 1, 2],
            skew_twice[..., 0, 2] - skew_twice[..., 2, 0],
            skew_twice[..., 1, 0] - skew_twice[..., 0, 1],
        ],
        dim=-1,
    )


def cross_matrix(vectors: Tensor) -> Tensor:
    """(*batch, 3) vector a -> (*batch, 3, 3) matrix [a]x with [a]x b = a x b."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


@without_autocast
def polar_gradient(grad_R: Tensor, matrices: Tensor, R: Tensor, signed: Tensor, Vh: Tensor) -> Tensor:
    """dL/dM of the nearest rotation R of M from dL/dR, itself differentiable where the derivative is well defined.

    ``signed`` (*batch, 3) are the singular values of M over its largest entry, the last one negative where the
    determinant was fixed; ``Vh`` (*batch, 3, 3) the right singular vectors, transposed.
    """
    size = matrices.abs().amax((-2, -1), keepdim=True).detach()
    moved = size != 0
    size = torch.where(moved, size, 1.0)
    S = R.transpose(-1, -2) @ (matrices / size)
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
    identity = torch.eye(3, dtype=S.dtype, device=S.device)
    K = trace[..., None, None] * identity - 0.5 * (S + S.transpose(-1, -2))
    g = axial(R.transpose(-1, -2) @ grad_R)

    pair_sums = torch.stack(
        [signed[..., 1] + signed[..., 2], signed[..., 0] + signed[..., 2], signed[..., 0] + signed[..., 1]], dim=-1
    )
    floor = GRADIENT_FLOOR[matrices.dtype] * signed[..., :1]
    regular = (pair_sums > floor).all(-1)[..., None]
    # Solve K x = g by Cramer's rule; where K is (nearly) singular use its eigenvectors V with floored eigenvalues.
    rows = torch.where(regular[..., None], K, identity)
    a, b, c = rows.unbind(-2)
    bc, ca, ab = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    adjugate = torch.stack([bc, ca, ab], dim=-1)
    exact = (adjugate @ g[..., None])[..., 0] / (a * bc).sum(-1, keepdim=True)
    V = Vh.transpose(-1, -2)
    floored = (V @ ((Vh @ g[..., None])[..., 0] / torch.maximum(pair_sums, floor))[..., None])[..., 0]
    x = torch.where(regular, exact, floored)
    return torch.where(moved, (R @ cross_matrix(x)) / size, 0.0)


@without_autocast
def nearest_rotation(matrices: Tensor, fix_det: bool = True) -> Tensor:
    """(*batch, 3, 3) -> the nearest rotation (or, without ``fix_det``, orthogonal matrix) of each, see ``so3``."""
    polar = _Polar if torch.compiler.is_compiling() else _PolarForward
    return polar.apply(matrices, fix_det)[0]
