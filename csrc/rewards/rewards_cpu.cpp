// mgrpo_native::group_rewards and motion_rewards, _fwd and _bwd, on the CPU.
#include <cmath>
#include <vector>

#include "../common/scratch.h"
#include "rewards_operators.h"
#include "rewards_rows.h"

#define MGRPO_ISA_BODY "../rewards/rewards_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

template <class T>
RewardRows<T> rows_of(const Call& call) {
  const auto rows = [](const std::optional<Rows>& given) { return given ? &*given : nullptr; };
  return {rows(call.rotations),
          rows(call.betas),
          rows(call.joints),
          rows(call.cpf),
          rows(call.target_joints),
          rows(call.target_rotmats),
          rows(call.mask),
          Call::data_of<T>(call.t_parent_joint),
          Call::data_of<T>(call.t_head_cpf),
          Call::data_of<T>(call.t_parent_joint_shapedirs),
          Call::data_of<T>(call.t_head_cpf_shapedirs),
          call.G,
          call.T};
}

Scores score(const Call& call) {
  const int64_t K = call.options.kind_count;
  Tensor errors = torch::stable::new_empty(call.like, {call.B, call.G, K});
  Tensor rewards = torch::stable::new_empty(call.like, {call.B, call.G, K});
  dispatch_float_double(call.like, [&](auto zero) {
    using T = decltype(zero);
    T *out = output<T>(errors), *out_rewards = output<T>(rewards);
    const RewardRows<T> rows = rows_of<T>(call);
    const int64_t bytes = MGRPO_ISA_CALL_OF(T, workspace_bytes, call.options, call.T, false);
    torch::stable::parallel_for(0, call.B * call.G, 1, [&](int64_t begin, int64_t end) {
      const Scratch memory(bytes);
      MGRPO_ISA_CALL_OF(T, score_sequences, call.options, rows, memory.get(), out, begin, end);
      for (int64_t i = begin * K; i < end * K; ++i)
        out_rewards[i] = std::exp(-static_cast<T>(call.options.slopes[i % K]) * out[i]);
    });
  });
  return {errors, rewards};
}

Gradients score_backward(const Call& call, const Tensor& grad_errors, const Tensor& grad_rewards,
                         const Tensor& rewards, bool want_rotations, bool want_betas, bool want_joints) {
  Gradients grads = new_gradients(call, want_rotations, want_betas, want_joints);
  const Tensor in_errors = scores_of(call, grad_errors), in_rewards = scores_of(call, grad_rewards),
               given_rewards = scores_of(call, rewards);
  dispatch_float_double(call.like, [&](auto zero) {
    using T = decltype(zero);
    T* out_rotations = want_rotations ? output<T>(grads.rotations) : nullptr;
    T* out_betas = want_betas ? output<T>(grads.betas) : nullptr;
    T* out_joints = want_joints ? output<T>(grads.joints) : nullptr;
    const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
    const RewardRows<T> rows = rows_of<T>(call);
    const int64_t bytes = MGRPO_ISA_CALL_OF(T, workspace_bytes, call.options, call.T, true);
    torch::stable::parallel_for(0, call.B * call.G, 1, [&](int64_t begin, int64_t end) {
      const Scratch memory(bytes);
      MGRPO_ISA_CALL_OF(T, score_sequences_backward, call.options, rows, memory.get(), data(in_errors), data(in_rewards),
                     data(given_rewards), out_rotations, out_betas, out_joints, begin, end);
    });
  });
  return grads;
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("group_rewards_fwd(" MGRPO_GROUP_REWARDS_ARGUMENTS ") -> (Tensor, Tensor)");
  m.def("group_rewards_bwd(" MGRPO_REWARDS_GRADIENTS MGRPO_GROUP_REWARDS_ARGUMENTS
        ", bool want_joints, bool want_rotmats) -> (Tensor, Tensor)");
  m.def("motion_rewards_fwd(" MGRPO_MOTION_REWARDS_ARGUMENTS ") -> (Tensor, Tensor)");
  m.def("motion_rewards_bwd(" MGRPO_REWARDS_GRADIENTS MGRPO_MOTION_REWARDS_ARGUMENTS
        ", bool want_rotations, bool want_betas) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("group_rewards_fwd", TORCH_BOX(&mgrpo::group_rewards_forward<mgrpo::score>));
  m.impl("group_rewards_bwd", TORCH_BOX(&mgrpo::group_rewards_backward<mgrpo::score_backward>));
  m.impl("motion_rewards_fwd", TORCH_BOX(&mgrpo::motion_rewards_forward<mgrpo::score>));
  m.impl("motion_rewards_bwd", TORCH_BOX(&mgrpo::motion_rewards_backward<mgrpo::score_backward>));
}
