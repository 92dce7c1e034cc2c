// mgrpo_native::procrustes_align_fwd and _bwd on the CPU: one pair of clouds per step of a parallel loop.
#include <tuple>

#include "../common/rows.h"
#include "procrustes_math.h"

namespace mgrpo {
namespace {

constexpr int64_t kCloudsPerTask = 128;

void check_clouds(const Rows& source, const Rows& target, const Rows& weights, int64_t N) {
  check_rows(source, source.count(), 3 * N, "source");
  check_rows(target, source.count(), 3 * N, "target");
  check_rows(weights, source.count(), N, "weights");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> align_forward_cpu(const Tensor& source, const Tensor& target,
                                                             const Tensor& weights, bool with_scale) {
  STD_TORCH_CHECK(source.dim() >= 2 && target.dim() >= 2 && weights.dim() >= 1, "an argument has too few axes");
  const Rows x(source, 2), y(target, 2), w(weights, 1);
  const int64_t N = source.size(source.dim() - 2);
  check_clouds(x, y, w, N);
  check_same_dtype(target, source, "target");
  check_same_dtype(weights, source, "weights");
  Tensor aligned = new_rows(source, 2, {N, 3}), R = new_rows(source, 2, {3, 3}), t = new_rows(source, 2, {3}),
         scale = new_rows(source, 2, {});
  dispatch_float_double(source, [&](auto zero) {
    using T = decltype(zero);
    T *out_aligned = output<T>(aligned), *out_R = output<T>(R), *out_t = output<T>(t), *out_scale = output<T>(scale);
    torch::stable::parallel_for(0, x.count(), kCloudsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* points = x.at<T>(n);
        const Fit<T> fit = fit_similarity(points, y.at<T>(n), w.at<T>(n), N, with_scale);
        const Mat3<T> B = fit.scale * fit.R;
        for (int64_t i = 0; i < N; ++i)
          store_vec3(out_aligned + 3 * (N * n + i), B * (load_vec3(points + 3 * i) - fit.x_mean) + fit.y_mean);
        store_mat3(out_R + 9 * n, fit.R);
        store_vec3(out_t + 3 * n, fit.y_mean - B * fit.x_mean);
        out_scale[n] = fit.scale;
      }
    });
  });
  return {aligned, R, t, scale};
}

std::tuple<Tensor, Tensor, Tensor> align_backward_cpu(const Tensor& grad_aligned, const Tensor& grad_R,
                                                      const Tensor& grad_t, const Tensor& grad_scale,
                                                      const Tensor& source, const Tensor& target, const Tensor& weights,
                                                      bool with_scale) {
  STD_TORCH_CHECK(source.dim() >= 2 && target.dim() >= 2 && weights.dim() >= 1 && grad_aligned.dim() >= 2 &&
                      grad_R.dim() >= 2 && grad_t.dim() >= 1,
                  "an argument has too few axes");
  const Rows x(source, 2), y(target, 2), w(weights, 1), g_aligned(grad_aligned, 2), g_R(grad_R, 2), g_t(grad_t, 1),
      g_scale(grad_scale, 0);
  const int64_t N = source.size(source.dim() - 2);
  check_clouds(x, y, w, N);
  check_rows(g_aligned, x.count(), 3 * N, "grad_aligned");
  check_rows(g_R, x.count(), 9, "grad_R");
  check_rows(g_t, x.count(), 3, "grad_t");
  check_rows(g_scale, x.count(), 1, "grad_scale");
  for (const Tensor* other : {&target, &weights, &grad_aligned, &grad_R, &grad_t, &grad_scale})
    check_same_dtype(*other, source, "an argument");
  Tensor grad_source = new_rows(source, 2, {N, 3}), grad_target = new_rows(source, 2, {N, 3}),
         grad_weights = new_rows(source, 2, {N});
  dispatch_float_double(source, [&](auto zero) {
    using T = decltype(zero);
    T *out_source = output<T>(grad_source), *out_target = output<T>(grad_target), *out_weights = output<T>(grad_weights);
    torch::stable::parallel_for(0, x.count(), kCloudsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        fit_similarity_backward(x.at<T>(n), y.at<T>(n), w.at<T>(n), N, with_scale, g_aligned.at<T>(n),
                                load_mat3(g_R.at<T>(n)), load_vec3(g_t.at<T>(n)), *g_scale.at<T>(n),
                                out_source + 3 * N * n, out_target + 3 * N * n, out_weights + N * n);
    });
  });
  return {grad_source, grad_target, grad_weights};
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def(
      "procrustes_align_fwd(Tensor source, Tensor target, Tensor weights, bool with_scale)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "procrustes_align_bwd(Tensor grad_aligned, Tensor grad_R, Tensor grad_t, Tensor grad_scale, Tensor source,"
      " Tensor target, Tensor weights, bool with_scale) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("procrustes_align_fwd", TORCH_BOX(&mgrpo::align_forward_cpu));
  m.impl("procrustes_align_bwd", TORCH_BOX(&mgrpo::align_backward_cpu));
}
