// motion_metrics_fwd on a GPU.
#include "../common/cuda_op.h"
#include "metrics_cuda.h"
#include "metrics_glue.h"

namespace mgrpo {
namespace {

template <class T>
RowView<T> view_of(const std::optional<Rows>& rows) {
  return rows.has_value() ? rows->view<T>() : RowView<T>{nullptr, RowLayout()};
}

Tensor motion_metrics_cuda(Tensor pred_joints, Tensor target_joints, Tensor pred_rotmats, Tensor target_rotmats,
                           std::optional<Tensor> pred_head, std::optional<Tensor> target_head,
                           std::optional<Tensor> mask, double fps, int64_t head, std::vector<int64_t> feet,
                           std::vector<double> foot_heights, bool with_scale, bool short_way) {
  for (const Tensor* tensor : {&target_joints, &pred_rotmats, &target_rotmats})
    check_same_device(*tensor, pred_joints, "an argument");
  for (const std::optional<Tensor>* tensor : {&pred_head, &target_head, &mask})
    if (tensor->has_value()) check_same_device(**tensor, pred_joints, "an argument");
  const CudaCall call(pred_joints);
  const MetricTensors rows(pred_joints, target_joints, pred_rotmats, target_rotmats, pred_head, target_head, mask, fps,
                           head, feet, foot_heights, with_scale, short_way);
  Tensor out = new_metrics(pred_joints);
  if (rows.options.sequences == 0) return out;
  block_count(rows.options.sequences, 1);  // refuses a batch that is too large for one launch
  dispatch_float_double(pred_joints, [&](auto zero) {
    using T = decltype(zero);
    const MetricViews<T> views{rows.options,
                               rows.pred_joints.view<T>(),
                               rows.target_joints.view<T>(),
                               rows.pred_rotmats.view<T>(),
                               rows.target_rotmats.view<T>(),
                               view_of<T>(rows.pred_head),
                               view_of<T>(rows.target_head),
                               view_of<bool>(rows.mask)};
    check_launch(launch_motion_metrics(views, output<T>(out), call.stream()));
  });
  return out;
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("motion_metrics_fwd", MGRPO_METRICS_SIGNATURE, mgrpo::motion_metrics_cuda);
