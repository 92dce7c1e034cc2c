// The measures of one frame. Definitions: kernels/metrics/README.md.
//
// Generic in the number type T: one frame per thread, or one per lane of a Pack. A frame's joints lie at p[3 * i + axis],
// its matrices at p[9 * k + entry]. Nothing branches on data.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_METRICS_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_METRICS_MATH_H
#include "../common/polar.h"
#include "metrics_types.h"
#endif
#include "../common/angles.h"

namespace MGRPO_NAMESPACE {

// A cloud seen from its first point and in units of its size, so that one far from the origin loses no digits, and the
// squares of a huge or tiny one neither overflow nor vanish.
template <class T>
struct Centre {
  Vec3<T> anchor, mean;  // the mean is seen from the anchor, in units of the size
  T extent;              // largest coordinate difference from the anchor
  T size, inverse;       // the extent, held above the smallest normal number, or 1 where it is zero; 1 over it
  MGRPO_HD Vec3<T> of(Vec3<T> point) const { return inverse * (point - anchor) - mean; }
  // All points are one, to rounding.
  MGRPO_HD typename Number<T>::Condition one_point() const {
    const T size = max(abs(anchor.x), max(abs(anchor.y), abs(anchor.z)));
    return extent <= T(4 * Precision<typename Number<T>::Element>::kEpsilon) * size;
  }
};
template <class T>
MGRPO_HD Centre<T> centre_of(const T* points, int count) {
  Centre<T> c;
  c.anchor = load_vec3(points);
  Vec3<T> sum = {T(0), T(0), T(0)};
  c.extent = T(0);
  for (int i = 1; i < count; ++i) {
    const Vec3<T> d = load_vec3(points + 3 * i) - c.anchor;
    sum = sum + d;
    c.extent = max(c.extent, max(abs(d.x), max(abs(d.y), abs(d.z))));
  }
  using Element = typename Number<T>::Element;
  c.size = select(c.extent == T(0), T(1), max(T(Precision<Element>::kSmallestNormal), c.extent));
  c.inverse = T(1) / c.size;
  c.mean = T(Element(1) / static_cast<Element>(count)) * (c.inverse * sum);
  return c;
}

template <class T>
struct AlignedDistances {
  T standard;  // sum over joints of |fit of x onto y - y|
  T egoallo;   // sum over joints of |fit of y onto x - y|
};
// Both fits turn by one rotation: the best turn of y onto x is the inverse of that of x onto y. Frames without `counted`
// get a product that costs no lane the slow path.
template <class T>
MGRPO_HD AlignedDistances<T> aligned_distances(const T* x, const T* y, int count, bool with_scale,
                                               typename Number<T>::Condition counted) {
  const Centre<T> cx = centre_of(x, count), cy = centre_of(y, count);
  Mat3<T> product = zero3<T>();
  T spread_x = T(0), spread_y = T(0);
  for (int i = 0; i < count; ++i) {
    const Vec3<T> a = cx.of(load_vec3(x + 3 * i)), b = cy.of(load_vec3(y + 3 * i));
    product = product + outer(b, a);
    spread_x += dot(a, a);
    spread_y += dot(b, b);
  }
  const auto point_x = cx.one_point() | (spread_x == T(0)), point_y = cy.one_point() | (spread_y == T(0));
  const Mat3<T> identity = identity3<T>();
  const Mat3<T> R = nearest_rotation(select(counted, product, identity), true);
  const T covariance = inner(R, product);
  const Mat3<T> onto_y = select(point_x, identity, R), onto_x = select(point_y, identity, R);
  const T scale_y = with_scale ? select(point_x, cx.size, covariance / spread_x * cy.size) : cx.size;
  const T scale_x = select(point_y, cy.size, covariance / spread_y * cx.size);
  const Vec3<T> shift = (cx.anchor - cy.anchor) + (cx.size * cx.mean - cy.size * cy.mean);
  AlignedDistances<T> sum = {T(0), T(0)};
  for (int i = 0; i < count; ++i) {
    const Vec3<T> a = cx.of(load_vec3(x + 3 * i)), b = cy.of(load_vec3(y + 3 * i));
    sum.standard += length(scale_y * (onto_y * a) - cy.size * b);
    sum.egoallo += length(scale_x * transposed_times(onto_x, b) - cy.size * b + shift);
  }
  return sum;
}

// Adds where `counted`; a lane that is not counted adds nothing, whatever it holds.
template <class T>
MGRPO_HD void add_where(typename Number<T>::Condition counted, T value, T& sum) {
  sum += select(counted, value, T(0));
}

// Positions of one frame: errors, depth, feet near the floor.
template <class T>
MGRPO_HD void add_positions(const MetricOptions& o, const T* x, const T* y, typename Number<T>::Condition counted,
                            T* sums) {
  using Element = typename Number<T>::Element;
  T error = T(0), depth = T(0);
  for (int i = 0; i < o.joints; ++i) {
    error += length(load_vec3(x + 3 * i) - load_vec3(y + 3 * i));
    depth = larger(depth, -x[3 * i + 2]);
  }
  auto low = T(1) < T(0);
  for (int foot = 0; foot < o.foot_count; ++foot)
    low = low | (x[3 * o.feet[foot] + 2] < T(static_cast<Element>(o.foot_heights[foot])));
  const AlignedDistances<T> aligned = aligned_distances(x, y, o.joints, o.with_scale, counted);
  add_where(counted, T(1), sums[kFrames]);
  add_where(counted, error, sums[kPosition]);
  add_where(counted, aligned.standard, sums[kAligned]);
  add_where(counted, aligned.egoallo, sums[kAlignedEgoallo]);
  add_where(counted, depth, sums[kDepth]);
  add_where(counted, length(load_vec3(x + 3 * o.head) - load_vec3(y + 3 * o.head)), sums[kHead]);
  add_where(counted & low, T(1), sums[kLowFeet]);
}

// Height of the lowest joint below the pelvis row.
template <class T>
MGRPO_HD T lowest_height(const MetricOptions& o, const T* x) {
  T lowest = x[3 + 2];
  for (int i = 2; i < o.joints; ++i) {
    const T z = x[3 * i + 2];
    lowest = select((z < lowest) | (z != z), z, lowest);
  }
  return lowest;
}

// Motion from the three frames before to this one. x(i, k) and y(i, k) are joint i k frames ago; `pair` counts this frame
// and the one before, `four` all of them.
template <class T, class History>
MGRPO_HD void add_motion(const MetricOptions& o, const History& x, const History& y,
                         typename Number<T>::Condition pair, typename Number<T>::Condition four, T* sums) {
  T velocity = T(0), jerk = T(0), target_jerk = T(0);
  for (int i = 0; i < o.joints; ++i) {
    const Vec3<T> x0 = x.at(i, 0), x1 = x.at(i, 1), x2 = x.at(i, 2), x3 = x.at(i, 3);
    const Vec3<T> y0 = y.at(i, 0), y1 = y.at(i, 1), y2 = y.at(i, 2), y3 = y.at(i, 3);
    // Differences of differences: each is of near values, and exact.
    const Vec3<T> u = x0 - x1, v = x1 - x2, w = x2 - x3, a = y0 - y1, b = y1 - y2, c = y2 - y3;
    velocity += length(u - a);
    jerk += length((u - v) - (v - w));
    target_jerk += length((a - b) - (b - c));
  }
  add_where(pair, T(1), sums[kPairs]);
  add_where(four, T(1), sums[kFours]);
  add_where(pair, velocity, sums[kVelocity]);
  add_where(four, jerk, sums[kJerk]);
  add_where(four, target_jerk, sums[kTargetJerk]);
}

template <class T>
MGRPO_HD void add_rotations(const MetricOptions& o, const T* pred, const T* target,
                            typename Number<T>::Condition counted, T* sums) {
  T angle = T(0), components = T(0);
  for (int k = 0; k < o.rotations; ++k) {
    const Mat3<T> A = load_mat3(pred + 9 * k), B = load_mat3(target + 9 * k);
    angle += geodesic_angle(A, B);
    const UnitQuaternion<T> q = unit_quaternion(A);
    const Vec3<T> v = o.short_way ? short_rotation_vector(q) : long_rotation_vector(q);
    const Vec3<T> d = v - short_rotation_vector(unit_quaternion(B));
    components += abs(wrapped(d.x)) + abs(wrapped(d.y)) + abs(wrapped(d.z));
  }
  add_where(counted, angle, sums[kGeodesic]);
  add_where(counted, components, sums[kComponents]);
}

template <class T>
MGRPO_HD void add_head(const Mat3<T>& pred, const Mat3<T>& target, typename Number<T>::Condition counted, T* sums) {
  const Mat3<T> difference = times_transposed(pred, target) + T(-1) * identity3<T>();
  add_where(counted, geodesic_angle(pred, target), sums[kHeadTurn]);
  add_where(counted, sqrt(inner(difference, difference)), sums[kHeadNorm]);
}

// One foot's step from the frame before; heights are over the clip's lowest joint.
template <class T>
MGRPO_HD void add_step(Vec3<T> foot, Vec3<T> before, T lowest, T limit, typename Number<T>::Condition pair, T* sums) {
  using Element = typename Number<T>::Element;
  const T dx = foot.x - before.x, dy = foot.y - before.y, z = foot.z - lowest, z_before = before.z - lowest;
  const auto low = z < limit;
  const T weight = select(low, T(2) - exp2_series(z / limit, Element()), T(0));
  const auto contact = pair & low & (z_before < limit);
  add_where(pair, (abs(dx) + abs(dy)) * weight, sums[kSkate]);
  add_where(contact, sqrt(dx * dx + dy * dy), sums[kSlide]);
  add_where(contact, T(1), sums[kContacts]);
}

}  // namespace MGRPO_NAMESPACE
#endif
