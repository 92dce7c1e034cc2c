// mgrpo_native::forward_kinematics_fwd, _bwd and joint_offsets_fwd, _bwd on the CPU.
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/rows.h"
#include "kinematics_modes.h"

namespace mgrpo {

// What the loops read. `root` is the pose of the root, or of the central pupil frame where t_head_cpf is there.
struct PoseRows {
  const Rows& rotations;
  const Rows& offsets;
  const Rows* root;        // or null: the identity
  const Rows* t_head_cpf;  // or null: `root` is the root
  const int* parents;
  int J, head, representation, output;
};
template <class T>
struct PoseResults {
  T *joints, *world, *root;
};
struct PoseGradients {  // null where nothing depends on that result
  const Rows *joints, *world, *root;
};
template <class T>
struct PoseResultGradients {  // null where nobody asks
  T *rotations, *offsets, *root, *t_head_cpf;
};

}  // namespace mgrpo

#define MGRPO_ISA_BODY "../kinematics/kinematics_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

using OptionalTensor = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;

constexpr int64_t kBlock = 16;  // poses side by side, at most: threads share whole blocks
constexpr int64_t kBlocksPerTask = 8;
constexpr size_t kRegisterBytes = 64;

// Aligned memory for `registers` vector registers of any instruction set.
class Scratch {
 public:
  explicit Scratch(int64_t registers) : memory_(new unsigned char[registers * kRegisterBytes + kRegisterBytes]) {}
  unsigned char* get() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (kRegisterBytes - address % kRegisterBytes) % kRegisterBytes;
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
};

// Calls f(scratch, begin, end) for parts of `count` rows, on several threads.
template <class F>
void for_row_blocks(int64_t count, int64_t registers, F&& f) {
  torch::stable::parallel_for(0, (count + kBlock - 1) / kBlock, kBlocksPerTask, [&](int64_t begin, int64_t end) {
    const Scratch scratch(registers);
    f(scratch.get(), begin * kBlock, end * kBlock < count ? end * kBlock : count);
  });
}

// The arguments that both passes share, checked.
class Poses {
 public:
  Poses(const Tensor& rotations, const Tensor& offsets, const OptionalTensor& root, const OptionalTensor& t_head_cpf,
        const Numbers& parents, int64_t head, int64_t representation, int64_t output)
      : inner_(representation == kFromMatrices ? 3 : 2),
        batch_(batch_of(rotations, inner_)),
        rotations_(rotations, inner_),
        offsets_(offsets, 2, batch_),
        parents_(parents.begin(), parents.end()),
        in_{rotations_, offsets_, nullptr, nullptr, parents_.data(), static_cast<int>(parents.size()), static_cast<int>(head),
            static_cast<int>(representation), static_cast<int>(output)} {
    const int64_t J = in_.J;
    STD_TORCH_CHECK(representation >= 0 && representation <= kFromRot6d && output >= 0 && output <= kToPositions,
                    "unknown representation or output");
    for (int64_t j = 0; j < J; ++j) STD_TORCH_CHECK(parents[j] >= -1 && parents[j] < j, "parents must come first");
    check_rows(rotations_, count(), numbers_in(in_.representation) * J, "rotations");
    check_rows(offsets_, count(), 3 * J, "t_parent_joint");
    check_same_dtype(offsets, rotations, "t_parent_joint");
    if (root) {
      in_.root = &root_.emplace(*root, 1, batch_);
      check_rows(*root_, count(), kRootNumbers, "root");
      check_same_dtype(*root, rotations, "root");
    }
    if (t_head_cpf) {
      in_.t_head_cpf = &t_head_cpf_.emplace(*t_head_cpf, 1, batch_);
      check_rows(*t_head_cpf_, count(), 3, "t_head_cpf");
      check_same_dtype(*t_head_cpf, rotations, "t_head_cpf");
      STD_TORCH_CHECK(root && head >= 0 && head < J, "head must be the index of a joint and its frame's pose be given");
    }
  }
  Poses(const Poses&) = delete;

  const PoseRows& in() const { return in_; }
  int64_t count() const { return rotations_.count(); }
  const Numbers& batch() const { return batch_; }
  // Registers for the tables of the loops: inputs, states, offsets, positions or forces, results or gradients.
  int64_t registers() const { return in_.J * (9 + 9 + 3 + 3 + 9); }

 private:
  static Numbers batch_of(const Tensor& tensor, int64_t inner) {
    STD_TORCH_CHECK(tensor.dim() >= inner, "rotations has too few axes");
    Numbers sizes;
    for (int64_t axis = 0; axis < tensor.dim() - inner; ++axis) sizes.push_back(tensor.size(axis));
    return sizes;
  }

  int64_t inner_;
  Numbers batch_;
  Rows rotations_, offsets_;
  std::optional<Rows> root_, t_head_cpf_;
  std::vector<int> parents_;
  PoseRows in_;
};

// An uninitialised tensor of shape (*batch, *tail), or without elements where it is not wanted.
Tensor new_batch(const Tensor& like, const Numbers& batch, const Numbers& tail, bool wanted) {
  if (!wanted) return torch::stable::new_empty(like, {0});
  Numbers shape = batch;
  shape.insert(shape.end(), tail.begin(), tail.end());
  return torch::stable::new_empty(like, shape);
}
Numbers joint_axes(int64_t J, int numbers) {
  return numbers == 9 ? Numbers{J, 3, 3} : Numbers{J, numbers};
}
template <class T>
T* output_or_null(Tensor& tensor, bool wanted) {
  return wanted ? output<T>(tensor) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> fk_forward_cpu(const Tensor& rotations, const Tensor& t_parent_joint, OptionalTensor root,
                                                  OptionalTensor t_head_cpf, Numbers parents, int64_t head,
                                                  int64_t representation, int64_t output_form) {
  const Poses poses(rotations, t_parent_joint, root, t_head_cpf, parents, head, representation, output_form);
  const int64_t J = poses.in().J;
  Tensor joints = new_batch(rotations, poses.batch(), {J, 3}, true);
  Tensor world = new_batch(rotations, poses.batch(), joint_axes(J, numbers_out(output_form)), output_form != kToPositions);
  Tensor root_pose = new_batch(rotations, poses.batch(), {kRootNumbers}, t_head_cpf.has_value());
  dispatch_float_double(rotations, [&](auto zero) {
    using T = decltype(zero);
    const PoseResults<T> out = {output<T>(joints), output<T>(world), output<T>(root_pose)};
    for_row_blocks(poses.count(), poses.registers(), [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL(pose_rows<T>, poses.in(), out, scratch, begin, end);
    });
  });
  return {joints, world, root_pose};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fk_backward_cpu(OptionalTensor grad_joints, OptionalTensor grad_world,
                                                           OptionalTensor grad_root, const Tensor& rotations,
                                                           const Tensor& t_parent_joint, OptionalTensor root,
                                                           OptionalTensor t_head_cpf, Numbers parents, int64_t head,
                                                           int64_t representation, int64_t output_form,
                                                           std::vector<bool> wanted) {
  const Poses poses(rotations, t_parent_joint, root, t_head_cpf, parents, head, representation, output_form);
  const int64_t J = poses.in().J;
  STD_TORCH_CHECK(wanted.size() == 4, "wanted must have four entries");
  const bool wants_root = wanted[2] && root, wants_cpf = wanted[3] && t_head_cpf;
  PoseGradients given = {nullptr, nullptr, nullptr};
  std::optional<Rows> given_joints, given_world, given_root;
  const auto take = [&](const OptionalTensor& grad, std::optional<Rows>& rows, int64_t inner, int64_t numbers) {
    if (!grad) return static_cast<const Rows*>(nullptr);
    check_same_dtype(*grad, rotations, "a gradient");
    STD_TORCH_CHECK(grad->dim() >= inner, "a gradient has too few axes");
    const Rows& result = rows.emplace(*grad, inner, poses.batch());
    check_rows(result, poses.count(), numbers, "a gradient");
    return &result;
  };
  given.joints = take(grad_joints, given_joints, 2, 3 * J);
  if (output_form != kToPositions)
    given.world = take(grad_world, given_world, output_form == kToMatrices ? 3 : 2, J * numbers_out(output_form));
  if (t_head_cpf) given.root = take(grad_root, given_root, 1, kRootNumbers);

  Tensor grad_rotations = new_batch(rotations, poses.batch(), joint_axes(J, numbers_in(representation)), wanted[0]);
  Tensor grad_offsets = new_batch(rotations, poses.batch(), {J, 3}, wanted[1]);
  Tensor grad_placement = new_batch(rotations, poses.batch(), {kRootNumbers}, wants_root);
  Tensor grad_t_head_cpf = new_batch(rotations, poses.batch(), {3}, wants_cpf);
  dispatch_float_double(rotations, [&](auto zero) {
    using T = decltype(zero);
    const PoseResultGradients<T> out = {output_or_null<T>(grad_rotations, wanted[0]), output_or_null<T>(grad_offsets, wanted[1]),
                                        output_or_null<T>(grad_placement, wants_root),
                                        output_or_null<T>(grad_t_head_cpf, wants_cpf)};
    for_row_blocks(poses.count(), poses.registers(), [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL(pose_rows_backward<T>, poses.in(), given, out, scratch, begin, end);
    });
  });
  return {grad_rotations, grad_offsets, grad_placement, grad_t_head_cpf};
}

// (J, 3) and (J, 3, S), both contiguous
void check_shape_space(const Tensor& mean, const Tensor& directions) {
  STD_TORCH_CHECK(mean.dim() == 2 && directions.dim() == 3 && mean.size(0) == directions.size(0) && mean.size(1) == 3 &&
                      directions.size(1) == 3,
                  "t_parent_joint or t_parent_joint_shapedirs has the wrong shape");
  check_same_dtype(directions, mean, "t_parent_joint_shapedirs");
}

Tensor joint_offsets_forward_cpu(const Tensor& t_parent_joint, const Tensor& shapedirs, const Tensor& betas) {
  check_shape_space(t_parent_joint, shapedirs);
  check_same_dtype(betas, t_parent_joint, "betas");
  const Tensor mean = torch::stable::contiguous(t_parent_joint), directions = torch::stable::contiguous(shapedirs);
  const int64_t J = mean.size(0), K = 3 * J, S = directions.size(2);
  STD_TORCH_CHECK(betas.dim() >= 1, "betas has too few axes");
  const Rows in(betas, 1);
  check_rows(in, in.count(), S, "betas");
  Tensor offsets = new_rows(betas, 1, {J, 3});
  dispatch_float_double(betas, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(offsets);
    const T *mean_at = static_cast<const T*>(mean.const_data_ptr()),
            *directions_at = static_cast<const T*>(directions.const_data_ptr());
    for_row_blocks(in.count(), K + S, [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL(offset_rows<T>, mean_at, directions_at, static_cast<int>(K), static_cast<int>(S), in, out, scratch, begin,
                     end);
    });
  });
  return offsets;
}

Tensor joint_offsets_backward_cpu(const Tensor& grad_offsets, const Tensor& shapedirs) {
  STD_TORCH_CHECK(shapedirs.dim() == 3 && grad_offsets.dim() >= 2, "an argument has too few axes");
  check_same_dtype(grad_offsets, shapedirs, "grad_offsets");
  const Tensor directions = torch::stable::contiguous(shapedirs);
  const int64_t K = directions.size(0) * directions.size(1), S = directions.size(2);
  const Rows in(grad_offsets, 2);
  check_rows(in, in.count(), K, "grad_offsets");
  Tensor grad_betas = new_rows(grad_offsets, 2, {S});
  dispatch_float_double(grad_offsets, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(grad_betas);
    const T* directions_at = static_cast<const T*>(directions.const_data_ptr());
    for_row_blocks(in.count(), K + S, [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL(offset_rows_backward<T>, directions_at, static_cast<int>(K), static_cast<int>(S), in, out, scratch, begin,
                     end);
    });
  });
  return grad_betas;
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def(
      "forward_kinematics_fwd(Tensor rotations, Tensor t_parent_joint, Tensor? root, Tensor? t_head_cpf, int[] parents,"
      " int head, int representation, int output) -> (Tensor, Tensor, Tensor)");
  m.def(
      "forward_kinematics_bwd(Tensor? grad_joints, Tensor? grad_world, Tensor? grad_root, Tensor rotations,"
      " Tensor t_parent_joint, Tensor? root, Tensor? t_head_cpf, int[] parents, int head, int representation, int output,"
      " bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("joint_offsets_fwd(Tensor t_parent_joint, Tensor shapedirs, Tensor betas) -> Tensor");
  m.def("joint_offsets_bwd(Tensor grad_offsets, Tensor shapedirs) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("forward_kinematics_fwd", TORCH_BOX(&mgrpo::fk_forward_cpu));
  m.impl("forward_kinematics_bwd", TORCH_BOX(&mgrpo::fk_backward_cpu));
  m.impl("joint_offsets_fwd", TORCH_BOX(&mgrpo::joint_offsets_forward_cpu));
  m.impl("joint_offsets_bwd", TORCH_BOX(&mgrpo::joint_offsets_backward_cpu));
}
