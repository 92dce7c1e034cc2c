// group_rewards and motion_rewards, _fwd and _bwd, on a GPU.
#include <tuple>

#include "../common/cuda_op.h"
#include "rewards_call.h"
#include "rewards_cuda.h"

namespace mgrpo {
namespace {

template <class T>
RewardViews<T> views_of(const Call& call) {
  STD_TORCH_CHECK(call.options.shape_numbers <= kMostShapeNumbersCuda, "more than ", kMostShapeNumbersCuda,
                  " shape numbers");
  STD_TORCH_CHECK(call.B * call.G <= 0x7fffffff, "the batch is too large for one launch");
  const auto view = [](const std::optional<Rows>& rows) { return rows ? rows->view<T>() : RowView<T>{nullptr, {}}; };
  return {view(call.rotations),
          view(call.betas),
          view(call.joints),
          view(call.cpf),
          view(call.target_joints),
          view(call.target_rotmats),
          call.mask->view<uint8_t>(),
          Call::data_of<T>(call.t_parent_joint),
          Call::data_of<T>(call.t_head_cpf),
          Call::data_of<T>(call.t_parent_joint_shapedirs),
          Call::data_of<T>(call.t_head_cpf_shapedirs),
          call.B * call.G,
          call.G,
          call.T};
}

std::tuple<Tensor, Tensor> score(const Call& call) {
  const CudaCall device(call.like);
  const int64_t K = call.options.kind_count;
  Tensor errors = torch::stable::new_empty(call.like, {call.B, call.G, K});
  Tensor rewards = torch::stable::new_empty(call.like, {call.B, call.G, K});
  if (call.B == 0) return {errors, rewards};
  dispatch_float_double(call.like, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_rewards<T>(call.options, views_of<T>(call), output<T>(errors), output<T>(rewards), nullptr,
                                   device.stream()));
  });
  return {errors, rewards};
}

// Joints are posed again into memory of their own, which the forward pass never does; then come the gradients of the
// joints, sequence by sequence, and from them those of the rotations and the shape, frame by frame.
Gradients score_backward(const Call& call, const Tensor& grad_errors, const Tensor& grad_rewards,
                         const Tensor& rewards, bool want_rotations, bool want_betas, bool want_joints) {
  const CudaCall device(call.like);
  const bool bodies = call.options.posed && call.options.joints > 0;
  Gradients grads = new_gradients(call, want_rotations, want_betas, want_joints || bodies);
  if (call.B == 0) return grads;
  const Tensor in_errors = scores_of(call, grad_errors), in_rewards = scores_of(call, grad_rewards),
               given_rewards = scores_of(call, rewards);
  dispatch_float_double(call.like, [&](auto zero) {
    using T = decltype(zero);
    const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
    RewardViews<T> views = views_of<T>(call);
    std::optional<Tensor> joints;
    if (bodies) {
      joints = torch::stable::new_empty(call.like, {call.B, call.G, call.T, 3 * int64_t{call.options.joints}});
      check_launch(
          launch_rewards<T>(call.options, views, nullptr, nullptr, output<T>(*joints), device.stream()));
      views.joints = Rows(*joints, 1).view<T>();
    }
    T* grad_joints = want_joints || bodies ? output<T>(grads.joints) : nullptr;
    if (grad_joints)
      check_launch(launch_joint_gradients<T>(call.options, views, data(in_errors), data(in_rewards),
                                             data(given_rewards), grad_joints, device.stream()));
    if (want_rotations || want_betas)
      check_launch(launch_rotation_gradients<T>(
          call.options, views, data(in_errors), data(in_rewards), data(given_rewards), bodies ? grad_joints : nullptr,
          want_rotations ? output<T>(grads.rotations) : nullptr, want_betas ? output<T>(grads.betas) : nullptr,
          device.stream()));
  });
  return grads;
}

std::tuple<Tensor, Tensor> group_rewards_forward_cuda(MaybeTensor joints, MaybeTensor target_joints, MaybeTensor rotmats,
                                                     MaybeTensor target_rotmats, Tensor mask, int64_t head,
                                                     Integers feet, Numbers foot_heights, Integers kinds,
                                                     Numbers slopes, double fps, int64_t rotation_error,
                                                     int64_t alignment) {
  return score(group_call(joints, target_joints, rotmats, target_rotmats, mask, head, feet, foot_heights, kinds, slopes,
                          fps, rotation_error, alignment));
}

std::tuple<Tensor, Tensor> group_rewards_backward_cuda(Tensor grad_errors, Tensor grad_rewards, Tensor rewards,
                                                      MaybeTensor joints, MaybeTensor target_joints,
                                                      MaybeTensor rotmats, MaybeTensor target_rotmats, Tensor mask,
                                                      int64_t head, Integers feet, Numbers foot_heights,
                                                      Integers kinds, Numbers slopes, double fps,
                                                      int64_t rotation_error, int64_t alignment, bool want_joints,
                                                      bool want_rotmats) {
  const Call call = group_call(joints, target_joints, rotmats, target_rotmats, mask, head, feet, foot_heights, kinds,
                               slopes, fps, rotation_error, alignment);
  want_joints = want_joints && call.options.joints > 0;
  want_rotmats = want_rotmats && call.options.rotations > 0;
  const Gradients grads =
      score_backward(call, grad_errors, grad_rewards, rewards, want_rotmats, false, want_joints);
  return {grads.joints, grads.rotations};
}

std::tuple<Tensor, Tensor> motion_rewards_forward_cuda(
    Tensor rotations, MaybeTensor betas, Tensor T_world_cpf, MaybeTensor target_joints, MaybeTensor target_rotmats,
    Tensor mask, Tensor t_parent_joint, Tensor t_head_cpf, MaybeTensor t_parent_joint_shapedirs,
    MaybeTensor t_head_cpf_shapedirs, Integers parents, int64_t head, Integers feet, Numbers foot_heights,
    int64_t representation, bool project, Integers kinds, Numbers slopes, double fps, int64_t rotation_error,
    int64_t alignment) {
  return score(motion_call(rotations, betas, T_world_cpf, target_joints, target_rotmats, mask, t_parent_joint,
                           t_head_cpf, t_parent_joint_shapedirs, t_head_cpf_shapedirs, parents, head, feet,
                           foot_heights, representation, project, kinds, slopes, fps, rotation_error, alignment,
                           false));
}

std::tuple<Tensor, Tensor> motion_rewards_backward_cuda(
    Tensor grad_errors, Tensor grad_rewards, Tensor rewards, Tensor rotations, MaybeTensor betas, Tensor T_world_cpf,
    MaybeTensor target_joints, MaybeTensor target_rotmats, Tensor mask, Tensor t_parent_joint, Tensor t_head_cpf,
    MaybeTensor t_parent_joint_shapedirs, MaybeTensor t_head_cpf_shapedirs, Integers parents, int64_t head,
    Integers feet, Numbers foot_heights, int64_t representation, bool project, Integers kinds, Numbers slopes,
    double fps, int64_t rotation_error, int64_t alignment, bool want_rotations, bool want_betas) {
  const Call call = motion_call(rotations, betas, T_world_cpf, target_joints, target_rotmats, mask, t_parent_joint,
                                t_head_cpf, t_parent_joint_shapedirs, t_head_cpf_shapedirs, parents, head, feet,
                                foot_heights, representation, project, kinds, slopes, fps, rotation_error, alignment,
                                true);
  want_betas = want_betas && call.options.shape_numbers > 0;
  const Gradients grads =
      score_backward(call, grad_errors, grad_rewards, rewards, want_rotations, want_betas, false);
  return {grads.rotations, grads.betas};
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("group_rewards_fwd", "(" MGRPO_GROUP_REWARDS_ARGUMENTS ") -> (Tensor, Tensor)",
                    mgrpo::group_rewards_forward_cuda);
MGRPO_CUDA_OPERATOR("group_rewards_bwd",
                    "(" MGRPO_REWARDS_GRADIENTS MGRPO_GROUP_REWARDS_ARGUMENTS
                    ", bool want_joints, bool want_rotmats) -> (Tensor, Tensor)",
                    mgrpo::group_rewards_backward_cuda);
MGRPO_CUDA_OPERATOR("motion_rewards_fwd", "(" MGRPO_MOTION_REWARDS_ARGUMENTS ") -> (Tensor, Tensor)",
                    mgrpo::motion_rewards_forward_cuda);
MGRPO_CUDA_OPERATOR("motion_rewards_bwd",
                    "(" MGRPO_REWARDS_GRADIENTS MGRPO_MOTION_REWARDS_ARGUMENTS
                    ", bool want_rotations, bool want_betas) -> (Tensor, Tensor)",
                    mgrpo::motion_rewards_backward_cuda);
