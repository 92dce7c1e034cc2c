// One call of perlin_noise, as the CPU loops and the CUDA kernel see it. Torch-free.
#pragma once

#include <stdint.h>

#include "../common/macros.h"
#include "../common/philox_row.h"

namespace mgrpo {

struct PerlinJob {
  const int64_t* condition;  // (rows)
  const int64_t* member;     // (rows)
  int64_t rows, frames, channels;
  int octaves;
  double scale;    // alpha over the sum of the octaves' amplitudes
  double lattice;  // frames per cell of the first octave
  PhiloxSeed seed;
  float* out;  // (rows, frames, channels)
};

// The key of a row's numbers for a step.
MGRPO_HD PhiloxRow perlin_key(const PerlinJob& job, int64_t row, int step) {
  return {job.seed.k0, job.seed.k1, job.seed.first_word,
          static_cast<uint32_t>(job.member[row]) << 16 | static_cast<uint32_t>(step),
          static_cast<uint32_t>(job.condition[row]), job.seed.iteration};
}

}  // namespace mgrpo
