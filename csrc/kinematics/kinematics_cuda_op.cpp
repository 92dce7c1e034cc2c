// forward_kinematics_fwd, _bwd and joint_offsets_fwd, _bwd on a GPU.
#include <tuple>

#include "../common/cuda_op.h"
#include "kinematics_cuda.h"
#include "kinematics_rows.h"

namespace mgrpo {
namespace {

template <class T>
RowView<T> view_or_nothing(const std::optional<Rows>& rows) {
  return rows ? rows->view<T>() : RowView<T>{nullptr, {}};
}

template <class T>
PoseInputs<T> inputs_of(const Poses& poses) {
  STD_TORCH_CHECK(poses.J <= kMostJoints, "more joints than the kernel's tables hold");
  PoseInputs<T> in = {poses.rotations.view<T>(), poses.offsets.view<T>(), view_or_nothing<T>(poses.root),
                      view_or_nothing<T>(poses.t_head_cpf), {static_cast<int>(poses.J), {}}, poses.head};
  for (int64_t j = 0; j < poses.J; ++j) in.tree.parents[j] = poses.parents[j];
  return in;
}

std::tuple<Tensor, Tensor, Tensor> fk_forward_cuda(const Tensor& rotations, const Tensor& t_parent_joint, OptionalTensor root,
                                                   OptionalTensor t_head_cpf, Sizes parents, int64_t head,
                                                   int64_t representation, int64_t output_form) {
  const CudaCall call(rotations);
  const Poses poses(rotations, t_parent_joint, root, t_head_cpf, parents, head, representation, output_form, check_same_kind);
  PoseResultTensors results(poses, rotations);
  if (poses.count() > 0)
    dispatch_float_double(rotations, [&](auto zero) {
      using T = decltype(zero);
      const PoseOutputs<T> out = {output<T>(results.joints), output<T>(results.world), output<T>(results.root)};
      check_launch(launch_pose(poses.representation, poses.output, inputs_of<T>(poses), out, call.stream()));
    });
  return {results.joints, results.world, results.root};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fk_backward_cuda(OptionalTensor grad_joints, OptionalTensor grad_world,
                                                            OptionalTensor grad_root, const Tensor& rotations,
                                                            const Tensor& t_parent_joint, OptionalTensor root,
                                                            OptionalTensor t_head_cpf, Sizes parents, int64_t head,
                                                            int64_t representation, int64_t output_form,
                                                            std::vector<bool> wanted) {
  const CudaCall call(rotations);
  const Poses poses(rotations, t_parent_joint, root, t_head_cpf, parents, head, representation, output_form, check_same_kind);
  const GivenGradients given(poses, rotations, grad_joints, grad_world, grad_root, check_same_kind);
  WantedGradients grads(poses, rotations, wanted);
  if (poses.count() > 0)
    dispatch_float_double(rotations, [&](auto zero) {
      using T = decltype(zero);
      const PoseOutputGradients<T> from = {view_or_nothing<T>(given.joints), view_or_nothing<T>(given.world),
                                           view_or_nothing<T>(given.root)};
      const PoseInputGradients<T> out = {
          output_or_null<T>(grads.rotations, grads.wants_rotations), output_or_null<T>(grads.offsets, grads.wants_offsets),
          output_or_null<T>(grads.root, grads.wants_root), output_or_null<T>(grads.t_head_cpf, grads.wants_t_head_cpf)};
      check_launch(launch_pose_backward(poses.representation, poses.output, inputs_of<T>(poses), from, out, call.stream()));
    });
  return {grads.rotations, grads.offsets, grads.root, grads.t_head_cpf};
}

Tensor joint_offsets_forward_cuda(const Tensor& t_parent_joint, const Tensor& shapedirs, const Tensor& betas) {
  const CudaCall call(t_parent_joint);
  const ShapeSpace space(shapedirs);
  space.check_mean(t_parent_joint);
  check_same_kind(shapedirs, betas, "t_parent_joint_shapedirs");
  check_same_kind(t_parent_joint, betas, "t_parent_joint");
  STD_TORCH_CHECK(betas.dim() >= 1, "betas has too few axes");
  const Rows in(betas, 1);
  check_rows(in, in.count(), space.S, "betas");
  const Tensor mean = torch::stable::contiguous(t_parent_joint);
  Tensor offsets = new_rows(betas, 1, {space.J, 3});
  if (in.count() * space.J > 0)
    dispatch_float_double(betas, [&](auto zero) {
      using T = decltype(zero);
      check_launch(launch_joint_offsets(input<T>(mean), input<T>(space.directions), static_cast<int>(3 * space.J), in.view<T>(),
                                        output<T>(offsets), call.stream()));
    });
  return offsets;
}

Tensor joint_offsets_backward_cuda(const Tensor& grad_offsets, const Tensor& shapedirs) {
  const CudaCall call(grad_offsets);
  const ShapeSpace space(shapedirs);
  check_same_kind(shapedirs, grad_offsets, "t_parent_joint_shapedirs");
  STD_TORCH_CHECK(grad_offsets.dim() >= 2, "grad_offsets has too few axes");
  const Rows in(grad_offsets, 2);
  check_rows(in, in.count(), 3 * space.J, "grad_offsets");
  Tensor grad_betas = new_rows(grad_offsets, 2, {space.S});
  if (in.count() * space.S > 0)
    dispatch_float_double(grad_offsets, [&](auto zero) {
      using T = decltype(zero);
      check_launch(launch_joint_offsets_backward(input<T>(space.directions), static_cast<int>(space.S), in.view<T>(),
                                                 output<T>(grad_betas), call.stream()));
    });
  return grad_betas;
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("forward_kinematics_fwd", MGRPO_FK_FORWARD_SCHEMA, mgrpo::fk_forward_cuda);
MGRPO_CUDA_OPERATOR("forward_kinematics_bwd", MGRPO_FK_BACKWARD_SCHEMA, mgrpo::fk_backward_cuda);
MGRPO_CUDA_OPERATOR("joint_offsets_fwd", MGRPO_JOINT_OFFSETS_FORWARD_SCHEMA, mgrpo::joint_offsets_forward_cuda);
MGRPO_CUDA_OPERATOR("joint_offsets_bwd", MGRPO_JOINT_OFFSETS_BACKWARD_SCHEMA, mgrpo::joint_offsets_backward_cuda);
