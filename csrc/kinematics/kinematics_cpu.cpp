// mgrpo_native::forward_kinematics_fwd and _bwd on the CPU: one pose per step of a parallel loop.
#include <algorithm>
#include <tuple>
#include <vector>

#include "../common/rows.h"
#include "kinematics_math.h"

namespace mgrpo {
namespace {

constexpr int64_t kPosesPerTask = 64;

void check_parents(const std::vector<int64_t>& parents, int64_t J) {
  STD_TORCH_CHECK(static_cast<int64_t>(parents.size()) == J, "parents has the wrong length");
  for (int64_t j = 0; j < J; ++j) STD_TORCH_CHECK(parents[j] >= -1 && parents[j] < j, "parents must come first");
}

std::tuple<Tensor, Tensor> fk_forward_cpu(const Tensor& local_rotmats, const Tensor& t_parent_joint, const Tensor& R_root,
                                          const Tensor& t_root, std::vector<int64_t> parents) {
  STD_TORCH_CHECK(local_rotmats.dim() >= 3 && t_parent_joint.dim() >= 2 && R_root.dim() >= 2 && t_root.dim() >= 1,
                  "an argument has too few axes");
  const Rows local(local_rotmats, 3), offsets(t_parent_joint, 2), root_R(R_root, 2), root_t(t_root, 1);
  const int64_t J = local_rotmats.size(local_rotmats.dim() - 3), N = local.count();
  check_parents(parents, J);
  check_rows(local, N, 9 * J, "local_rotmats");
  check_rows(offsets, N, 3 * J, "t_parent_joint");
  check_rows(root_R, N, 9, "R_root");
  check_rows(root_t, N, 3, "t_root");
  check_same_dtype(t_parent_joint, local_rotmats, "t_parent_joint");
  check_same_dtype(R_root, local_rotmats, "R_root");
  check_same_dtype(t_root, local_rotmats, "t_root");
  Tensor joints = new_rows(local_rotmats, 3, {J, 3}), R_world = new_rows(local_rotmats, 3, {J, 3, 3});
  dispatch_float_double(local_rotmats, [&](auto zero) {
    using T = decltype(zero);
    T *out_joints = output<T>(joints), *out_R = output<T>(R_world);
    torch::stable::parallel_for(0, N, kPosesPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        fk_forward(local.at<T>(n), offsets.at<T>(n), root_R.at<T>(n), root_t.at<T>(n), parents.data(), J,
                   out_joints + 3 * J * n, out_R + 9 * J * n);
    });
  });
  return {joints, R_world};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fk_backward_cpu(const Tensor& grad_joints, const Tensor& grad_R_world_joint,
                                                           const Tensor& local_rotmats, const Tensor& t_parent_joint,
                                                           const Tensor& R_root, const Tensor& R_world_joint,
                                                           std::vector<int64_t> parents) {
  STD_TORCH_CHECK(local_rotmats.dim() >= 3 && t_parent_joint.dim() >= 2 && R_root.dim() >= 2 && R_world_joint.dim() >= 3 &&
                      grad_joints.dim() >= 2 && grad_R_world_joint.dim() >= 3,
                  "an argument has too few axes");
  const Rows in_joints(grad_joints, 2), in_R(grad_R_world_joint, 3), local(local_rotmats, 3), offsets(t_parent_joint, 2),
      root_R(R_root, 2), world_R(R_world_joint, 3);
  const int64_t J = local_rotmats.size(local_rotmats.dim() - 3), N = local.count();
  check_parents(parents, J);
  check_rows(local, N, 9 * J, "local_rotmats");
  check_rows(in_joints, N, 3 * J, "grad_joints");
  check_rows(in_R, N, 9 * J, "grad_R_world_joint");
  check_rows(offsets, N, 3 * J, "t_parent_joint");
  check_rows(root_R, N, 9, "R_root");
  check_rows(world_R, N, 9 * J, "R_world_joint");
  for (const Tensor* other : {&grad_joints, &grad_R_world_joint, &t_parent_joint, &R_root, &R_world_joint})
    check_same_dtype(*other, local_rotmats, "an argument");
  Tensor grad_local = new_rows(local_rotmats, 3, {J, 3, 3}), grad_offsets = new_rows(local_rotmats, 3, {J, 3}),
         grad_R_root = new_rows(local_rotmats, 3, {3, 3}), grad_t_root = new_rows(local_rotmats, 3, {3});
  dispatch_float_double(local_rotmats, [&](auto zero) {
    using T = decltype(zero);
    T *out_local = output<T>(grad_local), *out_offsets = output<T>(grad_offsets), *out_R = output<T>(grad_R_root),
      *out_t = output<T>(grad_t_root);
    torch::stable::parallel_for(0, N, kPosesPerTask, [&](int64_t begin, int64_t end) {
      std::vector<T> joints_sum(3 * J), R_sum(9 * J);  // accumulators of one pose, reused
      for (int64_t n = begin; n < end; ++n) {
        std::copy_n(in_joints.at<T>(n), 3 * J, joints_sum.data());
        std::copy_n(in_R.at<T>(n), 9 * J, R_sum.data());
        fk_backward(local.at<T>(n), offsets.at<T>(n), root_R.at<T>(n), world_R.at<T>(n), parents.data(), J,
                    joints_sum.data(), R_sum.data(), out_local + 9 * J * n, out_offsets + 3 * J * n, out_R + 9 * n,
                    out_t + 3 * n);
      }
    });
  });
  return {grad_local, grad_offsets, grad_R_root, grad_t_root};
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def(
      "forward_kinematics_fwd(Tensor local_rotmats, Tensor t_parent_joint, Tensor R_root, Tensor t_root, int[] parents)"
      " -> (Tensor, Tensor)");
  m.def(
      "forward_kinematics_bwd(Tensor grad_joints, Tensor grad_R_world_joint, Tensor local_rotmats, Tensor t_parent_joint,"
      " Tensor R_root, Tensor R_world_joint, int[] parents) -> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("forward_kinematics_fwd", TORCH_BOX(&mgrpo::fk_forward_cpu));
  m.impl("forward_kinematics_bwd", TORCH_BOX(&mgrpo::fk_backward_cpu));
}
