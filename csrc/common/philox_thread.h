// Philox for one CUDA thread (or plain C++, in the emulation): a counter at a time.
#pragma once

#include <string.h>

#include "philox_math.h"
#include "philox_row.h"
#include "rounded.h"

namespace mgrpo {

// What philox_math.h calls `L`.
struct PhiloxThread {
  using Float = Rounded<float>;
  using Int = int32_t;
  using Word = uint32_t;

  static MGRPO_HD Float to_float(Int a) { return static_cast<float>(a); }  // below 2^24 here: exact
  static MGRPO_HD Int bits(Float a) {
    Int value;
    memcpy(&value, &a.value, sizeof value);
    return value;
  }
  static MGRPO_HD Float from_bits(Int a) {
    float value;
    memcpy(&value, &a, sizeof value);
    return value;
  }
  static MGRPO_HD Int as_int(Word a) { return static_cast<Int>(a); }
  static MGRPO_HD Float square_root(Float a) { return rounded_sqrt(a); }
};

struct PhiloxWords {
  uint32_t w[4];
};

// The four words of one block of a row.
MGRPO_HD PhiloxWords philox_words(const PhiloxRow& row, uint32_t block) {
  uint32_t w0 = row.first_word | block, w1 = row.step_member, w2 = row.condition, w3 = row.iteration;
  uint32_t k0 = row.k0, k1 = row.k1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(w0) * kPhiloxMultiplier0;
    const uint64_t p1 = static_cast<uint64_t>(w2) * kPhiloxMultiplier1;
    w0 = static_cast<uint32_t>(p1 >> 32) ^ w1 ^ k0;
    w1 = static_cast<uint32_t>(p1);
    w2 = static_cast<uint32_t>(p0 >> 32) ^ w3 ^ k1;
    w3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{w0, w1, w2, w3}};
}

MGRPO_HD void philox_normals(const PhiloxRow& row, uint32_t block, float* out) {
  const PhiloxWords words = philox_words(row, block);
  Rounded<float> n[4];
  box_muller<PhiloxThread>(words.w[0], words.w[1], n[0], n[1]);
  box_muller<PhiloxThread>(words.w[2], words.w[3], n[2], n[3]);
  for (int i = 0; i < 4; ++i) out[i] = n[i].value;
}

MGRPO_HD void philox_uniforms(const PhiloxRow& row, uint32_t block, float* out) {
  const PhiloxWords words = philox_words(row, block);
  for (int i = 0; i < 4; ++i) out[i] = word_to_uniform<PhiloxThread>(words.w[i]).value;
}

}  // namespace mgrpo
