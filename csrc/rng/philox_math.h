// Philox4x32-10 and Box-Muller for one counter. No torch, no CUDA headers: the CPU loop and a CUDA kernel share it.
//
// Include it where the compiler may not fuse multiplications and additions (rng_cpu.cpp says how; nvcc: -fmad=false):
// every float operation is rounded on its own, which makes the result the same, bit for bit, as
// kernels/rng/reference.py. Counter layout and polynomials: kernels/rng/README.md.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../common/macros.h"

namespace mgrpo {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

// One round on counter words w0..w3 with the round's key (k0, k1).
MGRPO_HD void philox_round(uint32_t& w0, uint32_t& w1, uint32_t& w2, uint32_t& w3, uint32_t k0, uint32_t k1) {
  const uint64_t p0 = static_cast<uint64_t>(w0) * kPhiloxMultiplier0;
  const uint64_t p1 = static_cast<uint64_t>(w2) * kPhiloxMultiplier1;
  const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ w1 ^ k0;
  const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ w3 ^ k1;
  w1 = static_cast<uint32_t>(p1);
  w3 = static_cast<uint32_t>(p0);
  w0 = n0;
  w2 = n2;
}

MGRPO_HD int32_t float_bits(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

MGRPO_HD float bits_float(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 24 random bits as a multiple of 2^-24 in [0, 1).
MGRPO_HD float word_to_uniform(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f; }

// Natural logarithm of a normal positive float; Cephes polynomial on [sqrt(1/2), sqrt(2)).
MGRPO_HD float log_positive(float u) {
  constexpr int32_t kSqrtHalfBits = 0x3F3504F3;
  const int32_t shifted = float_bits(u) - kSqrtHalfBits;
  const float exponent = static_cast<float>(shifted >> 23);
  const float y = bits_float((shifted & 0x7FFFFF) + kSqrtHalfBits) - 1.0f;
  const float z = y * y;
  float tail = y * 0x1.204376p-4f + -0x1.d7a370p-4f;
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
MGRPO_HD void sin_cos_turns(int32_t turn, float& sine, float& cosine) {
  const int32_t quadrant = (turn + (1 << 21)) >> 22;
  const float r = static_cast<float>(turn - (quadrant << 22)) * 0x1.921fb6p-22f;
  const float z = r * r;
  float s = z * -0x1.9943f2p-13f + 0x1.11073cp-7f;
  s = s * z + -0x1.555546p-3f;
  s = s * z;
  s = s * r;
  s = s + r;
  float c = z * 0x1.99eb9cp-16f + -0x1.6c0c34p-10f;
  c = c * z + 0x1.55554ap-5f;
  c = c * z;
  c = c * z;
  c = c + (1.0f - z * 0.5f);
  // Swap and negate through the bits: no branch, so that the loop over counters vectorises.
  const int32_t swap = -(quadrant & 1);
  const int32_t s_bits = float_bits(s);
  const int32_t c_bits = float_bits(c);
  const uint32_t sine_sign = static_cast<uint32_t>(quadrant & 2) << 30;
  const uint32_t cosine_sign = static_cast<uint32_t>((quadrant + 1) & 2) << 30;
  sine = bits_float(static_cast<int32_t>(static_cast<uint32_t>((s_bits & ~swap) | (c_bits & swap)) ^ sine_sign));
  cosine = bits_float(static_cast<int32_t>(static_cast<uint32_t>((c_bits & ~swap) | (s_bits & swap)) ^ cosine_sign));
}

// Two standard normals from two words.
MGRPO_HD void box_muller(uint32_t first, uint32_t second, float& a, float& b) {
  const float u = static_cast<float>(static_cast<int32_t>(first >> 8) + 1) * 0x1p-24f;
  const float radius = sqrtf(log_positive(u) * -2.0f);
  float sine, cosine;
  sin_cos_turns(static_cast<int32_t>(second >> 8), sine, cosine);
  a = radius * cosine;
  b = radius * sine;
}

}  // namespace mgrpo
