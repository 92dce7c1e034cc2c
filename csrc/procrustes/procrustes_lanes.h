// Loops over pairs of clouds, one pair per lane; compiled once per instruction set (common/for_each_isa.h).
#include "procrustes_math.h"

namespace MGRPO_NAMESPACE {

template <class T>
struct PairScratch {  // columns of one block of lanes: number k of every lane's row at [k]
  Pack<T>*x, *y, *weights, *grad, *grad_target, *grad_weights;
};
template <class T>
MGRPO_HD PairScratch<T> pair_scratch(void* memory, int N) {
  Pack<T>* p = static_cast<Pack<T>*>(memory);
  return {p, p + 3 * N, p + 6 * N, p + 7 * N, p + 10 * N, p + 13 * N};
}

template <class T>
MGRPO_HD UnitWeights<Pack<T>> load_weights(const NoRows&, int64_t, int, int N, Pack<T>*) {
  return unit_weights<Pack<T>>(N);
}
template <class T>
MGRPO_HD GivenWeights<Pack<T>> load_weights(const Rows& rows, int64_t first, int valid, int N, Pack<T>* columns) {
  load_rows(block_rows<T>(rows, first, valid), N, columns);
  return given_weights(columns, N);
}

// Calls use(pair, first row, valid lanes) for every block of pairs in `blocks` [begin, end). The target and the weights
// are loaded and measured once for all sources that share them.
template <class T, class WeightRows, class Use>
MGRPO_HD void for_each_block(const Rows& source, const Rows& target, const WeightRows& weight_rows,
                             const PairBlocks& blocks, int N, const PairScratch<T>& scratch, int64_t begin,
                             int64_t end, const Use& use) {
  using P = Pack<T>;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t outer = block / blocks.per_outer, start = block % blocks.per_outer * PairBlocks::kRows;
    for (int64_t inner = start; inner < start + PairBlocks::kRows && inner < blocks.inner; inner += P::kLanes) {
      const int64_t left = blocks.inner - inner, first = outer * blocks.shared * blocks.inner + inner;
      const int valid = static_cast<int>(left < P::kLanes ? left : P::kLanes);
      const auto weights = load_weights<T>(weight_rows, first, valid, N, scratch.weights);
      load_rows(block_rows<T>(target, first, valid), 3 * N, scratch.y);
      const Cloud<P> y = survey(scratch.y, weights, N);
      centre(scratch.y, y, N);
      for (int64_t member = 0; member < blocks.shared; ++member) {
        const int64_t row = first + member * blocks.inner;
        load_rows(block_rows<T>(source, row, valid), 3 * N, scratch.x);
        const Cloud<P> x = survey(scratch.x, weights, N);
        centre(scratch.x, x, N);
        use(pair_of(x, CentredPoints<P>{scratch.x}, y, CentredPoints<P>{scratch.y}, weights, N), row, valid);
      }
    }
  }
}

template <class T, class WeightRows>
void align_blocks(const Rows& source, const Rows& target, const WeightRows& weights, const PairBlocks& blocks,
                  int N, bool with_scale, bool fix_det, T* aligned, T* R, T* t, T* scale, void* memory,
                  int64_t begin, int64_t end) {
  using P = Pack<T>;
  const PairScratch<T> scratch = pair_scratch<T>(memory, N);
  for_each_block<T>(
      source, target, weights, blocks, N, scratch, begin, end, [&](const auto& pair, int64_t row, int valid) {
        const Fit<P> fit = fit_similarity<P>(pair, with_scale, fix_det);
        const Vec3<P> shift = translation(pair, fit);
        align_points(pair, fit, scratch.x);
        store_rows(aligned + int64_t{3} * N * row, valid, 3 * N, scratch.x);
        store_rows(R + 9 * row, valid, 9, &fit.R.m[0][0]);
        store_rows(t + 3 * row, valid, 3, &shift.x);
        store_some(scale + row, fit.scale, valid);
      });
}

template <class T, class WeightRows>
void residual_blocks(const Rows& source, const Rows& target, const WeightRows& weights, const PairBlocks& blocks,
                     int N, bool with_scale, bool fix_det, T* residual, void* memory, int64_t begin, int64_t end) {
  using P = Pack<T>;
  for_each_block<T>(source, target, weights, blocks, N, pair_scratch<T>(memory, N), begin, end,
                    [&](const auto& pair, int64_t row, int valid) {
                      const Fit<P> fit = fit_similarity<P>(pair, with_scale, fix_det);
                      store_some(residual + row, mean_distance(pair, fit), valid);
                    });
}

template <class T>
MGRPO_HD void store_gradients(const PairScratch<T>& scratch, int N, int64_t row, int valid, T* grad_source,
                              T* grad_target, T* grad_weights) {
  if (grad_source) store_rows(grad_source + int64_t{3} * N * row, valid, 3 * N, scratch.grad);
  if (grad_target) store_rows(grad_target + int64_t{3} * N * row, valid, 3 * N, scratch.grad_target);
  if (grad_weights) store_rows(grad_weights + int64_t{N} * row, valid, N, scratch.grad_weights);
}

// Each of grad_source, grad_target and grad_weights may be null.
template <class T, class WeightRows>
void align_blocks_backward(const Rows& grad_aligned, const Rows& grad_R, const Rows& grad_t, const Rows& grad_scale,
                           const Rows& source, const Rows& target, const WeightRows& weights, const PairBlocks& blocks,
                           int N, bool with_scale, bool fix_det, T* grad_source, T* grad_target, T* grad_weights,
                           void* memory, int64_t begin, int64_t end) {
  using P = Pack<T>;
  const PairScratch<T> scratch = pair_scratch<T>(memory, N);
  for_each_block<T>(
      source, target, weights, blocks, N, scratch, begin, end, [&](const auto& pair, int64_t row, int valid) {
        Mat3<P> to_R;
        Vec3<P> to_t;
        P to_scale;
        load_rows(block_rows<T>(grad_aligned, row, valid), 3 * N, scratch.grad);
        load_rows(block_rows<T>(grad_R, row, valid), 9, &to_R.m[0][0]);
        load_rows(block_rows<T>(grad_t, row, valid), 3, &to_t.x);
        load_rows(block_rows<T>(grad_scale, row, valid), 1, &to_scale);
        align_gradient<P>(pair, with_scale, fix_det, scratch.grad, to_R, to_t, to_scale,
                          grad_source ? scratch.grad : nullptr, grad_target ? scratch.grad_target : nullptr,
                          grad_weights ? scratch.grad_weights : nullptr);
        store_gradients(scratch, N, row, valid, grad_source, grad_target, grad_weights);
      });
}

template <class T, class WeightRows>
void residual_blocks_backward(const Rows& grad_residual, const Rows& source, const Rows& target,
                              const WeightRows& weights, const PairBlocks& blocks, int N, bool with_scale,
                              bool fix_det, T* grad_source, T* grad_target, T* grad_weights, void* memory,
                              int64_t begin, int64_t end) {
  using P = Pack<T>;
  const PairScratch<T> scratch = pair_scratch<T>(memory, N);
  for_each_block<T>(
      source, target, weights, blocks, N, scratch, begin, end, [&](const auto& pair, int64_t row, int valid) {
        P to_residual;
        load_rows(block_rows<T>(grad_residual, row, valid), 1, &to_residual);
        residual_gradient<P>(pair, with_scale, fix_det, to_residual, grad_source ? scratch.grad : nullptr,
                             grad_target ? scratch.grad_target : nullptr,
                             grad_weights ? scratch.grad_weights : nullptr);
        store_gradients(scratch, N, row, valid, grad_source, grad_target, grad_weights);
      });
}

}  // namespace MGRPO_NAMESPACE
