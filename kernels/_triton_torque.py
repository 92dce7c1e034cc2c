"""Device functions for Triton kernels whose gradients travel as torques: quaternions, matrices, two columns.

A value per lane, as in ``_triton_math``: a quaternion is a tuple of four such values (wxyz). The mathematics is that of
``csrc/kinematics/kinematics_math.h``; kernels/kinematics/README.md explains it. A torque is dL/d(angle), a 3-vector.
"""

import triton
import triton.language as tl

from ._triton_math import axial, cross, dot, from_columns, times_transposed, vec3_add, vec3_scale, vec3_select, vec3_sub

_LARGEST_F32 = tl.constexpr(3.4028234663852886e38)
_LARGEST_F64 = tl.constexpr(1.7976931348623157e308)


# Loads and stores of any number of numbers.


@triton.jit
def load_numbers(ptr, offset, mask, N: tl.constexpr):
    """N contiguous numbers per lane; zeros where ``mask`` is false."""
    numbers = ()
    for i in tl.static_range(N):
        numbers += (tl.load(ptr + offset + i, mask=mask, other=0.0),)
    return numbers


@triton.jit
def store_numbers(ptr, offset, numbers, mask):
    """Contiguous numbers per lane."""
    for i in tl.static_range(len(numbers)):
        tl.store(ptr + offset + i, numbers[i], mask=mask)


# Unit vectors.


@triton.jit
def inverse_length(scaled_squares, divisor):
    """Of a vector: the factor that makes it a unit vector once divided by ``divisor``, and one over its length.

    ``scaled_squares`` is the divided vector's squared length. A zero vector gets zeros.
    """
    zero = scaled_squares == 0
    factor = tl.where(zero, 0.0, 1.0 / tl.sqrt(tl.where(zero, 1.0, scaled_squares)))
    largest = _LARGEST_F64 if scaled_squares.dtype == tl.float64 else _LARGEST_F32
    return factor, tl.minimum(factor / divisor, largest)


@triton.jit
def vec3_normalise(a):
    """The unit vector, whatever the magnitude, and one over the length. A zero vector stays, with 0."""
    largest = tl.maximum(tl.maximum(tl.abs(a[0]), tl.abs(a[1])), tl.abs(a[2]))
    divisor = tl.where(largest > 0, largest, 1.0)
    scaled = (a[0] / divisor, a[1] / divisor, a[2] / divisor)
    factor, inverse = inverse_length(dot(scaled, scaled), divisor)
    return vec3_scale(factor, scaled), inverse


@triton.jit
def quat_normalise(q):
    """The unit quaternion and one over the length; the identity and 0 for a zero quaternion."""
    largest = tl.maximum(tl.maximum(tl.abs(q[0]), tl.abs(q[1])), tl.maximum(tl.abs(q[2]), tl.abs(q[3])))
    divisor = tl.where(largest > 0, largest, 1.0)
    w, x, y, z = q[0] / divisor, q[1] / divisor, q[2] / divisor, q[3] / divisor
    squares = w * w + x * x + y * y + z * z
    factor, inverse = inverse_length(squares, divisor)
    return (tl.where(squares == 0, 1.0, factor * w), factor * x, factor * y, factor * z), inverse


# Quaternions.


@triton.jit
def quat_identity_like(x):
    zero = tl.zeros_like(x)
    return zero + 1, zero, zero, zero


@triton.jit
def imaginary(q):
    return q[1], q[2], q[3]


@triton.jit
def conjugate(q):
    return q[0], -q[1], -q[2], -q[3]


@triton.jit
def quat_multiply(a, b):
    """First ``b``, then ``a``."""
    return (
        a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
        a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
        a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
        a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
    )


@triton.jit
def quat_rotate(q, v):
    """``v`` turned by the unit quaternion ``q``."""
    twice = vec3_scale(2.0, cross(imaginary(q), v))
    return vec3_add(vec3_add(v, vec3_scale(q[0], twice)), cross(imaginary(q), twice))


@triton.jit
def quat_matrix(q):
    """The matrix of a unit quaternion."""
    w, x, y, z = q
    return (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip


@triton.jit
def quat_matrix_grad(grad, q, inverse):
    """dL/d(quaternion of any length) from dL/dR, where ``q, inverse = quat_normalise(...)`` and R = quat_matrix(q)."""
    turn = axial(grad)
    xy, xz, yz = grad[1] + grad[3], grad[2] + grad[6], grad[5] + grad[7]
    w, x, y, z = q
    gw = dot(imaginary(q), turn)
    gx = y * xy + z * xz - 2 * x * (grad[4] + grad[8]) + w * turn[0]
    gy = x * xy + z * yz - 2 * y * (grad[0] + grad[8]) + w * turn[1]
    gz = x * xz + y * yz - 2 * z * (grad[0] + grad[4]) + w * turn[2]
    along = w * gw + x * gx + y * gy + z * gz
    factor = 2 * inverse
    return factor * (gw - along * w), factor * (gx - along * x), factor * (gy - along * y), factor * (gz - along * z)


@triton.jit
def quat_torque_grad(torque, q, inverse):
    """dL/d(quaternion of any length) from a torque about the axes of the frame that ``q`` maps to."""
    factor = 2 * inverse
    turned = vec3_scale(factor, vec3_add(vec3_scale(q[0], torque), cross(torque, imaginary(q))))
    return -factor * dot(torque, imaginary(q)), turned[0], turned[1], turned[2]


@triton.jit
def quat_torque(grad, q):
    """The torque that dL/dq means for the rotation ``q``."""
    straight = vec3_sub(vec3_scale(q[0], imaginary(grad)), vec3_scale(grad[0], imaginary(q)))
    return vec3_scale(0.5, vec3_add(straight, cross(imaginary(q), imaginary(grad))))


@triton.jit
def matrix_torque(grad, R):
    """The torque that dL/dR means for the rotation ``R``."""
    return axial(times_transposed(grad, R))


# The quaternion of a matrix.


@triton.jit
def matrix_quat(R):
    """The unit quaternion of a rotation, one over the length of its four linear terms, and which of x, y, z gave it."""
    a = axial(R)
    s = (R[7] + R[5], R[2] + R[6], R[3] + R[1])
    low = R[8] < 0
    by_x = low & (R[0] > R[4])
    by_y = low & ~(R[0] > R[4])
    by_z = ~low & (R[0] < -R[4])
    sign_x = tl.where(by_y | by_z, -1.0, 1.0)
    sign_y = tl.where(by_x | by_z, -1.0, 1.0)
    sign_z = tl.where(by_x | by_y, -1.0, 1.0)
    pivot = 1.0 + sign_x * R[0] + sign_y * R[4] + sign_z * R[8]  # at least 1
    w = tl.where(by_x, a[0], tl.where(by_y, a[1], tl.where(by_z, a[2], pivot)))
    x = tl.where(by_x, pivot, tl.where(by_y, s[2], tl.where(by_z, s[1], a[0])))
    y = tl.where(by_x, s[2], tl.where(by_y, pivot, tl.where(by_z, s[0], a[1])))
    z = tl.where(by_x, s[1], tl.where(by_y, s[0], tl.where(by_z, pivot, a[2])))
    inverse = 1.0 / tl.sqrt(w * w + x * x + y * y + z * z)
    return (inverse * w, inverse * x, inverse * y, inverse * z), inverse, (by_x, by_y, by_z)


@triton.jit
def matrix_quat_grad(grad, R):
    """dL/dR from dL/dq of ``matrix_quat``."""
    q, inverse, by = matrix_quat(R)
    by_x, by_y, by_z = by
    along = q[0] * grad[0] + q[1] * grad[1] + q[2] * grad[2] + q[3] * grad[3]
    w = inverse * (grad[0] - along * q[0])
    x = inverse * (grad[1] - along * q[1])
    y = inverse * (grad[2] - along * q[2])
    z = inverse * (grad[3] - along * q[3])
    pivot = tl.where(by_x, x, tl.where(by_y, y, tl.where(by_z, z, w)))
    ax = tl.where(by_x, w, tl.where(by_y | by_z, 0.0, x))
    ay = tl.where(by_y, w, tl.where(by_x | by_z, 0.0, y))
    az = tl.where(by_z, w, tl.where(by_x | by_y, 0.0, z))
    sx = tl.where(by_y, z, tl.where(by_z, y, 0.0))
    sy = tl.where(by_x, z, tl.where(by_z, x, 0.0))
    sz = tl.where(by_x, y, tl.where(by_y, x, 0.0))
    return (
        tl.where(by_y | by_z, -pivot, pivot), sz - az, sy + ay,
        sz + az, tl.where(by_x | by_z, -pivot, pivot), sx - ax,
        sy - ay, sx + ax, tl.where(by_x | by_y, -pivot, pivot),
    )  # fmt: skip


# Rotations from two columns.


@triton.jit
def gram_schmidt(columns):
    """Six numbers, two columns, made orthonormal: the axes u, v, w; one over the lengths of the first column and of the
    second one's part at a right angle to it; the slope of the second along the first.

    The identity and zeros where they give no rotation.
    """
    u, inverse_a = vec3_normalise((columns[0], columns[1], columns[2]))
    direction, inverse_b = vec3_normalise((columns[3], columns[4], columns[5]))
    along = dot(u, direction)
    c = vec3_sub(direction, vec3_scale(along, u))
    squares = dot(c, c)
    parallel = 8 * (2.220446049250313e-16 if squares.dtype == tl.float64 else 1.1920928955078125e-07)
    degenerate = (squares <= parallel * parallel) | (inverse_a == 0)
    over_c = tl.where(degenerate, 0.0, 1.0 / tl.sqrt(tl.where(degenerate, 1.0, squares)))
    zero = tl.zeros_like(squares)
    one = zero + 1
    u = vec3_select(degenerate, (one, zero, zero), u)
    v = vec3_select(degenerate, (zero, one, zero), vec3_scale(over_c, c))
    return u, v, cross(u, v), tl.where(degenerate, 0.0, inverse_a), inverse_b * over_c, along * over_c


@triton.jit
def rot6d_matrix(columns):
    u, v, w, _, _, _ = gram_schmidt(columns)
    return from_columns(u, v, w)


@triton.jit
def rot6d_torque_grad(torque, columns):
    """dL/d(six numbers) from a torque about the axes of the frame that the rotation maps to."""
    u, v, w, inverse_a, inverse_c, slope = gram_schmidt(columns)
    about_u, about_v, about_w = dot(u, torque), dot(v, torque), dot(w, torque)
    a = vec3_scale(inverse_a, vec3_sub(vec3_scale(about_w, v), vec3_scale(about_v + about_u * slope, w)))
    b = vec3_scale(about_u * inverse_c, w)
    return a[0], a[1], a[2], b[0], b[1], b[2]
