// Launchers of the alignment's kernels, T float or double. The number of pairs must not be 0.
#pragma once

#include "../common/cuda_compat.h"
#include "../common/row_view.h"

namespace mgrpo {

template <class T>
struct CloudViews {
  RowView<T> source, target, weights;  // weights.data is null where none were given
  int N;
  bool with_scale, fix_det;
};

template <class T>
struct AlignmentOut {
  T *aligned, *R, *t, *scale;
};

template <class T>
struct AlignmentGrads {
  RowView<T> aligned, R, t, scale;
};

template <class T>
struct CloudGrads {  // each may be null
  T *source, *target, *weights;
};

template <class T>
cudaError_t launch_procrustes_align(const CloudViews<T>& clouds, const AlignmentOut<T>& out, cudaStream_t stream);
template <class T>
cudaError_t launch_procrustes_residual(const CloudViews<T>& clouds, T* residual, cudaStream_t stream);
template <class T>
cudaError_t launch_procrustes_align_backward(
    const AlignmentGrads<T>& grads, const CloudViews<T>& clouds, const CloudGrads<T>& out, cudaStream_t stream);
template <class T>
cudaError_t launch_procrustes_residual_backward(
    const RowView<T>& grad, const CloudViews<T>& clouds, const CloudGrads<T>& out, cudaStream_t stream);

}  // namespace mgrpo
