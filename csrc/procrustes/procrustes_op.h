// What the operators on the CPU and on a GPU share: the arguments as rows, checked as far as memory safety needs it, and
// the tensors of gradients.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "../common/rows.h"

namespace mgrpo {

constexpr int64_t kMostPoints = int64_t{1} << 28;  // of a cloud: its coordinates are numbered by int

struct CloudRows {
  CloudRows(const Tensor& source_tensor, const Tensor& target_tensor, const std::optional<Tensor>& weights_tensor)
      : like(checked(source_tensor, 2)), source(source_tensor, 2), target(checked(target_tensor, 2), 2) {
    const int64_t points = like.size(like.dim() - 2);
    STD_TORCH_CHECK(points < kMostPoints, "a cloud has too many points");
    N = static_cast<int>(points);
    STD_TORCH_CHECK(target_tensor.dim() == like.dim(), "target has another number of axes than source");
    check_rows(source, source.count(), 3 * points, "source");
    check_rows(target, source.count(), 3 * points, "target");
    check_same_dtype(target_tensor, like, "target");
    if (weights_tensor.has_value()) {
      STD_TORCH_CHECK(weights_tensor->dim() == like.dim() - 1, "weights has the wrong number of axes");
      weights.emplace(*weights_tensor, 1);
      check_rows(*weights, source.count(), points, "weights");
      check_same_dtype(*weights_tensor, like, "weights");
    }
  }

  int64_t count() const { return source.count(); }

  // Rows of a gradient that arrives for this batch, `size` numbers each in `axes` axes.
  Rows incoming(const Tensor& gradient, int64_t axes, int64_t size) const {
    Rows rows(checked(gradient, axes), axes);
    check_rows(rows, count(), size, "a gradient");
    check_same_dtype(gradient, like, "a gradient");
    return rows;
  }

  const Tensor& like;  // the source
  Rows source, target;
  std::optional<Rows> weights;
  int N = 0;

 private:
  static const Tensor& checked(const Tensor& tensor, int64_t axes) {
    STD_TORCH_CHECK(tensor.dim() >= axes, "an argument has too few axes");
    return tensor;
  }
};

// Gradients of source, target and weights; an empty tensor and a null pointer for one that is not needed.
struct CloudGradients {
  CloudGradients(const CloudRows& clouds, bool need_source, bool need_target, bool need_weights)
      : source(make(clouds, need_source, {clouds.N, 3})),
        target(make(clouds, need_target, {clouds.N, 3})),
        weights(make(clouds, need_weights, {clouds.N})),
        needs{need_source, need_target, need_weights} {}

  template <class T>
  std::array<T*, 3> pointers() {
    return {needs[0] ? output<T>(source) : nullptr, needs[1] ? output<T>(target) : nullptr,
            needs[2] ? output<T>(weights) : nullptr};
  }

  Tensor source, target, weights;
  std::array<bool, 3> needs;

 private:
  static Tensor make(const CloudRows& clouds, bool needed, const std::vector<int64_t>& tail) {
    if (!needed) return torch::stable::new_empty(clouds.like, {0});
    return new_rows(clouds.like, 2, tail);
  }
};

// The schemas, which both kinds of operators register.
#define MGRPO_PROCRUSTES_INPUTS "Tensor source, Tensor target, Tensor? weights, bool with_scale, bool fix_det"
#define MGRPO_PROCRUSTES_NEEDS "bool need_source, bool need_target, bool need_weights"
#define MGRPO_PROCRUSTES_ALIGN_FWD "(" MGRPO_PROCRUSTES_INPUTS ") -> (Tensor, Tensor, Tensor, Tensor)"
#define MGRPO_PROCRUSTES_ALIGN_BWD                                                                           \
  "(Tensor grad_aligned, Tensor grad_R, Tensor grad_t, Tensor grad_scale, " MGRPO_PROCRUSTES_INPUTS          \
  ", " MGRPO_PROCRUSTES_NEEDS ") -> (Tensor, Tensor, Tensor)"
#define MGRPO_PROCRUSTES_RESIDUAL_FWD "(" MGRPO_PROCRUSTES_INPUTS ") -> Tensor"
#define MGRPO_PROCRUSTES_RESIDUAL_BWD \
  "(Tensor grad_residual, " MGRPO_PROCRUSTES_INPUTS ", " MGRPO_PROCRUSTES_NEEDS ") -> (Tensor, Tensor, Tensor)"

}  // namespace mgrpo
