// The tensors of a call on the CPU, as the loops of rewards_lanes.h read them.
#pragma once

#include "../common/rows.h"
#include "rewards_options.h"

namespace mgrpo {

// Rows are frames, conditions slowest; those without a use are null.
template <class T>
struct RewardRows {
  const Rows *rotations, *betas, *joints;            // (B G T) predicted: numbers of rotations, shape, given joints
  const Rows *cpf, *target_joints, *target_rotmats;  // (B T) recorded
  const Rows* mask;                                  // (B G) rows of T
  const T *t_parent_joint, *t_head_cpf, *t_parent_joint_shapedirs, *t_head_cpf_shapedirs;
  int64_t members, frames;                           // G, T
};

}  // namespace mgrpo
