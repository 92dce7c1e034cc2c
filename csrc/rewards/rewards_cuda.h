// Launchers of the rewards' kernels. T float or double; no size may be 0.
#pragma once

#include "../common/cuda_compat.h"
#include "../common/row_view.h"
#include "rewards_options.h"

namespace mgrpo {

constexpr int kMostShapeNumbersCuda = 16;  // they stay in registers

// The tensors of a call, conditions slowest; those without a use have no data.
template <class T>
struct RewardViews {
  RowView<T> rotations, betas, joints;           // (B G T) predicted: numbers of rotations, shape, given joints
  RowView<T> cpf, target_joints, target_rotmats;  // (B T) recorded
  RowView<uint8_t> mask;                         // (B G) rows of T
  const T *t_parent_joint, *t_head_cpf, *t_parent_joint_shapedirs, *t_head_cpf_shapedirs;
  int64_t sequences, members, frames;            // B G, G, T
};

// errors and rewards (B, G, K); or, with `joints`, the posed bodies' joints (B, G, T, N, 3) and nothing else.
template <class T>
cudaError_t launch_rewards(const RewardOptions& options, const RewardViews<T>& views, T* errors, T* rewards, T* joints,
                           cudaStream_t stream);

// dL/d(joints) (B, G, T, N, 3); `joints` of the views are the predicted ones, posed here or given.
template <class T>
cudaError_t launch_joint_gradients(const RewardOptions& options, const RewardViews<T>& views, const T* grad_errors,
                                   const T* grad_rewards, const T* rewards, T* grad_joints, cudaStream_t stream);

// dL/d(numbers of the rotations) and dL/d(betas), either may be null, from dL/d(joints), which is null where no error
// of joints is wanted. Slots of turns must not be used twice.
template <class T>
cudaError_t launch_rotation_gradients(const RewardOptions& options, const RewardViews<T>& views, const T* grad_errors,
                                      const T* grad_rewards, const T* rewards, const T* grad_joints, T* grad_rotations,
                                      T* grad_betas, cudaStream_t stream);

}  // namespace mgrpo
