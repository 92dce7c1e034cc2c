"""What the frames of a motion add to its errors, in Triton, and the gradients of its points.

Points are compared in (frames, points) blocks, and frames summed in (sequences, numbers) blocks. The mathematics is
that of ``csrc/rewards/rewards_math.h``: README.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_math import (
    load_vec3,
    program_rows,
    row_offset,
    store_vec3,
    vec3_add,
    vec3_direction,
    vec3_length,
    vec3_scale,
    vec3_sub,
)

# Numbers of csrc/rewards/rewards_options.h.
_POSITION, _ALIGNED, ROTATION, _VELOCITY, _SKATE, _PENETRATION, _JITTER, _HEAD = map(tl.constexpr, range(8))
_RECORDED_JERK = tl.constexpr(8)
TERMS = 9
"""Per frame: a sum over points for each kind, and the recording's jerk."""


@triton.jit
def sign(a):
    """1, -1, or ``a`` itself where it is zero or NaN."""
    return tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, a))


# Frames.


@triton.jit
def counts_at(mask_ptr, offset, t, T, lanes):
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
def _over_largest(a):
    """A vector over its largest entry, and that: its squares neither overflow nor vanish. Zeros stay zero."""
    size = tl.maximum(tl.abs(a[0]), tl.maximum(tl.abs(a[1]), tl.abs(a[2])))
    divisor = tl.where(size == 0, 1.0, size)
    return (a[0] / divisor, a[1] / divisor, a[2] / divisor), size


@triton.jit
def _length_of_any_size(a):
    unit, size = _over_largest(a)
    return size * vec3_length(unit)


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
    return tl.where(high, 0.0, (2 - tl.exp2(u)) * tl.sqrt(x * x + y * y))


@triton.jit
def _slide_grad(before, now, inverse_height):
    """By where it arrives; by where it started: minus x and y of that."""
    u, high = _near_floor(now[2], inverse_height)
    power = tl.exp2(u)
    x, y = now[0] - before[0], now[1] - before[1]
    speed = tl.sqrt(x * x + y * y)
    scale = tl.where(high | (speed == 0), 0.0, (2 - power) / tl.where(speed == 0, 1.0, speed))
    fall = tl.where(high | (now[2] < 0), 0.0, -0.69314718055994531 * inverse_height * power)
    return scale * x, scale * y, tl.where(fall == 0, 0.0, fall * speed)


@triton.jit
def _first_term(count, KIND: tl.constexpr):
    """Where a kind's terms begin: they stand in rows of ``count`` frames, or sequences."""
    return tl.full([], KIND, tl.int64) * count


@triton.jit
def frames_fwd_kernel(
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
    one = counts_at(mask_ptr, mask_offset, t, T, lanes)
    pair = one & counts_at(mask_ptr, mask_offset, t - 1, T, lanes)
    four = pair & counts_at(mask_ptr, mask_offset, t - 2, T, lanes) & counts_at(mask_ptr, mask_offset, t - 3, T, lanes)
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
            position += tl.sum(vec3_length(d), 1)
        if WANTED[_HEAD]:
            head_distance += tl.sum(tl.where(i == head, vec3_length(d), 0.0), 1)
        if WANTED[_ALIGNED]:
            a = load_vec3(aligned_ptr, 3 * (N * frame[:, None] + i), one[:, None] & inside)
            aligned += tl.sum(_length_of_any_size(vec3_sub(a, y)), 1)
        if WANTED[_PENETRATION]:
            depth = tl.maximum(depth, tl.max(-x[2], 1))
            lost += tl.sum(tl.where(x[2] != x[2], 1.0, 0.0), 1)  # a maximum may forget a NaN
        if WANTED[_VELOCITY] or WANTED[_SKATE] or WANTED[_JITTER]:
            x1 = _load_points(joints_ptr, frame - 1, joints_sizes, joints_strides, i, pair)
            y1 = _load_points(target_ptr, recorded - 1, target_sizes, target_strides, i, pair)
            if WANTED[_VELOCITY]:
                step = vec3_length(vec3_sub(d, vec3_sub(x1, y1)))
                velocity += tl.sum(tl.where(pair[:, None], step, 0.0), 1)
            if WANTED[_SKATE]:
                for k in tl.static_range(len(FEET)):
                    slid = _slide(x1, x, 1.0 / HEIGHTS[k])
                    skate += tl.sum(tl.where(pair[:, None] & (i == FEET[k]), slid, 0.0), 1)
            if WANTED[_JITTER]:
                x2 = _load_points(joints_ptr, frame - 2, joints_sizes, joints_strides, i, four)
                x3 = _load_points(joints_ptr, frame - 3, joints_sizes, joints_strides, i, four)
                size = vec3_length(_third_difference(x3, x2, x1, x))
                jerk += tl.sum(tl.where(four[:, None], size, 0.0), 1)
                y2 = _load_points(target_ptr, recorded - 2, target_sizes, target_strides, i, four)
                y3 = _load_points(target_ptr, recorded - 3, target_sizes, target_strides, i, four)
                size = vec3_length(_third_difference(y3, y2, y1, y))
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
        one = counts_at(mask_ptr, offset[:, None], t, T, lanes)
        pair = one & counts_at(mask_ptr, offset[:, None], t - 1, T, lanes)
        two = counts_at(mask_ptr, offset[:, None], t - 2, T, lanes)
        four = pair & two & counts_at(mask_ptr, offset[:, None], t - 3, T, lanes)
        ones += tl.sum(one.to(tl.int32), 1).to(DTYPE)
        pairs += tl.sum(pair.to(tl.int32), 1).to(DTYPE)
        fours += tl.sum(four.to(tl.int32), 1).to(DTYPE)
    return ones, pairs, fours


@triton.jit
def _terms_of(counts, N, J, FPS: tl.constexpr, FEET: tl.constexpr, KIND: tl.constexpr):
    """Points and frames that the sum of a kind runs over, over the power of fps that it is times."""
    if KIND == ROTATION:
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
def errors_fwd_kernel(
    terms_ptr, differences_ptr, mask_ptr, mask_sizes, mask_strides, out_errors_ptr, out_rewards_ptr, count, T, N, J,
    KINDS: tl.constexpr, SLOPES: tl.constexpr, FPS: tl.constexpr, FEET: tl.constexpr,
    BLOCK: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """Errors and rewards of a sequence from what its frames added: rows of the kinds."""
    sequence = program_rows(BLOCK)
    present = sequence < count
    offset = row_offset(sequence, mask_sizes, mask_strides)
    counts = _count_frames(mask_ptr, offset, T, present, out_errors_ptr.dtype.element_ty, SUMMED)
    for k in tl.static_range(len(KINDS)):
        terms = _terms_of(counts, N, J, FPS, FEET, KINDS[k])
        if KINDS[k] == ROTATION:
            error = _row_sum(differences_ptr, sequence, T * J, present, SUMMED) / terms
        else:
            row = _first_term(count, KINDS[k]) + sequence
            error = _row_sum(terms_ptr, row, T, present, SUMMED) / terms
            if KINDS[k] == _JITTER:
                row = _first_term(count, _RECORDED_JERK) + sequence
                recorded = _row_sum(terms_ptr, row, T, present, SUMMED) / terms
                error = tl.where(error == float("inf"), error, tl.abs(error - recorded))  # above any other
        tl.store(out_errors_ptr + sequence * len(KINDS) + k, error, mask=present)
        tl.store(out_rewards_ptr + sequence * len(KINDS) + k, tl.exp(-SLOPES[k] * error), mask=present)


@triton.jit
def strengths_bwd_kernel(
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
            strength *= tl.where(jerk == float("inf"), 1.0, sign(jerk - recorded_jerk))
        tl.store(out_strengths_ptr + 8 * sequence + KINDS[k], strength, mask=present)


# Gradients of points.


@triton.jit
def _strength(strengths_ptr, sequence, counted, KIND: tl.constexpr):
    """A kind's strength for each frame of a block, as a column; zero where the frame does not count."""
    return tl.load(strengths_ptr + 8 * sequence + KIND, mask=counted, other=0.0)[:, None]


@triton.jit
def aligned_bwd_kernel(
    target_ptr, target_sizes, target_strides, mask_ptr, mask_sizes, mask_strides, aligned_ptr, strengths_ptr,
    grad_aligned_ptr, count, G, T, N, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the aligned points, zero in frames that do not count."""
    frame = program_rows(BLOCK)
    lanes = frame < count
    sequence, t = frame // T, frame % T
    one = counts_at(mask_ptr, row_offset(sequence, mask_sizes, mask_strides), t, T, lanes)
    strength = _strength(strengths_ptr, sequence, one, _ALIGNED)
    for start in range(0, N, CHUNK):
        i = start + tl.arange(0, CHUNK)[None, :]
        inside = i < N
        y = _load_points(target_ptr, sequence // G * T + t, target_sizes, target_strides, tl.where(inside, i, -1), one)
        offset = 3 * (N * frame[:, None] + i)
        a = load_vec3(aligned_ptr, offset, one[:, None] & inside)
        grad = vec3_scale(strength, vec3_direction(_over_largest(vec3_sub(a, y))[0]))
        store_vec3(grad_aligned_ptr, offset, grad, lanes[:, None] & inside)


@triton.jit
def points_bwd_kernel(
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
    one = counts_at(mask_ptr, mask_offset, t, T, lanes)
    arrives = one & counts_at(mask_ptr, mask_offset, t - 1, T, lanes)
    leaves = one & counts_at(mask_ptr, mask_offset, t + 1, T, lanes)
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
            grad = vec3_add(grad, vec3_scale(_strength(strengths_ptr, sequence, one, _POSITION), vec3_direction(d)))
        if WANTED[_HEAD]:
            strength = tl.where(i == head, _strength(strengths_ptr, sequence, one, _HEAD), 0.0)
            grad = vec3_add(grad, vec3_scale(strength, vec3_direction(d)))
        if WANTED[_PENETRATION]:  # points that are equally deep share it
            part = _strength(strengths_ptr, sequence, one, _PENETRATION) / tl.maximum(ties, 1.0)[:, None]
            hit = (-x[2] == deepest[:, None]) & (deepest[:, None] >= 0)
            grad = (grad[0], grad[1], grad[2] - tl.where(hit, part, 0.0))
        if WANTED[_VELOCITY] or WANTED[_SKATE] or WANTED[_JITTER]:
            before = _load_points(joints_ptr, frame - 1, joints_sizes, joints_strides, i, arrives)
            after = _load_points(joints_ptr, frame + 1, joints_sizes, joints_strides, i, leaves)
            if WANTED[_VELOCITY]:
                y1 = _load_points(target_ptr, recorded - 1, target_sizes, target_strides, i, arrives)
                step = vec3_direction(vec3_sub(d, vec3_sub(before, y1)))
                grad = vec3_add(grad, vec3_scale(_strength(strengths_ptr, sequence, arrives, _VELOCITY), step))
                y1 = _load_points(target_ptr, recorded + 1, target_sizes, target_strides, i, leaves)
                step = vec3_direction(vec3_sub(vec3_sub(after, y1), d))
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
                two_before = arrives & counts_at(mask_ptr, mask_offset, t - 2, T, lanes)
                two_after = leaves & counts_at(mask_ptr, mask_offset, t + 2, T, lanes)
                a = _load_points(joints_ptr, frame - 2, joints_sizes, joints_strides, i, two_before)
                b = _load_points(joints_ptr, frame + 2, joints_sizes, joints_strides, i, two_after)
                last = two_before & counts_at(mask_ptr, mask_offset, t - 3, T, lanes)
                far = _load_points(joints_ptr, frame - 3, joints_sizes, joints_strides, i, last)
                step = vec3_direction(_third_difference(far, a, before, x))
                grad = vec3_add(grad, vec3_scale(_strength(strengths_ptr, sequence, last, _JITTER), step))
                step = vec3_direction(_third_difference(a, before, x, after))
                third = two_before & leaves
                grad = vec3_sub(grad, vec3_scale(3 * _strength(strengths_ptr, sequence, third, _JITTER), step))
                step = vec3_direction(_third_difference(before, x, after, b))
                second = arrives & two_after
                grad = vec3_add(grad, vec3_scale(3 * _strength(strengths_ptr, sequence, second, _JITTER), step))
                first = two_after & counts_at(mask_ptr, mask_offset, t + 3, T, lanes)
                far = _load_points(joints_ptr, frame + 3, joints_sizes, joints_strides, i, first)
                step = vec3_direction(_third_difference(x, after, b, far))
                grad = vec3_sub(grad, vec3_scale(_strength(strengths_ptr, sequence, first, _JITTER), step))
        store_vec3(grad_joints_ptr, offset, grad, lanes[:, None] & inside)
