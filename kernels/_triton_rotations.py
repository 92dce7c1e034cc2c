"""Device functions for Triton kernels: quaternions and six-number rotations, each with its gradient.

A quaternion wxyz is a tuple of four values, one per lane; vectors and matrices are those of ``_triton_math``. Functions
named ``<name>_grad`` return the gradients of the arguments of ``<name>``. Definitions at zero and at parallel columns
are those of kernels/kinematics.
"""

import triton
import triton.language as tl

from ._triton_math import (
    as_float,
    axial,
    column,
    cross,
    cross_grad,
    dot,
    from_columns,
    vec3_add,
    vec3_scale,
    vec3_select,
    vec3_sub,
)

_PARALLEL_F32 = tl.constexpr(8 * 2.0**-23)
_PARALLEL_F64 = tl.constexpr(8 * 2.0**-52)


@triton.jit
def load_quat(ptr, offset, mask):
    """Four contiguous numbers per lane; the identity where ``mask`` is false."""
    p = ptr + offset
    return (
        as_float(tl.load(p, mask=mask, other=1.0)),
        as_float(tl.load(p + 1, mask=mask, other=0.0)),
        as_float(tl.load(p + 2, mask=mask, other=0.0)),
        as_float(tl.load(p + 3, mask=mask, other=0.0)),
    )


@triton.jit
def store_quat(ptr, offset, q, mask):
    """Four contiguous numbers per lane."""
    for i in tl.static_range(4):
        tl.store(ptr + offset + i, q[i], mask=mask)


# Unit length. A vector is divided by its largest entry first, so that its magnitude does not matter.


@triton.jit
def _nonzero(x):
    """``x``, with 1 in place of 0: a divisor whose quotient is discarded where it was 0."""
    return tl.where(x == 0, 1.0, x)


@triton.jit
def unit_vec3(a):
    """``a`` over its length, and one over the length. A zero vector stays, with 0."""
    largest = tl.maximum(tl.maximum(tl.abs(a[0]), tl.abs(a[1])), tl.abs(a[2]))
    scale = _nonzero(largest)
    b = (a[0] / scale, a[1] / scale, a[2] / scale)
    inverse = tl.where(largest == 0, 0.0, 1 / tl.sqrt(_nonzero(dot(b, b))))
    return vec3_scale(inverse, b), inverse / scale


@triton.jit
def unit_vec3_grad(grad, unit, inverse_length):
    """Gradient of ``unit_vec3``: what is across the unit vector, over the length."""
    return vec3_scale(inverse_length, vec3_sub(grad, vec3_scale(dot(grad, unit), unit)))


@triton.jit
def quat_dot(p, q):
    """Inner product of two quaternions."""
    return p[0] * q[0] + p[1] * q[1] + p[2] * q[2] + p[3] * q[3]


@triton.jit
def quat_scale(s, q):
    """A number times a quaternion."""
    return s * q[0], s * q[1], s * q[2], s * q[3]


@triton.jit
def unit_quat(q):
    """``q`` over its length, and one over the length. Zero becomes the identity, with 0, so that its gradient is 0."""
    largest = tl.maximum(tl.maximum(tl.abs(q[0]), tl.abs(q[1])), tl.maximum(tl.abs(q[2]), tl.abs(q[3])))
    scale = _nonzero(largest)
    p = (q[0] / scale, q[1] / scale, q[2] / scale, q[3] / scale)
    inverse = tl.where(largest == 0, 0.0, 1 / tl.sqrt(_nonzero(quat_dot(p, p))))
    w = tl.where(largest == 0, 1.0, inverse * p[0])
    return (w, inverse * p[1], inverse * p[2], inverse * p[3]), inverse / scale


@triton.jit
def unit_quat_grad(grad, unit, inverse_length):
    """Gradient of ``unit_quat``: what is across the unit quaternion, over the length."""
    along = quat_dot(grad, unit)
    return quat_scale(
        inverse_length,
        (
            grad[0] - along * unit[0],
            grad[1] - along * unit[1],
            grad[2] - along * unit[2],
            grad[3] - along * unit[3],
        ),
    )


# Quaternions.


@triton.jit
def quat_multiply(a, b):
    """Hamilton product: rotate by ``b`` first, then by ``a``."""
    return (
        a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
        a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
        a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
        a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
    )


@triton.jit
def quat_multiply_grad(grad, a, b):
    """Gradients of both factors; of unit quaternions, put them through ``unit_quat_grad``."""
    return quat_multiply(grad, quat_conjugate(b)), quat_multiply(quat_conjugate(a), grad)


@triton.jit
def quat_conjugate(q):
    """The inverse of a unit quaternion."""
    return q[0], -q[1], -q[2], -q[3]


@triton.jit
def quat_rotate(q, v):
    """``v`` turned by the unit quaternion ``q``."""
    xyz = (q[1], q[2], q[3])
    twice = vec3_scale(2.0, cross(xyz, v))
    return vec3_add(vec3_add(v, vec3_scale(q[0], twice)), cross(xyz, twice))


@triton.jit
def quat_rotate_grad(grad, q, v):
    """The gradient of ``q`` is that of the formula above; put it through ``unit_quat_grad``."""
    xyz = (q[1], q[2], q[3])
    t = cross(xyz, v)
    grad_xyz, grad_t = cross_grad(grad, xyz, t)
    grad_t = vec3_scale(2.0, vec3_add(grad_t, vec3_scale(q[0], grad)))
    more_xyz, grad_v = cross_grad(grad_t, xyz, v)
    grad_xyz = vec3_add(vec3_scale(2.0, grad_xyz), more_xyz)
    return (2 * dot(grad, t), grad_xyz[0], grad_xyz[1], grad_xyz[2]), vec3_add(grad, grad_v)


@triton.jit
def quat_matrix(q):
    """Rotation matrix of the unit quaternion ``q``."""
    w, x, y, z = q
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


@triton.jit
def quat_matrix_grad(grad, q):
    """The gradient of the formula above; put it through ``unit_quat_grad``."""
    w, x, y, z = q
    turn = axial(grad)
    xy, xz, yz = grad[1] + grad[3], grad[2] + grad[6], grad[5] + grad[7]
    return (
        2 * (x * turn[0] + y * turn[1] + z * turn[2]),
        2 * (y * xy + z * xz + w * turn[0] - 2 * x * (grad[4] + grad[8])),
        2 * (x * xy + z * yz + w * turn[1] - 2 * y * (grad[0] + grad[8])),
        2 * (x * xz + y * yz + w * turn[2] - 2 * z * (grad[0] + grad[4])),
    )


@triton.jit
def _large_component(R):
    """By which component of its quaternion, at least 1/2, a rotation is turned into one: masks for x, y, z; else w."""
    low = R[8] < 0
    x_over_y = R[0] > R[4]
    return low & x_over_y, low & ~x_over_y, ~low & (R[0] < -R[4])


@triton.jit
def _select4(by_x, by_y, by_z, x, y, z, w):
    """One of four values by the masks of ``_large_component``."""
    return tl.where(by_x, x, tl.where(by_y, y, tl.where(by_z, z, w)))


@triton.jit
def _matrix_quat_terms(R):
    """The quaternion of a rotation before it is divided by its length."""
    by_x, by_y, by_z = _large_component(R)
    a = axial(R)
    xy, xz, yz = R[1] + R[3], R[2] + R[6], R[5] + R[7]
    pivot = _select4(
        by_x, by_y, by_z,
        1 + R[0] - R[4] - R[8], 1 - R[0] + R[4] - R[8], 1 - R[0] - R[4] + R[8], 1 + R[0] + R[4] + R[8],
    )  # fmt: skip
    return (
        _select4(by_x, by_y, by_z, a[0], a[1], a[2], pivot),
        _select4(by_x, by_y, by_z, pivot, xy, xz, a[0]),
        _select4(by_x, by_y, by_z, xy, pivot, yz, a[1]),
        _select4(by_x, by_y, by_z, xz, yz, pivot, a[2]),
    )


@triton.jit
def matrix_quat(R):
    """Unit quaternion of the rotation ``R``, with the sign that makes ``_large_component`` positive."""
    return unit_quat(_matrix_quat_terms(R))[0]


@triton.jit
def matrix_quat_grad(grad, R):
    """The gradient of the formula above for a matrix of nine free entries."""
    unit, inverse_length = unit_quat(_matrix_quat_terms(R))
    w, x, y, z = unit_quat_grad(grad, unit, inverse_length)
    by_x, by_y, by_z = _large_component(R)
    zero = tl.zeros_like(w)
    pivot = _select4(by_x, by_y, by_z, x, y, z, w)
    a_x = _select4(by_x, by_y, by_z, w, zero, zero, x)
    a_y = _select4(by_x, by_y, by_z, zero, w, zero, y)
    a_z = _select4(by_x, by_y, by_z, zero, zero, w, z)
    yz = _select4(by_x, by_y, by_z, zero, z, y, zero)
    xz = _select4(by_x, by_y, by_z, z, zero, x, zero)
    xy = _select4(by_x, by_y, by_z, y, x, zero, zero)
    return (
        tl.where(by_y | by_z, -pivot, pivot),
        xy - a_z,
        xz + a_y,
        xy + a_z,
        tl.where(by_x | by_z, -pivot, pivot),
        yz - a_x,
        xz - a_y,
        yz + a_x,
        tl.where(by_x | by_y, -pivot, pivot),
    )


# Rotations from two columns.


@triton.jit
def _gram_schmidt(a, b):
    """First two columns of the rotation, the second argument's direction, its part along the first column, one over the
    lengths of ``a``, ``b`` and of the part of b's direction at a right angle to a, and where there is no answer."""
    u, inverse_a = unit_vec3(a)
    d, inverse_b = unit_vec3(b)
    along = dot(u, d)
    c = vec3_sub(d, vec3_scale(along, u))
    squares = dot(c, c)
    if u[0].dtype == tl.float64:
        degenerate = (squares <= _PARALLEL_F64 * _PARALLEL_F64) | (inverse_a == 0)
    else:
        degenerate = (squares <= _PARALLEL_F32 * _PARALLEL_F32) | (inverse_a == 0)
    inverse_c = tl.where(degenerate, 0.0, 1 / tl.sqrt(_nonzero(squares)))
    v = vec3_scale(inverse_c, c)
    zero = tl.zeros_like(along)
    one = zero + 1
    u = vec3_select(degenerate, (one, zero, zero), u)
    v = vec3_select(degenerate, (zero, one, zero), v)
    return u, v, d, along, inverse_a, inverse_b, inverse_c, degenerate


@triton.jit
def rot6d_matrix(a, b):
    """Rotation whose first column points along ``a`` and whose second lies in the plane of ``a`` and ``b``.

    The identity, with a zero gradient, where ``a`` is zero or ``b`` has no direction of its own.
    """
    u, v, _, _, _, _, _, _ = _gram_schmidt(a, b)
    return from_columns(u, v, cross(u, v))


@triton.jit
def rot6d_matrix_grad(grad, a, b):
    """Gradients of both columns, 0 where the rotation is the identity for want of an answer."""
    u, v, d, along, inverse_a, inverse_b, inverse_c, degenerate = _gram_schmidt(a, b)
    more_u, more_v = cross_grad(column(grad, 2), u, v)
    grad_u = vec3_add(column(grad, 0), more_u)
    grad_c = unit_vec3_grad(vec3_add(column(grad, 1), more_v), v, inverse_c)
    slope = dot(grad_c, u)
    grad_d = vec3_sub(grad_c, vec3_scale(slope, u))
    grad_u = vec3_sub(grad_u, vec3_add(vec3_scale(along, grad_c), vec3_scale(slope, d)))
    zero = (tl.zeros_like(along), tl.zeros_like(along), tl.zeros_like(along))
    return (
        vec3_select(degenerate, zero, unit_vec3_grad(grad_u, u, inverse_a)),
        vec3_select(degenerate, zero, unit_vec3_grad(grad_d, d, inverse_b)),
    )
