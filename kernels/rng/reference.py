"""Philox4x32-10 and Box-Muller in plain torch operations: the oracle that every other backend equals bit for bit.

Source of the generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123).
The counter layout and the float32 polynomials are described in README.md of this folder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._noise_key import BLOCK_BITS

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_ROUNDS = 10

# float32 constants as hexadecimal floats, so that Python, C++ and Triton read exactly the same bits.
_TWO_M24 = float.fromhex("0x1p-24")
_HALF_PI_M22 = float.fromhex("0x1.921fb6p-22")  # float32(pi / 2) / 2^22
_SQRT_HALF_BITS = 0x3F3504F3  # float32(sqrt(1/2))
_LN2_HIGH = float.fromhex("0x1.63p-1")  # 355 / 512: exact when multiplied by a small integer
_LN2_LOW = float.fromhex("-0x1.bd0106p-13")  # ln 2 - 355 / 512
_LOG = tuple(
    float.fromhex(c)
    for c in (
        "0x1.204376p-4",  # 7.0376836292e-2
        "-0x1.d7a370p-4",  # -1.1514610310e-1
        "0x1.de4a34p-4",  # 1.1676998740e-1
        "-0x1.fcba9ep-4",  # -1.2420140846e-1
        "0x1.23d37ep-3",  # 1.4249322787e-1
        "-0x1.555ca0p-3",  # -1.6668057665e-1
        "0x1.999d58p-3",  # 2.0000714765e-1
        "-0x1.fffff8p-3",  # -2.4999993993e-1
        "0x1.555554p-2",  # 3.3333331174e-1
    )
)
_SIN = tuple(float.fromhex(c) for c in ("-0x1.9943f2p-13", "0x1.11073cp-7", "-0x1.555546p-3"))
_COS = tuple(float.fromhex(c) for c in ("0x1.99eb9cp-16", "-0x1.6c0c34p-10", "0x1.55554ap-5"))


def _multiply_high_low(a: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32-bit halves of a * multiplier, for int64 tensors holding 32-bit words.

    The product has 64 bits and would overflow a signed int64, so ``a`` is cut into 16-bit halves first.
    """
    low_part = (a & 0xFFFF) * multiplier  # < 2^48
    high_part = (a >> 16) * multiplier  # < 2^48
    high = (high_part + (low_part >> 16)) >> 16
    low = (((high_part & 0xFFFF) << 16) + low_part) & _MASK
    return high, low


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four broadcastable int64 tensors holding 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of the broadcast shape holding 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high_low(c0, _MULTIPLIER_0)
        high1, low1 = _multiply_high_low(c2, _MULTIPLIER_1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def row_words(
    step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int
) -> tuple[Tensor, ...]:
    """Words of the first ``ceil(count / 4)`` blocks of every row.

    Args:
        step_member: (N,) int64, step in the low 16 bits, member in the high 16.
        condition: (N,) int64 in [0, 2^32).
        count: elements per row.
        seed: key; its 64 bits are taken as they are (a negative number stands for seed + 2^64).
        iteration: fourth counter word.
        stream: 0..15, the upper four bits of the first counter word.

    Returns:
        Four (N, blocks) int64 tensors.
    """
    blocks = (count + 3) // 4
    block = torch.arange(blocks, device=condition.device, dtype=torch.int64)[None, :] | (stream << BLOCK_BITS)
    counter = (
        block.expand(condition.shape[0], blocks),
        step_member[:, None],
        condition[:, None],
        torch.full_like(condition[:, None], iteration),
    )
    return philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))


def _horner(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Polynomial with a separately rounded multiply and add per coefficient."""
    value = z * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * z + coefficient
    return value


def log_positive(u: Tensor) -> Tensor:
    """Natural logarithm of a normal positive float32 by a fixed sequence of float32 operations.

    u = 2^e m with m in [sqrt(1/2), sqrt(2)); the polynomial is that of the Cephes library (within 1 ulp or so).
    """
    shifted = u.view(torch.int32) - _SQRT_HALF_BITS
    exponent = (shifted >> 23).to(torch.float32)
    y = ((shifted & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32) - 1.0
    z = y * y
    tail = _horner(y, _LOG) * y
    tail = tail * z
    tail = tail + exponent * _LN2_LOW
    tail = tail - z * 0.5
    return (y + tail) + exponent * _LN2_HIGH


def sin_cos_turns(turn: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of 2 pi turn / 2^24 for an int64 ``turn`` in [0, 2^24).

    The quadrant is split off in integers, so the argument reduction is exact.
    """
    quadrant = (turn + (1 << 21)) >> 22
    r = (turn - (quadrant << 22)).to(torch.float32) * _HALF_PI_M22  # in [-pi/4, pi/4)
    z = r * r
    sine = _horner(z, _SIN) * z
    sine = sine * r
    sine = sine + r
    cosine = _horner(z, _COS) * z
    cosine = cosine * z
    cosine = cosine + (1.0 - z * 0.5)
    swap = (quadrant & 1).bool()
    sine, cosine = torch.where(swap, cosine, sine), torch.where(swap, sine, cosine)
    sine = torch.where((quadrant & 2).bool(), -sine, sine)
    cosine = torch.where(((quadrant + 1) & 2).bool(), -cosine, cosine)
    return sine, cosine


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals from two 32-bit words (24 bits of each are used)."""
    # (0, 1] in steps of 2^-24, exact in float32; the largest radius is sqrt(48 ln 2) = 5.77.
    u = ((first >> 8) + 1).to(torch.float32) * _TWO_M24
    # Through float64, because torch's float32 square root may come from a vector library that is 1 ulp off. float64 has
    # more than twice the digits, so rounding its result is the correctly rounded float32 root.
    radius = torch.sqrt((log_positive(u) * -2.0).double()).to(torch.float32)
    sine, cosine = sin_cos_turns(second >> 8)
    return radius * cosine, radius * sine


def philox_normal(step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int) -> Tensor:
    """(N, count) float32 standard normals; arguments as ``row_words``."""
    w0, w1, w2, w3 = row_words(step_member, condition, count, seed, iteration, stream)
    values = torch.stack((*_box_muller(w0, w1), *_box_muller(w2, w3)), dim=-1)
    return values.flatten(-2)[:, :count].contiguous()


def philox_uniform(
    step_member: Tensor, condition: Tensor, count: int, seed: int, iteration: int, stream: int
) -> Tensor:
    """(N, count) float32 in [0, 1) with 24 random bits; arguments as ``row_words``."""
    words = torch.stack(row_words(step_member, condition, count, seed, iteration, stream), dim=-1)
    return ((words >> 8).to(torch.float32) * _TWO_M24).flatten(-2)[:, :count].contiguous()
