// One call of perlin_noise, as the CPU loops and the CUDA kernel see it. Torch-free.
#pragma once

#include <stdint.h>

namespace mgrpo {

struct PerlinJob {
  const int64_t* condition;  // (rows)
  const int64_t* member;     // (rows)
  int64_t rows, frames, channels;
  int octaves;
  double scale;    // alpha over the sum of the octaves' amplitudes
  double lattice;  // frames per cell of the first octave
  uint32_t k0, k1, iteration, stream_bits;
  float* out;  // (rows, frames, channels)
};

}  // namespace mgrpo
