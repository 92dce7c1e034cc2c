// The tensors of forward kinematics as checked rows: what the CPU operators and the CUDA glue share.
#pragma once

#include <optional>
#include <vector>

#include "../common/rows.h"
#include "kinematics_modes.h"

namespace mgrpo {

using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// An uninitialised tensor of shape (*batch, *tail), or without elements where it is not wanted.
inline Tensor new_batch(const Tensor& like, const Sizes& batch, const Sizes& tail, bool wanted) {
  if (!wanted) return torch::stable::new_empty(like, {0});
  Sizes shape = batch;
  shape.insert(shape.end(), tail.begin(), tail.end());
  return new_result(like, shape);
}

// Axes of one pose's table of `numbers` per joint.
inline Sizes joint_axes(int64_t J, int numbers) { return numbers == 9 ? Sizes{J, 3, 3} : Sizes{J, numbers}; }

// The inputs of both passes. `check(tensor, first, name)` compares dtypes, and devices where they matter.
class Poses {
 public:
  template <class Check>
  Poses(const Tensor& rotations, const Tensor& offsets, const OptionalTensor& root_pose, const OptionalTensor& t_head,
        const Sizes& parents, int64_t head_joint, int64_t representation_code, int64_t output_code, Check&& check)
      : representation(static_cast<int>(representation_code)),
        output(static_cast<int>(output_code)),
        J(static_cast<int64_t>(parents.size())),
        head(static_cast<int>(head_joint)),
        batch(batch_of(rotations, representation == kFromMatrices ? 3 : 2)),
        rotations(rotations, representation == kFromMatrices ? 3 : 2),
        offsets(offsets, 2, batch),
        parents(parents.begin(), parents.end()) {
    STD_TORCH_CHECK(representation >= 0 && representation <= kFromRot6d && output >= 0 && output <= kToPositions,
                    "unknown representation or output");
    for (int64_t j = 0; j < J; ++j) STD_TORCH_CHECK(parents[j] >= -1 && parents[j] < j, "parents must come first");
    check_rows(this->rotations, count(), numbers_in(representation) * J, "rotations");
    check_rows(this->offsets, count(), 3 * J, "t_parent_joint");
    check(offsets, rotations, "t_parent_joint");
    if (root_pose) {
      check(*root_pose, rotations, "root");
      check_rows(root.emplace(*root_pose, 1, batch), count(), kRootNumbers, "root");
    }
    if (t_head) {
      check(*t_head, rotations, "t_head_cpf");
      check_rows(t_head_cpf.emplace(*t_head, 1, batch), count(), 3, "t_head_cpf");
      STD_TORCH_CHECK(root && head >= 0 && head < J, "head must be the index of a joint and its frame's pose be given");
    }
  }
  Poses(const Poses&) = delete;

  int64_t count() const { return rotations.count(); }

  const int representation, output;
  const int64_t J;
  const int head;
  const Sizes batch;
  const Rows rotations, offsets;
  std::optional<Rows> root, t_head_cpf;
  const std::vector<int> parents;

 private:
  static Sizes batch_of(const Tensor& tensor, int64_t inner) {
    STD_TORCH_CHECK(tensor.dim() >= inner, "rotations has too few axes");
    Sizes sizes;
    for (int64_t axis = 0; axis < tensor.dim() - inner; ++axis) sizes.push_back(tensor.size(axis));
    return sizes;
  }
};

struct PoseResultTensors {
  PoseResultTensors(const Poses& poses, const Tensor& like)
      : joints(new_batch(like, poses.batch, {poses.J, 3}, true)),
        world(new_batch(like, poses.batch, joint_axes(poses.J, numbers_out(poses.output)), poses.output != kToPositions)),
        root(new_batch(like, poses.batch, {kRootNumbers}, poses.t_head_cpf.has_value())) {}

  Tensor joints, world, root;
};

// The gradients that the backward pass gets; those that say nothing are absent.
struct GivenGradients {
  template <class Check>
  GivenGradients(const Poses& poses, const Tensor& like, const OptionalTensor& grad_joints, const OptionalTensor& grad_world,
                 const OptionalTensor& grad_root, Check&& check) {
    const auto take = [&](const OptionalTensor& grad, int64_t inner, int64_t numbers, std::optional<Rows>& rows) {
      if (!grad) return;
      check(*grad, like, "a gradient");
      check_rows(rows.emplace(*grad, inner, poses.batch), poses.count(), numbers, "a gradient");
    };
    take(grad_joints, 2, 3 * poses.J, joints);
    if (poses.output != kToPositions)
      take(grad_world, poses.output == kToMatrices ? 3 : 2, poses.J * numbers_out(poses.output), world);
    if (poses.t_head_cpf) take(grad_root, 1, kRootNumbers, root);
  }

  std::optional<Rows> joints, world, root;
};

// The gradients that it gives, without elements where nobody asks: rotations, offsets, root, t_head_cpf.
struct WantedGradients {
  WantedGradients(const Poses& poses, const Tensor& like, const std::vector<bool>& wanted)
      : wants_rotations(at(wanted, 0)),
        wants_offsets(at(wanted, 1)),
        wants_root(at(wanted, 2) && poses.root),
        wants_t_head_cpf(at(wanted, 3) && poses.t_head_cpf),
        rotations(new_batch(like, poses.batch, joint_axes(poses.J, numbers_in(poses.representation)), wants_rotations)),
        offsets(new_batch(like, poses.batch, {poses.J, 3}, wants_offsets)),
        root(new_batch(like, poses.batch, {kRootNumbers}, wants_root)),
        t_head_cpf(new_batch(like, poses.batch, {3}, wants_t_head_cpf)) {}

  const bool wants_rotations, wants_offsets, wants_root, wants_t_head_cpf;
  Tensor rotations, offsets, root, t_head_cpf;

 private:
  static bool at(const std::vector<bool>& wanted, size_t i) {
    STD_TORCH_CHECK(wanted.size() == 4, "wanted must have four entries");
    return wanted[i];
  }
};

template <class T>
T* output_or_null(Tensor& tensor, bool wanted) {
  return wanted ? output<T>(tensor) : nullptr;
}

// A space of body shapes: mean offsets (J, 3) and their change per unit of shape (J, 3, S), made contiguous.
struct ShapeSpace {
  ShapeSpace(const Tensor& shapedirs) : directions(torch::stable::contiguous(shapedirs)) {
    STD_TORCH_CHECK(directions.dim() == 3 && directions.size(1) == 3, "t_parent_joint_shapedirs has the wrong shape");
    J = directions.size(0);
    S = directions.size(2);
  }
  void check_mean(const Tensor& t_parent_joint) const {
    STD_TORCH_CHECK(t_parent_joint.dim() == 2 && t_parent_joint.size(0) == J && t_parent_joint.size(1) == 3,
                    "t_parent_joint has the wrong shape");
  }

  Tensor directions;
  int64_t J, S;
};

template <class T>
const T* input(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Schemas, the same on every device.
#define MGRPO_FK_FORWARD_SCHEMA                                                                                \
  "(Tensor rotations, Tensor t_parent_joint, Tensor? root, Tensor? t_head_cpf, int[] parents, int head,"       \
  " int representation, int output) -> (Tensor, Tensor, Tensor)"
#define MGRPO_FK_BACKWARD_SCHEMA                                                                               \
  "(Tensor? grad_joints, Tensor? grad_world, Tensor? grad_root, Tensor rotations, Tensor t_parent_joint,"      \
  " Tensor? root, Tensor? t_head_cpf, int[] parents, int head, int representation, int output, bool[] wanted)" \
  " -> (Tensor, Tensor, Tensor, Tensor)"
#define MGRPO_JOINT_OFFSETS_FORWARD_SCHEMA "(Tensor t_parent_joint, Tensor shapedirs, Tensor betas) -> Tensor"
#define MGRPO_JOINT_OFFSETS_BACKWARD_SCHEMA "(Tensor grad_offsets, Tensor shapedirs) -> Tensor"

}  // namespace mgrpo
