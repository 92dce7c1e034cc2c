// Similarity alignment of one pair of clouds and its gradient. Torch-free; derivation: kernels/procrustes/README.md.
#pragma once

#include <cfloat>
#include <cstdint>

#include "../common/polar.h"

namespace mgrpo {

template <class T>
struct Rounding;
template <>
struct Rounding<float> {
  static constexpr float kEpsilon = FLT_EPSILON;
};
template <>
struct Rounding<double> {
  static constexpr double kEpsilon = DBL_EPSILON;
};

template <class T>
struct Fit {
  Vec3<T> x_mean, y_mean;
  T share;          // 1 / sum of weights, 0 without weight
  T spread;         // sum of w |x - x_mean|^2
  bool one_point;   // the source is a single point, to rounding
  Mat3<T> product;  // sum of w (y - y_mean)(x - x_mean)^T, zero for one point
  Mat3<T> R;
  T scale;
};

// source, target: (N, 3); weights: (N).
template <class T>
MGRPO_HD Fit<T> fit_similarity(const T* source, const T* target, const T* weights, int64_t N, bool with_scale) {
  Fit<T> fit;
  T total = 0;
  Vec3<T> x_sum = {0, 0, 0}, y_sum = {0, 0, 0};
  for (int64_t i = 0; i < N; ++i) {
    total += weights[i];
    x_sum = x_sum + weights[i] * load_vec3(source + 3 * i);
    y_sum = y_sum + weights[i] * load_vec3(target + 3 * i);
  }
  fit.share = total > 0 ? 1 / total : T(0);
  fit.x_mean = fit.share * x_sum;
  fit.y_mean = fit.share * y_sum;
  fit.spread = 0;
  fit.product = zero3<T>();
  T moment = 0;
  for (int64_t i = 0; i < N; ++i) {
    const Vec3<T> point = load_vec3(source + 3 * i), x = point - fit.x_mean;
    const Vec3<T> y = load_vec3(target + 3 * i) - fit.y_mean;
    moment += weights[i] * dot(point, point);
    fit.spread += weights[i] * dot(x, x);
    fit.product = fit.product + outer(weights[i] * y, x);
  }
  constexpr T kRounding = 4 * Rounding<T>::kEpsilon;
  fit.one_point = fit.spread <= kRounding * kRounding * moment;
  if (fit.one_point) fit.product = zero3<T>();
  fit.R = nearest_rotation(fit.product, true);
  fit.scale = with_scale && !fit.one_point ? inner(fit.R, fit.product) / fit.spread : T(1);
  return fit;
}

// Gradients of one pair. grad_aligned (N, 3), grad_R (3, 3), grad_t (3) and grad_scale are those of the results.
template <class T>
MGRPO_HD void fit_similarity_backward(const T* source, const T* target, const T* weights, int64_t N, bool with_scale,
                                      const T* grad_aligned, const Mat3<T>& grad_R, Vec3<T> grad_t, T grad_scale,
                                      T* grad_source, T* grad_target, T* grad_weights) {
  const Fit<T> fit = fit_similarity(source, target, weights, N, with_scale);
  const Mat3<T> B = fit.scale * fit.R;  // aligned_i = B (x_i - x_mean) + y_mean, t = y_mean - B x_mean
  Mat3<T> grad_B = T(-1) * outer(grad_t, fit.x_mean);
  Vec3<T> grad_y_mean = grad_t, grad_x_mean = T(-1) * transposed_times(B, grad_t);
  for (int64_t i = 0; i < N; ++i) {
    const Vec3<T> g = load_vec3(grad_aligned + 3 * i);
    grad_B = grad_B + outer(g, load_vec3(source + 3 * i) - fit.x_mean);
    grad_y_mean = grad_y_mean + g;
  }

  Mat3<T> grad_product = zero3<T>();
  T grad_spread = 0;
  if (!fit.one_point) {
    grad_product = polar_gradient(grad_R + fit.scale * grad_B, fit.product, fit.R, true);
    if (with_scale) {  // scale = <R, product> / spread; its path through R vanishes because R maximises <R, product>
      const T grad = (grad_scale + inner(grad_B, fit.R)) / fit.spread;
      grad_product = grad_product + grad * fit.R;
      grad_spread = -grad * fit.scale;
    }
  }

  Vec3<T> x_sum = {0, 0, 0}, y_sum = {0, 0, 0};
  for (int64_t i = 0; i < N; ++i) {
    const Vec3<T> x = load_vec3(source + 3 * i) - fit.x_mean, y = load_vec3(target + 3 * i) - fit.y_mean;
    const Vec3<T> from_y = transposed_times(grad_product, y), from_x = grad_product * x;
    const T w = weights[i];
    const Vec3<T> grad_x = transposed_times(B, load_vec3(grad_aligned + 3 * i)) + w * (from_y + (2 * grad_spread) * x);
    const Vec3<T> grad_y = w * from_x;
    x_sum = x_sum + grad_x;
    y_sum = y_sum + grad_y;
    store_vec3(grad_source + 3 * i, grad_x);
    store_vec3(grad_target + 3 * i, grad_y);
    grad_weights[i] = dot(y, from_x) + grad_spread * dot(x, x);
  }
  // Through the means, of which every point has the share w / sum(w).
  grad_x_mean = fit.share * (grad_x_mean - x_sum);
  grad_y_mean = fit.share * (grad_y_mean - y_sum);
  for (int64_t i = 0; i < N; ++i) {
    const Vec3<T> x = load_vec3(source + 3 * i) - fit.x_mean, y = load_vec3(target + 3 * i) - fit.y_mean;
    store_vec3(grad_source + 3 * i, load_vec3(grad_source + 3 * i) + weights[i] * grad_x_mean);
    store_vec3(grad_target + 3 * i, load_vec3(grad_target + 3 * i) + weights[i] * grad_y_mean);
    grad_weights[i] += dot(grad_x_mean, x) + dot(grad_y_mean, y);
  }
}

}  // namespace mgrpo
