// Launchers of the projection's kernels. `count` matrices, T float or double; count must not be 0.
#pragma once

#include "../common/cuda_compat.h"
#include "../common/row_view.h"

namespace mgrpo {

template <class T>
cudaError_t launch_project_so3(const RowView<T>& matrices, bool fix_det, T* R, cudaStream_t stream);

template <class T>
cudaError_t launch_project_so3_backward(
    const RowView<T>& grad_R, const RowView<T>& matrices, const RowView<T>& R, bool fix_det, T* grad, cudaStream_t stream);

}  // namespace mgrpo
