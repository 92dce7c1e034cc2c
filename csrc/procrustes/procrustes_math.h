// Alignment of one cloud with another by a similarity, what remains after it, and the gradients of both. Derivation:
// kernels/procrustes/README.md.
//
// Generic in the number type T: one pair of clouds per thread, or one per lane of a Pack. A cloud of N points lies at
// p[3 * i + axis]; it is used as anchor + size * (points'), so that squares neither over- nor underflow and a cloud far
// from the origin loses no digits.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_PROCRUSTES_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_PROCRUSTES_MATH_H
#include "../common/polar.h"
#endif

namespace MGRPO_NAMESPACE {

template <class Element>
struct ProcrustesLimits;  // a point of weight zero is ignored where it is farther than kFar cloud sizes, or not finite
template <>
struct ProcrustesLimits<float> {
  static constexpr float kFar = 1e12f;
};
template <>
struct ProcrustesLimits<double> {
  static constexpr double kFar = 1e100;
};

template <class T>
MGRPO_HD Vec3<T> zero_vec3() {
  return {T(0), T(0), T(0)};
}
template <class T>
MGRPO_HD T largest_coordinate(Vec3<T> a) {
  return max(abs(a.x), max(abs(a.y), abs(a.z)));
}

// ---- weights, up to a common factor, and 1 over their sum ----

template <class T>
struct UnitWeights {
  static constexpr bool kGiven = false;
  T share, inverse;
  MGRPO_HD T at(int) const { return T(1); }
};
template <class T>
MGRPO_HD UnitWeights<T> unit_weights(int N) {
  using Element = typename Number<T>::Element;
  return {T(N > 0 ? Element(1) / static_cast<Element>(N) : Element(0)), T(1)};
}

template <class T>
struct GivenWeights {
  static constexpr bool kGiven = true;
  T share, inverse;  // 1 over the sum, or 0 without any weight; 1 over the largest weight
  const T* weights;
  MGRPO_HD T at(int i) const { return inverse * weights[i]; }
};
template <class T>
MGRPO_HD GivenWeights<T> given_weights(const T* weights, int N) {
  T largest = T(Precision<typename Number<T>::Element>::kSmallestNormal), total = T(0);
  for (int i = 0; i < N; ++i) largest = max(largest, weights[i]);
  const T inverse = T(1) / largest;
  for (int i = 0; i < N; ++i) total += inverse * weights[i];
  return {select(total == T(0), T(0), T(1) / total), inverse, weights};
}

// ---- clouds ----

template <class T>
struct Cloud {
  Vec3<T> anchor;    // the first point that has weight; zero if none has
  T extent;          // largest coordinate difference from the anchor; NaN where a point that counts is not finite
  T size, inverse;   // the extent, held above the smallest normal number, or 1 where it is zero; 1 over it
  Vec3<T> mean;      // seen from the anchor, in units of the size

  MGRPO_HD Vec3<T> centred(Vec3<T> point) const { return inverse * (point - anchor) - mean; }
  MGRPO_HD Vec3<T> restored_mean() const { return anchor + size * mean; }
  MGRPO_HD Vec3<T> mean_in_sizes() const { return inverse * anchor + mean; }  // seen from the origin
};

template <class T, class Weights>
MGRPO_HD Cloud<T> survey(const T* points, const Weights& weights, int N) {
  Cloud<T> cloud;
  cloud.anchor = N > 0 && !Weights::kGiven ? load_vec3(points) : zero_vec3<T>();
  Vec3<T> sum = zero_vec3<T>();
  T extent = T(0);
  auto found = T(1) < T(0);
  for (int i = 0; i < N; ++i) {
    const Vec3<T> point = load_vec3(points + 3 * i);
    if constexpr (Weights::kGiven) {
      const T w = weights.at(i);
      const auto used = w != T(0);
      cloud.anchor = select(used & !found, point, cloud.anchor);
      found = found | used;
      const Vec3<T> offset = select(used, point - cloud.anchor, zero_vec3<T>());
      extent = max(extent, largest_coordinate(offset));
      sum = sum + w * offset;
    } else {
      const Vec3<T> offset = point - cloud.anchor;
      extent = max(extent, largest_coordinate(offset));
      sum = sum + offset;
    }
  }
  // A maximum forgets a NaN, a sum does not.
  cloud.extent = extent + T(0) * (sum.x + sum.y + sum.z);
  const T smallest = T(Precision<typename Number<T>::Element>::kSmallestNormal);
  cloud.size = select(cloud.extent == T(0), T(1), max(smallest, cloud.extent));
  cloud.inverse = T(1) / cloud.size;
  cloud.mean = weights.share * (cloud.inverse * sum);
  return cloud;
}

// The points of a cloud in its own units: computed from the given ones, or stored.
template <class T>
struct RawPoints {
  const T* points;
  Cloud<T> cloud;
  MGRPO_HD Vec3<T> at(int i) const { return cloud.centred(load_vec3(points + 3 * i)); }
};
template <class T>
struct CentredPoints {
  const T* points;
  MGRPO_HD Vec3<T> at(int i) const { return load_vec3(points + 3 * i); }
};
template <class T>
MGRPO_HD void centre(T* points, const Cloud<T>& cloud, int N) {
  for (int i = 0; i < N; ++i) store_vec3(points + 3 * i, cloud.centred(load_vec3(points + 3 * i)));
}

// Two clouds with their weights; X and Y are one of the two kinds of points above.
template <class T, class X, class Y, class Weights>
struct Pair {
  Cloud<T> source, target;
  X x;
  Y y;
  Weights weights;
  int N;
};
template <class T, class X, class Y, class Weights>
MGRPO_HD Pair<T, X, Y, Weights> pair_of(const Cloud<T>& source, X x, const Cloud<T>& target, Y y, Weights weights,
                                        int N) {
  return {source, target, x, y, weights, N};
}

template <class T, class Weights>
MGRPO_HD Pair<T, RawPoints<T>, RawPoints<T>, Weights> measured_pair(const T* source, const T* target, Weights weights,
                                                                    int N) {
  const Cloud<T> x = survey(source, weights, N), y = survey(target, weights, N);
  return pair_of(x, RawPoints<T>{source, x}, y, RawPoints<T>{target, y}, weights, N);
}

// ---- the best motion: aligned = factor * R x' + mean of the target ----

template <class T>
struct Fit {
  typename Number<T>::Condition one_point;  // the source is a single point, to rounding
  Mat3<T> product;                          // sum of w y' x'^T, zero for one point
  T spread;                                 // sum of w |x'|^2
  Mat3<T> R;
  T ratio;   // <R, product> / spread
  T factor;  // scale times the size of the source
  T scale;
};

template <class T, class P>
MGRPO_HD Fit<T> fit_similarity(const P& pair, bool with_scale, bool fix_det) {
  Fit<T> fit;
  fit.product = zero3<T>();
  fit.spread = T(0);
  for (int i = 0; i < pair.N; ++i) {
    Vec3<T> x = pair.x.at(i), y = pair.y.at(i);
    if constexpr (decltype(pair.weights)::kGiven) {
      const T w = pair.weights.at(i);
      const auto used = w != T(0);
      x = select(used, x, zero_vec3<T>());
      y = w * select(used, y, zero_vec3<T>());
      fit.spread += w * dot(x, x);
    } else {
      fit.spread += dot(x, x);
    }
    fit.product = fit.product + outer(y, x);
  }
  const T rounding = T(4 * Precision<typename Number<T>::Element>::kEpsilon) * largest_coordinate(pair.source.anchor);
  fit.one_point = (pair.source.extent <= rounding) | (fit.spread == T(0));
  fit.product = select(fit.one_point, zero3<T>(), fit.product);
  fit.R = nearest_rotation(fit.product, fix_det);
  fit.ratio = inner(fit.R, fit.product) / fit.spread;
  fit.factor = pair.source.size;
  fit.scale = T(1);
  if (with_scale) {
    fit.factor = select(fit.one_point, fit.factor, fit.ratio * pair.target.size);
    fit.scale = select(fit.one_point, fit.scale, fit.factor * pair.source.inverse);
  }
  return fit;
}

template <class T, class P>
MGRPO_HD Vec3<T> translation(const P& pair, const Fit<T>& fit) {
  return pair.target.restored_mean() - fit.scale * (fit.R * pair.source.restored_mean());
}

// Writes the aligned points; aligned may be where the source's points are.
template <class T, class P>
MGRPO_HD void align_points(const P& pair, const Fit<T>& fit, T* aligned) {
  const Mat3<T> B = fit.factor * fit.R;
  const Vec3<T> mean = pair.target.restored_mean();
  for (int i = 0; i < pair.N; ++i) store_vec3(aligned + 3 * i, B * pair.x.at(i) + mean);
}

// ---- what remains ----

// How point i misses its target, in a unit that keeps squares in range.
template <class T>
struct Misses {
  T unit, target_size;
  Mat3<T> B;
  MGRPO_HD Vec3<T> of(Vec3<T> x, Vec3<T> y) const { return B * x - target_size * y; }
};
template <class T, class P>
MGRPO_HD Misses<T> misses(const P& pair, const Fit<T>& fit) {
  const T unit = max(fit.factor, pair.target.size);
  return {unit, pair.target.size / unit, (fit.factor / unit) * fit.R};
}

template <class T, class P>
MGRPO_HD T mean_distance(const P& pair, const Fit<T>& fit) {
  const Misses<T> miss = misses(pair, fit);
  T sum = T(0);
  for (int i = 0; i < pair.N; ++i) {
    Vec3<T> x = pair.x.at(i), y = pair.y.at(i);
    if constexpr (decltype(pair.weights)::kGiven) {
      const T w = pair.weights.at(i);
      const auto used = w != T(0);
      const Vec3<T> d = miss.of(select(used, x, zero_vec3<T>()), select(used, y, zero_vec3<T>()));
      sum += w * sqrt(dot(d, d));
    } else {
      const Vec3<T> d = miss.of(x, y);
      sum += sqrt(dot(d, d));
    }
  }
  return miss.unit * (pair.weights.share * sum);
}

// ---- gradients ----

// Point i as the gradient sees it: an ignored one is at the means, with no gradient of its own.
template <class T>
struct PointOfPair {
  Vec3<T> x, y;
  T w;
  typename Number<T>::Condition ignored;
};
template <class T, class P>
MGRPO_HD PointOfPair<T> point_of(const P& pair, int i) {
  PointOfPair<T> point = {pair.x.at(i), pair.y.at(i), pair.weights.at(i), T(1) < T(0)};
  if constexpr (decltype(pair.weights)::kGiven) {
    const T far = T(ProcrustesLimits<typename Number<T>::Element>::kFar);
    const Vec3<T> x = point.x, y = point.y;
    const auto near = (abs(x.x) <= far) & (abs(x.y) <= far) & (abs(x.z) <= far) & (abs(y.x) <= far) &
                      (abs(y.y) <= far) & (abs(y.z) <= far);
    point.ignored = (point.w == T(0)) & !near;
    point.x = select(point.ignored, zero_vec3<T>(), x);
    point.y = select(point.ignored, zero_vec3<T>(), y);
  }
  return point;
}

// From the gradients of what a fit determines to those of the points, given point by point.
template <class T>
struct FitGradient {
  Mat3<T> B;                    // factor * R
  Mat3<T> product;              // dL/d product
  T spread;                     // dL/d spread
  Vec3<T> shift, turned_shift;  // dL/d (a shift of the target), B^T of it
};

// grad_B: dL/d(factor * R) without what t adds; grad_sum: sum of the aligned points' gradients.
template <class T, class P>
MGRPO_HD FitGradient<T> fit_gradient(const P& pair, const Fit<T>& fit, bool with_scale, bool fix_det, Mat3<T> grad_B,
                                     Vec3<T> grad_sum, const Mat3<T>& grad_R, Vec3<T> grad_t, T grad_scale) {
  FitGradient<T> result;
  grad_B = grad_B + T(-1) * outer(grad_t, pair.source.mean_in_sizes());
  result.B = fit.factor * fit.R;
  result.shift = grad_sum + grad_t;
  result.turned_shift = transposed_times(result.B, result.shift);
  result.product = polar_gradient(grad_R + fit.factor * grad_B, fit.product, fit.R, fix_det);
  result.spread = T(0);
  if (with_scale) {  // the path of the ratio through R vanishes, because R maximises <R, product>
    const T grad_ratio = pair.target.size * (inner(grad_B, fit.R) + pair.source.inverse * grad_scale) / fit.spread;
    result.product = result.product + grad_ratio * fit.R;
    result.spread = -(grad_ratio * fit.ratio);
  }
  result.product = select(fit.one_point, zero3<T>(), result.product);
  result.spread = select(fit.one_point, T(0), result.spread);
  return result;
}

// The gradients that point i gets through the fit and the means, from its own g = dL/d aligned_i. (The sums of w x' and
// w y' that the means would add are zero.)
template <class T, class P>
MGRPO_HD Vec3<T> grad_of_source(const P& pair, const FitGradient<T>& grad, const PointOfPair<T>& point, Vec3<T> g) {
  const Vec3<T> moved = transposed_times(grad.B, g) - (pair.weights.share * point.w) * grad.turned_shift;
  const Vec3<T> fitted = transposed_times(grad.product, point.y) + (T(2) * grad.spread) * point.x;
  return pair.source.inverse * (moved + point.w * fitted);
}
template <class T, class P>
MGRPO_HD Vec3<T> grad_of_target(const P& pair, const FitGradient<T>& grad, const PointOfPair<T>& point) {
  return (pair.target.inverse * point.w) * (grad.product * point.x) + (pair.weights.share * point.w) * grad.shift;
}
template <class T, class P>
MGRPO_HD T grad_of_weight(const P& pair, const FitGradient<T>& grad, const PointOfPair<T>& point) {
  const T fitted = dot(point.y, grad.product * point.x) + grad.spread * dot(point.x, point.x);
  const T shifted = pair.target.size * dot(grad.shift, point.y) - dot(grad.turned_shift, point.x);
  return pair.weights.inverse * (fitted + pair.weights.share * shifted);
}

// Each output may be null, or where its own input is. grad_source may also be where grad_aligned is.
template <class T, class P>
MGRPO_HD void align_gradient(const P& pair, bool with_scale, bool fix_det, const T* grad_aligned, const Mat3<T>& grad_R,
                             Vec3<T> grad_t, T grad_scale, T* grad_source, T* grad_target, T* grad_weights) {
  const Fit<T> fit = fit_similarity<T>(pair, with_scale, fix_det);
  Mat3<T> grad_B = zero3<T>();
  Vec3<T> sum = zero_vec3<T>();
  for (int i = 0; i < pair.N; ++i) {
    const PointOfPair<T> point = point_of<T>(pair, i);
    const Vec3<T> g = select(point.ignored, zero_vec3<T>(), load_vec3(grad_aligned + 3 * i));
    grad_B = grad_B + outer(g, point.x);
    sum = sum + g;
  }
  const FitGradient<T> grad =
      fit_gradient(pair, fit, with_scale, fix_det, grad_B, sum, grad_R, grad_t, grad_scale);
  for (int i = 0; i < pair.N; ++i) {
    const PointOfPair<T> point = point_of<T>(pair, i);
    const Vec3<T> g = select(point.ignored, zero_vec3<T>(), load_vec3(grad_aligned + 3 * i));
    if (grad_source) store_vec3(grad_source + 3 * i, grad_of_source(pair, grad, point, g));
    if (grad_target) store_vec3(grad_target + 3 * i, grad_of_target(pair, grad, point));
    if (grad_weights) grad_weights[i] = select(point.ignored, T(0), grad_of_weight(pair, grad, point));
  }
}

template <class T, class P>
MGRPO_HD void residual_gradient(const P& pair, bool with_scale, bool fix_det, T grad_residual, T* grad_source,
                                T* grad_target, T* grad_weights) {
  const Fit<T> fit = fit_similarity<T>(pair, with_scale, fix_det);
  const Misses<T> miss = misses(pair, fit);
  const T strength = grad_residual * pair.weights.share;
  Mat3<T> grad_B = zero3<T>();
  Vec3<T> sum = zero_vec3<T>();
  T distances = T(0);
  for (int i = 0; i < pair.N; ++i) {
    const PointOfPair<T> point = point_of<T>(pair, i);
    const Vec3<T> d = miss.of(point.x, point.y);
    const T squared = dot(d, d), distance = sqrt(squared);
    const Vec3<T> g = select(squared == T(0), T(0), strength * point.w / distance) * d;
    grad_B = grad_B + outer(g, point.x);
    sum = sum + g;
    distances += point.w * distance;
  }
  const T mean = pair.weights.share * distances;
  const FitGradient<T> grad =
      fit_gradient(pair, fit, with_scale, fix_det, grad_B, sum, zero3<T>(), zero_vec3<T>(), T(0));
  for (int i = 0; i < pair.N; ++i) {
    const PointOfPair<T> point = point_of<T>(pair, i);
    const Vec3<T> d = miss.of(point.x, point.y);
    const T squared = dot(d, d), distance = sqrt(squared);
    const Vec3<T> g = select(squared == T(0), T(0), strength * point.w / distance) * d;
    if (grad_source) store_vec3(grad_source + 3 * i, grad_of_source(pair, grad, point, g));
    if (grad_target) store_vec3(grad_target + 3 * i, grad_of_target(pair, grad, point) - g);
    if (grad_weights) {
      const T direct = (pair.weights.inverse * strength) * (miss.unit * (distance - mean));
      grad_weights[i] = select(point.ignored, T(0), direct + grad_of_weight(pair, grad, point));
    }
  }
}

}  // namespace MGRPO_NAMESPACE
#endif
