"""``procrustes_align`` and ``procrustes_residual`` in Triton: one pair of clouds per row of a (pairs, points) block.

Points are read side by side and summed along the block's second axis; every pass over a cloud reads it again, from
cache, CHUNK points at a time, so that clouds may have any size. The mathematics is that of ``csrc/procrustes``:
README.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import Rows, as_rows, block_lanes, compile_cases, launch
from .._triton_math import (
    as_float,
    dot,
    identity_like,
    inner,
    load_mat3,
    load_vec3,
    mat3_add,
    mat3_scale,
    mat3_select,
    matvec,
    outer,
    program_rows,
    row_offset,
    store_mat3,
    store_vec3,
    transposed_matvec,
    vec3_add,
    vec3_scale,
    vec3_select,
    vec3_sub,
)
from .._triton_polar import nearest_rotation, nearest_rotation_grad

LARGEST_CHUNK = 128
ELEMENTS = 128
"""Of a block, on a GPU: a pair per warp for clouds of 17 to 32 points. All lanes of a warp compute its nearest
rotation, so more pairs would not share that work, only lengthen the code."""
_FAR_F32 = tl.constexpr(1e12)
_FAR_F64 = tl.constexpr(1e100)
_SMALLEST_F32 = tl.constexpr(1.1754943508222875e-38)
_SMALLEST_F64 = tl.constexpr(2.2250738585072014e-308)
_COINCIDENT_F32 = tl.constexpr(4 * 1.1920928955078125e-07)
_COINCIDENT_F64 = tl.constexpr(4 * 2.220446049250313e-16)


# A value per pair seen as a column of the block; a sum over points.


@triton.jit
def _column(a):
    return a[:, None]


@triton.jit
def _columns3(a):
    return a[0][:, None], a[1][:, None], a[2][:, None]


@triton.jit
def _columns9(A):
    return (
        A[0][:, None], A[1][:, None], A[2][:, None], A[3][:, None], A[4][:, None], A[5][:, None],
        A[6][:, None], A[7][:, None], A[8][:, None],
    )  # fmt: skip


@triton.jit
def _sum3(a):
    return tl.sum(a[0], 1), tl.sum(a[1], 1), tl.sum(a[2], 1)


@triton.jit
def _sum_outer(a, b):
    """Sum over the points of a b^T."""
    return (
        tl.sum(a[0] * b[0], 1), tl.sum(a[0] * b[1], 1), tl.sum(a[0] * b[2], 1),
        tl.sum(a[1] * b[0], 1), tl.sum(a[1] * b[1], 1), tl.sum(a[1] * b[2], 1),
        tl.sum(a[2] * b[0], 1), tl.sum(a[2] * b[1], 1), tl.sum(a[2] * b[2], 1),
    )  # fmt: skip


@triton.jit
def _zeros3(a):
    return tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(a)


@triton.jit
def _zeros9(a):
    return mat3_scale(0.0, identity_like(a))


@triton.jit
def _largest(a):
    return tl.maximum(tl.abs(a[0]), tl.maximum(tl.abs(a[1]), tl.abs(a[2])))


@triton.jit
def _smallest_normal(a):
    if a.dtype == tl.float64:
        return tl.zeros_like(a) + _SMALLEST_F64
    else:
        return tl.zeros_like(a) + _SMALLEST_F32


@triton.jit
def _chunk(start, lanes, N, CHUNK: tl.constexpr):
    """CHUNK points from ``start`` on, and where the block has them: in pairs that are there, below N."""
    i = start + tl.arange(0, CHUNK)
    return i, lanes[:, None] & (i[None, :] < N)


@triton.jit
def _load_points(ptr, offset, i, inside):
    """Coordinates of points i of every pair, zero outside."""
    p = ptr + offset[:, None] + 3 * i[None, :]
    return (
        as_float(tl.load(p, mask=inside, other=0.0)),
        as_float(tl.load(p + 1, mask=inside, other=0.0)),
        as_float(tl.load(p + 2, mask=inside, other=0.0)),
    )


@triton.jit
def _store_points(ptr, offset, i, inside, a):
    p = ptr + offset[:, None] + 3 * i[None, :]
    for axis in tl.static_range(3):
        tl.store(p + axis, a[axis], mask=inside)


# Weights: (1 over the largest, 1 over the scaled sum or 0, the first point that has weight, whether one has).


@triton.jit
def _measure_weights(ptr, offset, lanes, like, N, GIVEN: tl.constexpr, CHUNK: tl.constexpr):
    inverse = tl.zeros_like(like) + 1
    first = (like * 0).to(tl.int64)
    if GIVEN:
        largest = _smallest_normal(like)
        for start in range(0, N, CHUNK):
            i, inside = _chunk(start, lanes, N, CHUNK)
            w = as_float(tl.load(ptr + offset[:, None] + i[None, :], mask=inside, other=0.0))
            largest = tl.maximum(largest, tl.max(w, 1))
        inverse = 1 / largest
        total = tl.zeros_like(like)
        first = first + N
        for start in range(0, N, CHUNK):
            i, inside = _chunk(start, lanes, N, CHUNK)
            w = inverse[:, None] * as_float(tl.load(ptr + offset[:, None] + i[None, :], mask=inside, other=0.0))
            total += tl.sum(w, 1)
            place = tl.where(w != 0, i[None, :].to(tl.int64), N)
            first = tl.minimum(first, tl.min(place, 1))
        share = tl.where(total == 0, 0.0, 1 / tl.where(total == 0, 1.0, total))
    else:
        share = tl.zeros_like(like) + 1 / tl.maximum(N, 1).to(like.dtype)
    found = lanes & (first < N)
    return inverse, share, first, found


@triton.jit
def _load_weights(ptr, offset, inverse, i, inside, GIVEN: tl.constexpr):
    if GIVEN:
        return inverse[:, None] * as_float(tl.load(ptr + offset[:, None] + i[None, :], mask=inside, other=0.0))
    else:
        return tl.zeros_like(inverse)[:, None] + tl.where(inside, 1.0, 0.0).to(inverse.dtype)


# A cloud: (anchor, extent, size, 1 / size, mean seen from the anchor in units of the size).


@triton.jit
def _survey(ptr, offset, weights_ptr, weights_offset, weights, lanes, N, GIVEN: tl.constexpr, CHUNK: tl.constexpr):
    inverse_weight, share, first, found = weights
    like = inverse_weight
    anchor = load_vec3(ptr, offset + 3 * tl.where(found, first, 0), found)
    total = _zeros3(like)
    extent = tl.zeros_like(like)
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        w = _load_weights(weights_ptr, weights_offset, inverse_weight, i, inside, GIVEN)
        offsets = vec3_sub(_load_points(ptr, offset, i, inside), _columns3(anchor))
        zero = tl.zeros_like(w)
        offsets = vec3_select(w != 0, offsets, (zero, zero, zero))
        extent = tl.maximum(extent, tl.max(_largest(offsets), 1))
        total = vec3_add(total, _sum3(vec3_scale(w, offsets)))
    extent = extent + 0 * (total[0] + total[1] + total[2])  # a maximum may forget a NaN, a sum does not
    size = tl.where(extent == 0, 1.0, tl.where(extent < _smallest_normal(like), _smallest_normal(like), extent))
    inverse = 1 / size
    mean = vec3_scale(share, vec3_scale(inverse, total))
    return anchor, extent, size, inverse, mean


@triton.jit
def _centred(points, cloud):
    offsets = vec3_scale(_column(cloud[3]), vec3_sub(points, _columns3(cloud[0])))
    return vec3_sub(offsets, _columns3(cloud[4]))


@triton.jit
def _restored_mean(cloud):
    return vec3_add(cloud[0], vec3_scale(cloud[2], cloud[4]))


# The best motion: (R, scale, factor, product, spread, ratio, one_point) with aligned = factor R x + target's mean.


@triton.jit
def _fit(
    source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target, lanes,
    N, WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr, GIVEN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    like = weights[0]
    product = _zeros9(like)
    spread = tl.zeros_like(like)
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        w = _load_weights(weights_ptr, weights_offset, weights[0], i, inside, GIVEN)
        zero = tl.zeros_like(w)
        x = _centred(_load_points(source_ptr, source_offset, i, inside), source)
        y = _centred(_load_points(target_ptr, target_offset, i, inside), target)
        x = vec3_select(w != 0, x, (zero, zero, zero))
        y = vec3_select(w != 0, y, (zero, zero, zero))
        spread += tl.sum(w * dot(x, x), 1)
        product = mat3_add(product, _sum_outer(vec3_scale(w, y), x))
    if like.dtype == tl.float64:
        rounding = _COINCIDENT_F64 * _largest(source[0])
    else:
        rounding = _COINCIDENT_F32 * _largest(source[0])
    one_point = (source[1] <= rounding) | (spread == 0)
    product = mat3_select(one_point, _zeros9(like), product)
    R = nearest_rotation(product, FIX_DET)
    ratio = inner(R, product) / tl.where(one_point, 1.0, spread)
    factor = source[2]
    scale = tl.zeros_like(like) + 1
    if WITH_SCALE:
        factor = tl.where(one_point, factor, ratio * target[2])
        scale = tl.where(one_point, scale, factor * source[3])
    return R, scale, factor, product, spread, ratio, one_point


# What remains: a point misses its target by B x - size y, in units that keep squares in range.


@triton.jit
def _misses(fit, target):
    unit = tl.where(fit[2] > target[2], fit[2], target[2])
    return unit, mat3_scale(fit[2] / unit, fit[0]), target[2] / unit


@triton.jit
def _miss(miss, x, y):
    turned = matvec(_columns9(miss[1]), x)
    return vec3_sub(turned, vec3_scale(_column(miss[2]), y))


@triton.jit
def _miss_grad(strength, miss, x, y, w):
    """Gradient of the misses from that of their weighted sum, zero where a point is hit; and the distances."""
    d = _miss(miss, x, y)
    distance = tl.sqrt(dot(d, d))
    apart = distance != 0
    return vec3_scale(tl.where(apart, _column(strength) * w / tl.where(apart, distance, 1.0), 0.0), d), distance


# Gradients. A fit's gradient is (B, dL/d product, dL/d spread, shift, B^T shift).


@triton.jit
def _fit_grad(
    fit, source, target, grad_B, grad_sum, grad_R, grad_t, grad_scale,
    WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr,
):  # fmt: skip
    R, _, factor, product, spread, ratio, one_point = fit
    source_mean = vec3_add(vec3_scale(source[3], source[0]), source[4])
    grad_B = mat3_add(grad_B, mat3_scale(-1.0, outer(grad_t, source_mean)))
    B = mat3_scale(factor, R)
    shift = vec3_add(grad_sum, grad_t)
    grad_product = nearest_rotation_grad(mat3_add(grad_R, mat3_scale(factor, grad_B)), product, R, FIX_DET)
    grad_spread = tl.zeros_like(spread)
    if WITH_SCALE:
        divisor = tl.where(one_point, 1.0, spread)
        grad_ratio = target[2] * (inner(grad_B, R) + source[3] * grad_scale) / divisor
        grad_product = mat3_add(grad_product, mat3_scale(grad_ratio, R))
        grad_spread = tl.where(one_point, 0.0, -(grad_ratio * ratio))
    grad_product = mat3_select(one_point, _zeros9(spread), grad_product)
    return B, grad_product, grad_spread, shift, transposed_matvec(B, shift)


@triton.jit
def _pair_points(
    source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target,
    i, inside, GIVEN: tl.constexpr,
):  # fmt: skip
    """x, y, w of points i, and which of them are ignored: those lie at the means and have no gradient of their own."""
    w = _load_weights(weights_ptr, weights_offset, weights[0], i, inside, GIVEN)
    x = _centred(_load_points(source_ptr, source_offset, i, inside), source)
    y = _centred(_load_points(target_ptr, target_offset, i, inside), target)
    if w.dtype == tl.float64:
        far = _FAR_F64
    else:
        far = _FAR_F32
    near = (tl.abs(x[0]) <= far) & (tl.abs(x[1]) <= far) & (tl.abs(x[2]) <= far)
    near = near & (tl.abs(y[0]) <= far) & (tl.abs(y[1]) <= far) & (tl.abs(y[2]) <= far)
    ignored = (w == 0) & (near == 0)
    zero = tl.zeros_like(w)
    return (
        vec3_select(ignored, (zero, zero, zero), x),
        vec3_select(ignored, (zero, zero, zero), y),
        w,
        ignored,
    )


@triton.jit
def _grad_source(grad, source, weights, x, y, w, g):
    moved = transposed_matvec(_columns9(grad[0]), g)
    moved = vec3_sub(moved, vec3_scale(_column(weights[1]) * w, _columns3(grad[4])))
    fitted = vec3_add(transposed_matvec(_columns9(grad[1]), y), vec3_scale(2 * _column(grad[2]), x))
    return vec3_scale(_column(source[3]), vec3_add(moved, vec3_scale(w, fitted)))


@triton.jit
def _grad_target(grad, target, weights, x, w):
    fitted = vec3_scale(_column(target[3]) * w, matvec(_columns9(grad[1]), x))
    return vec3_add(fitted, vec3_scale(_column(weights[1]) * w, _columns3(grad[3])))


@triton.jit
def _grad_weight(grad, target, weights, x, y):
    fitted = dot(y, matvec(_columns9(grad[1]), x)) + _column(grad[2]) * dot(x, x)
    shifted = _column(target[2]) * dot(_columns3(grad[3]), y) - dot(_columns3(grad[4]), x)
    return _column(weights[0]) * (fitted + _column(weights[1]) * shifted)


# Kernels.


@triton.jit
def _pair(
    source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
    weights_ptr, weights_sizes, weights_strides, row, lanes, N,
    WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr, GIVEN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Offsets of a block's pairs, their weights and clouds measured, and the best motion."""
    source_offset = row_offset(row, source_sizes, source_strides)
    target_offset = row_offset(row, target_sizes, target_strides)
    weights_offset = row_offset(row, weights_sizes, weights_strides)
    like = as_float(tl.load(source_ptr + source_offset, mask=row < 0, other=0.0))  # nothing but a type
    weights = _measure_weights(weights_ptr, weights_offset, lanes, like, N, GIVEN, CHUNK)
    source = _survey(source_ptr, source_offset, weights_ptr, weights_offset, weights, lanes, N, GIVEN, CHUNK)
    target = _survey(target_ptr, target_offset, weights_ptr, weights_offset, weights, lanes, N, GIVEN, CHUNK)
    fit = _fit(
        source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target,
        lanes, N, WITH_SCALE, FIX_DET, GIVEN, CHUNK,
    )  # fmt: skip
    return source_offset, target_offset, weights_offset, weights, source, target, fit


@triton.jit
def _procrustes_align_fwd_kernel(
    source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
    weights_ptr, weights_sizes, weights_strides, out_aligned_ptr, out_R_ptr, out_t_ptr, out_scale_ptr, count, N,
    WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr, GIVEN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program_rows(BLOCK)
    lanes = row < count
    source_offset, _, _, _, source, target, fit = _pair(
        source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
        weights_ptr, weights_sizes, weights_strides, row, lanes, N, WITH_SCALE, FIX_DET, GIVEN, CHUNK,
    )  # fmt: skip
    R, scale, factor = fit[0], fit[1], fit[2]
    target_mean = _restored_mean(target)
    t = vec3_sub(target_mean, vec3_scale(scale, matvec(R, _restored_mean(source))))
    store_mat3(out_R_ptr, 9 * row, R, lanes)
    store_vec3(out_t_ptr, 3 * row, t, lanes)
    tl.store(out_scale_ptr + row, scale, mask=lanes)
    B = mat3_scale(factor, R)
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        x = _centred(_load_points(source_ptr, source_offset, i, inside), source)
        aligned = vec3_add(matvec(_columns9(B), x), _columns3(target_mean))
        _store_points(out_aligned_ptr, 3 * N * row, i, inside, aligned)


@triton.jit
def _procrustes_residual_fwd_kernel(
    source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
    weights_ptr, weights_sizes, weights_strides, out_residual_ptr, count, N,
    WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr, GIVEN: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program_rows(BLOCK)
    lanes = row < count
    source_offset, target_offset, weights_offset, weights, source, target, fit = _pair(
        source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
        weights_ptr, weights_sizes, weights_strides, row, lanes, N, WITH_SCALE, FIX_DET, GIVEN, CHUNK,
    )  # fmt: skip
    miss = _misses(fit, target)
    total = tl.zeros_like(miss[0])
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        w = _load_weights(weights_ptr, weights_offset, weights[0], i, inside, GIVEN)
        x = _centred(_load_points(source_ptr, source_offset, i, inside), source)
        y = _centred(_load_points(target_ptr, target_offset, i, inside), target)
        d = _miss(miss, x, y)
        zero = tl.zeros_like(w)
        d = vec3_select(w != 0, d, (zero, zero, zero))
        total += tl.sum(w * tl.sqrt(dot(d, d)), 1)
    tl.store(out_residual_ptr + row, miss[0] * (weights[1] * total), mask=lanes)


@triton.jit
def _procrustes_align_bwd_kernel(
    grad_aligned_ptr, grad_R_ptr, grad_t_ptr, grad_scale_ptr,
    source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
    weights_ptr, weights_sizes, weights_strides, grad_source_ptr, grad_target_ptr, grad_weights_ptr, count, N,
    WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr, GIVEN: tl.constexpr, NEED_SOURCE: tl.constexpr,
    NEED_TARGET: tl.constexpr, NEED_WEIGHTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program_rows(BLOCK)
    lanes = row < count
    source_offset, target_offset, weights_offset, weights, source, target, fit = _pair(
        source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
        weights_ptr, weights_sizes, weights_strides, row, lanes, N, WITH_SCALE, FIX_DET, GIVEN, CHUNK,
    )  # fmt: skip
    points = 3 * N * row
    grad_B = _zeros9(fit[2])
    grad_sum = _zeros3(fit[2])
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        x, _, w, ignored = _pair_points(
            source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target,
            i, inside, GIVEN,
        )  # fmt: skip
        zero = tl.zeros_like(w)
        g = vec3_select(ignored, (zero, zero, zero), _load_points(grad_aligned_ptr, points, i, inside))
        x = vec3_select(inside, x, (zero, zero, zero))
        grad_B = mat3_add(grad_B, _sum_outer(g, x))
        grad_sum = vec3_add(grad_sum, _sum3(g))
    grad_R = load_mat3(grad_R_ptr, 9 * row, lanes)
    grad_t = load_vec3(grad_t_ptr, 3 * row, lanes)
    grad_scale = as_float(tl.load(grad_scale_ptr + row, mask=lanes, other=0.0))
    grad = _fit_grad(fit, source, target, grad_B, grad_sum, grad_R, grad_t, grad_scale, WITH_SCALE, FIX_DET)
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        x, y, w, ignored = _pair_points(
            source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target,
            i, inside, GIVEN,
        )  # fmt: skip
        zero = tl.zeros_like(w)
        if NEED_SOURCE:
            g = vec3_select(ignored, (zero, zero, zero), _load_points(grad_aligned_ptr, points, i, inside))
            _store_points(grad_source_ptr, points, i, inside, _grad_source(grad, source, weights, x, y, w, g))
        if NEED_TARGET:
            _store_points(grad_target_ptr, points, i, inside, _grad_target(grad, target, weights, x, w))
        if NEED_WEIGHTS:
            grad_w = tl.where(ignored, 0.0, _grad_weight(grad, target, weights, x, y))
            tl.store(grad_weights_ptr + (N * row)[:, None] + i[None, :], grad_w, mask=inside)


@triton.jit
def _procrustes_residual_bwd_kernel(
    grad_residual_ptr, source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
    weights_ptr, weights_sizes, weights_strides, grad_source_ptr, grad_target_ptr, grad_weights_ptr, count, N,
    WITH_SCALE: tl.constexpr, FIX_DET: tl.constexpr, GIVEN: tl.constexpr, NEED_SOURCE: tl.constexpr,
    NEED_TARGET: tl.constexpr, NEED_WEIGHTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = program_rows(BLOCK)
    lanes = row < count
    source_offset, target_offset, weights_offset, weights, source, target, fit = _pair(
        source_ptr, source_sizes, source_strides, target_ptr, target_sizes, target_strides,
        weights_ptr, weights_sizes, weights_strides, row, lanes, N, WITH_SCALE, FIX_DET, GIVEN, CHUNK,
    )  # fmt: skip
    points = 3 * N * row
    miss = _misses(fit, target)
    strength = as_float(tl.load(grad_residual_ptr + row, mask=lanes, other=0.0)) * weights[1]
    grad_B = _zeros9(fit[2])
    grad_sum = _zeros3(fit[2])
    total = tl.zeros_like(fit[2])
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        x, y, w, _ = _pair_points(
            source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target,
            i, inside, GIVEN,
        )  # fmt: skip
        g, distance = _miss_grad(strength, miss, x, y, w)
        grad_B = mat3_add(grad_B, _sum_outer(g, x))
        grad_sum = vec3_add(grad_sum, _sum3(g))
        total += tl.sum(w * distance, 1)
    mean = weights[1] * total
    zero_scale = tl.zeros_like(total)
    grad = _fit_grad(
        fit, source, target, grad_B, grad_sum, _zeros9(total), _zeros3(total), zero_scale, WITH_SCALE, FIX_DET
    )
    for start in range(0, N, CHUNK):
        i, inside = _chunk(start, lanes, N, CHUNK)
        x, y, w, ignored = _pair_points(
            source_ptr, source_offset, target_ptr, target_offset, weights_ptr, weights_offset, weights, source, target,
            i, inside, GIVEN,
        )  # fmt: skip
        g, distance = _miss_grad(strength, miss, x, y, w)
        if NEED_SOURCE:
            _store_points(grad_source_ptr, points, i, inside, _grad_source(grad, source, weights, x, y, w, g))
        if NEED_TARGET:
            _store_points(grad_target_ptr, points, i, inside, vec3_sub(_grad_target(grad, target, weights, x, w), g))
        if NEED_WEIGHTS:
            direct = _column(weights[0] * strength) * (_column(miss[0]) * (distance - _column(mean)))
            grad_w = tl.where(ignored, 0.0, direct + _grad_weight(grad, target, weights, x, y))
            tl.store(grad_weights_ptr + (N * row)[:, None] + i[None, :], grad_w, mask=inside)


def _inputs(source: Tensor, target: Tensor, weights: Tensor | None) -> tuple[tuple, int]:
    """The kernels' arguments for the three inputs, and the number of pairs."""
    rows = [as_rows(source, 2), as_rows(target, 2)]
    rows.append(Rows(source, rows[0].count, (1,), (0,)) if weights is None else as_rows(weights, 1))
    return tuple(part for one in rows for part in (one.tensor, one.sizes, one.strides)), rows[0].count


def _options(source: Tensor, weights: Tensor | None, count: int, with_scale: bool, fix_det: bool) -> dict[str, object]:
    chunk = min(max(triton.next_power_of_2(source.shape[-2]), 16), LARGEST_CHUNK)
    return {
        "WITH_SCALE": with_scale,
        "FIX_DET": fix_det,
        "GIVEN": weights is not None,
        "CHUNK": chunk,
        "BLOCK": block_lanes(count, ELEMENTS // chunk),
        "num_warps": 4,
        "maxnreg": 255,  # without a number the assembler aims at fewer, and spills
    }


def align_forward(
    source: Tensor, target: Tensor, weights: Tensor | None, with_scale: bool, fix_det: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Implementation of ``mgrpo::procrustes_align``."""
    batch, N = source.shape[:-2], source.shape[-2]
    out = (
        source.new_empty(source.shape),
        source.new_empty((*batch, 3, 3)),
        source.new_empty((*batch, 3)),
        source.new_empty(batch),
    )
    inputs, count = _inputs(source, target, weights)
    options = _options(source, weights, count, with_scale, fix_det)
    programs = triton.cdiv(count, options["BLOCK"])
    launch(_procrustes_align_fwd_kernel, programs, *inputs, *out, count, N, on=source, **options)
    return out


def residual_forward(source: Tensor, target: Tensor, weights: Tensor | None, with_scale: bool, fix_det: bool) -> Tensor:
    """Implementation of ``mgrpo::procrustes_residual``."""
    residual = source.new_empty(source.shape[:-2])
    inputs, count = _inputs(source, target, weights)
    options = _options(source, weights, count, with_scale, fix_det)
    programs = triton.cdiv(count, options["BLOCK"])
    launch(_procrustes_residual_fwd_kernel, programs, *inputs, residual, count, source.shape[-2], on=source, **options)
    return residual


def align_backward(
    grad_aligned: Tensor,
    grad_R: Tensor,
    grad_t: Tensor,
    grad_scale: Tensor,
    source: Tensor,
    target: Tensor,
    weights: Tensor | None,
    with_scale: bool,
    fix_det: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    """Implementation of ``mgrpo::procrustes_align_backward``."""
    given = tuple(grad.contiguous() for grad in (grad_aligned, grad_R, grad_t, grad_scale))
    return _backward(_procrustes_align_bwd_kernel, given, source, target, weights, with_scale, fix_det, needs)


def residual_backward(
    grad_residual: Tensor,
    source: Tensor,
    target: Tensor,
    weights: Tensor | None,
    with_scale: bool,
    fix_det: bool,
    *needs: bool,
) -> tuple[Tensor, ...]:
    """Implementation of ``mgrpo::procrustes_residual_backward``."""
    given = (grad_residual.contiguous(),)
    return _backward(_procrustes_residual_bwd_kernel, given, source, target, weights, with_scale, fix_det, needs)


def _backward(
    kernel: Callable,
    given: tuple[Tensor, ...],
    source: Tensor,
    target: Tensor,
    weights: Tensor | None,
    with_scale: bool,
    fix_det: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    shapes = (source.shape, source.shape, source.shape[:-1])
    out = tuple(source.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))
    inputs, count = _inputs(source, target, weights)
    options = _options(source, weights, count, with_scale, fix_det)
    options.update(zip(("NEED_SOURCE", "NEED_TARGET", "NEED_WEIGHTS"), needs, strict=True))
    programs = triton.cdiv(count, options["BLOCK"])
    launch(kernel, programs, *given, *inputs, *out, count, source.shape[-2], on=source, **options)
    return out


def _clouds(dtype: torch.dtype, weighted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    points = torch.empty(1000, 22, 3, dtype=dtype)
    return points, points, torch.empty(1000, 22, dtype=dtype) if weighted else None


def _sample_align_backward(dtype: torch.dtype) -> object:
    source, target, weights = _clouds(dtype, True)
    batch = source.shape[:1]
    given = (source.new_empty(shape) for shape in (source.shape, (*batch, 3, 3), (*batch, 3), batch))
    return align_backward(*given, source, target, weights, True, True, True, True, True)


def _sample_residual_backward(dtype: torch.dtype) -> object:
    source, target, weights = _clouds(dtype, True)
    return residual_backward(source.new_empty(1000), source, target, weights, True, True, True, True, True)


COMPILE_CASES = (
    *compile_cases("align", lambda dtype: align_forward(*_clouds(dtype, False), True, True), [torch.float32]),
    *compile_cases("align backward", _sample_align_backward),
    *compile_cases("residual", lambda dtype: residual_forward(*_clouds(dtype, False), True, True), [torch.float32]),
    *compile_cases("residual backward", _sample_residual_backward),
)
