"""Device functions for Triton kernels that draw the numbers of ``philox_normal`` and ``philox_uniform`` in registers.

Every float operation is rounded on its own, which makes the bits those of every other backend: launch a kernel that
calls these with ``enable_fp_fusion=False``. Counter layout and polynomials: kernels/rng/README.md. In the functions
below, a block is four neighbouring numbers of one row of the key tensors, numbers 4 b .. 4 b + 3 of the row.
"""

import triton
import triton.language as tl

_STREAM_SHIFT = tl.constexpr(28)
_TWO_M24 = tl.constexpr(float.fromhex("0x1p-24"))
_HALF_PI_M22 = tl.constexpr(float.fromhex("0x1.921fb6p-22"))
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
_LN2_HIGH = tl.constexpr(float.fromhex("0x1.63p-1"))
_LN2_LOW = tl.constexpr(float.fromhex("-0x1.bd0106p-13"))
_LOG_0 = tl.constexpr(float.fromhex("0x1.204376p-4"))
_LOG_1 = tl.constexpr(float.fromhex("-0x1.d7a370p-4"))
_LOG_2 = tl.constexpr(float.fromhex("0x1.de4a34p-4"))
_LOG_3 = tl.constexpr(float.fromhex("-0x1.fcba9ep-4"))
_LOG_4 = tl.constexpr(float.fromhex("0x1.23d37ep-3"))
_LOG_5 = tl.constexpr(float.fromhex("-0x1.555ca0p-3"))
_LOG_6 = tl.constexpr(float.fromhex("0x1.999d58p-3"))
_LOG_7 = tl.constexpr(float.fromhex("-0x1.fffff8p-3"))
_LOG_8 = tl.constexpr(float.fromhex("0x1.555554p-2"))
_SIN_0 = tl.constexpr(float.fromhex("-0x1.9943f2p-13"))
_SIN_1 = tl.constexpr(float.fromhex("0x1.11073cp-7"))
_SIN_2 = tl.constexpr(float.fromhex("-0x1.555546p-3"))
_COS_0 = tl.constexpr(float.fromhex("0x1.99eb9cp-16"))
_COS_1 = tl.constexpr(float.fromhex("-0x1.6c0c34p-10"))
_COS_2 = tl.constexpr(float.fromhex("0x1.55554ap-5"))


@triton.jit
def philox_words(block, step_member, condition, seed_low, seed_high, iteration, stream):
    """The four 32-bit words (uint32) of each block.

    ``block``, ``step_member`` (step in the low 16 bits, member above) and ``condition`` are integer tensors that
    broadcast; the others are scalars. All are 32-bit words that may come in wider integers.
    """
    c0 = block.to(tl.uint32) | (stream.to(tl.uint32) << _STREAM_SHIFT)
    c1 = step_member.to(tl.uint32)
    c2 = condition.to(tl.uint32)
    zero = c0 * 0 + (c1 * 0 + c2 * 0)
    return tl.philox_impl(
        c0 + zero, c1 + zero, c2 + zero, zero + iteration.to(tl.uint32), seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    )


@triton.jit
def uniform_of_word(word):
    """24 random bits as a multiple of 2^-24 in [0, 1)."""
    return (word >> 8).to(tl.int32).to(tl.float32) * _TWO_M24


@triton.jit
def _log_positive(u):
    """Natural logarithm of a normal positive float32."""
    shifted = u.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    exponent = (shifted >> 23).to(tl.float32)
    y = ((shifted & 0x7FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    z = y * y
    tail = y * _LOG_0 + _LOG_1
    tail = tail * y + _LOG_2
    tail = tail * y + _LOG_3
    tail = tail * y + _LOG_4
    tail = tail * y + _LOG_5
    tail = tail * y + _LOG_6
    tail = tail * y + _LOG_7
    tail = tail * y + _LOG_8
    tail = tail * y
    tail = tail * z
    tail = tail + exponent * _LN2_LOW  # ln 2 in two parts, the larger one exact times a small integer
    tail = tail - z * 0.5
    return (y + tail) + exponent * _LN2_HIGH


@triton.jit
def _flip_sign(x, sign):
    """``x`` with its sign bit flipped where ``sign`` (0 or 1) is 1. Triton's minus would turn 0 into 0, not -0."""
    return (x.to(tl.int32, bitcast=True) ^ (sign << 31)).to(tl.float32, bitcast=True)


@triton.jit
def _sin_cos_turns(turn):
    """Sine and cosine of 2 pi turn / 2^24 for int32 ``turn`` in [0, 2^24); the quadrant is split off in integers."""
    quadrant = (turn + (1 << 21)) >> 22
    r = (turn - (quadrant << 22)).to(tl.float32) * _HALF_PI_M22
    z = r * r
    s = z * _SIN_0 + _SIN_1
    s = s * z + _SIN_2
    s = s * z
    s = s * r
    s = s + r
    c = z * _COS_0 + _COS_1
    c = c * z + _COS_2
    c = c * z
    c = c * z
    c = c + (1.0 - z * 0.5)
    swap = (quadrant & 1) == 1
    sine = _flip_sign(tl.where(swap, c, s), (quadrant >> 1) & 1)
    cosine = _flip_sign(tl.where(swap, s, c), ((quadrant + 1) >> 1) & 1)
    return sine, cosine


@triton.jit
def _box_muller(first, second):
    """Two standard normals from two words."""
    u = ((first >> 8).to(tl.int32) + 1).to(tl.float32) * _TWO_M24
    radius = tl.sqrt_rn(_log_positive(u) * -2.0)
    sine, cosine = _sin_cos_turns((second >> 8).to(tl.int32))
    return radius * cosine, radius * sine


@triton.jit
def normals_of_blocks(block, step_member, condition, seed_low, seed_high, iteration, stream):
    """The four standard normals (float32) of each block; arguments as ``philox_words``."""
    w0, w1, w2, w3 = philox_words(block, step_member, condition, seed_low, seed_high, iteration, stream)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def uniforms_of_blocks(block, step_member, condition, seed_low, seed_high, iteration, stream):
    """The four uniform numbers (float32) of each block; arguments as ``philox_words``."""
    w0, w1, w2, w3 = philox_words(block, step_member, condition, seed_low, seed_high, iteration, stream)
    return uniform_of_word(w0), uniform_of_word(w1), uniform_of_word(w2), uniform_of_word(w3)


@triton.jit
def in_element_order(x0, x1, x2, x3):
    """Four tensors (ROWS, BLOCKS), the numbers of each block, as one (ROWS, 4 BLOCKS): numbers side by side in memory,
    so that a thread reads and writes four at once."""
    pairs = tl.join(tl.join(x0, x2), tl.join(x1, x3))
    return tl.reshape(pairs, (x0.shape[0], 4 * x0.shape[1]))
