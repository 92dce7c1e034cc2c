// mgrpo_native::project_so3_fwd and _bwd on the CPU.
#include "../common/rows.h"

#define MGRPO_ISA_BODY "../so3/so3_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kMatricesPerTask = 1024;

Tensor project_so3_forward_cpu(const Tensor& matrices, bool fix_det) {
  STD_TORCH_CHECK(matrices.dim() >= 2, "matrices has too few axes");
  const Rows in(matrices, 2);
  check_rows(in, in.count(), 9, "matrices");
  Tensor R = new_rows(matrices, 2, {3, 3});
  dispatch_float_double(matrices, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(R);
    torch::stable::parallel_for(0, in.count(), kMatricesPerTask, [&](int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, project_rows, in, fix_det, out, begin, end);
    });
  });
  return R;
}

Tensor project_so3_backward_cpu(const Tensor& grad_R, const Tensor& matrices, const Tensor& R, bool fix_det) {
  STD_TORCH_CHECK(matrices.dim() >= 2 && grad_R.dim() >= 2 && R.dim() >= 2, "an argument has too few axes");
  const Rows in(matrices, 2), in_grad(grad_R, 2), in_R(R, 2);
  check_rows(in, in.count(), 9, "matrices");
  check_rows(in_grad, in.count(), 9, "grad_R");
  check_rows(in_R, in.count(), 9, "R");
  check_same_dtype(grad_R, matrices, "grad_R");
  check_same_dtype(R, matrices, "R");
  Tensor grad = new_rows(matrices, 2, {3, 3});
  dispatch_float_double(matrices, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(grad);
    torch::stable::parallel_for(0, in.count(), kMatricesPerTask, [&](int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, project_rows_backward, in_grad, in, in_R, fix_det, out, begin, end);
    });
  });
  return grad;
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("project_so3_fwd(Tensor matrices, bool fix_det) -> Tensor");
  m.def("project_so3_bwd(Tensor grad_R, Tensor matrices, Tensor R, bool fix_det) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("project_so3_fwd", TORCH_BOX(&mgrpo::project_so3_forward_cpu));
  m.impl("project_so3_bwd", TORCH_BOX(&mgrpo::project_so3_backward_cpu));
}
