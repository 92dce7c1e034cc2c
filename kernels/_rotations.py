"""Rotation matrices as angles and rotation vectors, and products of quaternions, in plain torch, for references."""

from __future__ import annotations

import torch
from torch import Tensor

from ._autocast import without_autocast

_TINY_SQUARED_SINE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Squared sine of half an angle under which the logarithm is taken by its series."""


@without_autocast
def geodesic_angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians (...) of the rotation between (..., 3, 3) rotation matrices (paper equation 19), accurate also
    near 0 and π.

    By the arc tangent of sine and cosine: the arc cosine of the trace would lose half of the digits near zero. NaN
    where an entry is infinite, of which the arc tangent alone would make an angle.
    """
    relative = a.transpose(-1, -2) @ b
    axial = torch.stack(
        (
            relative[..., 2, 1] - relative[..., 1, 2],
            relative[..., 0, 2] - relative[..., 2, 0],
            relative[..., 1, 0] - relative[..., 0, 1],
        ),
        dim=-1,
    )
    cosine = relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    return torch.atan2(axial.norm(dim=-1), cosine) + 0.0 * relative.detach().sum((-2, -1))


def unit_quaternion(rotmats: Tensor) -> Tensor:
    """Unit quaternions wxyz (..., 4) of (..., 3, 3) rotation matrices; the sign is that of the well-defined case."""
    m = rotmats.flatten(-2).unbind(-1)
    by_x = torch.stack((m[7] - m[5], 1 + m[0] - m[4] - m[8], m[3] + m[1], m[2] + m[6]), -1)
    by_y = torch.stack((m[2] - m[6], m[3] + m[1], 1 - m[0] + m[4] - m[8], m[7] + m[5]), -1)
    by_z = torch.stack((m[3] - m[1], m[2] + m[6], m[7] + m[5], 1 - m[0] - m[4] + m[8]), -1)
    by_w = torch.stack((1 + m[0] + m[4] + m[8], m[7] - m[5], m[2] - m[6], m[3] - m[1]), -1)
    low, x_over_y, minus = (m[8] < 0)[..., None], (m[0] > m[4])[..., None], (m[0] < -m[4])[..., None]
    quat = torch.where(low, torch.where(x_over_y, by_x, by_y), torch.where(minus, by_z, by_w))
    return quat / quat.norm(dim=-1, keepdim=True)  # the norm is at least 1, whatever the matrix


def rotation_vector(quat: Tensor, *, short_way: bool = True) -> Tensor:
    """Rotation vectors (..., 3) in radians of unit quaternions wxyz (..., 4).

    The short way takes q and -q alike (angle at most pi); otherwise the sign of w decides, and the angle may reach
    2 pi.
    """
    w, xyz = quat[..., :1], quat[..., 1:]
    square = xyz.square().sum(-1, keepdim=True)
    tiny = square < _TINY_SQUARED_SINE[quat.dtype]
    sine = torch.where(tiny, 1.0, square).sqrt()
    safe_w = torch.where(tiny, w, 1.0)
    series = 2.0 / safe_w - 2.0 / 3.0 * square / safe_w**3
    sign = torch.where(w < 0, -1.0, 1.0)
    vector = torch.where(tiny, series, 2.0 * sign * torch.atan2(sine, w.abs()) / sine) * xyz
    if short_way:
        return vector
    angle = vector.norm(dim=-1, keepdim=True)
    turned = 1.0 - 2.0 * torch.pi / angle.clamp_min(torch.finfo(angle.dtype).eps)
    return torch.where(w < 0, vector * turned, vector)


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of wxyz quaternions (..., 4): rotate by ``b`` first, then by ``a``."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def quat_conjugate(quat: Tensor) -> Tensor:
    """Conjugates of wxyz quaternions (..., 4): the inverse where they are unit."""
    return torch.cat((quat[..., :1], -quat[..., 1:]), dim=-1)
