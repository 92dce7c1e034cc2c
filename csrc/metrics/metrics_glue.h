// Between the operator's tensors and the loops of motion_metrics; the CPU and the CUDA glue share it.
#pragma once

#include <optional>
#include <vector>

#include "../common/rows.h"
#include "metrics_types.h"

namespace mgrpo {

#define MGRPO_METRICS_SIGNATURE                                                                                        \
  "(Tensor pred_joints, Tensor target_joints, Tensor pred_rotmats, Tensor target_rotmats, Tensor? pred_head,"         \
  " Tensor? target_head, Tensor? mask, float fps, int head, int[] feet, float[] foot_heights, bool with_scale,"       \
  " bool short_way) -> Tensor"

// The tensors of a call after the checks that protect memory; all have their full batch.
struct MetricTensors {
  MetricOptions options;
  Rows pred_joints, target_joints, pred_rotmats, target_rotmats;
  std::optional<Rows> pred_head, target_head, mask;

  static std::optional<Rows> optional_rows(const std::optional<Tensor>& tensor, int64_t inner) {
    if (!tensor.has_value()) return std::nullopt;
    return Rows(*tensor, inner);
  }

  MetricTensors(const Tensor& x, const Tensor& y, const Tensor& A, const Tensor& B, const std::optional<Tensor>& head_A,
                const std::optional<Tensor>& head_B, const std::optional<Tensor>& frame_mask, double fps, int64_t head,
                const std::vector<int64_t>& feet, const std::vector<double>& foot_heights, bool with_scale,
                bool short_way)
      : pred_joints(x, 2),
        target_joints(y, 2),
        pred_rotmats(A, 3),
        target_rotmats(B, 3),
        pred_head(optional_rows(head_A, 2)),
        target_head(optional_rows(head_B, 2)),
        mask(optional_rows(frame_mask, 1)) {
    STD_TORCH_CHECK(x.dim() >= 3 && A.dim() >= 4, "motion_metrics: an argument has too few axes");
    MetricOptions& o = options;
    o.frames = x.size(x.dim() - 3);
    o.sequences = o.frames > 0 ? pred_joints.count() / o.frames : 0;
    o.joints = static_cast<int>(x.size(x.dim() - 2));
    o.rotations = static_cast<int>(A.size(A.dim() - 3));
    o.head = static_cast<int>(head);
    o.foot_count = static_cast<int>(feet.size());
    o.fps = fps;
    o.with_scale = with_scale;
    o.short_way = short_way;
    o.with_head = pred_head.has_value();
    const int64_t frames = pred_joints.count();
    check_rows(pred_joints, frames, 3 * o.joints, "pred_joints");
    check_rows(target_joints, frames, 3 * o.joints, "target_joints");
    check_rows(pred_rotmats, frames, 9 * o.rotations, "pred_rotmats");
    check_rows(target_rotmats, frames, 9 * o.rotations, "target_rotmats");
    check_same_dtype(y, x, "target_joints");
    check_same_dtype(A, x, "pred_rotmats");
    check_same_dtype(B, x, "target_rotmats");
    STD_TORCH_CHECK(head_A.has_value() == head_B.has_value(), "motion_metrics: one head rotation is missing");
    if (pred_head.has_value()) {
      check_rows(*pred_head, frames, 9, "pred_head");
      check_rows(*target_head, frames, 9, "target_head");
      check_same_dtype(*head_A, x, "pred_head");
      check_same_dtype(*head_B, x, "target_head");
    }
    if (mask.has_value()) {
      STD_TORCH_CHECK(frame_mask->scalar_type() == ScalarType::Bool, "mask must be bool");
      check_rows(*mask, o.sequences, o.frames, "mask");
    }
    STD_TORCH_CHECK(
        o.joints >= 2 && head >= 0 && head < o.joints && feet.size() <= kMostFeet && feet.size() == foot_heights.size(),
        "motion_metrics: an option is out of range");
    for (int foot = 0; foot < o.foot_count; ++foot) {
      const int64_t row = feet[static_cast<size_t>(foot)];
      STD_TORCH_CHECK(row >= 0 && row < o.joints, "motion_metrics: a foot is out of range");
      o.feet[foot] = static_cast<int>(row);
      o.foot_heights[foot] = foot_heights[static_cast<size_t>(foot)];
    }
  }
};

// (kMetricCount, *batch)
inline Tensor new_metrics(const Tensor& pred_joints) {
  std::vector<int64_t> shape = {kMetricCount};
  for (int64_t axis = 0; axis < pred_joints.dim() - 3; ++axis) shape.push_back(pred_joints.size(axis));
  return torch::stable::new_empty(pred_joints, shape);
}

}  // namespace mgrpo
