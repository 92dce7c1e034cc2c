// The registered reward operators over what a backend does with their arguments.
#pragma once

#include <tuple>

#include "rewards_call.h"

namespace mgrpo {

using Scores = std::tuple<Tensor, Tensor>;  // errors and rewards, or two gradients
using Score = Scores (*)(const Call& call);
using ScoreBackward = Gradients (*)(const Call& call, const Tensor& grad_errors, const Tensor& grad_rewards,
                                    const Tensor& rewards, bool want_rotations, bool want_betas, bool want_joints);

template <Score score>
Scores group_rewards_forward(
    MaybeTensor joints, MaybeTensor target_joints, MaybeTensor rotmats, MaybeTensor target_rotmats, Tensor mask,
    int64_t head, Integers feet, Numbers foot_heights, Integers kinds, Numbers slopes, double fps,
    int64_t rotation_error, int64_t alignment) {
  return score(group_call(joints, target_joints, rotmats, target_rotmats, mask, head, feet, foot_heights, kinds, slopes,
                          fps, rotation_error, alignment));
}

template <ScoreBackward score_backward>
Scores group_rewards_backward(
    Tensor grad_errors, Tensor grad_rewards, Tensor rewards, MaybeTensor joints, MaybeTensor target_joints,
    MaybeTensor rotmats, MaybeTensor target_rotmats, Tensor mask, int64_t head, Integers feet, Numbers foot_heights,
    Integers kinds, Numbers slopes, double fps, int64_t rotation_error, int64_t alignment, bool want_joints,
    bool want_rotmats) {
  const Call call = group_call(joints, target_joints, rotmats, target_rotmats, mask, head, feet, foot_heights, kinds,
                               slopes, fps, rotation_error, alignment);
  want_joints = want_joints && call.options.joints > 0;
  want_rotmats = want_rotmats && call.options.rotations > 0;
  const Gradients grads = score_backward(call, grad_errors, grad_rewards, rewards, want_rotmats, false, want_joints);
  return {grads.joints, grads.rotations};
}

template <Score score>
Scores motion_rewards_forward(
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

template <ScoreBackward score_backward>
Scores motion_rewards_backward(
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
  const Gradients grads = score_backward(call, grad_errors, grad_rewards, rewards, want_rotations, want_betas, false);
  return {grads.rotations, grads.betas};
}

}  // namespace mgrpo
