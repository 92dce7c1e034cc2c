// The noise of one row on the CPU; compiled once per instruction set, with the same bits in each.
#include "perlin_math.h"

namespace MGRPO_NAMESPACE {

// The first `count` uniform numbers of a row's step.
inline void perlin_row_uniforms(const PerlinJob& job, int64_t row, int step, int64_t count, double* out) {
  const uint32_t step_member = static_cast<uint32_t>(job.member[row]) << 16 | static_cast<uint32_t>(step);
  for (int64_t first = 0; first < count; first += 4) {
    const PerlinWords words = perlin_words(job.k0, job.k1, job.stream_bits | static_cast<uint32_t>(first / 4), step_member,
                                           static_cast<uint32_t>(job.condition[row]), job.iteration);
    for (int64_t i = first; i < first + 4 && i < count; ++i) out[i] = perlin_uniform(words.word[i - first]);
  }
}

// times: (octaves, frames), frame numbers over the octave's cell; points[o]: lattice points of octave o; gradients: room
// for the most points times channels; phases: (channels); totals: (channels, frames).
inline void perlin_row(const PerlinJob& job, int64_t row, const double* times, const int64_t* points, double* gradients,
                       double* phases, double* totals) {
  const int64_t F = job.frames, C = job.channels;
  double gain = 1.0;
  for (int octave = 0; octave < job.octaves; ++octave) {
    perlin_row_uniforms(job, row, 2 * octave + 1, C, phases);
    perlin_row_uniforms(job, row, 2 * octave, points[octave] * C, gradients);
    for (int64_t i = 0; i < points[octave] * C; ++i) gradients[i] = gradients[i] * 2.0 - 1.0;
    const double* time = times + octave * F;
    for (int64_t c = 0; c < C; ++c) {
      double* total = totals + c * F;
      for (int64_t t = 0; t < F; ++t) {
        const double u = time[t] + phases[c];
        const int32_t index = static_cast<int32_t>(u);  // u >= 0: truncation is floor
        const double f = u - static_cast<double>(index);
        const double* at = gradients + index * C + c;
        const double value = blend_gradients(at[0], at[C], f) * gain;
        total[t] = octave == 0 ? value + 0.0 : value + total[t];
      }
    }
    gain *= 0.5;
  }
  float* out = job.out + row * F * C;
  for (int64_t c = 0; c < C; ++c)
    for (int64_t t = 0; t < F; ++t) out[t * C + c] = static_cast<float>(totals[c * F + t] * job.scale);
}

}  // namespace MGRPO_NAMESPACE
