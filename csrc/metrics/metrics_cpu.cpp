// mgrpo_native::motion_metrics_fwd on the CPU: a sequence per step of a parallel loop.
#include "../common/scratch.h"
#include "metrics_glue.h"

#define MGRPO_ISA_BODY "../metrics/metrics_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kFramesPerTask = 128;

Tensor motion_metrics_cpu(Tensor pred_joints, Tensor target_joints, Tensor pred_rotmats, Tensor target_rotmats,
                          std::optional<Tensor> pred_head, std::optional<Tensor> target_head,
                          std::optional<Tensor> mask, double fps, int64_t head, std::vector<int64_t> feet,
                          std::vector<double> foot_heights, bool with_scale, bool short_way) {
  const MetricTensors rows(pred_joints, target_joints, pred_rotmats, target_rotmats, pred_head, target_head, mask, fps,
                           head, feet, foot_heights, with_scale, short_way);
  Tensor out = new_metrics(pred_joints);
  dispatch_float_double(pred_joints, [&](auto zero) {
    using T = decltype(zero);
    T* const values = output<T>(out);
    const int64_t sequences = rows.options.sequences, grain = kFramesPerTask / rows.options.frames + 1;
    torch::stable::parallel_for(0, sequences, grain, [&](int64_t begin, int64_t end) {
      const int64_t bytes = MGRPO_ISA_CALL_OF(T, metric_scratch_bytes, rows.options);
      const Scratch scratch(bytes);
      for (int64_t s = begin; s < end; ++s) MGRPO_ISA_CALL_OF(T, score_sequence, rows, s, scratch.get(), values + s, sequences);
    });
  });
  return out;
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) { m.def("motion_metrics_fwd" MGRPO_METRICS_SIGNATURE); }
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) { m.impl("motion_metrics_fwd", TORCH_BOX(&mgrpo::motion_metrics_cpu)); }
