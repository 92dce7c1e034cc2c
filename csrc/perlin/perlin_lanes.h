// The noise of one row on the CPU; compiled once per instruction set, with the same bits in each.
#include "../common/philox_lanes.h"
#include "perlin_math.h"

namespace MGRPO_NAMESPACE {

// times: (octaves, frames), frame numbers over the octave's cell; points[o]: lattice points of octave o; gradients: room
// for the most points times channels; phases: (channels); totals: (channels, frames).
inline void perlin_row(const PerlinJob& job, int64_t row, const double* times, const int64_t* points, float* gradients,
                       float* phases, double* totals) {
  const int64_t F = job.frames, C = job.channels;
  double gain = 1.0;
  for (int octave = 0; octave < job.octaves; ++octave) {
    fill_numbers<UniformNumbers>(perlin_key(job, row, 2 * octave + 1), 0, C, phases);
    fill_numbers<UniformNumbers>(perlin_key(job, row, 2 * octave), 0, points[octave] * C, gradients);
    for (int64_t i = 0; i < points[octave] * C; ++i) gradients[i] = gradients[i] * 2.0f - 1.0f;  // exact for 24 bits
    const double* time = times + octave * F;
    for (int64_t c = 0; c < C; ++c) {
      double* total = totals + c * F;
      for (int64_t t = 0; t < F; ++t) {
        const double u = time[t] + static_cast<double>(phases[c]);
        const int32_t index = static_cast<int32_t>(u);  // u >= 0: truncation is floor
        const double f = u - static_cast<double>(index);
        const float* at = gradients + index * C + c;
        const double value = blend_gradients(static_cast<double>(at[0]), static_cast<double>(at[C]), f) * gain;
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
