"""Device functions for Triton kernels: gradients of rotations as torques, and numbers in rows.

A torque is dL/d(angle), a 3-vector: all that a gradient says about a proper rotation. The mathematics is that of
``csrc/kinematics/kinematics_math.h``; kernels/kinematics/README.md explains it.
"""

import triton
import triton.language as tl

from ._triton_math import (
    as_float,
    axial,
    column,
    cross,
    dot,
    from_columns,
    times_transposed,
    vec3_add,
    vec3_scale,
    vec3_sub,
)
from ._triton_rotations import rot6d_matrix, rot6d_matrix_grad


@triton.jit
def load_numbers(ptr, offset, mask, N: tl.constexpr):
    """N contiguous numbers per lane; zeros where ``mask`` is false."""
    numbers = ()
    for i in tl.static_range(N):
        numbers += (as_float(tl.load(ptr + offset + i, mask=mask, other=0.0)),)
    return numbers


@triton.jit
def store_numbers(ptr, offset, numbers, mask):
    """Contiguous numbers per lane."""
    for i in tl.static_range(len(numbers)):
        tl.store(ptr + offset + i, numbers[i], mask=mask)


@triton.jit
def quat_torque(grad, q):
    """The torque that dL/dq means for the rotation of the unit quaternion ``q``."""
    grad_xyz, xyz = (grad[1], grad[2], grad[3]), (q[1], q[2], q[3])
    straight = vec3_sub(vec3_scale(q[0], grad_xyz), vec3_scale(grad[0], xyz))
    return vec3_scale(0.5, vec3_add(straight, cross(xyz, grad_xyz)))


@triton.jit
def matrix_torque(grad, R):
    """The torque that dL/dR means for the rotation ``R``."""
    return axial(times_transposed(grad, R))


@triton.jit
def quat_torque_grad(torque, unit, inverse_length):
    """dL/d(quaternion of any length) from a torque about the axes of the frame that ``unit`` maps to, where
    ``unit, inverse_length = unit_quat(...)``."""
    factor = 2 * inverse_length
    xyz = (unit[1], unit[2], unit[3])
    turned = vec3_scale(factor, vec3_add(vec3_scale(unit[0], torque), cross(torque, xyz)))
    return -factor * dot(torque, xyz), turned[0], turned[1], turned[2]


@triton.jit
def rot6d_torque_grad(torque, columns):
    """dL/d(six numbers) from a torque about the axes of the frame that their rotation maps to."""
    a, b = (columns[0], columns[1], columns[2]), (columns[3], columns[4], columns[5])
    R = rot6d_matrix(a, b)
    half = vec3_scale(0.5, torque)
    # A change of R is [angle]x R, and <[torque / 2]x R, [angle]x R> is torque . angle.
    grad = from_columns(cross(half, column(R, 0)), cross(half, column(R, 1)), cross(half, column(R, 2)))
    grad_a, grad_b = rot6d_matrix_grad(grad, a, b)
    return grad_a[0], grad_a[1], grad_a[2], grad_b[0], grad_b[1], grad_b[2]
