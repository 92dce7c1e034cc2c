// The arguments of the reward operators, checked and as rows, for the glue of every native backend.
#pragma once

#include <optional>
#include <vector>

#include "../common/rows.h"
#include "rewards_options.h"

namespace mgrpo {

using MaybeTensor = std::optional<Tensor>;
using Integers = std::vector<int64_t>;
using Numbers = std::vector<double>;

inline void set_comparison(RewardOptions& options, const Integers& kinds, const Numbers& slopes, double fps,
                    int64_t rotation_error, int64_t alignment, const Integers& feet, const Numbers& foot_heights) {
  STD_TORCH_CHECK(!kinds.empty() && kinds.size() <= kRewardKinds && slopes.size() == kinds.size(),
                  "kinds and slopes must have the same length from 1 to ", kRewardKinds);
  STD_TORCH_CHECK(feet.size() <= kMostFeet && feet.size() == foot_heights.size(),
                  "feet and foot_heights must have the same length up to ", kMostFeet);
  options.kind_count = static_cast<int>(kinds.size());
  for (size_t k = 0; k < kinds.size(); ++k) {
    STD_TORCH_CHECK(kinds[k] >= 0 && kinds[k] < kRewardKinds, "kinds must be below ", kRewardKinds);
    options.kinds[k] = static_cast<int>(kinds[k]);
    options.wanted[kinds[k]] = true;
    options.slopes[k] = slopes[k];
  }
  options.fps = fps;
  options.rotation_error = static_cast<int>(rotation_error);
  options.alignment = static_cast<int>(alignment);
  options.foot_count = static_cast<int>(feet.size());
  for (size_t k = 0; k < feet.size(); ++k) {
    options.feet[k] = static_cast<int>(feet[k]);
    options.foot_heights[k] = foot_heights[k];
  }
}

// After the number of points is known.
inline void check_points(const RewardOptions& options) {
  STD_TORCH_CHECK(options.joints == 0 || (options.head >= 0 && options.head < options.joints), "head is no joint");
  STD_TORCH_CHECK(!options.wanted[kFootSkate] || options.foot_count > 0, "foot_skate needs feet");
  for (int k = 0; k < options.foot_count; ++k)
    STD_TORCH_CHECK(options.feet[k] >= 0 && options.feet[k] < options.joints, "a foot is no joint");
}

inline bool wants_joints(const RewardOptions& options) {
  for (int k = 0; k < options.kind_count; ++k)
    if (options.kinds[k] != kRotation) return true;
  return false;
}

// The inputs of a call: tensors as rows, options, and the sizes B, G, T.
struct Call {
  RewardOptions options = {};
  int64_t B, G, T;
  Tensor like;  // for new tensors
  std::optional<Rows> rotations, betas, joints, cpf, target_joints, target_rotmats, mask;
  std::optional<Tensor> t_parent_joint, t_head_cpf, t_parent_joint_shapedirs, t_head_cpf_shapedirs;

  explicit Call(const Tensor& first) : like(first) {
    STD_TORCH_CHECK(first.dim() >= 4, "a prediction must have axes (B, G, T, ...)");
    B = first.size(0);
    G = first.size(1);
    T = first.size(2);
    STD_TORCH_CHECK(G > 0 && T > 0, "G and T must not be zero");
  }

  void check_device(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), name,
                    " is on another device than the prediction");
  }
  void check_kind(const Tensor& tensor, const char* name) const {
    check_same_dtype(tensor, like, name);
    check_device(tensor, name);
  }

  // Rows of `numbers` each, one for every frame of every member, or of every recording.
  std::optional<Rows> frames(const Tensor& tensor, bool predicted, int64_t numbers, const char* name) {
    check_kind(tensor, name);
    const int64_t axes = predicted ? 3 : 2;
    STD_TORCH_CHECK(tensor.dim() > axes, name, " has too few axes");
    Rows rows(tensor, tensor.dim() - axes);
    check_rows(rows, B * T * (predicted ? G : 1), numbers, name);
    return rows;
  }
  void set_mask(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Bool && tensor.dim() == 3, "mask must be bool (B, G, T)");
    check_device(tensor, "mask");
    mask.emplace(tensor, 1);
    check_rows(*mask, B * G, T, "mask");
  }
  Tensor constants(const Tensor& tensor, int64_t numbers, const char* name) {
    check_kind(tensor, name);
    STD_TORCH_CHECK(tensor.numel() == numbers, name, " has the wrong shape");
    return torch::stable::contiguous(tensor);
  }
  template <class Element>
  static const Element* data_of(const MaybeTensor& given) {
    return given ? static_cast<const Element*>(given->const_data_ptr()) : nullptr;
  }
};

inline Call group_call(const MaybeTensor& joints, const MaybeTensor& target_joints, const MaybeTensor& rotmats,
                const MaybeTensor& target_rotmats, const Tensor& mask, int64_t head, const Integers& feet,
                const Numbers& foot_heights, const Integers& kinds, const Numbers& slopes, double fps,
                int64_t rotation_error, int64_t alignment) {
  STD_TORCH_CHECK(joints || rotmats, "joints or rotations must be given");
  Call call(joints ? *joints : *rotmats);
  RewardOptions& options = call.options;
  set_comparison(options, kinds, slopes, fps, rotation_error, alignment, feet, foot_heights);
  options.representation = kMatrix;
  options.project = false;
  options.head = static_cast<int>(head);
  if (wants_joints(options)) {
    STD_TORCH_CHECK(joints && target_joints && joints->dim() == 5, "joints must have axes (B, G, T, N, 3)");
    options.joints = static_cast<int>(joints->size(3));
    call.joints = call.frames(*joints, true, 3 * options.joints, "joints");
    call.target_joints = call.frames(*target_joints, false, 3 * options.joints, "target_joints");
  }
  if (options.wanted[kRotation]) {
    STD_TORCH_CHECK(rotmats && target_rotmats && rotmats->dim() == 6, "rotations must have axes (B, G, T, J, 3, 3)");
    options.rotations = static_cast<int>(rotmats->size(3));
    call.rotations = call.frames(*rotmats, true, 9 * options.rotations, "rotmats");
    call.target_rotmats = call.frames(*target_rotmats, false, 9 * options.rotations, "target_rotmats");
  }
  check_points(options);
  call.set_mask(mask);
  return call;
}

inline Call motion_call(const Tensor& rotations, const MaybeTensor& betas, const Tensor& T_world_cpf,
                 const MaybeTensor& target_joints, const MaybeTensor& target_rotmats, const Tensor& mask,
                 const Tensor& t_parent_joint, const Tensor& t_head_cpf, const MaybeTensor& t_parent_joint_shapedirs,
                 const MaybeTensor& t_head_cpf_shapedirs, const Integers& parents, int64_t head, const Integers& feet,
                 const Numbers& foot_heights, int64_t representation, bool project, const Integers& kinds,
                 const Numbers& slopes, double fps, int64_t rotation_error, int64_t alignment, bool backward) {
  Call call(rotations);
  RewardOptions& options = call.options;
  set_comparison(options, kinds, slopes, fps, rotation_error, alignment, feet, foot_heights);
  const int64_t J = static_cast<int64_t>(parents.size());
  STD_TORCH_CHECK(J > 0 && J <= kMostJoints && head >= 0 && head < J, "a tree must have 1 to ", kMostJoints,
                  " joints, the head among them");
  STD_TORCH_CHECK(representation >= kMatrix && representation <= kRot6d, "unknown representation");
  options.rotations = static_cast<int>(J);
  options.representation = static_cast<int>(representation);
  options.project = project && representation == kMatrix;
  options.posed = true;
  options.head_joint = static_cast<int>(head);
  options.head = 1 + options.head_joint;
  for (int k = 0; k < options.foot_count; ++k) ++options.feet[k];  // among points, which have the root first
  for (int64_t j = 0; j < J; ++j) {
    STD_TORCH_CHECK(parents[j] >= -1 && parents[j] < j, "parents must come first");
    options.parents[j] = static_cast<int>(parents[j]);
  }
  assign_turn_slots(options, !backward);
  call.rotations = call.frames(rotations, true, numbers_per_rotation(options.representation) * J, "rotations");
  call.t_parent_joint = call.constants(t_parent_joint, 3 * J, "t_parent_joint");
  call.t_head_cpf = call.constants(t_head_cpf, 3, "t_head_cpf");
  if (betas && wants_joints(options)) {
    STD_TORCH_CHECK(t_parent_joint_shapedirs && t_head_cpf_shapedirs && betas->dim() == 4,
                    "betas need shapedirs and axes (B, G, T, S)");
    const int64_t S = betas->size(3);
    options.shape_numbers = static_cast<int>(S);
    call.betas = call.frames(*betas, true, S, "betas");
    call.t_parent_joint_shapedirs = call.constants(*t_parent_joint_shapedirs, 3 * J * S, "t_parent_joint_shapedirs");
    call.t_head_cpf_shapedirs = call.constants(*t_head_cpf_shapedirs, 3 * S, "t_head_cpf_shapedirs");
  }
  if (wants_joints(options)) {
    STD_TORCH_CHECK(target_joints, "target_joints must be given");
    options.joints = static_cast<int>(J) + 1;
    call.cpf = call.frames(T_world_cpf, false, 7, "T_world_cpf");
    call.target_joints = call.frames(*target_joints, false, 3 * options.joints, "target_joints");
  }
  if (options.wanted[kRotation]) {
    STD_TORCH_CHECK(target_rotmats, "target_rotmats must be given");
    call.target_rotmats = call.frames(*target_rotmats, false, 9 * J, "target_rotmats");
  }
  check_points(options);
  call.set_mask(mask);
  return call;
}

struct Gradients {
  Tensor rotations, betas, joints;  // empty where they are not wanted
};
inline Gradients new_gradients(const Call& call, bool want_rotations, bool want_betas, bool want_joints) {
  const auto make = [&](bool wanted, int64_t numbers) {
    const std::vector<int64_t> shape =
        wanted ? std::vector<int64_t>{call.B, call.G, call.T, numbers} : std::vector<int64_t>{0};
    return new_result(call.like, shape);
  };
  const int64_t numbers = numbers_per_rotation(call.options.representation) * call.options.rotations;
  return {make(want_rotations, numbers), make(want_betas, call.options.shape_numbers),
          make(want_joints, 3 * call.options.joints)};
}
// dL/d(errors), dL/d(rewards) or rewards, (B, G, K), contiguous.
inline Tensor scores_of(const Call& call, const Tensor& given) {
  call.check_kind(given, "a gradient");
  STD_TORCH_CHECK(given.numel() == call.B * call.G * call.options.kind_count, "a gradient has the wrong shape");
  return torch::stable::contiguous(given);
}

}  // namespace mgrpo

#define MGRPO_GROUP_REWARDS_ARGUMENTS                                                                      \
  "Tensor? joints, Tensor? target_joints, Tensor? rotmats, Tensor? target_rotmats, Tensor mask, int head," \
  " int[] feet, float[] foot_heights, int[] kinds, float[] slopes, float fps, int rotation_error, int alignment"
#define MGRPO_MOTION_REWARDS_ARGUMENTS                                                                            \
  "Tensor rotations, Tensor? betas, Tensor T_world_cpf, Tensor? target_joints, Tensor? target_rotmats,"           \
  " Tensor mask, Tensor t_parent_joint, Tensor t_head_cpf, Tensor? t_parent_joint_shapedirs,"                     \
  " Tensor? t_head_cpf_shapedirs, int[] parents, int head, int[] feet, float[] foot_heights, int representation," \
  " bool project, int[] kinds, float[] slopes, float fps, int rotation_error, int alignment"
#define MGRPO_REWARDS_GRADIENTS "Tensor grad_errors, Tensor grad_rewards, Tensor rewards, "
