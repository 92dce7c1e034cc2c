// group_rewards and motion_rewards, _fwd and _bwd, on a GPU.
#include "../common/cuda_op.h"
#include "rewards_cuda.h"
#include "rewards_operators.h"

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

Scores score(const Call& call) {
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

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("group_rewards_fwd", "(" MGRPO_GROUP_REWARDS_ARGUMENTS ") -> (Tensor, Tensor)",
                    mgrpo::group_rewards_forward<mgrpo::score>);
MGRPO_CUDA_OPERATOR("group_rewards_bwd",
                    "(" MGRPO_REWARDS_GRADIENTS MGRPO_GROUP_REWARDS_ARGUMENTS
                    ", bool want_joints, bool want_rotmats) -> (Tensor, Tensor)",
                    mgrpo::group_rewards_backward<mgrpo::score_backward>);
MGRPO_CUDA_OPERATOR("motion_rewards_fwd", "(" MGRPO_MOTION_REWARDS_ARGUMENTS ") -> (Tensor, Tensor)",
                    mgrpo::motion_rewards_forward<mgrpo::score>);
MGRPO_CUDA_OPERATOR("motion_rewards_bwd",
                    "(" MGRPO_REWARDS_GRADIENTS MGRPO_MOTION_REWARDS_ARGUMENTS
                    ", bool want_rotations, bool want_betas) -> (Tensor, Tensor)",
                    mgrpo::motion_rewards_backward<mgrpo::score_backward>);
