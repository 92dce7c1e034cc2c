"""Rotations from quaternions and two columns, as angles and as rotation vectors, in plain torch, for references."""

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


def _scaled(vectors: Tensor) -> Tensor:
    """The vectors over their largest entries, against overflow and underflow of squares; zero vectors stay zero."""
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    return vectors / torch.where(largest == 0, 1, largest)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def quat_normalised(quats: Tensor) -> Tensor:
    """(*batch, 4) to unit length; a zero quaternion becomes the identity, with a zero gradient."""
    identity = torch.cat([quats.new_ones(1), quats.new_zeros(3)])
    scaled = _scaled(quats)
    scaled = torch.where((quats == 0).all(-1, keepdim=True), identity, scaled)
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def quat_matrix(unit: Tensor) -> Tensor:
    """Unit quaternions (*batch, 4) -> (*batch, 3, 3)."""
    w, x, y, z = unit.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rot6d_matrix(rot6d: Tensor) -> Tensor:
    """Gram-Schmidt of two columns (*batch, 6) -> (*batch, 3, 3).

    A zero column, or a second one parallel to the first, gives the identity and a zero gradient.
    """
    a, b = _scaled(rot6d[..., :3]), _scaled(rot6d[..., 3:])
    axes = torch.eye(3, dtype=rot6d.dtype, device=rot6d.device)
    no_direction = (a == 0).all(-1, keepdim=True)
    a = torch.where(no_direction, axes[0], a)
    first = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    rest = b - _dot(first, b) * first
    parallel = _dot(rest, rest) <= (8 * torch.finfo(rot6d.dtype).eps) ** 2 * _dot(b, b)
    degenerate = no_direction | parallel
    first = torch.where(degenerate, axes[0], first)
    rest = torch.where(degenerate, axes[1], rest)
    second = rest / torch.linalg.vector_norm(rest, dim=-1, keepdim=True)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)
