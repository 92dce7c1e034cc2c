// Between the operator's tensors and the raw pointers of motion_guidance; the CPU and the CUDA glue share it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/rows.h"
#include "guidance_types.h"

namespace mgrpo {

#define MGRPO_GUIDANCE_SIGNATURE                                                                                       \
  "(Tensor rotmats, Tensor t_parent_joint, Tensor T_world_head, Tensor contacts, Tensor lengths, Tensor held,"         \
  " Tensor? wrist_poses, Tensor? wrist_confidence, Tensor? hand_rotmats, Tensor? hand_confidence,"                     \
  " Tensor? keypoint_uv, Tensor? keypoint_confidence, Tensor? T_world_cam, int[] parents, float[] weights, bool se3,"  \
  " int iterations, float[] rule) -> (Tensor, Tensor, Tensor)"

inline GuidanceTree guidance_tree(const std::vector<int64_t>& parents, bool hands, bool wrists, bool keypoints) {
  GuidanceTree tree = {};
  tree.joints = static_cast<int>(parents.size());
  tree.moved = hands ? tree.joints : kBodyJoints;
  tree.posed = keypoints ? tree.joints : kBodyJoints;
  for (int joint = 0; joint < tree.joints; ++joint) {
    const int64_t parent = parents[static_cast<size_t>(joint)];
    STD_TORCH_CHECK(parent >= -1 && parent < joint, "motion_guidance: parents must come first");
    tree.parents[joint] = static_cast<signed char>(parent);
    tree.ancestors[joint] = parent < 0 ? 0 : tree.ancestors[parent] | uint64_t{1} << parent;
  }
  tree.spine = tree.ancestors[kHead] | uint64_t{1} << kHead;
  uint64_t moving = 0;
  const auto place = [&](int joint) { moving |= tree.ancestors[joint] ^ tree.spine; };
  for (int i = 0; i < kTorsoPoints; ++i) place(torso_joint(i));
  for (int i = 0; i < kFeet; ++i) place(foot_joint(i));
  for (int hand = 0; hand < 2; ++hand) {
    const int wrist = wrist_joint(hand);
    if (wrists) moving |= (tree.ancestors[wrist] | uint64_t{1} << wrist) ^ tree.spine;
    for (int i = 0; keypoints && i < kKeypoints; ++i) place(keypoint_joint(hand, i));
  }
  for (int joint = 0; joint < tree.moved; ++joint) {
    const bool coupled = moving >> joint & 1;
    (coupled ? tree.coupled[tree.coupled_count++] : tree.free_joints[tree.free_count++]) = static_cast<signed char>(joint);
  }
  return tree;
}

// Calls compute(job), unless there is nothing to compute, and returns rotations, costs and numbers of iterations.
template <class Compute>
std::tuple<Tensor, Tensor, Tensor> with_guidance_job(
    const Tensor& rotmats, const Tensor& offsets, const Tensor& head, const Tensor& contacts, const Tensor& lengths,
    const Tensor& held, const std::optional<Tensor>& wrist_poses, const std::optional<Tensor>& wrist_confidence,
    const std::optional<Tensor>& hand_rotmats, const std::optional<Tensor>& hand_confidence,
    const std::optional<Tensor>& uv, const std::optional<Tensor>& uv_confidence, const std::optional<Tensor>& camera,
    const std::vector<int64_t>& parents, const std::vector<double>& weights, bool se3, int64_t iterations,
    const std::vector<double>& rule, Compute&& compute) {
  STD_TORCH_CHECK(rotmats.dim() == 5, "motion_guidance: rotmats must have shape (B, T, N, 3, 3)");
  const int64_t B = rotmats.size(0), F = rotmats.size(1), N = rotmats.size(2);
  STD_TORCH_CHECK((N == kBodyJoints || N == kMostJoints) && static_cast<int64_t>(parents.size()) == N,
                  "motion_guidance: there must be 21 or 51 joints, with a parent each");
  STD_TORCH_CHECK(weights.size() == 12 && rule.size() == 4 && iterations >= 0 && iterations < (int64_t{1} << 30) &&
                      F < (int64_t{1} << 24),
                  "motion_guidance: an option is out of range");
  STD_TORCH_CHECK(N == kMostJoints || (!hand_rotmats.has_value() && !uv.has_value()),
                  "motion_guidance: there are no fingers for these targets");
  std::vector<Tensor> kept;  // contiguous copies, while the computation lasts
  const auto checked = [&](const Tensor& tensor, int64_t numbers, const char* name) -> const void* {
    check_same_dtype(tensor, rotmats, name);
    STD_TORCH_CHECK(tensor.numel() == numbers, name, " has the wrong number of elements");
    kept.push_back(torch::stable::contiguous(tensor));
    return kept.back().const_data_ptr();
  };
  const auto target = [&](const std::optional<Tensor>& tensor, const std::optional<Tensor>& with, int64_t numbers,
                          const char* name) -> const void* {
    STD_TORCH_CHECK(tensor.has_value() == with.has_value(), "motion_guidance: a part of ", name, " is missing");
    return tensor.has_value() ? checked(*tensor, numbers, name) : nullptr;
  };
  const auto counts = [&](const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.numel() == B,
                    "motion_guidance: lengths and held must be int64, one per row");
    kept.push_back(torch::stable::contiguous(tensor));
    return static_cast<const int64_t*>(kept.back().const_data_ptr());
  };
  const int64_t *const length_data = counts(lengths), *const held_data = counts(held);
  Tensor out = torch::stable::new_empty(rotmats, {B, F, N, 3, 3});
  Tensor costs = torch::stable::new_empty(rotmats, {B, iterations + 1});
  Tensor done = torch::stable::new_empty(rotmats, {B}, ScalarType::Long);
  dispatch_float_double(rotmats, [&](auto zero) {
    using T = decltype(zero);
    GuidanceJob<T> job = {};
    job.rows = B, job.frames = static_cast<int>(F), job.iterations = static_cast<int>(iterations), job.se3 = se3;
    const double* const w = weights.data();
    job.weights = {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11]};
    job.rule = {rule[0], rule[1], rule[2], rule[3]};
    const bool hands = N == kMostJoints && (job.weights.hand_prior > 0 || job.weights.hand_smoothness > 0 ||
                                            hand_rotmats.has_value() || uv.has_value());
    job.tree = guidance_tree(parents, hands, wrist_poses.has_value(), uv.has_value());
    job.lengths = length_data, job.held = held_data;
    const auto data = [](const void* pointer) { return static_cast<const T*>(pointer); };
    job.rotmats = data(checked(rotmats, B * F * N * 9, "rotmats"));
    job.offsets = data(checked(offsets, B * N * 3, "t_parent_joint"));
    job.head = data(checked(head, B * F * 7, "T_world_head"));
    job.contacts = data(checked(contacts, B * F * kFeet, "contacts"));
    job.wrist_poses = data(target(wrist_poses, wrist_confidence, B * F * 14, "wrist_poses"));
    job.wrist_confidence = data(target(wrist_confidence, wrist_poses, B * F * 2, "wrist_confidence"));
    job.hand_rotmats = data(target(hand_rotmats, hand_confidence, B * F * 270, "hand_rotmats"));
    job.hand_confidence = data(target(hand_confidence, hand_rotmats, B * F * 2, "hand_confidence"));
    job.uv = data(target(uv, uv_confidence, B * F * 64, "keypoint_uv"));
    job.uv_confidence = data(target(uv_confidence, camera, B * F * 2, "keypoint_confidence"));
    job.camera = data(target(camera, uv, B * F * 7, "T_world_cam"));
    job.out = output<T>(out);
    job.costs = output<T>(costs);
    job.done = output<int64_t>(done);
    if (B > 0) compute(job);
  });
  return {out, costs, done};
}

}  // namespace mgrpo
