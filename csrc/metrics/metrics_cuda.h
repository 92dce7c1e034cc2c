// Launcher of motion_metrics' kernel, T float or double.
#pragma once

#include "../common/cuda_compat.h"
#include "../common/row_view.h"
#include "metrics_types.h"

namespace mgrpo {

template <class T>
struct MetricViews {
  MetricOptions options;
  RowView<T> pred_joints, target_joints, pred_rotmats, target_rotmats;  // rows are frames, sequence by sequence
  RowView<T> pred_head, target_head;                                    // data null: not given
  RowView<bool> mask;                                                   // rows of T; data null: every frame counts
};

// options.sequences and options.frames must not be 0. out[metric * sequences + sequence].
template <class T>
cudaError_t launch_motion_metrics(const MetricViews<T>& views, T* out, cudaStream_t stream);

}  // namespace mgrpo
