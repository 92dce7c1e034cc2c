// What the random numbers of one row have in common. Torch-free; for CUDA threads, plain C++ and vector lanes alike.
#pragma once

#include <stdint.h>

namespace mgrpo {

constexpr int64_t kPhiloxMaxCount = int64_t{1} << 30;  // numbers per row

// The key, and the counter words 1 to 3. Word 0 is `first_word`, which holds the stream, plus the index of the block of
// four numbers.
struct PhiloxRow {
  uint32_t k0, k1;
  uint32_t first_word, step_member, condition, iteration;
};

// The part of a key that all rows of a call share.
struct PhiloxSeed {
  uint32_t k0, k1;
  uint32_t first_word, iteration;
};

inline PhiloxSeed philox_seed(int64_t seed, int64_t iteration, int64_t stream) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32),
          static_cast<uint32_t>(stream) << 28, static_cast<uint32_t>(iteration)};
}

}  // namespace mgrpo
