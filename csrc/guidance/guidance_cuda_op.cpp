// motion_guidance_fwd on a GPU.
#include "../common/cuda_op.h"
#include "guidance_cuda.h"
#include "guidance_glue.h"

namespace mgrpo {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> motion_guidance_cuda(
    Tensor rotmats, Tensor offsets, Tensor head, Tensor contacts, Tensor lengths, Tensor held, Optional wrist_poses,
    Optional wrist_confidence, Optional hand_rotmats, Optional hand_confidence, Optional uv, Optional uv_confidence,
    Optional camera, std::vector<int64_t> parents, std::vector<double> weights, bool se3, int64_t iterations,
    std::vector<double> rule) {
  for (const Tensor& tensor : {offsets, head, contacts, lengths, held})
    check_same_device(tensor, rotmats, "an argument");
  for (const Optional& tensor :
       {wrist_poses, wrist_confidence, hand_rotmats, hand_confidence, uv, uv_confidence, camera})
    if (tensor.has_value()) check_same_device(*tensor, rotmats, "a target");
  const CudaCall call(rotmats);
  return with_guidance_job(
      rotmats, offsets, head, contacts, lengths, held, wrist_poses, wrist_confidence, hand_rotmats, hand_confidence, uv,
      uv_confidence, camera, parents, weights, se3, iterations, rule, [&](const auto& job) {
        using T = std::decay_t<decltype(*job.out)>;
        if constexpr (sizeof(T) == sizeof(float)) {
          GuidanceLaunch plan = {};
          check_launch(plan_guidance(job, &plan));
          Tensor workspace = torch::stable::new_empty(rotmats, {plan.workspace});
          check_launch(launch_guidance(job, plan, output<T>(workspace), call.stream()));
        } else {
          STD_TORCH_CHECK(false, "motion_guidance: the CUDA kernel is for float32");
        }
      });
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("motion_guidance_fwd", MGRPO_GUIDANCE_SIGNATURE, mgrpo::motion_guidance_cuda);
