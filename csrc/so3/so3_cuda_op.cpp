// project_so3_fwd and _bwd on a GPU.
#include "../common/cuda_op.h"
#include "so3_cuda.h"

namespace mgrpo {
namespace {

Tensor project_so3_forward_cuda(const Tensor& matrices, bool fix_det) {
  STD_TORCH_CHECK(matrices.dim() >= 2, "matrices has too few axes");
  const CudaCall call(matrices);
  const Rows in(matrices, 2);
  check_rows(in, in.count(), 9, "matrices");
  Tensor R = new_rows(matrices, 2, {3, 3});
  if (in.count() == 0) return R;
  dispatch_float_double(matrices, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_project_so3(in.view<T>(), fix_det, output<T>(R), call.stream()));
  });
  return R;
}

Tensor project_so3_backward_cuda(const Tensor& grad_R, const Tensor& matrices, const Tensor& R, bool fix_det) {
  STD_TORCH_CHECK(matrices.dim() >= 2 && grad_R.dim() >= 2 && R.dim() >= 2, "an argument has too few axes");
  check_same_kind(grad_R, matrices, "grad_R");
  check_same_kind(R, matrices, "R");
  const CudaCall call(matrices);
  const Rows in(matrices, 2), in_grad(grad_R, 2), in_R(R, 2);
  check_rows(in, in.count(), 9, "matrices");
  check_rows(in_grad, in.count(), 9, "grad_R");
  check_rows(in_R, in.count(), 9, "R");
  Tensor grad = new_rows(matrices, 2, {3, 3});
  if (in.count() == 0) return grad;
  dispatch_float_double(matrices, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_project_so3_backward(
        in_grad.view<T>(), in.view<T>(), in_R.view<T>(), fix_det, output<T>(grad), call.stream()));
  });
  return grad;
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("project_so3_fwd", "(Tensor matrices, bool fix_det) -> Tensor", mgrpo::project_so3_forward_cuda);
MGRPO_CUDA_OPERATOR(
    "project_so3_bwd", "(Tensor grad_R, Tensor matrices, Tensor R, bool fix_det) -> Tensor",
    mgrpo::project_so3_backward_cuda);
