"""``group_rewards`` and ``motion_rewards`` in Triton.

Several kernels, with what passes between them in device memory, because Triton can index neither registers nor shared
memory by a joint's number: so this is not the one pass that ``cuda`` is. Rotations are decoded a joint per lane, bodies
posed and frames aligned by the operators of ../kinematics and ../procrustes, points compared in (frames, points) blocks
and frames summed sequence by sequence. The mathematics is that of ``csrc/rewards/rewards_math.h``: README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from .._triton import PROOF_ARCHITECTURES, CompileCase, as_rows, block_lanes, compile_cases, launch
from .._triton_math import (
    axial,
    cross_matrix,
    dot,
    inner,
    load_mat3,
    load_vec3,
    mat3_add,
    mat3_scale,
    matmul,
    nearest_rotation,
    nearest_rotation_grad,
    program_rows,
    row_offset,
    store_mat3,
    store_vec3,
    trace,
    transposed_times,
    vec3_add,
    vec3_scale,
    vec3_sub,
)
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
from ._names import JOINT_REWARDS

# Numbers of csrc/rewards/rewards_options.h.
_POSITION, _ALIGNED, _ROTATION, _VELOCITY, _SKATE, _PENETRATION, _JITTER, _HEAD = map(tl.constexpr, range(8))
_QUATERNION, _ROT6D = tl.constexpr(1), tl.constexpr(2)
_AXIS_ANGLE, _FROBENIUS = tl.constexpr(1), tl.constexpr(2)
_RECORDED_JERK = tl.constexpr(8)
_TERMS = 9
"""Per frame: a sum over points for each kind, and the recording's jerk."""
_PI = tl.constexpr(3.1415926535897932)

LARGEST_CHUNK = 128
ELEMENTS = 128
"""Of a (frames, points) block on a GPU: a warp per frame of a body."""
SUMMED = 128
"""Numbers of a sequence that are summed at a time, on a GPU and interpreted: the order of a sum is the same."""


# Angles.


@triton.jit
def _length(a):
    return tl.sqrt(dot(a, a))


@triton.jit
def _direction(a):
    """d|a| / da: zero where a is."""
    size = _length(a)
    return vec3_scale(tl.where(size == 0, 0.0, 1 / tl.where(size == 0, 1.0, size)), a)


@triton.jit
def _sign(a):
    return tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, a))


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
    return skew, _length(skew), trace(relative) - 1


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
        signs = (_sign(_wrapped(d[0])), _sign(_wrapped(d[1])), _sign(_wrapped(d[2])))
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
        G = cross_matrix(vec3_scale(-(scale * cosine), _direction(skew)))
        turn = -(scale * sine)
        return matmul(target, (turn, G[1], G[2], G[3], turn, G[5], G[6], G[7], turn))


# Frames.


@triton.jit
def _counted(mask_ptr, offset, t, T, lanes):
    """Whether frame t of the sequences at ``offset`` is there and counts."""
    inside = lanes & (t >= 0) & (t < T)
    return inside & (tl.load(mask_ptr + offset + t, mask=inside, other=0) != 0)


@triton.jit
def _load_points(ptr, row, sizes, strides, i, counted):
    """Points i of the frames in the rows ``row``, where these count; zeros elsewhere, whatever lies there."""
    offset = row_offset(tl.where(counted, row, 0), sizes, strides)
    return load_vec3(ptr, offset[:, None] + 3 * i, counted[:, None] & (i >= 0))


@triton.jit
def _third_difference(a, b, c, d):
    first, second, third = vec3_sub(b, a), vec3_sub(c, b), vec3_sub(d, c)
    return vec3_sub(vec3_sub(third, second), vec3_sub(second, first))


@triton.jit
def _near_floor(z, inverse_height):
    """Height in units of the limit, cut to [0, 1], and where it is above that."""
    u = tl.where(z < 0, 0.0, z) * inverse_height
    return tl.where(u > 1, 1.0, u), u >= 1


@triton.jit
def _slide(before, now, inverse_height):
    """How far a foot slides, weighted by how near the floor it arrives."""
    u, high = _near_floor(now[2], inverse_height)
    x, y = now[0] - before[0], now[1] - before[1]
    return tl.where(high, 0.0, 2 - tl.exp2(u)) * tl.sqrt(x * x + y * y)


@triton.jit
def _slide_grad(before, now, inverse_height):
    """By where it arrives; by where it started: minus x and y of that."""
    u, high = _near_floor(now[2], inverse_height)
    power = tl.exp2(u)
    x, y = now[0] - before[0], now[1] - before[1]
    speed = tl.sqrt(x * x + y * y)
    scale = tl.where(high | (speed == 0), 0.0, (2 - power) / tl.where(speed == 0, 1.0, speed))
    fall = tl.where(high | (now[2] < 0), 0.0, -0.69314718055994531 * inverse_height * power)
    return scale * x, scale * y, fall * speed


@triton.jit
def _first_term(count, KIND: tl.constexpr):
    """Where a kind's terms begin: they stand in rows of ``count`` frames, or sequences."""
    return tl.full([], KIND, tl.int64) * count


@triton.jit
def _rotations_fwd_kernel(
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
    own = _counted(mask_ptr, row_offset(sequence, mask_sizes, mask_strides), t, T, lanes) & (j >= 0)
    offset = row_offset(frame, rotations_sizes, rotations_strides) + IN * j
    R = _decode(_load_rotation(rotations_ptr, offset, own, REPRESENTATION), REPRESENTATION, PROJECT)
    if STORE:
        store_mat3(out_rotmats_ptr, 9 * index, R, lanes)
    if COMPARE:
        turned_offset = row_offset(sequence // G * T + t, turned_sizes, turned_strides) + 9 * j
        difference = _difference(R, load_mat3(turned_ptr, turned_offset, own), ROTATION_ERROR)
        tl.store(out_differences_ptr + frame * J + j, tl.where(own, difference, 0.0), mask=lanes & (j >= 0))


@triton.jit
def _rotations_bwd_kernel(
    rotations_ptr, rotations_sizes, rotations_strides, turned_ptr, turned_sizes, turned_strides,
    mask_ptr, mask_sizes, mask_strides, strengths_ptr, grad_rotmats_ptr, grad_rotations_ptr, count, G, T, J,
    REPRESENTATION: tl.constexpr, PROJECT: tl.constexpr, ROTATION_ERROR: tl.constexpr, IN: tl.constexpr,
    POSED: tl.constexpr, COMPARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = program_rows(BLOCK)
    frame, j = index // J, index % J
    sequence, t = frame // T, frame % T
    lanes = index < count
    own = _counted(mask_ptr, row_offset(sequence, mask_sizes, mask_strides), t, T, lanes)
    offset = row_offset(frame, rotations_sizes, rotations_strides) + IN * j
    numbers = _load_rotation(rotations_ptr, offset, own, REPRESENTATION)
    R = _decode(numbers, REPRESENTATION, PROJECT)
    grad = mat3_scale(0.0, R)
    if POSED:
        grad = load_mat3(grad_rotmats_ptr, 9 * (index + frame + 1), own)  # the root stands first
    if COMPARE:
        turned_offset = row_offset(sequence // G * T + t, turned_sizes, turned_strides) + 9 * j
        strength = tl.load(strengths_ptr + 8 * sequence + _ROTATION, mask=own, other=0.0)
        target = load_mat3(turned_ptr, turned_offset, own)
        grad = mat3_add(grad, _difference_grad(strength, R, target, ROTATION_ERROR))
    grad_numbers = _decode_grad(grad, numbers, R, REPRESENTATION, PROJECT)
    for i in tl.static_range(IN):
        tl.store(grad_rotations_ptr + IN * index + i, tl.where(own, grad_numbers[i], 0.0), mask=lanes)


@triton.jit
def _frames_fwd_kernel(
    joints_ptr, joints_sizes, joints_strides, target_ptr, target_sizes, target_strides,
    mask_ptr, mask_sizes, mask_strides, aligned_ptr, out_terms_ptr, count, G, T, N, head,
    WANTED: tl.constexpr, FEET: tl.constexpr, HEIGHTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a frame adds to the sum of each kind, zero where it does not count: rows of ``count`` numbers."""
    frame = program_rows(BLOCK)
    lanes = frame < count
    sequence, t = frame // T, frame % T
    recorded = sequence // G * T + t
    mask_offset = row_offset(sequence, mask_sizes, mask_strides)
    one = _counted(mask_ptr, mask_offset, t, T, lanes)
    pair = one & _counted(mask_ptr, mask_offset, t - 1, T, lanes)
    four = pair & _counted(mask_ptr, mask_offset, t - 2, T, lanes) & _counted(mask_ptr, mask_offset, t - 3, T, lanes)
    zero = tl.zeros([BLOCK], out_terms_ptr.dtype.element_ty)
    position, aligned, velocity, skate, depth, jerk, recorded_jerk, head_distance = (
        zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    lost = zero
    for start in range(0, N, CHUNK):
        i = start + tl.arange(0, CHUNK)[None, :]
        inside = i < N
        i = tl.where(inside, i, -1)
        x = _load_points(joints_ptr, frame, joints_sizes, joints_strides, i, one)
        y = _load_points(target_ptr, recorded, target_sizes, target_strides, i, one)
        d = vec3_sub(x, y)
        if WANTED[_POSITION]:
            position += tl.sum(_length(d), 1)
        if WANTED[_HEAD]:
            head_distance += tl.sum(tl.where(i == head, _length(d), 0.0), 1)
        if WANTED[_ALIGNED]:
            a = load_vec3(aligned_ptr, 3 * (N * frame[:, None] + i), one[:, None] & inside)
            aligned += tl.sum(_length(vec3_sub(a, y)), 1)
        if WANTED[_PENETRATION]:
            depth = tl.maximum(depth, tl.max(-x[2], 1))
            lost += tl.sum(tl.where(x[2] != x[2], 1.0, 0.0), 1)  # a maximum may forget a NaN
        if WANTED[_VELOCITY] or WANTED[_SKATE] or WANTED[_JITTER]:
            x1 = _load_points(joints_ptr, frame - 1, joints_sizes, joints_strides, i, pair)
            y1 = _load_points(target_ptr, recorded - 1, target_sizes, target_strides, i, pair)
            if WANTED[_VELOCITY]:
                step = _length(vec3_sub(d, vec3_sub(x1, y1)))
                velocity += tl.sum(tl.where(pair[:, None], step, 0.0), 1)
            if WANTED[_SKATE]:
                for k in tl.static_range(len(FEET)):
                    slid = _slide(x1, x, 1.0 / HEIGHTS[k])
                    skate += tl.sum(tl.where(pair[:, None] & (i == FEET[k]), slid, 0.0), 1)
            if WANTED[_JITTER]:
                x2 = _load_points(joints_ptr, frame - 2, joints_sizes, joints_strides, i, four)
                x3 = _load_points(joints_ptr, frame - 3, joints_sizes, joints_strides, i, four)
                size = _length(_third_difference(x3, x2, x1, x))
                jerk += tl.sum(tl.where(four[:, None], size, 0.0), 1)
                y2 = _load_points(target_ptr, recorded - 2, target_sizes, target_strides, i, four)
                y3 = _load_points(target_ptr, recorded - 3, target_sizes, target_strides, i, four)
                size = _length(_third_difference(y3, y2, y1, y))
                recorded_jerk += tl.sum(tl.where(four[:, None], size, 0.0), 1)
    if WANTED[_POSITION]:
        tl.store(out_terms_ptr + _first_term(count, _POSITION) + frame, position, mask=lanes)
    if WANTED[_ALIGNED]:
        tl.store(out_terms_ptr + _first_term(count, _ALIGNED) + frame, aligned, mask=lanes)
    if WANTED[_VELOCITY]:
        tl.store(out_terms_ptr + _first_term(count, _VELOCITY) + frame, velocity, mask=lanes)
    if WANTED[_SKATE]:
        tl.store(out_terms_ptr + _first_term(count, _SKATE) + frame, skate, mask=lanes)
    if WANTED[_PENETRATION]:
        depth = tl.where(lost > 0, float("nan"), depth)
        tl.store(out_terms_ptr + _first_term(count, _PENETRATION) + frame, depth, mask=lanes)
    if WANTED[_JITTER]:
        tl.store(out_terms_ptr + _first_term(count, _JITTER) + frame, jerk, mask=lanes)
        tl.store(out_terms_ptr + _first_term(count, _RECORDED_JERK) + frame, recorded_jerk, mask=lanes)
    if WANTED[_HEAD]:
        tl.store(out_terms_ptr + _first_term(count, _HEAD) + frame, head_distance, mask=lanes)


# Sequences: one per row of a (sequences, numbers) block.


@triton.jit
def _row_sum(ptr, row, length, present, BLOCK: tl.constexpr):
    """Sum of each of the rows ``row`` of a contiguous matrix."""
    total = present.to(ptr.dtype.element_ty) * 0
    for start in range(0, length, BLOCK):
        i = start + tl.arange(0, BLOCK)[None, :]
        inside = present[:, None] & (i < length)
        total += tl.sum(tl.load(ptr + row[:, None] * length + i, mask=inside, other=0.0), 1)
    return total


@triton.jit
def _count_frames(mask_ptr, offset, T, present, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """How many frames, pairs and quadruples of successive frames count."""
    ones, pairs, fours = present.to(DTYPE) * 0, present.to(DTYPE) * 0, present.to(DTYPE) * 0
    lanes = present[:, None]
    for start in range(0, T, BLOCK):
        t = start + tl.arange(0, BLOCK)[None, :]
        one = _counted(mask_ptr, offset[:, None], t, T, lanes)
        pair = one & _counted(mask_ptr, offset[:, None], t - 1, T, lanes)
        two = _counted(mask_ptr, offset[:, None], t - 2, T, lanes)
        four = pair & two & _counted(mask_ptr, offset[:, None], t - 3, T, lanes)
        ones += tl.sum(one.to(tl.int32), 1).to(DTYPE)
        pairs += tl.sum(pair.to(tl.int32), 1).to(DTYPE)
        fours += tl.sum(four.to(tl.int32), 1).to(DTYPE)
    return ones, pairs, fours


@triton.jit
def _terms_of(counts, N, J, FPS: tl.constexpr, FEET: tl.constexpr, KIND: tl.constexpr):
    """Points and frames that the sum of a kind runs over, over the power of fps that it is times."""
    if KIND == _ROTATION:
        return counts[0] * J
    elif KIND == _VELOCITY:
        return counts[1] * N / FPS
    elif KIND == _SKATE:
        return counts[1] * len(FEET) / FPS
    elif KIND == _JITTER:
        return counts[2] * N / (FPS * FPS * FPS)
    elif KIND == _POSITION or KIND == _ALIGNED:  # noqa: SIM109  (triton knows no "in")
        return counts[0] * N
    else:
        return counts[0]


@triton.jit
def _errors_fwd_kernel(
    terms_ptr, differences_ptr, mask_ptr, mask_sizes, mask_strides, out_errors_ptr, out_rewards_ptr, count, T, N, J,
    KINDS: tl.constexpr, SLOPES: tl.constexpr, FPS: tl.constexpr, FEET: tl.constexpr,
    BLOCK: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    sequence = program_rows(BLOCK)
    present = sequence < count
    offset = row_offset(sequence, mask_sizes, mask_strides)
    counts = _count_frames(mask_ptr, offset, T, present, out_errors_ptr.dtype.element_ty, SUMMED)
    for k in tl.static_range(len(KINDS)):
        terms = _terms_of(counts, N, J, FPS, FEET, KINDS[k])
        if KINDS[k] == _ROTATION:
            error = _row_sum(differences_ptr, sequence, T * J, present, SUMMED) / terms
        else:
            row = _first_term(count, KINDS[k]) + sequence
            error = _row_sum(terms_ptr, row, T, present, SUMMED) / terms
            if KINDS[k] == _JITTER:
                row = _first_term(count, _RECORDED_JERK) + sequence
                error = tl.abs(error - _row_sum(terms_ptr, row, T, present, SUMMED) / terms)
        tl.store(out_errors_ptr + sequence * len(KINDS) + k, error, mask=present)
        tl.store(out_rewards_ptr + sequence * len(KINDS) + k, tl.exp(-SLOPES[k] * error), mask=present)


@triton.jit
def _strengths_bwd_kernel(
    grad_errors_ptr, grad_rewards_ptr, rewards_ptr, terms_ptr, mask_ptr, mask_sizes, mask_strides, out_strengths_ptr,
    count, T, N, J,
    KINDS: tl.constexpr, SLOPES: tl.constexpr, FPS: tl.constexpr, FEET: tl.constexpr,
    BLOCK: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """dL/d(sum over frames and points) of each kind, eight numbers per sequence; of no meaning where nothing counts."""
    sequence = program_rows(BLOCK)
    present = sequence < count
    offset = row_offset(sequence, mask_sizes, mask_strides)
    counts = _count_frames(mask_ptr, offset, T, present, out_strengths_ptr.dtype.element_ty, SUMMED)
    for k in tl.static_range(len(KINDS)):
        entry = sequence * len(KINDS) + k
        grad_error = tl.load(grad_errors_ptr + entry, mask=present, other=0.0)
        grad_reward = tl.load(grad_rewards_ptr + entry, mask=present, other=0.0)
        reward = tl.load(rewards_ptr + entry, mask=present, other=0.0)
        terms = _terms_of(counts, N, J, FPS, FEET, KINDS[k])
        strength = (grad_error - SLOPES[k] * reward * grad_reward) / terms
        if KINDS[k] == _JITTER:
            jerk = _row_sum(terms_ptr, _first_term(count, _JITTER) + sequence, T, present, SUMMED)
            recorded_jerk = _row_sum(terms_ptr, _first_term(count, _RECORDED_JERK) + sequence, T, present, SUMMED)
            strength *= _sign(jerk - recorded_jerk)
        tl.store(out_strengths_ptr + 8 * sequence + KINDS[k], strength, mask=present)


# Gradients of points.


@triton.jit
def _strength(strengths_ptr, sequence, counted, KIND: tl.constexpr):
    """A kind's strength for each frame of a block, as a column; zero where the frame does not count."""
    return tl.load(strengths_ptr + 8 * sequence + KIND, mask=counted, other=0.0)[:, None]


@triton.jit
def _aligned_bwd_kernel(
    target_ptr, target_sizes, target_strides, mask_ptr, mask_sizes, mask_strides, aligned_ptr, strengths_ptr,
    grad_aligned_ptr, count, G, T, N, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = program_rows(BLOCK)
    lanes = frame < count
    sequence, t = frame // T, frame % T
    one = _counted(mask_ptr, row_offset(sequence, mask_sizes, mask_strides), t, T, lanes)
    strength = _strength(strengths_ptr, sequence, one, _ALIGNED)
    for start in range(0, N, CHUNK):
        i = start + tl.arange(0, CHUNK)[None, :]
        inside = i < N
        y = _load_points(target_ptr, sequence // G * T + t, target_sizes, target_strides, tl.where(inside, i, -1), one)
        offset = 3 * (N * frame[:, None] + i)
        a = load_vec3(aligned_ptr, offset, one[:, None] & inside)
        grad = vec3_scale(strength, _direction(vec3_sub(a, y)))
        store_vec3(grad_aligned_ptr, offset, grad, lanes[:, None] & inside)


@triton.jit
def _points_bwd_kernel(
    joints_ptr, joints_sizes, joints_strides, target_ptr, target_sizes, target_strides,
    mask_ptr, mask_sizes, mask_strides, strengths_ptr, grad_through_alignment_ptr, grad_joints_ptr,
    count, G, T, N, head,
    WANTED: tl.constexpr, FEET: tl.constexpr, HEIGHTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every difference that a frame takes part in: with those before it, and with those after it."""
    frame = program_rows(BLOCK)
    lanes = frame < count
    sequence, t = frame // T, frame % T
    recorded = sequence // G * T + t
    mask_offset = row_offset(sequence, mask_sizes, mask_strides)
    one = _counted(mask_ptr, mask_offset, t, T, lanes)
    arrives = one & _counted(mask_ptr, mask_offset, t - 1, T, lanes)
    leaves = one & _counted(mask_ptr, mask_offset, t + 1, T, lanes)
    zero = tl.zeros([BLOCK, CHUNK], grad_joints_ptr.dtype.element_ty)
    deepest = tl.zeros([BLOCK], grad_joints_ptr.dtype.element_ty) + float("-inf")
    ties = tl.zeros([BLOCK], grad_joints_ptr.dtype.element_ty)
    if WANTED[_PENETRATION]:
        for start in range(0, N, CHUNK):
            i = start + tl.arange(0, CHUNK)[None, :]
            i = tl.where(i < N, i, -1)
            x = _load_points(joints_ptr, frame, joints_sizes, joints_strides, i, one)
            deepest = tl.maximum(deepest, tl.max(tl.where(i >= 0, -x[2], float("-inf")), 1))
        for start in range(0, N, CHUNK):
            i = start + tl.arange(0, CHUNK)[None, :]
            i = tl.where(i < N, i, -1)
            x = _load_points(joints_ptr, frame, joints_sizes, joints_strides, i, one)
            ties += tl.sum(tl.where((i >= 0) & (-x[2] == deepest[:, None]), 1.0, 0.0), 1)
    for start in range(0, N, CHUNK):
        i = start + tl.arange(0, CHUNK)[None, :]
        inside = i < N
        i = tl.where(inside, i, -1)
        x = _load_points(joints_ptr, frame, joints_sizes, joints_strides, i, one)
        y = _load_points(target_ptr, recorded, target_sizes, target_strides, i, one)
        d = vec3_sub(x, y)
        offset = 3 * (N * frame[:, None] + i)
        grad = (zero, zero, zero)
        if WANTED[_ALIGNED]:
            grad = load_vec3(grad_through_alignment_ptr, offset, one[:, None] & inside)
        if WANTED[_POSITION]:
            grad = vec3_add(grad, vec3_scale(_strength(strengths_ptr, sequence, one, _POSITION), _direction(d)))
        if WANTED[_HEAD]:
            strength = tl.where(i == head, _strength(strengths_ptr, sequence, one, _HEAD), 0.0)
            grad = vec3_add(grad, vec3_scale(strength, _direction(d)))
        if WANTED[_PENETRATION]:  # points that are equally deep share it
            part = _strength(strengths_ptr, sequence, one, _PENETRATION) / tl.maximum(ties, 1.0)[:, None]
            hit = (-x[2] == deepest[:, None]) & (deepest[:, None] >= 0)
            grad = (grad[0], grad[1], grad[2] - tl.where(hit, part, 0.0))
        if WANTED[_VELOCITY] or WANTED[_SKATE] or WANTED[_JITTER]:
            before = _load_points(joints_ptr, frame - 1, joints_sizes, joints_strides, i, arrives)
            after = _load_points(joints_ptr, frame + 1, joints_sizes, joints_strides, i, leaves)
            if WANTED[_VELOCITY]:
                y1 = _load_points(target_ptr, recorded - 1, target_sizes, target_strides, i, arrives)
                step = _direction(vec3_sub(d, vec3_sub(before, y1)))
                grad = vec3_add(grad, vec3_scale(_strength(strengths_ptr, sequence, arrives, _VELOCITY), step))
                y1 = _load_points(target_ptr, recorded + 1, target_sizes, target_strides, i, leaves)
                step = _direction(vec3_sub(vec3_sub(after, y1), d))
                grad = vec3_sub(grad, vec3_scale(_strength(strengths_ptr, sequence, leaves, _VELOCITY), step))
            if WANTED[_SKATE]:
                arriving = _strength(strengths_ptr, sequence, arrives, _SKATE)
                leaving = _strength(strengths_ptr, sequence, leaves, _SKATE)
                for k in tl.static_range(len(FEET)):
                    foot = i == FEET[k]
                    step = _slide_grad(before, x, 1.0 / HEIGHTS[k])
                    grad = vec3_add(grad, vec3_scale(tl.where(foot, arriving, 0.0), step))
                    step = _slide_grad(x, after, 1.0 / HEIGHTS[k])
                    leaving_foot = tl.where(foot, leaving, 0.0)
                    grad = (grad[0] - leaving_foot * step[0], grad[1] - leaving_foot * step[1], grad[2])
            if WANTED[_JITTER]:
                two_before = arrives & _counted(mask_ptr, mask_offset, t - 2, T, lanes)
                two_after = leaves & _counted(mask_ptr, mask_offset, t + 2, T, lanes)
                a = _load_points(joints_ptr, frame - 2, joints_sizes, joints_strides, i, two_before)
                b = _load_points(joints_ptr, frame + 2, joints_sizes, joints_strides, i, two_after)
                last = two_before & _counted(mask_ptr, mask_offset, t - 3, T, lanes)
                far = _load_points(joints_ptr, frame - 3, joints_sizes, joints_strides, i, last)
                step = _direction(_third_difference(far, a, before, x))
                grad = vec3_add(grad, vec3_scale(_strength(strengths_ptr, sequence, last, _JITTER), step))
                step = _direction(_third_difference(a, before, x, after))
                third = two_before & leaves
                grad = vec3_sub(grad, vec3_scale(3 * _strength(strengths_ptr, sequence, third, _JITTER), step))
                step = _direction(_third_difference(before, x, after, b))
                second = arrives & two_after
                grad = vec3_add(grad, vec3_scale(3 * _strength(strengths_ptr, sequence, second, _JITTER), step))
                first = two_after & _counted(mask_ptr, mask_offset, t + 3, T, lanes)
                far = _load_points(joints_ptr, frame + 3, joints_sizes, joints_strides, i, first)
                step = _direction(_third_difference(x, after, b, far))
                grad = vec3_sub(grad, vec3_scale(_strength(strengths_ptr, sequence, first, _JITTER), step))
        store_vec3(grad_joints_ptr, offset, grad, lanes[:, None] & inside)


# Launches.


@dataclass(frozen=True)
class _Call:
    """What is compared, and how. Numbers are those of csrc/rewards/rewards_options.h."""

    mask: Tensor
    """(B, G, T)"""
    rotations: Tensor | None
    """(B, G, T, ...) numbers of the rotations."""
    J: int
    target_rotmats: Tensor | None
    """(B, T, J, 3, 3), None where rotations are not compared."""
    joints: Tensor | None
    """(B, G, T, N, 3), None where no joint reward is wanted, or before bodies are posed."""
    target_joints: Tensor | None
    head: int
    feet: tuple[int, ...]
    foot_heights: tuple[float, ...]
    representation: int
    project: bool
    kinds: tuple[int, ...]
    slopes: tuple[float, ...]
    fps: float
    rotation_error: int
    alignment: int

    @property
    def frames(self) -> int:
        return self.mask.numel()

    @property
    def numbers(self) -> int:
        return (9, 4, 6)[self.representation]

    @property
    def points(self) -> int:
        return 0 if self.joints is None else self.joints.shape[3]

    def wants(self, name: str) -> bool:
        return JOINT_REWARDS.index(name) in self.kinds


def _strided(tensor: Tensor | None, inner: int, stand_in: Tensor) -> tuple[Any, ...]:
    """Pointer, sizes and strides of a tensor's rows, or of nothing."""
    if tensor is None:
        return stand_in, (1,), (0,)
    rows = as_rows(tensor, inner)
    return rows.tensor, rows.sizes, rows.strides


def _mask(call: _Call) -> tuple[Any, ...]:
    return _strided(call.mask.view(torch.uint8), 1, call.mask)


def _rotation_arguments(call: _Call) -> tuple[Any, ...]:
    given = _strided(call.rotations, call.rotations.dim() - 3, call.rotations)
    return *given, *_strided(call.target_rotmats, 3, call.rotations), *_mask(call)


def _rotation_options(call: _Call, block: int) -> dict[str, Any]:
    return {
        "REPRESENTATION": call.representation,
        "PROJECT": call.project,
        "ROTATION_ERROR": call.rotation_error,
        "COMPARE": call.target_rotmats is not None,
        "IN": call.numbers,
        "BLOCK": block,
        "num_warps": 4,
    }


def _decoded(call: _Call, store: bool) -> tuple[Tensor, Tensor]:
    """Matrices (B, G, T, 1 + J, 3, 3), the root's identity first, if ``store``; and, where rotations are compared,
    their differences (B, G, T, J), zero in frames that do not count."""
    (_, G, T), J, like = call.mask.shape, call.J, call.rotations
    rotmats = like.new_empty((*call.mask.shape, 1 + J, 3, 3) if store else (0,))
    differences = like.new_empty((*call.mask.shape, J) if call.target_rotmats is not None else (0,))
    count = call.frames * (J + store)
    block = block_lanes(count)
    launch(
        _rotations_fwd_kernel, triton.cdiv(count, block),
        *_rotation_arguments(call), rotmats, differences, count, G, T, J,
        on=like, STORE=store, **_rotation_options(call, block),
    )  # fmt: skip
    return rotmats, differences


def _rotations_gradient(call: _Call, strengths: Tensor, grad_rotmats: Tensor | None) -> Tensor:
    (_, G, T), J, like = call.mask.shape, call.J, call.rotations
    grad = like.new_empty(like.shape)
    count = call.frames * J
    block = block_lanes(count)
    launch(
        _rotations_bwd_kernel, triton.cdiv(count, block),
        *_rotation_arguments(call), strengths, like if grad_rotmats is None else grad_rotmats, grad, count, G, T, J,
        on=like, POSED=grad_rotmats is not None, **_rotation_options(call, block),
    )  # fmt: skip
    return grad


def _point_options(call: _Call) -> dict[str, Any]:
    chunk = min(max(triton.next_power_of_2(call.points), 16), LARGEST_CHUNK)
    return {"CHUNK": chunk, "BLOCK": block_lanes(call.frames, ELEMENTS // chunk), "num_warps": 4}


def _kind_options(call: _Call, kinds: Sequence[int]) -> dict[str, Any]:
    wanted = tuple(kind in kinds for kind in range(len(JOINT_REWARDS)))
    return {"WANTED": wanted, "FEET": call.feet, "HEIGHTS": call.foot_heights}


def _frame_terms(call: _Call, kinds: Sequence[int], aligned: Tensor) -> Tensor:
    (_, G, T), like = call.mask.shape, call.joints
    terms = like.new_empty((_TERMS, call.frames))
    options = _point_options(call)
    launch(
        _frames_fwd_kernel, triton.cdiv(call.frames, options["BLOCK"]),
        *_strided(like, 2, like), *_strided(call.target_joints, 2, like), *_mask(call), aligned, terms,
        call.frames, G, T, call.points, call.head,
        on=like, **_kind_options(call, kinds), **options,
    )  # fmt: skip
    return terms


def _sequence_options(call: _Call, like: Tensor) -> dict[str, Any]:
    """Those of the kernels that sum over frames: a program per sequence on a GPU."""
    return {
        "on": like,
        "KINDS": call.kinds,
        "SLOPES": call.slopes,
        "FPS": call.fps,
        "FEET": call.feet,
        "BLOCK": block_lanes(call.mask.shape[:2].numel(), 1),
        "SUMMED": SUMMED,
        "num_warps": 4,
        "maxnreg": 255,  # without a number the assembler aims at fewer, and spills
    }


def _errors(call: _Call, terms: Tensor, differences: Tensor) -> tuple[Tensor, Tensor]:
    (B, G, T), like = call.mask.shape, terms
    errors, rewards = like.new_empty((B, G, len(call.kinds))), like.new_empty((B, G, len(call.kinds)))
    options = _sequence_options(call, like)
    launch(
        _errors_fwd_kernel, triton.cdiv(B * G, options["BLOCK"]),
        terms, differences, *_mask(call), errors, rewards, B * G, T, call.points, call.J, **options,
    )  # fmt: skip
    return errors, rewards


def _strengths(call: _Call, terms: Tensor, *given: Tensor) -> Tensor:
    """``given``: gradients of errors and of rewards, and the rewards."""
    (B, G, T), like = call.mask.shape, terms
    strengths = like.new_empty((B * G, len(JOINT_REWARDS)))
    options = _sequence_options(call, like)
    launch(
        _strengths_bwd_kernel, triton.cdiv(B * G, options["BLOCK"]),
        *(tensor.contiguous() for tensor in given), terms, *_mask(call), strengths, B * G, T, call.points, call.J,
        **options,
    )  # fmt: skip
    return strengths


def _grad_aligned(call: _Call, strengths: Tensor, aligned: Tensor) -> Tensor:
    (_, G, T), like = call.mask.shape, call.joints
    grad = like.new_empty(like.shape)
    options = _point_options(call)
    launch(
        _aligned_bwd_kernel, triton.cdiv(call.frames, options["BLOCK"]),
        *_strided(call.target_joints, 2, like), *_mask(call), aligned, strengths, grad, call.frames, G, T, call.points,
        on=like, **options,
    )  # fmt: skip
    return grad


def _points_gradient(call: _Call, strengths: Tensor, through_alignment: Tensor) -> Tensor:
    (_, G, T), like = call.mask.shape, call.joints
    grad = like.new_empty(like.shape)
    options = _point_options(call)
    launch(
        _points_bwd_kernel, triton.cdiv(call.frames, options["BLOCK"]),
        *_strided(like, 2, like), *_strided(call.target_joints, 2, like), *_mask(call), strengths, through_alignment,
        grad, call.frames, G, T, call.points, call.head,
        on=like, **_kind_options(call, call.kinds), **options,
    )  # fmt: skip
    return grad


# The operators of alignment and of bodies.


def _clouds(call: _Call) -> tuple[Tensor, Tensor]:
    """What is aligned, and onto what."""
    pair = call.joints, call.target_joints[:, None].expand_as(call.joints)
    return pair if call.alignment == 0 else pair[::-1]


def _aligned(call: _Call) -> Tensor:
    if not call.wants("aligned_position"):
        return call.joints
    return torch.ops.mgrpo.procrustes_align(*_clouds(call), None, True, True, "triton")[0]


def _joints_gradient(call: _Call, strengths: Tensor) -> Tensor:
    through = call.joints
    if call.wants("aligned_position"):
        source, onto = _clouds(call)
        grad = _grad_aligned(call, strengths, _aligned(call))
        nothing = grad.new_zeros(call.frames, 13).split((9, 3, 1), 1)
        standard = call.alignment == 0
        grads = torch.ops.mgrpo.procrustes_align_backward(
            grad, *nothing, source, onto, None, True, True, standard, not standard, False, "triton"
        )
        through = grads[0 if standard else 1]
    return _points_gradient(call, strengths, through)


def _score(call: _Call, differences: Tensor) -> tuple[Tensor, Tensor]:
    if call.joints is None:
        return _errors(call, differences, differences)
    return _errors(call, _frame_terms(call, call.kinds, _aligned(call)), differences)


def _strengths_of(call: _Call, *given: Tensor) -> Tensor:
    terms = given[0]
    if call.wants("jitter"):  # whether the prediction's jerk is above the recording's
        terms = _frame_terms(call, [JOINT_REWARDS.index("jitter")], call.joints)
    return _strengths(call, terms, *given)


class _Body:
    """A skeleton with the root as first joint, and with the shapes of a batch."""

    def __init__(
        self, t_parent_joint: Tensor, t_head_cpf: Tensor, shapedirs: Tensor | None, head_shapedirs: Tensor | None,
        betas: Tensor | None, T_world_cpf: Tensor, parents: Sequence[int], head: int,
    ) -> None:  # fmt: skip
        self.options = ([-1, *(1 + parent for parent in parents)], 1 + head, "matrix", "positions")
        entries = pad(torch.cat((t_parent_joint, t_head_cpf[None])), (0, 0, 1, 0))
        self.directions = None
        if betas is not None and shapedirs is not None and head_shapedirs is not None:
            self.directions = pad(torch.cat((shapedirs, head_shapedirs[None])), (0, 0, 0, 0, 1, 0))
            entries = torch.ops.mgrpo.joint_offsets(entries, self.directions, betas, "triton")
        self.constants = (entries[..., :-1, :], T_world_cpf[:, None], entries[..., -1, :])

    def joints(self, rotmats: Tensor) -> Tensor:
        return torch.ops.mgrpo.forward_kinematics(rotmats, *self.constants, *self.options, "triton")[0]

    def gradients(self, grad_joints: Tensor, rotmats: Tensor, want_betas: bool) -> tuple[Tensor, Tensor]:
        """Of the matrices and, if wanted, of betas."""
        grads = torch.ops.mgrpo.forward_kinematics_backward(
            grad_joints, None, None, rotmats, *self.constants, *self.options, [True, want_betas, False, want_betas],
            "triton",
        )  # fmt: skip
        if not want_betas:
            return grads[0], grads[1]
        entries = torch.cat((grads[1], grads[3][..., None, :]), -2)
        return grads[0], torch.ops.mgrpo.joint_offsets_backward(entries, self.directions, "triton")


def _group_call(
    joints: Tensor | None, target_joints: Tensor | None, rotmats: Tensor | None, target_rotmats: Tensor | None,
    mask: Tensor, head: int, feet: Sequence[int], foot_heights: Sequence[float], kinds: Sequence[int],
    slopes: Sequence[float], fps: float, rotation_error: int, alignment: int,
) -> _Call:  # fmt: skip
    return _Call(
        mask, rotmats, 0 if rotmats is None else rotmats.shape[3], target_rotmats, joints, target_joints,
        head, tuple(feet), tuple(foot_heights), 0, False, tuple(kinds), tuple(slopes), fps, rotation_error, alignment,
    )  # fmt: skip


def group_rewards_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::group_rewards``."""
    call = _group_call(*arguments)
    differences = call.joints if call.rotations is None else _decoded(call, False)[1]
    return _score(call, differences)


def group_rewards_backward(
    grad_errors: Tensor, grad_rewards: Tensor, rewards: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::group_rewards_backward``."""
    *given, want_joints, want_rotmats = arguments
    call = _group_call(*given)
    strengths = _strengths_of(call, grad_errors, grad_rewards, rewards)
    nothing = (rewards.new_empty(0), rewards.new_empty(0))
    return (
        _joints_gradient(call, strengths) if want_joints and call.joints is not None else nothing[0],
        _rotations_gradient(call, strengths, None) if want_rotmats and call.rotations is not None else nothing[1],
    )


def _motion_call(
    rotations: Tensor, betas: Tensor | None, T_world_cpf: Tensor, target_joints: Tensor | None,
    target_rotmats: Tensor | None, mask: Tensor, t_parent_joint: Tensor, t_head_cpf: Tensor,
    t_parent_joint_shapedirs: Tensor | None, t_head_cpf_shapedirs: Tensor | None, parents: Sequence[int], head: int,
    feet: Sequence[int], foot_heights: Sequence[float], representation: int, project: bool, kinds: Sequence[int],
    slopes: Sequence[float], fps: float, rotation_error: int, alignment: int,
) -> tuple[_Call, _Body | None]:  # fmt: skip
    call = _Call(
        mask, rotations, len(parents), target_rotmats, None, target_joints, 1 + head, tuple(1 + foot for foot in feet),
        tuple(foot_heights), representation, project, tuple(kinds), tuple(slopes), fps, rotation_error, alignment,
    )  # fmt: skip
    if target_joints is None:
        return call, None
    skeleton = (t_parent_joint, t_head_cpf, t_parent_joint_shapedirs, t_head_cpf_shapedirs)
    return call, _Body(*skeleton, betas, T_world_cpf, parents, head)


def motion_rewards_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::motion_rewards``."""
    call, body = _motion_call(*arguments)
    rotmats, differences = _decoded(call, body is not None)
    return _score(call if body is None else replace(call, joints=body.joints(rotmats)), differences)


def motion_rewards_backward(
    grad_errors: Tensor, grad_rewards: Tensor, rewards: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Implementation of ``mgrpo::motion_rewards_backward``."""
    *given, want_rotations, want_betas = arguments
    call, body = _motion_call(*given)
    want_betas = want_betas and body is not None and body.directions is not None
    grad_rotmats, grad_rotations, grad_betas = None, rewards.new_empty(0), rewards.new_empty(0)
    if body is None:
        strengths = _strengths_of(call, grad_errors, grad_rewards, rewards)
    else:
        rotmats, _ = _decoded(replace(call, target_rotmats=None), True)
        call = replace(call, joints=body.joints(rotmats))
        strengths = _strengths_of(call, grad_errors, grad_rewards, rewards)
        grad_rotmats, grad_betas = body.gradients(_joints_gradient(call, strengths), rotmats, want_betas)
        if want_betas:  # frames that do not count may hold anything
            grad_betas = torch.where(call.mask[..., None], grad_betas, 0.0)
    if want_rotations:
        grad_rotations = _rotations_gradient(call, strengths, grad_rotmats)
    return grad_rotations, grad_betas


# What the tests compile.


def _sample(dtype: torch.dtype, representation: int, project: bool, rotation_error: int) -> _Call:
    empty = partial(torch.empty, dtype=dtype)
    numbers = (9, 4, 6)[representation]
    return _Call(
        torch.ones(4, 1, 100, dtype=torch.bool).expand(4, 8, 100), empty(4, 8, 100, 21 * numbers), 21,
        empty(4, 100, 21, 3, 3), empty(4, 8, 100, 22, 3), empty(4, 100, 22, 3), 15, (7, 8, 10, 11),
        (0.08, 0.08, 0.04, 0.04), representation, project, tuple(range(8)), (1.0,) * 8, 30.0, rotation_error, 0,
    )  # fmt: skip


def _sample_rotations(dtype: torch.dtype, representation: int, project: bool, rotation_error: int) -> None:
    call = _sample(dtype, representation, project, rotation_error)
    rotmats, _ = _decoded(call, True)
    _rotations_gradient(call, call.joints, rotmats)


def _sample_points(dtype: torch.dtype) -> None:
    call = _sample(dtype, 0, False, 0)
    terms = _frame_terms(call, call.kinds, call.joints)
    scores = _errors(call, terms, terms)
    strengths = _strengths(call, terms, *scores, scores[1])
    _points_gradient(call, strengths, _grad_aligned(call, strengths, call.joints))


def _other_rotations(name: str, representation: int, rotation_error: int) -> CompileCase:
    run = partial(_sample_rotations, torch.float32, representation, False, rotation_error)
    return CompileCase(f"{name} float32", run, PROOF_ARCHITECTURES)


COMPILE_CASES = (
    *compile_cases("states", partial(_sample_rotations, representation=0, project=True, rotation_error=0)),
    _other_rotations("quaternions, axis-angle", 1, 1),
    _other_rotations("columns, frobenius", 2, 2),
    *compile_cases("points", _sample_points),
)
