// perlin_noise_fwd on a GPU.
#include "../common/cuda_op.h"
#include "perlin_cuda.h"
#include "perlin_glue.h"

namespace mgrpo {
namespace {

Tensor perlin_noise_cuda(const Tensor& condition, const Tensor& member, int64_t frames, int64_t channels, double scale,
                         double lattice, int64_t octaves, int64_t seed, int64_t iteration) {
  check_same_device(member, condition, "member");
  const CudaCall call(condition);
  return with_perlin_job(
      condition, member, frames, channels, scale, lattice, octaves, seed, iteration,
      [&](const PerlinJob& job) { check_launch(launch_perlin_noise(job, call.stream())); });
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR(
    "perlin_noise_fwd",
    "(Tensor condition, Tensor member, int frames, int channels, float scale, float lattice, int octaves, int seed,"
    " int iteration) -> Tensor",
    mgrpo::perlin_noise_cuda);
