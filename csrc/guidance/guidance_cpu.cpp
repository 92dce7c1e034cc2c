// mgrpo_native::motion_guidance_fwd on the CPU: a row per step of a parallel loop.
#include "../common/scratch.h"
#include "guidance_glue.h"

#define MGRPO_ISA_BODY "../guidance/guidance_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> motion_guidance_cpu(
    Tensor rotmats, Tensor offsets, Tensor head, Tensor contacts, Tensor lengths, Tensor held, Optional wrist_poses,
    Optional wrist_confidence, Optional hand_rotmats, Optional hand_confidence, Optional uv, Optional uv_confidence,
    Optional camera, std::vector<int64_t> parents, std::vector<double> weights, bool se3, int64_t iterations,
    std::vector<double> rule) {
  return with_guidance_job(
      rotmats, offsets, head, contacts, lengths, held, wrist_poses, wrist_confidence, hand_rotmats, hand_confidence, uv,
      uv_confidence, camera, parents, weights, se3, iterations, rule, [](const auto& job) {
        using T = std::decay_t<decltype(*job.out)>;
        torch::stable::parallel_for(0, job.rows, 1, [&](int64_t begin, int64_t end) {
          const Scratch scratch(guidance_numbers(job, 1, false) * static_cast<int64_t>(sizeof(T)));
          MGRPO_ISA_CALL_OF(T, guide_rows, job, begin, end, reinterpret_cast<T*>(scratch.get()));
        });
      });
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) { m.def("motion_guidance_fwd" MGRPO_GUIDANCE_SIGNATURE); }
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("motion_guidance_fwd", TORCH_BOX(&mgrpo::motion_guidance_cpu));
}
