// philox_normal_fwd and philox_uniform_fwd on a GPU.
#include "../common/cuda_op.h"
#include "../common/philox_keys.h"
#include "rng_cuda.h"

namespace mgrpo {
namespace {

Tensor draw_cuda(bool normal, const Tensor& step_member, const Tensor& condition, int64_t count, int64_t seed,
                 int64_t iteration, int64_t stream) {
  check_same_device(step_member, condition, "step_member");
  const CudaCall call(condition);
  const PhiloxKeys keys(step_member, condition, seed, iteration, stream);
  STD_TORCH_CHECK(count >= 0 && count <= kPhiloxMaxCount, "philox: count must be in [0, 2^30]");
  Tensor out = torch::stable::new_empty(condition, {keys.rows(), count}, ScalarType::Float);
  if (keys.rows() == 0 || count == 0) return out;
  check_launch(launch_philox(normal, keys.shared(), keys.step_member(), keys.condition(), keys.rows(), count,
                             output<float>(out), call.stream()));
  return out;
}

Tensor philox_normal_cuda(const Tensor& step_member, const Tensor& condition, int64_t count, int64_t seed,
                          int64_t iteration, int64_t stream) {
  return draw_cuda(true, step_member, condition, count, seed, iteration, stream);
}

Tensor philox_uniform_cuda(const Tensor& step_member, const Tensor& condition, int64_t count, int64_t seed,
                           int64_t iteration, int64_t stream) {
  return draw_cuda(false, step_member, condition, count, seed, iteration, stream);
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("philox_normal_fwd",
                    "(Tensor step_member, Tensor condition, int count, int seed, int iteration, int stream) -> Tensor",
                    mgrpo::philox_normal_cuda);
MGRPO_CUDA_OPERATOR("philox_uniform_fwd",
                    "(Tensor step_member, Tensor condition, int count, int seed, int iteration, int stream) -> Tensor",
                    mgrpo::philox_uniform_cuda);
