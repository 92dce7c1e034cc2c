"""Rotations and rigid transforms as plain torch functions.

Conventions, everywhere in mgrpo: quaternions are **wxyz**; a rigid transform ``T_a_b`` is a 7-vector ``(w, x, y, z, tx,
ty, tz)`` that maps points from frame b to frame a; angles are radians, lengths metres; column vectors. Leading axes
broadcast; float32
and float64 are kept. Nothing here normalises silently unless the docstring says so (facts: the base model's fact sheet,
section
A.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mgrpo.kernels._rotations import geodesic_angle, quat_conjugate, quat_multiply
from mgrpo.kernels._shapes import broadcast_shape


def _small(dtype: torch.dtype) -> float:
    """Squared-angle threshold below which Taylor series replace the closed forms."""
    return 1e-10 if dtype == torch.float64 else 1e-5


def quat_normalize(quat: Tensor) -> Tensor:
    """Scale quaternions ``(…, 4)`` to unit length. A zero quaternion becomes the identity; NaN stays NaN."""
    norm = quat.norm(dim=-1, keepdim=True)
    identity = torch.zeros_like(quat)
    identity[..., 0] = 1.0
    return torch.where(norm == 0, identity, quat / norm.clamp_min(torch.finfo(quat.dtype).tiny))


def quat_apply(quat: Tensor, points: Tensor) -> Tensor:
    """Rotate ``points (…, 3)`` by unit quaternions ``(…, 4)``."""
    w, xyz = quat[..., :1], quat[..., 1:]
    xyz, points = torch.broadcast_tensors(xyz, points)
    t = 2.0 * torch.linalg.cross(xyz, points, dim=-1)
    return points + w * t + torch.linalg.cross(xyz, t, dim=-1)


def quat_to_rotmat(quat: Tensor) -> Tensor:
    """Rotation matrices ``(…, 3, 3)`` of wxyz quaternions ``(…, 4)``; divides by ``|q|²``, so any non-zero length gives
    a rotation."""
    w, x, y, z = quat.unbind(-1)
    two = 2.0 / (quat * quat).sum(-1)
    rows = (
        1 - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w),
        two * (x * y + z * w), 1 - two * (x * x + z * z), two * (y * z - x * w),
        two * (x * z - y * w), two * (y * z + x * w), 1 - two * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quat.shape[:-1], 3, 3)


def rotmat_to_quat(rotmat: Tensor) -> Tensor:
    """Quaternions wxyz ``(…, 4)`` of rotation matrices ``(…, 3, 3)``, by the four-case branch on the largest component.

    Does not normalise: matrices that are slightly off give slightly non-unit quaternions; improper ones give numbers
    without meaning, so project first where that can happen. The sign is that of the branch (compare q and -q with
    :func:`geodesic_angle`).
    """
    m = rotmat.reshape(*rotmat.shape[:-2], 9)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(-1)
    case_x = torch.stack((m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20), -1)
    case_y = torch.stack((m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m21 + m12), -1)
    case_z = torch.stack((m10 - m01, m02 + m20, m21 + m12, 1 - m00 - m11 + m22), -1)
    case_w = torch.stack((1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01), -1)
    low, x_over_y, minus = (m22 < 0)[..., None], (m00 > m11)[..., None], (m00 < -m11)[..., None]
    quat = torch.where(low, torch.where(x_over_y, case_x, case_y), torch.where(minus, case_z, case_w))
    trace = torch.where(
        low[..., 0],
        torch.where(x_over_y[..., 0], 1 + m00 - m11 - m22, 1 - m00 + m11 - m22),
        torch.where(minus[..., 0], 1 - m00 - m11 + m22, 1 + m00 + m11 + m22),
    )
    return quat * (0.5 / torch.sqrt(trace))[..., None]


def axis_angle_to_quat(axis_angle: Tensor) -> Tensor:
    """Exponential map: rotation vectors ``(…, 3)`` in radians to unit wxyz quaternions ``(…, 4)``; smooth at zero."""
    square = (axis_angle * axis_angle).sum(-1, keepdim=True)
    tiny = square < _small(axis_angle.dtype)
    safe = torch.where(tiny, torch.ones_like(square), square)
    angle = torch.sqrt(safe)
    real = torch.where(tiny, 1 - square / 8 + square * square / 384, torch.cos(angle / 2))
    factor = torch.where(tiny, 0.5 - square / 48 + square * square / 3840, torch.sin(angle / 2) / angle)
    return torch.cat((real, factor * axis_angle), dim=-1)


def quat_to_axis_angle(quat: Tensor) -> Tensor:
    """Logarithm: unit wxyz quaternions ``(…, 4)`` to rotation vectors ``(…, 3)``, the short way, so q and -q agree
    (angle ≤ π)."""
    w, xyz = quat[..., :1], quat[..., 1:]
    square = (xyz * xyz).sum(-1, keepdim=True)
    tiny = square < _small(quat.dtype)
    norm = torch.sqrt(torch.where(tiny, torch.ones_like(square), square))
    safe_w = torch.where(tiny & (w == 0), torch.ones_like(w), w)
    near = 2.0 / safe_w - 2.0 / 3.0 * square / safe_w**3
    sign = torch.where(w < 0, -torch.ones_like(w), torch.ones_like(w))
    # atan2 of |w| takes the short way round; a half turn (w = 0) keeps the sign of xyz.
    far = 2.0 * sign * torch.atan2(norm, w.abs()) / norm
    return torch.where(tiny, near, far) * xyz


def axis_angle_to_rotmat(axis_angle: Tensor) -> Tensor:
    """Rotation matrices ``(…, 3, 3)`` of rotation vectors ``(…, 3)`` in radians."""
    return quat_to_rotmat(axis_angle_to_quat(axis_angle))


def rotmat_to_axis_angle(rotmat: Tensor) -> Tensor:
    """Rotation vectors ``(…, 3)`` in radians, angle ≤ π, of rotation matrices ``(…, 3, 3)``."""
    return quat_to_axis_angle(quat_normalize(rotmat_to_quat(rotmat)))


def rotmat_to_rot6d(rotmat: Tensor) -> Tensor:
    """The first two columns of rotation matrices ``(…, 3, 3)`` as ``(…, 6)``: first column, then second."""
    return torch.cat((rotmat[..., :, 0], rotmat[..., :, 1]), dim=-1)


def rot6d_to_rotmat(rot6d: Tensor) -> Tensor:
    """Gram-Schmidt of two column vectors ``(…, 6)`` to rotation matrices ``(…, 3, 3)``. Parallel or zero columns have
    no answer (NaN-free but arbitrary)."""
    eps = torch.finfo(rot6d.dtype).tiny
    a, b = rot6d[..., :3], rot6d[..., 3:]
    first = a / a.norm(dim=-1, keepdim=True).clamp_min(eps)
    b = b - (first * b).sum(-1, keepdim=True) * first
    second = b / b.norm(dim=-1, keepdim=True).clamp_min(eps)
    return torch.stack((first, second, torch.linalg.cross(first, second, dim=-1)), dim=-1)


def yaw_rotation(angle: Tensor) -> Tensor:
    """Unit quaternions wxyz ``(…, 4)`` of a turn by ``angle (…)`` radians about the world's up axis (+z)."""
    zero = torch.zeros_like(angle)
    return torch.stack((torch.cos(angle / 2), zero, zero, torch.sin(angle / 2)), dim=-1)


def se3(quat: Tensor, translation: Tensor) -> Tensor:
    """Join wxyz quaternions ``(…, 4)`` and translations ``(…, 3)`` in metres into transforms ``(…, 7)``; leading axes
    broadcast."""
    shape = broadcast_shape(quat.shape[:-1], translation.shape[:-1])
    return torch.cat((quat.expand(*shape, 4), translation.expand(*shape, 3)), dim=-1)


def se3_from_rotmat(rotmat: Tensor, translation: Tensor) -> Tensor:
    """Transforms ``(…, 7)`` of rotation matrices ``(…, 3, 3)`` and translations ``(…, 3)``."""
    return se3(quat_normalize(rotmat_to_quat(rotmat)), translation)


def se3_rotation(transform: Tensor) -> Tensor:
    """The wxyz quaternion ``(…, 4)`` of transforms ``(…, 7)``."""
    return transform[..., :4]


def se3_translation(transform: Tensor) -> Tensor:
    """The translation ``(…, 3)`` in metres of transforms ``(…, 7)``."""
    return transform[..., 4:]


def se3_apply(transform: Tensor, points: Tensor) -> Tensor:
    """Map ``points (…, 3)`` of frame b to frame a by ``T_a_b (…, 7)``; leading axes broadcast."""
    return quat_apply(transform[..., :4], points) + transform[..., 4:]


def se3_multiply(T_a_b: Tensor, T_b_c: Tensor) -> Tensor:
    """``T_a_c (…, 7)`` of ``T_a_b`` and ``T_b_c``; leading axes broadcast."""
    return se3(quat_multiply(T_a_b[..., :4], T_b_c[..., :4]), se3_apply(T_a_b, T_b_c[..., 4:]))


def se3_inverse(T_a_b: Tensor) -> Tensor:
    """``T_b_a (…, 7)`` of ``T_a_b (…, 7)`` with unit quaternions."""
    inverse = quat_conjugate(T_a_b[..., :4])
    return se3(inverse, -quat_apply(inverse, T_a_b[..., 4:]))


__all__ = [
    "axis_angle_to_quat",
    "axis_angle_to_rotmat",
    "geodesic_angle",
    "quat_apply",
    "quat_conjugate",
    "quat_multiply",
    "quat_normalize",
    "quat_to_axis_angle",
    "quat_to_rotmat",
    "rot6d_to_rotmat",
    "rotmat_to_axis_angle",
    "rotmat_to_quat",
    "rotmat_to_rot6d",
    "se3",
    "se3_apply",
    "se3_from_rotmat",
    "se3_inverse",
    "se3_multiply",
    "se3_rotation",
    "se3_translation",
    "yaw_rotation",
]
