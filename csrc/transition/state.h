// States, scalars and weights of a batch of transitions as raw memory. Torch-free; for CUDA threads and plain C++ alike.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../common/macros.h"
#include "../common/philox_row.h"

namespace mgrpo {

enum class StateDtype : int { kFloat, kDouble, kBFloat16, kHalf };

template <class T>
constexpr StateDtype kDtypeOf = sizeof(T) == 4 ? StateDtype::kFloat : StateDtype::kDouble;

// Half precision by its bits: no processor extension and no header of any compiler is needed, and loops vectorise.
MGRPO_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
MGRPO_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

MGRPO_HD float bfloat16_to_float(uint16_t stored) { return bits_to_float(static_cast<uint32_t>(stored) << 16); }

// To the nearest, ties to even.
MGRPO_HD uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

MGRPO_HD float half_to_float(uint16_t stored) {
  const uint32_t magnitude = stored & 0x7FFFu, sign = (stored & 0x8000u) << 16;
  // Exponent and digits in their place read as a number that is 2^112 too small, also where the half is subnormal.
  const float finite = bits_to_float(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude << 13 | 0x7F800000u;
  return bits_to_float((magnitude >= 0x7C00u ? special : float_to_bits(finite)) | sign);
}

// To the nearest, ties to even.
MGRPO_HD uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  // Below 2^-14 adding 1/2 leaves the subnormal's digits, rounded, at the end of the sum.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
  const uint32_t rounded = magnitude >= 0x47800000u ? special : magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(rounded | sign);
}

// (N, T D) numbers; a row's lie side by side.
struct State {
  const void* data;
  int64_t row_stride;  // in elements
  StateDtype dtype;
};

// A contiguous (N, T D) result; data is null where it is not wanted.
struct Output {
  void* data;
  StateDtype dtype;
};

// One number, or one per row.
struct Scalar {
  double number;
  const double* rows;

  MGRPO_HD double at(int64_t row) const { return rows != nullptr ? rows[row] : number; }
};

// Where a row's standard normal numbers come from.
struct Noise {
  enum class Kind : int { kNone, kGiven, kDrawn };
  Kind kind;
  State given;
  PhiloxSeed seed;
  const int64_t* step_member;
  const int64_t* condition;

  MGRPO_HD PhiloxRow key(int64_t row) const {
    return {seed.k0, seed.k1, seed.first_word, static_cast<uint32_t>(step_member[row]),
            static_cast<uint32_t>(condition[row]), seed.iteration};
  }
};

// Sizes, and what each element counts: mask(row, frame) weights(channel).
struct Weighting {
  int64_t rows, frames, channels;
  const bool* mask;       // (N, T), or null
  const double* weights;  // (D,), or null
  bool mean;              // divide by the sum of a row's weights

  MGRPO_HD int64_t row_size() const { return frames * channels; }
};

// What multiplies a row's weighted sum, of which `weight` is the sum of weights.
MGRPO_HD double row_scale(double weight, bool mean) { return !mean ? 1.0 : weight > 0.0 ? 1.0 / weight : 0.0; }

}  // namespace mgrpo
