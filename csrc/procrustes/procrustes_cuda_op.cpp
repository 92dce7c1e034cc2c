// procrustes_align_* and procrustes_residual_* on a GPU.
#include <tuple>

#include "../common/cuda_op.h"
#include "procrustes_cuda.h"
#include "procrustes_op.h"

namespace mgrpo {
namespace {

// The arguments that all four operators share, on the device.
struct CudaClouds : CloudRows {
  CudaClouds(const Tensor& source, const Tensor& target, const std::optional<Tensor>& weights, bool with_scale,
             bool fix_det)
      : CloudRows(source, target, weights), with_scale(with_scale), fix_det(fix_det) {
    check_same_device(target, source, "target");
    if (weights.has_value()) check_same_device(*weights, source, "weights");
  }

  Rows incoming(const Tensor& gradient, int64_t axes, int64_t size) const {
    check_same_device(gradient, like, "a gradient");
    return CloudRows::incoming(gradient, axes, size);
  }

  template <class T>
  CloudViews<T> views() const {
    return {source.view<T>(), target.view<T>(), weights ? weights->view<T>() : RowView<T>{nullptr, RowLayout()}, N,
            with_scale, fix_det};
  }

  bool with_scale, fix_det;
};

template <class T>
CloudGrads<T> pointers(CloudGradients& grads) {
  const std::array<T*, 3> p = grads.pointers<T>();
  return {p[0], p[1], p[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> align_forward_cuda(const Tensor& source, const Tensor& target,
                                                              const std::optional<Tensor>& weights, bool with_scale,
                                                              bool fix_det) {
  const CudaCall call(source);
  const CudaClouds clouds(source, target, weights, with_scale, fix_det);
  Tensor aligned = new_rows(source, 2, {clouds.N, 3}), R = new_rows(source, 2, {3, 3}), t = new_rows(source, 2, {3}),
         scale = new_rows(source, 2, {});
  if (clouds.count() > 0)
    dispatch_float_double(source, [&](auto zero) {
      using T = decltype(zero);
      const AlignmentOut<T> out = {output<T>(aligned), output<T>(R), output<T>(t), output<T>(scale)};
      check_launch(launch_procrustes_align(clouds.views<T>(), out, call.stream()));
    });
  return {aligned, R, t, scale};
}

Tensor residual_forward_cuda(const Tensor& source, const Tensor& target, const std::optional<Tensor>& weights,
                             bool with_scale, bool fix_det) {
  const CudaCall call(source);
  const CudaClouds clouds(source, target, weights, with_scale, fix_det);
  Tensor residual = new_rows(source, 2, {});
  if (clouds.count() > 0)
    dispatch_float_double(source, [&](auto zero) {
      using T = decltype(zero);
      check_launch(launch_procrustes_residual(clouds.views<T>(), output<T>(residual), call.stream()));
    });
  return residual;
}

std::tuple<Tensor, Tensor, Tensor> align_backward_cuda(const Tensor& grad_aligned, const Tensor& grad_R,
                                                       const Tensor& grad_t, const Tensor& grad_scale,
                                                       const Tensor& source, const Tensor& target,
                                                       const std::optional<Tensor>& weights, bool with_scale,
                                                       bool fix_det, bool need_source, bool need_target,
                                                       bool need_weights) {
  const CudaCall call(source);
  const CudaClouds clouds(source, target, weights, with_scale, fix_det);
  const Rows to_aligned = clouds.incoming(grad_aligned, 2, int64_t{3} * clouds.N),
             to_R = clouds.incoming(grad_R, 2, 9), to_t = clouds.incoming(grad_t, 1, 3),
             to_scale = clouds.incoming(grad_scale, 0, 1);
  CloudGradients grads(clouds, need_source, need_target, need_weights);
  if (clouds.count() > 0)
    dispatch_float_double(source, [&](auto zero) {
      using T = decltype(zero);
      const AlignmentGrads<T> given = {to_aligned.view<T>(), to_R.view<T>(), to_t.view<T>(), to_scale.view<T>()};
      check_launch(
          launch_procrustes_align_backward(given, clouds.views<T>(), pointers<T>(grads), call.stream()));
    });
  return {grads.source, grads.target, grads.weights};
}

std::tuple<Tensor, Tensor, Tensor> residual_backward_cuda(const Tensor& grad_residual, const Tensor& source,
                                                          const Tensor& target, const std::optional<Tensor>& weights,
                                                          bool with_scale, bool fix_det, bool need_source,
                                                          bool need_target, bool need_weights) {
  const CudaCall call(source);
  const CudaClouds clouds(source, target, weights, with_scale, fix_det);
  const Rows to_residual = clouds.incoming(grad_residual, 0, 1);
  CloudGradients grads(clouds, need_source, need_target, need_weights);
  if (clouds.count() > 0)
    dispatch_float_double(source, [&](auto zero) {
      using T = decltype(zero);
      check_launch(launch_procrustes_residual_backward(
          to_residual.view<T>(), clouds.views<T>(), pointers<T>(grads), call.stream()));
    });
  return {grads.source, grads.target, grads.weights};
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("procrustes_align_fwd", MGRPO_PROCRUSTES_ALIGN_FWD, mgrpo::align_forward_cuda);
MGRPO_CUDA_OPERATOR("procrustes_align_bwd", MGRPO_PROCRUSTES_ALIGN_BWD, mgrpo::align_backward_cuda);
MGRPO_CUDA_OPERATOR("procrustes_residual_fwd", MGRPO_PROCRUSTES_RESIDUAL_FWD, mgrpo::residual_forward_cuda);
MGRPO_CUDA_OPERATOR("procrustes_residual_bwd", MGRPO_PROCRUSTES_RESIDUAL_BWD, mgrpo::residual_backward_cuda);
