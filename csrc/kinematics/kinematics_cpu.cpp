// mgrpo_native::forward_kinematics_fwd, _bwd and joint_offsets_fwd, _bwd on the CPU.
#include <tuple>

#include "../common/scratch.h"
#include "kinematics_rows.h"

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
  bool past_caches;
};
struct PoseGradients {  // null where nothing depends on that result
  const Rows *joints, *world, *root;
};
template <class T>
struct PoseResultGradients {  // null where nobody asks
  T *rotations, *offsets, *root, *t_head_cpf;
  bool past_caches;
};

}  // namespace mgrpo

#define MGRPO_ISA_BODY "../kinematics/kinematics_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kBlock = 16;  // poses side by side, at most: threads share whole blocks
constexpr int64_t kBlocksPerTask = 8;

// Calls f(scratch, begin, end) for parts of `count` rows, on several threads.
template <class F>
void for_row_blocks(int64_t count, int64_t registers, F&& f) {
  torch::stable::parallel_for(0, (count + kBlock - 1) / kBlock, kBlocksPerTask, [&](int64_t begin, int64_t end) {
    const Scratch scratch(registers * Scratch::kRegisterBytes);
    f(scratch.get(), begin * kBlock, end * kBlock < count ? end * kBlock : count);
  });
}

const Rows* pointer(const std::optional<Rows>& rows) { return rows ? &*rows : nullptr; }

PoseRows loop_inputs(const Poses& poses) {
  return {poses.rotations,      poses.offsets, pointer(poses.root),  pointer(poses.t_head_cpf), poses.parents.data(),
          static_cast<int>(poses.J), poses.head, poses.representation, poses.output};
}

// Registers for the tables of the loops: inputs, states, offsets, positions or forces, results or gradients, and those
// that a block is stored by way of.
int64_t registers_of(const Poses& poses) { return poses.J * (9 + 9 + 3 + 3 + 9 + 9); }

std::tuple<Tensor, Tensor, Tensor> fk_forward_cpu(const Tensor& rotations, const Tensor& t_parent_joint, OptionalTensor root,
                                                  OptionalTensor t_head_cpf, Sizes parents, int64_t head,
                                                  int64_t representation, int64_t output_form) {
  const Poses poses(rotations, t_parent_joint, root, t_head_cpf, parents, head, representation, output_form, check_same_dtype);
  PoseResultTensors results(poses, rotations);
  dispatch_float_double(rotations, [&](auto zero) {
    using T = decltype(zero);
    const PoseRows in = loop_inputs(poses);
    const PoseResults<T> out = {output<T>(results.joints), output<T>(results.world), output<T>(results.root),
                                is_large(poses.count() * poses.J * numbers_in(poses.representation))};
    for_row_blocks(poses.count(), registers_of(poses), [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, pose_rows, in, out, scratch, begin, end);
    });
  });
  return {results.joints, results.world, results.root};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fk_backward_cpu(OptionalTensor grad_joints, OptionalTensor grad_world,
                                                           OptionalTensor grad_root, const Tensor& rotations,
                                                           const Tensor& t_parent_joint, OptionalTensor root,
                                                           OptionalTensor t_head_cpf, Sizes parents, int64_t head,
                                                           int64_t representation, int64_t output_form,
                                                           std::vector<bool> wanted) {
  const Poses poses(rotations, t_parent_joint, root, t_head_cpf, parents, head, representation, output_form, check_same_dtype);
  const GivenGradients given(poses, rotations, grad_joints, grad_world, grad_root, check_same_dtype);
  WantedGradients grads(poses, rotations, wanted);
  dispatch_float_double(rotations, [&](auto zero) {
    using T = decltype(zero);
    const PoseRows in = loop_inputs(poses);
    const PoseGradients from = {pointer(given.joints), pointer(given.world), pointer(given.root)};
    const PoseResultGradients<T> out = {
        output_or_null<T>(grads.rotations, grads.wants_rotations), output_or_null<T>(grads.offsets, grads.wants_offsets),
        output_or_null<T>(grads.root, grads.wants_root), output_or_null<T>(grads.t_head_cpf, grads.wants_t_head_cpf),
        is_large(poses.count() * poses.J * numbers_in(poses.representation))};
    for_row_blocks(poses.count(), registers_of(poses), [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, pose_rows_backward, in, from, out, scratch, begin, end);
    });
  });
  return {grads.rotations, grads.offsets, grads.root, grads.t_head_cpf};
}

Tensor joint_offsets_forward_cpu(const Tensor& t_parent_joint, const Tensor& shapedirs, const Tensor& betas) {
  const ShapeSpace space(shapedirs);
  space.check_mean(t_parent_joint);
  check_same_dtype(shapedirs, betas, "t_parent_joint_shapedirs");
  check_same_dtype(t_parent_joint, betas, "t_parent_joint");
  STD_TORCH_CHECK(betas.dim() >= 1, "betas has too few axes");
  const Rows in(betas, 1);
  check_rows(in, in.count(), space.S, "betas");
  const Tensor mean = torch::stable::contiguous(t_parent_joint);
  Tensor offsets = new_rows(betas, 1, {space.J, 3});
  const int K = static_cast<int>(3 * space.J), S = static_cast<int>(space.S);
  dispatch_float_double(betas, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(offsets);
    for_row_blocks(in.count(), K + S, [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, offset_rows, input<T>(mean), input<T>(space.directions), K, S, in, out, scratch, begin, end);
    });
  });
  return offsets;
}

Tensor joint_offsets_backward_cpu(const Tensor& grad_offsets, const Tensor& shapedirs) {
  const ShapeSpace space(shapedirs);
  check_same_dtype(shapedirs, grad_offsets, "t_parent_joint_shapedirs");
  STD_TORCH_CHECK(grad_offsets.dim() >= 2, "grad_offsets has too few axes");
  const Rows in(grad_offsets, 2);
  check_rows(in, in.count(), 3 * space.J, "grad_offsets");
  Tensor grad_betas = new_rows(grad_offsets, 2, {space.S});
  const int K = static_cast<int>(3 * space.J), S = static_cast<int>(space.S);
  dispatch_float_double(grad_offsets, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(grad_betas);
    for_row_blocks(in.count(), K + S, [&](unsigned char* scratch, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, offset_rows_backward, input<T>(space.directions), K, S, in, out, scratch, begin, end);
    });
  });
  return grad_betas;
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("forward_kinematics_fwd" MGRPO_FK_FORWARD_SCHEMA);
  m.def("forward_kinematics_bwd" MGRPO_FK_BACKWARD_SCHEMA);
  m.def("joint_offsets_fwd" MGRPO_JOINT_OFFSETS_FORWARD_SCHEMA);
  m.def("joint_offsets_bwd" MGRPO_JOINT_OFFSETS_BACKWARD_SCHEMA);
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("forward_kinematics_fwd", TORCH_BOX(&mgrpo::fk_forward_cpu));
  m.impl("forward_kinematics_bwd", TORCH_BOX(&mgrpo::fk_backward_cpu));
  m.impl("joint_offsets_fwd", TORCH_BOX(&mgrpo::joint_offsets_forward_cpu));
  m.impl("joint_offsets_bwd", TORCH_BOX(&mgrpo::joint_offsets_backward_cpu));
}
