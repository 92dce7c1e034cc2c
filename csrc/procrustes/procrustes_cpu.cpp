// mgrpo_native::procrustes_align_* and procrustes_residual_* on the CPU.
#include <tuple>

#include "../common/scratch.h"
#include "procrustes_op.h"

namespace mgrpo {

struct NoRows {};  // in the place of the rows of weights that were not given

// The batch as (outer, shared, inner): row (o * shared + s) * inner + i has the same target and weights for every s.
// A block is up to kRows neighbouring rows of one outer index, with all their shared ones.
struct PairBlocks {
  static constexpr int64_t kRows = 16;
  int64_t outer, shared, inner, per_outer;
};

}  // namespace mgrpo

#define MGRPO_ISA_BODY "../procrustes/procrustes_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kPointsPerTask = 4096;
constexpr int64_t kNumbersPerPoint = 14;  // of scratch, see PairScratch

// Batch axes along which the target (and the weights) do not move are shared: the first such run of axes.
PairBlocks blocks_of(const Tensor& source, const Tensor& target, const std::optional<Tensor>& weights) {
  const int64_t axes = source.dim() - 2;
  PairBlocks blocks = {1, 1, 1, 0};
  int state = 0;  // before, in and after the run
  for (int64_t axis = 0; axis < axes; ++axis) {
    const int64_t size = source.size(axis);
    if (size == 1) continue;
    const bool still = target.stride(axis) == 0 && (!weights.has_value() || weights->stride(axis) == 0);
    if (state == 0 && still) state = 1;
    if (state == 1 && !still) state = 2;
    (state == 0 ? blocks.outer : state == 1 ? blocks.shared : blocks.inner) *= size;
  }
  blocks.per_outer = (blocks.inner + PairBlocks::kRows - 1) / PairBlocks::kRows;
  // A run of few inner rows would leave most lanes empty: then every row loads its own target.
  if (5 * blocks.inner < 4 * PairBlocks::kRows * blocks.per_outer) {
    blocks = {1, 1, blocks.outer * blocks.shared * blocks.inner, 0};
    blocks.per_outer = (blocks.inner + PairBlocks::kRows - 1) / PairBlocks::kRows;
  }
  return blocks;
}

// Calls work(rows of weights or NoRows, scratch memory, first block, last block) on as many threads as pay.
template <class Work>
void run(const CloudRows& clouds, const PairBlocks& blocks, const Work& work) {
  const int64_t count = clouds.count() == 0 ? 0 : blocks.outer * blocks.per_outer;
  const int64_t grain = kPointsPerTask / (PairBlocks::kRows * blocks.shared * clouds.N + 1) + 1;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(Scratch::kRegisterBytes * kNumbersPerPoint * clouds.N);
    if (clouds.weights) {
      work(*clouds.weights, scratch.get(), begin, end);
    } else {
      work(NoRows{}, scratch.get(), begin, end);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> align_forward_cpu(const Tensor& source, const Tensor& target,
                                                             const std::optional<Tensor>& weights, bool with_scale,
                                                             bool fix_det) {
  const CloudRows clouds(source, target, weights);
  const PairBlocks blocks = blocks_of(source, target, weights);
  Tensor aligned = new_rows(source, 2, {clouds.N, 3}), R = new_rows(source, 2, {3, 3}), t = new_rows(source, 2, {3}),
         scale = new_rows(source, 2, {});
  dispatch_float_double(source, [&](auto zero) {
    using T = decltype(zero);
    T *out_aligned = output<T>(aligned), *out_R = output<T>(R), *out_t = output<T>(t), *out_scale = output<T>(scale);
    run(clouds, blocks, [&](const auto& rows, void* memory, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, align_blocks, clouds.source, clouds.target, rows, blocks, clouds.N, with_scale, fix_det,
                     out_aligned, out_R, out_t, out_scale, memory, begin, end);
    });
  });
  return {aligned, R, t, scale};
}

Tensor residual_forward_cpu(const Tensor& source, const Tensor& target, const std::optional<Tensor>& weights,
                            bool with_scale, bool fix_det) {
  const CloudRows clouds(source, target, weights);
  const PairBlocks blocks = blocks_of(source, target, weights);
  Tensor residual = new_rows(source, 2, {});
  dispatch_float_double(source, [&](auto zero) {
    using T = decltype(zero);
    T* out = output<T>(residual);
    run(clouds, blocks, [&](const auto& rows, void* memory, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, residual_blocks, clouds.source, clouds.target, rows, blocks, clouds.N, with_scale,
                     fix_det, out, memory, begin, end);
    });
  });
  return residual;
}

std::tuple<Tensor, Tensor, Tensor> align_backward_cpu(const Tensor& grad_aligned, const Tensor& grad_R,
                                                      const Tensor& grad_t, const Tensor& grad_scale,
                                                      const Tensor& source, const Tensor& target,
                                                      const std::optional<Tensor>& weights, bool with_scale,
                                                      bool fix_det, bool need_source, bool need_target,
                                                      bool need_weights) {
  const CloudRows clouds(source, target, weights);
  const PairBlocks blocks = blocks_of(source, target, weights);
  const Rows to_aligned = clouds.incoming(grad_aligned, 2, 3 * clouds.N), to_R = clouds.incoming(grad_R, 2, 9),
             to_t = clouds.incoming(grad_t, 1, 3), to_scale = clouds.incoming(grad_scale, 0, 1);
  CloudGradients grads(clouds, need_source, need_target, need_weights);
  dispatch_float_double(source, [&](auto zero) {
    using T = decltype(zero);
    const std::array<T*, 3> out = grads.pointers<T>();
    run(clouds, blocks, [&](const auto& rows, void* memory, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, align_blocks_backward, to_aligned, to_R, to_t, to_scale, clouds.source, clouds.target, rows,
                     blocks, clouds.N, with_scale, fix_det, out[0], out[1], out[2], memory, begin, end);
    });
  });
  return {grads.source, grads.target, grads.weights};
}

std::tuple<Tensor, Tensor, Tensor> residual_backward_cpu(const Tensor& grad_residual, const Tensor& source,
                                                         const Tensor& target, const std::optional<Tensor>& weights,
                                                         bool with_scale, bool fix_det, bool need_source,
                                                         bool need_target, bool need_weights) {
  const CloudRows clouds(source, target, weights);
  const PairBlocks blocks = blocks_of(source, target, weights);
  const Rows to_residual = clouds.incoming(grad_residual, 0, 1);
  CloudGradients grads(clouds, need_source, need_target, need_weights);
  dispatch_float_double(source, [&](auto zero) {
    using T = decltype(zero);
    const std::array<T*, 3> out = grads.pointers<T>();
    run(clouds, blocks, [&](const auto& rows, void* memory, int64_t begin, int64_t end) {
      MGRPO_ISA_CALL_OF(T, residual_blocks_backward, to_residual, clouds.source, clouds.target, rows, blocks,
                     clouds.N, with_scale, fix_det, out[0], out[1], out[2], memory, begin, end);
    });
  });
  return {grads.source, grads.target, grads.weights};
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("procrustes_align_fwd" MGRPO_PROCRUSTES_ALIGN_FWD);
  m.def("procrustes_align_bwd" MGRPO_PROCRUSTES_ALIGN_BWD);
  m.def("procrustes_residual_fwd" MGRPO_PROCRUSTES_RESIDUAL_FWD);
  m.def("procrustes_residual_bwd" MGRPO_PROCRUSTES_RESIDUAL_BWD);
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("procrustes_align_fwd", TORCH_BOX(&mgrpo::align_forward_cpu));
  m.impl("procrustes_align_bwd", TORCH_BOX(&mgrpo::align_backward_cpu));
  m.impl("procrustes_residual_fwd", TORCH_BOX(&mgrpo::residual_forward_cpu));
  m.impl("procrustes_residual_bwd", TORCH_BOX(&mgrpo::residual_backward_cpu));
}
