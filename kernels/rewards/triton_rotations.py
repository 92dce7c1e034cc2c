"""Rotations in Triton, as they come: decoded, compared with recorded ones, and the gradients of both.

The mathematics is that of ``csrc/rewards/rewards_math.h``: README.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import (
    axial,
    cross_matrix,
    dot,
    inner,
    load_mat3,
    mat3_add,
    mat3_scale,
    matmul,
    program_rows,
    row_offset,
    store_mat3,
    trace,
    transposed_times,
    vec3_add,
    vec3_direction,
    vec3_length,
    vec3_scale,
    vec3_sub,
)
from .._triton_polar import nearest_rotation, nearest_rotation_grad
from .._triton_rotations import (
    matrix_quat,
    matrix_quat_grad,
    quat_matrix,
    quat_matrix_grad,
    rot6d_matrix,
    rot6d_matrix_grad,
    unit_quat,
    unit_quat_grad,
)
from .._triton_torque import load_numbers
from .triton_frames import ROTATION, counts_at, sign

# Numbers of csrc/rewards/rewards_options.h.
_QUATERNION, _ROT6D = tl.constexpr(1), tl.constexpr(2)
_AXIS_ANGLE, _FROBENIUS = tl.constexpr(1), tl.constexpr(2)
_PI = tl.constexpr(3.1415926535897932)


# Angles.


@triton.jit
def _atan_series(z):
    """atan(q) / q for z = q^2 <= tan(pi / 8)^2."""
    if z.dtype == tl.float64:
        total = 0.021135371786724255 * z - 0.043480509875515695
        total = total * z + 0.056883483762541064
        total = total * z - 0.066402336805179
        total = total * z + 0.07689953457237089
        total = total * z - 0.09090773071361224
        total = total * z + 0.11111106180288108
        total = total * z - 0.14285714180972484
        total = total * z + 0.19999999998855084
        total = total * z - 0.3333333333332844
        return total * z + 1.0
    else:
        return 1.0 + z * (-0.33332786 + z * (0.19974083 + z * (-0.1384849 + z * 0.07976292)))


@triton.jit
def _upper_angle(y, x):
    """atan2(y, x) for y >= 0: an angle in [0, pi]."""
    size = tl.abs(x)
    least, most = tl.where(y < size, y, size), tl.maximum(y, size, propagate_nan=tl.PropagateNan.ALL)
    # Above pi / 8 the angle is measured from pi / 4: tan(a - pi / 4) = (tan a - 1) / (tan a + 1).
    turned = least > 0.41421356237309503 * most
    above, below = tl.where(turned, least - most, least), tl.where(turned, least + most, most)
    q = tl.where(below == 0, 0.0, above / tl.where(below == 0, 1.0, below))
    angle = q * _atan_series(q * q)
    # No constant by itself in a choice: it would be rounded to float32.
    angle = tl.where(turned, angle + _PI / 4, angle)
    angle = tl.where(y > size, _PI / 2 - angle, angle)
    return tl.where(x < 0, _PI - angle, angle)


@triton.jit
def _wrapped(angle):
    """Into [-pi, pi), from less than one turn outside."""
    return tl.where(angle >= _PI, angle - 2 * _PI, tl.where(angle < -_PI, angle + 2 * _PI, angle))


@triton.jit
def _quat_vector_terms(q):
    """Of a unit quaternion's rotation vector, the short way round: xyz, its square, where that is tiny, sine and w that
    are safe to divide by, and the angle."""
    xyz = (q[1], q[2], q[3])
    square = dot(xyz, xyz)
    if square.dtype == tl.float64:
        tiny = square < 1e-10
    else:
        tiny = square < 1e-5
    sine, safe_w = tl.sqrt(tl.where(tiny, 1.0, square)), tl.where(tiny, q[0], 1.0)
    angle = tl.where(q[0] < 0, -2.0, 2.0) * _upper_angle(sine, tl.abs(q[0]))
    return xyz, square, tiny, sine, safe_w, angle


@triton.jit
def _quat_vector(q):
    xyz, square, tiny, sine, safe_w, angle = _quat_vector_terms(q)
    series = 2 / safe_w - (2.0 / 3.0) * square / (safe_w * safe_w * safe_w)
    return vec3_scale(tl.where(tiny, series, angle / sine), xyz)


@triton.jit
def _quat_vector_grad(grad, q):
    xyz, square, tiny, sine, safe_w, angle = _quat_vector_terms(q)
    inverse = 1 / safe_w
    cube = inverse * inverse * inverse
    along, whole = dot(grad, xyz), sine * sine + q[0] * q[0]
    # The vector is factor(w, |xyz|) xyz; `slope` is the derivative of the factor by |xyz|, over |xyz|.
    factor = tl.where(tiny, 2 * inverse - (2.0 / 3.0) * square * cube, angle / sine)
    slope = tl.where(tiny, (-4.0 / 3.0) * cube, (2 * q[0] / whole - angle / sine) / (sine * sine))
    grad_w = along * tl.where(tiny, 2 * square * cube * inverse - 2 * inverse * inverse, -2 / whole)
    grad_xyz = vec3_add(vec3_scale(factor, grad), vec3_scale(along * slope, xyz))
    return grad_w, grad_xyz[0], grad_xyz[1], grad_xyz[2]


# Rotations.


@triton.jit
def _load_rotation(ptr, offset, mask, REPRESENTATION: tl.constexpr):
    """The numbers of a rotation; those of the identity where ``mask`` is false."""
    if REPRESENTATION == _QUATERNION:
        return load_numbers(ptr, offset, mask, 4)
    elif REPRESENTATION == _ROT6D:
        return load_numbers(ptr, offset, mask, 6)
    else:
        return load_mat3(ptr, offset, mask)


@triton.jit
def _decode(numbers, REPRESENTATION: tl.constexpr, PROJECT: tl.constexpr):
    if REPRESENTATION == _QUATERNION:
        return quat_matrix(unit_quat(numbers)[0])
    elif REPRESENTATION == _ROT6D:
        return rot6d_matrix((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))
    elif PROJECT:
        return nearest_rotation(numbers, True)
    else:
        return numbers


@triton.jit
def _decode_grad(grad, numbers, R, REPRESENTATION: tl.constexpr, PROJECT: tl.constexpr):
    """dL/d(numbers), where R is what ``_decode`` returned."""
    if REPRESENTATION == _QUATERNION:
        unit, inverse = unit_quat(numbers)
        return unit_quat_grad(quat_matrix_grad(grad, unit), unit, inverse)
    elif REPRESENTATION == _ROT6D:
        a, b = (numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5])
        grad_a, grad_b = rot6d_matrix_grad(grad, a, b)
        return grad_a[0], grad_a[1], grad_a[2], grad_b[0], grad_b[1], grad_b[2]
    elif PROJECT:
        return nearest_rotation_grad(grad, numbers, R, True)
    else:
        return grad


@triton.jit
def _turn_between(R, target):
    """Sine (also as a vector) and cosine of the angle of R^T target: an arc cosine of the trace would lose half of the
    digits near zero. Both are twice as large."""
    relative = transposed_times(R, target)
    skew = axial(relative)
    return skew, vec3_length(skew), trace(relative) - 1


@triton.jit
def _difference(R, target, ROTATION_ERROR: tl.constexpr):
    if ROTATION_ERROR == _AXIS_ANGLE:
        d = vec3_sub(_quat_vector(matrix_quat(R)), _quat_vector(matrix_quat(target)))
        return (tl.abs(_wrapped(d[0])) + tl.abs(_wrapped(d[1])) + tl.abs(_wrapped(d[2]))) * (1.0 / 3.0)
    elif ROTATION_ERROR == _FROBENIUS:
        D = mat3_add(R, mat3_scale(-1.0, target))
        return tl.sqrt(inner(D, D))
    else:
        _, sine, cosine = _turn_between(R, target)
        return _upper_angle(sine, cosine)


@triton.jit
def _difference_grad(strength, R, target, ROTATION_ERROR: tl.constexpr):
    """dL/dR."""
    if ROTATION_ERROR == _AXIS_ANGLE:
        q = matrix_quat(R)
        d = vec3_sub(_quat_vector(q), _quat_vector(matrix_quat(target)))
        signs = (sign(_wrapped(d[0])), sign(_wrapped(d[1])), sign(_wrapped(d[2])))
        return matrix_quat_grad(_quat_vector_grad(vec3_scale(strength * (1.0 / 3.0), signs), q), R)
    elif ROTATION_ERROR == _FROBENIUS:
        D = mat3_add(R, mat3_scale(-1.0, target))
        size = tl.sqrt(inner(D, D))
        return mat3_scale(tl.where(size == 0, 0.0, strength / tl.where(size == 0, 1.0, size)), D)
    else:
        skew, sine, cosine = _turn_between(R, target)
        whole = sine * sine + cosine * cosine
        scale = tl.where(whole == 0, 0.0, strength / tl.where(whole == 0, 1.0, whole))
        # R^T target gets [u]x - scale sine 1, and R gets target times the transposed of that.
        G = cross_matrix(vec3_scale(-(scale * cosine), vec3_direction(skew)))
        turn = -(scale * sine)
        return matmul(target, (turn, G[1], G[2], G[3], turn, G[5], G[6], G[7], turn))


# Kernels: a rotation per lane.


@triton.jit
def rotations_fwd_kernel(
    rotations_ptr, rotations_sizes, rotations_strides, turned_ptr, turned_sizes, turned_strides,
    mask_ptr, mask_sizes, mask_strides, out_rotmats_ptr, out_differences_ptr, count, G, T, J,
    REPRESENTATION: tl.constexpr, PROJECT: tl.constexpr, ROTATION_ERROR: tl.constexpr, IN: tl.constexpr,
    STORE: tl.constexpr, COMPARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A rotation per lane: decoded (the root, with the identity, first) and its difference from the recorded one."""
    index = program_rows(BLOCK)
    slots = J
    if STORE:
        slots = J + 1
    frame, j = index // slots, index % slots
    if STORE:
        j = j - 1
    sequence, t = frame // T, frame % T
    lanes = index < count
    own = counts_at(mask_ptr, row_offset(sequence, mask_sizes, mask_strides), t, T, lanes) & (j >= 0)
    offset = row_offset(frame, rotations_sizes, rotations_strides) + IN * j
    R = _decode(_load_rotation(rotations_ptr, offset, own, REPRESENTATION), REPRESENTATION, PROJECT)
    if STORE:
        store_mat3(out_rotmats_ptr, 9 * index, R, lanes)
    if COMPARE:
        turned_offset = row_offset(sequence // G * T + t, turned_sizes, turned_strides) + 9 * j
        difference = _difference(R, load_mat3(turned_ptr, turned_offset, own), ROTATION_ERROR)
        tl.store(out_differences_ptr + frame * J + j, tl.where(own, difference, 0.0), mask=lanes & (j >= 0))


@triton.jit
def rotations_bwd_kernel(
    rotations_ptr, rotations_sizes, rotations_strides, turned_ptr, turned_sizes, turned_strides,
    mask_ptr, mask_sizes, mask_strides, strengths_ptr, grad_rotmats_ptr, grad_rotations_ptr, count, G, T, J,
    REPRESENTATION: tl.constexpr, PROJECT: tl.constexpr, ROTATION_ERROR: tl.constexpr, IN: tl.constexpr,
    POSED: tl.constexpr, COMPARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the rotations as they came: through the pose and through their own error."""
    index = program_rows(BLOCK)
    frame, j = index // J, index % J
    sequence, t = frame // T, frame % T
    lanes = index < count
    own = counts_at(mask_ptr, row_offset(sequence, mask_sizes, mask_strides), t, T, lanes)
    offset = row_offset(frame, rotations_sizes, rotations_strides) + IN * j
    numbers = _load_rotation(rotations_ptr, offset, own, REPRESENTATION)
    R = _decode(numbers, REPRESENTATION, PROJECT)
    grad = mat3_scale(0.0, R)
    if POSED:
        grad = load_mat3(grad_rotmats_ptr, 9 * (index + frame + 1), own)  # the root stands first
    if COMPARE:
        turned_offset = row_offset(sequence // G * T + t, turned_sizes, turned_strides) + 9 * j
        strength = tl.load(strengths_ptr + 8 * sequence + ROTATION, mask=own, other=0.0)
        target = load_mat3(turned_ptr, turned_offset, own)
        grad = mat3_add(grad, _difference_grad(strength, R, target, ROTATION_ERROR))
    grad_numbers = _decode_grad(grad, numbers, R, REPRESENTATION, PROJECT)
    for i in tl.static_range(IN):
        tl.store(grad_rotations_ptr + IN * index + i, tl.where(own, grad_numbers[i], 0.0), mask=lanes)
