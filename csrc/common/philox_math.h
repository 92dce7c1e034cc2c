// Philox4x32-10 and Box-Muller, generic in what holds the words: a CUDA thread, plain C++, or vector lanes that each
// work on a counter of their own. No torch, no CUDA headers.
//
// Every float operation is rounded on its own, which makes the result the same, bit for bit, as
// kernels/rng/reference.py. Whoever includes this keeps the compiler from fusing multiplications and additions:
// rng_cpu.cpp by a pragma, CUDA by a number type (`Rounded`) whose operators are the separately rounded intrinsics.
// Counter layout and polynomials: kernels/rng/README.md.
//
// `L` names the types: L::Float, L::Int (32 bits, signed) and L::Word (32 bits, unsigned) with the usual operators, and
// to_float, bits, from_bits, as_int, square_root on them.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_PHILOX_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_PHILOX_MATH_H
#include <stdint.h>

#include "macros.h"
#endif

namespace MGRPO_NAMESPACE {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

// 24 random bits as a multiple of 2^-24 in [0, 1).
template <class L>
MGRPO_HD typename L::Float word_to_uniform(typename L::Word word) {
  return L::to_float(L::as_int(word >> 8)) * 0x1p-24f;
}

// Natural logarithm of a normal positive float; Cephes polynomial on [sqrt(1/2), sqrt(2)).
template <class L>
MGRPO_HD typename L::Float log_positive(typename L::Float u) {
  using Float = typename L::Float;
  constexpr int32_t kSqrtHalfBits = 0x3F3504F3;
  const typename L::Int shifted = L::bits(u) - kSqrtHalfBits;
  const Float exponent = L::to_float(shifted >> 23);
  const Float y = L::from_bits((shifted & 0x7FFFFF) + kSqrtHalfBits) - 1.0f;
  const Float z = y * y;
  Float tail = y * 0x1.204376p-4f + -0x1.d7a370p-4f;
  tail = tail * y + 0x1.de4a34p-4f;
  tail = tail * y + -0x1.fcba9ep-4f;
  tail = tail * y + 0x1.23d37ep-3f;
  tail = tail * y + -0x1.555ca0p-3f;
  tail = tail * y + 0x1.999d58p-3f;
  tail = tail * y + -0x1.fffff8p-3f;
  tail = tail * y + 0x1.555554p-2f;
  tail = tail * y;
  tail = tail * z;
  tail = tail + exponent * -0x1.bd0106p-13f;  // ln 2 in two parts, the larger one exact times a small integer
  tail = tail - z * 0.5f;
  return (y + tail) + exponent * 0x1.63p-1f;
}

// Sine and cosine of 2 pi turn / 2^24, turn in [0, 2^24); the quadrant is split off in integers.
template <class L>
MGRPO_HD void sin_cos_turns(typename L::Int turn, typename L::Float& sine, typename L::Float& cosine) {
  using Float = typename L::Float;
  using Int = typename L::Int;
  const Int quadrant = (turn + (1 << 21)) >> 22;
  const Float r = L::to_float(turn - (quadrant << 22)) * 0x1.921fb6p-22f;
  const Float z = r * r;
  Float s = z * -0x1.9943f2p-13f + 0x1.11073cp-7f;
  s = s * z + -0x1.555546p-3f;
  s = s * z;
  s = s * r;
  s = s + r;
  Float c = z * 0x1.99eb9cp-16f + -0x1.6c0c34p-10f;
  c = c * z + 0x1.55554ap-5f;
  c = c * z;
  c = c * z;
  c = c + (1.0f - z * 0.5f);
  // Swap and negate through the bits: no branch.
  const Int swap = -(quadrant & 1);
  const Int s_bits = L::bits(s), c_bits = L::bits(c);
  const Int difference = (s_bits ^ c_bits) & swap;
  const Int sine_sign = (quadrant & 2) << 30, cosine_sign = ((quadrant + 1) & 2) << 30;
  sine = L::from_bits(s_bits ^ difference ^ sine_sign);
  cosine = L::from_bits(c_bits ^ difference ^ cosine_sign);
}

// Two standard normals from two words.
template <class L>
MGRPO_HD void box_muller(typename L::Word first, typename L::Word second, typename L::Float& a, typename L::Float& b) {
  using Float = typename L::Float;
  const Float u = L::to_float(L::as_int(first >> 8) + 1) * 0x1p-24f;
  const Float radius = L::square_root(log_positive<L>(u) * -2.0f);
  Float sine, cosine;
  sin_cos_turns<L>(L::as_int(second >> 8), sine, cosine);
  a = radius * cosine;
  b = radius * sine;
}

}  // namespace MGRPO_NAMESPACE
#endif
