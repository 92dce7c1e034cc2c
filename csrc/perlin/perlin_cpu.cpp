// mgrpo_native::perlin_noise_fwd on the CPU: a row per step of a parallel loop.
#include <algorithm>
#include <cmath>
#include <vector>

#include "perlin_glue.h"

// No fused multiply-add from here on: each rounding is part of the result.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define MGRPO_ISA_BODY "../perlin/perlin_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kNumbersPerTask = 8192;

Tensor perlin_noise_cpu(const Tensor& condition, const Tensor& member, int64_t frames, int64_t channels, double scale,
                        double lattice, int64_t octaves, int64_t seed, int64_t iteration) {
  return with_perlin_job(
      condition, member, frames, channels, scale, lattice, octaves, seed, iteration, [](const PerlinJob& job) {
        std::vector<double> times(static_cast<size_t>(job.octaves * job.frames));
        std::vector<int64_t> points(static_cast<size_t>(job.octaves));
        for (int octave = 0; octave < job.octaves; ++octave) {
          const double cell = job.lattice / static_cast<double>(1 << octave);
          // The last frame lies before lattice point (F - 1) / cell + 1 (phase < 1), and its cell ends a point later.
          points[static_cast<size_t>(octave)] =
              static_cast<int64_t>(std::floor(static_cast<double>(job.frames - 1) / cell)) + 3;
          for (int64_t t = 0; t < job.frames; ++t)
            times[static_cast<size_t>(octave * job.frames + t)] = static_cast<double>(t) / cell;
        }
        const int64_t most_points = *std::max_element(points.begin(), points.end());
        const int64_t grain = kNumbersPerTask / (job.frames * job.channels) + 1;
        torch::stable::parallel_for(0, job.rows, grain, [&](int64_t begin, int64_t end) {
          std::vector<float> gradients(static_cast<size_t>(most_points * job.channels));
          std::vector<float> phases(static_cast<size_t>(job.channels));
          std::vector<double> totals(static_cast<size_t>(job.channels * job.frames));
          for (int64_t row = begin; row < end; ++row)
            MGRPO_ISA_CALL(perlin_row, job, row, times.data(), points.data(), gradients.data(), phases.data(),
                           totals.data());
        });
      });
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def(
      "perlin_noise_fwd(Tensor condition, Tensor member, int frames, int channels, float scale, float lattice,"
      " int octaves, int seed, int iteration) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) { m.impl("perlin_noise_fwd", TORCH_BOX(&mgrpo::perlin_noise_cpu)); }
