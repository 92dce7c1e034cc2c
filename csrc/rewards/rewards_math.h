// The formulas of the rewards for one frame, and their gradients. Definitions and derivations: kernels/rewards/README.md.
//
// Generic in the number type T: one frame per thread, or one per lane of a Pack. A frame's points lie at p[3 * i + axis],
// its matrices at p[9 * j + entry].
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_REWARDS_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_REWARDS_MATH_H
#include "../common/angles.h"
#include "../common/polar.h"
#include "../common/unit_rotations.h"
#include "../procrustes/procrustes_math.h"
#include "rewards_options.h"
#endif

namespace MGRPO_NAMESPACE {

// d|a| / da: zero where a is.
template <class T>
MGRPO_HD Vec3<T> direction(Vec3<T> a) {
  const T size = length(a);
  return select(size == T(0), T(0), T(1) / size) * a;
}
template <class T>
MGRPO_HD void add_vec3(T* p, Vec3<T> a) {
  p[0] += a.x;
  p[1] += a.y;
  p[2] += a.z;
}
template <class T>
MGRPO_HD void add_mat3(T* p, const Mat3<T>& a) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) p[3 * i + j] += a.m[i][j];
}

// ---- representations of rotations ----

template <class T>
MGRPO_HD Mat3<T> decode_rotation(int representation, bool project, const T* p) {
  if (representation == kQuaternion) return matrix_of_any_quat(p);
  if (representation == kRot6d) {
    const GramSchmidt<T> g = gram_schmidt(p);
    return from_columns(g.u, g.v, g.w);
  }
  const Mat3<T> M = load_mat3(p);
  return project ? nearest_rotation(M, true) : M;
}
// dL/d(numbers at p) from dL/dR, where R is what decode_rotation returned.
template <class T>
MGRPO_HD void encode_gradient(int representation, bool project, const T* p, const Mat3<T>& R, const Mat3<T>& grad_R,
                              T* out) {
  if (representation == kQuaternion) {
    store_quat(out, quat_gradient(load_unit_quat(p), torque_on(R, grad_R)));
  } else if (representation == kRot6d) {
    gram_schmidt_gradient(gram_schmidt(p), torque_on(R, grad_R), out);
  } else {
    store_mat3(out, project ? polar_gradient(grad_R, load_mat3(p), R, true) : grad_R);
  }
}

// ---- the body ----

// out[i] = constant[i] + sum_s directions[i, s] betas[s]
template <class T, class Element>
MGRPO_HD void linear_in_shape(const Element* constants, const Element* directions, int count, int S, const T* betas,
                              T* out) {
  for (int i = 0; i < count; ++i) {
    T sum = T(constants[i]);
    for (int s = 0; s < S; ++s) sum += T(directions[i * S + s]) * betas[s];
    out[i] = sum;
  }
}
template <class T, class Element>
MGRPO_HD void add_shape_gradient(const Element* directions, int count, int S, const T* grad, T* grad_betas) {
  for (int s = 0; s < S; ++s) {
    T sum = T(0);
    for (int i = 0; i < count; ++i) sum += T(directions[i * S + s]) * grad[i];
    grad_betas[s] += sum;
  }
}

// Positions seen from the root (points, N = 1 + J, the root at zero) and, in their slots of `turns`, the rotations that
// others hang from.
template <class T>
MGRPO_HD void pose_joint(const RewardOptions& options, int j, const Mat3<T>& rotmat, Vec3<T> offset, T* turns,
                         T* points) {
  const int p = options.parents[j], slot = options.turn_slot[j];
  if (p < 0) {
    store_vec3(points + 3 * (j + 1), offset);
    if (slot >= 0) store_mat3(turns + 9 * slot, rotmat);
  } else {
    const Mat3<T> parent = load_mat3(turns + 9 * options.turn_slot[p]);
    store_vec3(points + 3 * (j + 1), load_vec3(points + 3 * (p + 1)) + parent * offset);
    if (slot >= 0) store_mat3(turns + 9 * slot, parent * rotmat);
  }
}
template <class T>
MGRPO_HD void pose_tree(const RewardOptions& options, const T* rotmats, const T* offsets, T* turns, T* points) {
  store_vec3(points, zero_vec3<T>());
  for (int j = 0; j < options.rotations; ++j)
    pose_joint(options, j, load_mat3(rotmats + 9 * j), load_vec3(offsets + 3 * j), turns, points);
}

// The placement x_world = t_cpf + R (x - pupils) of points seen from the root, R = R_cpf Q_head^T.
template <class T>
struct Placement {
  Mat3<T> R;
  Vec3<T> pupils, t_cpf;
};
template <class T>
MGRPO_HD Placement<T> place_pupils(const RewardOptions& options, const T* turns, const T* points, Vec3<T> t_head_cpf,
                                   const Mat3<T>& R_cpf, Vec3<T> t_cpf) {
  const int head = options.head_joint;
  const Mat3<T> Q = load_mat3(turns + 9 * options.turn_slot[head]);
  return {times_transposed(R_cpf, Q), load_vec3(points + 3 * (head + 1)) + Q * t_head_cpf, t_cpf};
}
// `world` may be `points`.
template <class T>
MGRPO_HD void place_points(const Placement<T>& place, int N, const T* points, T* world) {
  for (int i = 0; i < N; ++i)
    store_vec3(world + 3 * i, place.t_cpf + place.R * (load_vec3(points + 3 * i) - place.pupils));
}

// From dL/d(world points), in `grads`, to dL/d(rotations), dL/d(offsets) and dL/d(t_head_cpf). `grads` is used up;
// grad_turns gets, in the joints' slots, dL/d(rotation): it is zero for joints without a slot. Every joint that others
// hang from has a slot of its own.
template <class T>
MGRPO_HD Vec3<T> tree_gradient(const RewardOptions& options, const T* rotmats, const T* offsets, const T* turns,
                               const T* points, Vec3<T> t_head_cpf, const Mat3<T>& R_cpf, T* grads, T* grad_turns,
                               T* grad_offsets) {
  const int J = options.rotations, head = options.head_joint, head_slot = options.turn_slot[head];
  const Placement<T> place = place_pupils(options, turns, points, t_head_cpf, R_cpf, zero_vec3<T>());
  Mat3<T> grad_place = zero3<T>();
  Vec3<T> sum = zero_vec3<T>();
  for (int i = 0; i < J + 1; ++i) {
    const Vec3<T> g = load_vec3(grads + 3 * i);
    const Vec3<T> h = transposed_times(place.R, g);
    store_vec3(grads + 3 * i, h);
    sum = sum + h;
    grad_place = grad_place + outer(g, load_vec3(points + 3 * i) - place.pupils);
  }
  for (int i = 0; i < 9 * options.turn_slots; ++i) grad_turns[i] = T(0);
  // pupils = x_head + Q_head t_head_cpf; R = R_cpf Q_head^T
  const Vec3<T> grad_pupils = T(-1) * sum;
  add_vec3(grads + 3 * (head + 1), grad_pupils);
  store_mat3(grad_turns + 9 * head_slot, transposed_times(grad_place, R_cpf) + outer(grad_pupils, t_head_cpf));
  const Vec3<T> grad_t_head_cpf = transposed_times(load_mat3(turns + 9 * head_slot), grad_pupils);
  for (int j = J - 1; j >= 0; --j) {  // children first
    const int p = options.parents[j], slot = options.turn_slot[j];
    const Vec3<T> g = load_vec3(grads + 3 * (j + 1)), offset = load_vec3(offsets + 3 * j);
    if (p < 0) {
      store_vec3(grad_offsets + 3 * j, g);
    } else {
      const int parent_slot = options.turn_slot[p];
      const Mat3<T> parent = load_mat3(turns + 9 * parent_slot);
      add_vec3(grads + 3 * (p + 1), g);
      add_mat3(grad_turns + 9 * parent_slot, outer(g, offset));
      store_vec3(grad_offsets + 3 * j, transposed_times(parent, g));
      if (slot >= 0) {
        const Mat3<T> G = load_mat3(grad_turns + 9 * slot);
        add_mat3(grad_turns + 9 * parent_slot, times_transposed(G, load_mat3(rotmats + 9 * j)));
        store_mat3(grad_turns + 9 * slot, transposed_times(parent, G));
      }
    }
  }
  return grad_t_head_cpf;
}
// What tree_gradient left for joint j.
template <class T>
MGRPO_HD Mat3<T> rotation_gradient_of(const RewardOptions& options, int j, const T* grad_turns) {
  const int slot = options.turn_slot[j];
  return slot < 0 ? zero3<T>() : load_mat3(grad_turns + 9 * slot);
}

// ---- differences of rotations ----

template <class Element>
struct LogarithmLimits;  // squared sine of half an angle under which the logarithm is taken by its series
template <>
struct LogarithmLimits<float> {
  static constexpr float kTiny = 1e-5f;
};
template <>
struct LogarithmLimits<double> {
  static constexpr double kTiny = 1e-10;
};

template <class T>
MGRPO_HD Vec3<T> rotation_vector(const Mat3<T>& R) {
  const Quat<T> q = matrix_quat(R).q;
  const T w = q.w;
  const Vec3<T> xyz = imaginary(q);
  const T square = dot(xyz, xyz);
  const auto tiny = square < T(LogarithmLimits<typename Number<T>::Element>::kTiny);
  const T sine = sqrt(select(tiny, T(1), square)), safe_w = select(tiny, w, T(1));
  const T series = T(2) / safe_w - T(typename Number<T>::Element(2.0 / 3)) * square / (safe_w * safe_w * safe_w);
  const T far = select(w < T(0), T(-2), T(2)) * upper_angle(sine, abs(w)) / sine;
  return select(tiny, series, far) * xyz;
}
// dL/dR from dL/d(rotation vector).
template <class T>
MGRPO_HD Mat3<T> rotation_vector_gradient(const Mat3<T>& R, Vec3<T> g) {
  using Element = typename Number<T>::Element;
  const MatrixQuat<T> quat = matrix_quat(R);
  const T w = quat.q.w;
  const Vec3<T> xyz = imaginary(quat.q);
  const T square = dot(xyz, xyz), along = dot(g, xyz);
  const auto tiny = square < T(LogarithmLimits<Element>::kTiny);
  const T sine = sqrt(select(tiny, T(1), square)), safe_w = select(tiny, w, T(1));
  const T inverse_w = T(1) / safe_w, cube = inverse_w * inverse_w * inverse_w;
  const T angle = select(w < T(0), T(-2), T(2)) * upper_angle(sine, abs(w)), whole = sine * sine + w * w;
  // v = factor(w, |xyz|) xyz; `slope` is the derivative of the factor with respect to |xyz|, over |xyz|.
  const T factor = select(tiny, T(2) * inverse_w - T(Element(2.0 / 3)) * square * cube, angle / sine);
  const T slope = select(tiny, T(Element(-4.0 / 3)) * cube,
                         (T(2) * w / whole - angle / sine) / (sine * sine));
  const T grad_w =
      along * select(tiny, T(2) * square * cube * inverse_w - T(2) * inverse_w * inverse_w, T(-2) / whole);
  const Vec3<T> grad_xyz = factor * g + (along * slope) * xyz;
  return matrix_quat_gradient(quat, Quat<T>{grad_w, grad_xyz.x, grad_xyz.y, grad_xyz.z});
}

// How many numbers of a recorded rotation its comparison needs, and which: the matrix or the rotation vector.
MGRPO_HD int target_numbers(int rotation_error) { return rotation_error == kAxisAngle ? 3 : 9; }
template <class T>
MGRPO_HD void prepare_target(int rotation_error, const T* rotmat, T* out) {
  const Mat3<T> R = load_mat3(rotmat);
  if (rotation_error == kAxisAngle) {
    store_vec3(out, rotation_vector(R));
  } else {
    store_mat3(out, R);
  }
}

template <class T>
MGRPO_HD T rotation_difference(int kind, const Mat3<T>& R, const T* target) {
  if (kind == kAxisAngle) {
    const Vec3<T> d = rotation_vector(R) - load_vec3(target);
    return T(typename Number<T>::Element(1.0 / 3)) * (abs(wrapped(d.x)) + abs(wrapped(d.y)) + abs(wrapped(d.z)));
  }
  const Mat3<T> B = load_mat3(target);
  if (kind == kFrobenius) {
    const Mat3<T> D = R + T(-1) * B;
    return sqrt(inner(D, D));
  }
  // The relative rotation A^T B by its sine (the skew part) and its cosine (the trace): an arc cosine would lose half
  // of the digits near zero.
  const Vec3<T> skew = cross(row(B, 0), row(R, 0)) + cross(row(B, 1), row(R, 1)) + cross(row(B, 2), row(R, 2));
  return upper_angle(length(skew), inner(R, B) - T(1));
}
template <class T>
MGRPO_HD T sign_of(T a) {
  return select(a > T(0), T(1), select(a < T(0), T(-1), a));
}
// strength * d(difference) / dR
template <class T>
MGRPO_HD Mat3<T> rotation_difference_gradient(int kind, const Mat3<T>& R, const T* target, T strength) {
  if (kind == kAxisAngle) {
    const Vec3<T> d = rotation_vector(R) - load_vec3(target);
    const T third = strength * T(typename Number<T>::Element(1.0 / 3));
    return rotation_vector_gradient(
        R, third * Vec3<T>{sign_of(wrapped(d.x)), sign_of(wrapped(d.y)), sign_of(wrapped(d.z))});
  }
  const Mat3<T> B = load_mat3(target);
  if (kind == kFrobenius) {
    const Mat3<T> D = R + T(-1) * B;
    const T size = sqrt(inner(D, D));
    return select(size == T(0), T(0), strength / size) * D;
  }
  const Vec3<T> skew = cross(row(B, 0), row(R, 0)) + cross(row(B, 1), row(R, 1)) + cross(row(B, 2), row(R, 2));
  const T sine = length(skew), cosine = inner(R, B) - T(1), whole = sine * sine + cosine * cosine;
  const T scale = select(whole == T(0), T(0), strength / whole);
  const Vec3<T> u = (scale * cosine) * direction(skew);
  // The relative rotation A^T B gets [u]x - scale sine 1, and A gets B times the transposed of that.
  Mat3<T> through = cross_matrix(T(-1) * u);
  for (int i = 0; i < 3; ++i) through.m[i][i] = -(scale * sine);
  return B * through;
}

// ---- distances of points, for one frame; each gradient adds strength * dL/dx to grad ----

template <class T>
MGRPO_HD T sum_of_distances(int N, const T* x, const T* y) {
  T sum = T(0);
  for (int i = 0; i < N; ++i) sum += length(load_vec3(x + 3 * i) - load_vec3(y + 3 * i));
  return sum;
}
template <class T>
MGRPO_HD void add_distance_gradient(const T* x, const T* y, T strength, T* grad) {
  add_vec3(grad, strength * direction(load_vec3(x) - load_vec3(y)));
}

// A length in which the way from one cloud to the other has squares that neither overflow nor vanish.
template <class T>
MGRPO_HD T unit_of_moves(const Cloud<T>& X, const Cloud<T>& Y) {
  const Vec3<T> way = X.restored_mean() - Y.restored_mean();
  return larger(larger(X.size, Y.size), larger(abs(way.x), larger(abs(way.y), abs(way.z))));
}
// The joints' mean distance after the best similarity transform of x onto y, or of y onto x (egoallo: how far y moves).
template <class T>
MGRPO_HD T aligned_distance(int alignment, int N, const T* x, const T* y) {
  const UnitWeights<T> weights = unit_weights<T>(N);
  const Cloud<T> X = survey(x, weights, N), Y = survey(y, weights, N);
  if (alignment == kStandard) {
    const auto pair = pair_of(X, RawPoints<T>{x, X}, Y, RawPoints<T>{y, Y}, weights, N);
    return mean_distance(pair, fit_similarity<T>(pair, true, true));
  }
  const auto pair = pair_of(Y, RawPoints<T>{y, Y}, X, RawPoints<T>{x, X}, weights, N);
  const Fit<T> fit = fit_similarity<T>(pair, true, true);
  const Mat3<T> B = fit.factor * fit.R;
  const Vec3<T> shift = X.restored_mean();
  const T unit = unit_of_moves(X, Y), inverse = T(1) / unit;
  T sum = T(0);
  for (int i = 0; i < N; ++i) sum += length(inverse * (B * pair.x.at(i) + shift - load_vec3(y + 3 * i)));
  return unit * (weights.share * sum);
}
// `scratch` holds 3 N numbers.
template <class T>
MGRPO_HD void add_aligned_gradient(int alignment, int N, const T* x, const T* y, T strength, T* scratch, T* grad) {
  const UnitWeights<T> weights = unit_weights<T>(N);
  const Cloud<T> X = survey(x, weights, N), Y = survey(y, weights, N);
  if (alignment == kStandard) {
    const auto pair = pair_of(X, RawPoints<T>{x, X}, Y, RawPoints<T>{y, Y}, weights, N);
    residual_gradient(pair, true, true, strength, scratch, static_cast<T*>(nullptr), static_cast<T*>(nullptr));
  } else {
    const auto pair = pair_of(Y, RawPoints<T>{y, Y}, X, RawPoints<T>{x, X}, weights, N);
    const Fit<T> fit = fit_similarity<T>(pair, true, true);
    const Mat3<T> B = fit.factor * fit.R;
    const Vec3<T> shift = X.restored_mean();
    const T inverse = T(1) / unit_of_moves(X, Y);
    Mat3<T> grad_B = zero3<T>();
    Vec3<T> sum = zero_vec3<T>();
    for (int i = 0; i < N; ++i) {
      const Vec3<T> centred = pair.x.at(i);
      const Vec3<T> g = (strength * weights.share) * direction(inverse * (B * centred + shift - load_vec3(y + 3 * i)));
      grad_B = grad_B + outer(g, centred);
      sum = sum + g;
    }
    const FitGradient<T> gradient =
        fit_gradient(pair, fit, true, true, grad_B, sum, zero3<T>(), zero_vec3<T>(), T(0));
    for (int i = 0; i < N; ++i)
      store_vec3(scratch + 3 * i, grad_of_target(pair, gradient, point_of<T>(pair, i)));
  }
  for (int i = 0; i < 3 * N; ++i) grad[i] += scratch[i];
}

// Depth of the deepest point below the floor.
template <class T>
MGRPO_HD T deepest(int N, const T* x) {
  T depth = -x[2];
  for (int i = 1; i < N; ++i) depth = larger(depth, -x[3 * i + 2]);
  return depth;
}
template <class T>
MGRPO_HD T penetration(int N, const T* x) {
  return larger(T(0), deepest(N, x));
}
// Points that are equally deep share the gradient.
template <class T>
MGRPO_HD void add_penetration_gradient(int N, const T* x, T strength, T* grad) {
  const T depth = deepest(N, x);
  T ties = T(0);
  for (int i = 0; i < N; ++i) ties += select(-x[3 * i + 2] == depth, T(1), T(0));
  const T part = select(depth < T(0), T(0), strength / ties);
  for (int i = 0; i < N; ++i) grad[3 * i + 2] += select(-x[3 * i + 2] == depth, -part, T(0));
}

// The length, or the largest number where its square has overflowed: that times a weight of zero is zero.
template <class T>
MGRPO_HD T held_finite(T length) {
  const T largest = T(Precision<typename Number<T>::Element>::kLargest);
  return select(length > largest, largest, length);
}
// How far a foot slides from `before` to `now`, weighted by how near the floor it arrives.
template <class T>
MGRPO_HD T slide(Vec3<T> before, Vec3<T> now, T inverse_height) {
  using Element = typename Number<T>::Element;
  const T u = larger(T(0), now.z) * inverse_height;
  const T weight = select(u >= T(1), T(0), T(2) - exp2_series(min(T(1), u), Element()));
  const T x = now.x - before.x, y = now.y - before.y;
  return weight * held_finite(sqrt(x * x + y * y));
}
// d(slide) / d(now); that of `before` is minus its x and y.
template <class T>
MGRPO_HD Vec3<T> slide_gradient(Vec3<T> before, Vec3<T> now, T inverse_height) {
  using Element = typename Number<T>::Element;
  const T u = larger(T(0), now.z) * inverse_height, power = exp2_series(min(T(1), u), Element());
  const auto high = u >= T(1);
  const T weight = select(high, T(0), T(2) - power);
  const T x = now.x - before.x, y = now.y - before.y, speed = sqrt(x * x + y * y);
  const T scale = select(speed == T(0), T(0), weight / speed);
  const T fall = select(high | (now.z < T(0)), T(0), T(Element(-0.69314718055994531)) * inverse_height * power);
  return {scale * x, scale * y, fall * held_finite(speed)};
}

// The third difference of four successive positions.
template <class T>
MGRPO_HD Vec3<T> third_difference(Vec3<T> a, Vec3<T> b, Vec3<T> c, Vec3<T> d) {
  return ((d - c) - (c - b)) - ((c - b) - (b - a));
}

// ---- from sums over frames to errors, and back ----

// How many frames, pairs and quadruples of successive frames count.
template <class T>
struct FrameCounts {
  T one, pair, four;
};
// Points (rotations, feet) and frames that the sum of a kind runs over, over the power of fps that it is times.
template <class T>
MGRPO_HD T terms_of(const RewardOptions& options, int kind, FrameCounts<T> counts) {
  const T points = static_cast<T>(options.joints), fps = static_cast<T>(options.fps);
  if (kind == kPosition) return counts.one * points;
  if (kind == kRotation) return counts.one * static_cast<T>(options.rotations);
  if (kind == kVelocity) return counts.pair * points / fps;
  if (kind == kFootSkate) return counts.pair * static_cast<T>(options.foot_count) / fps;
  if (kind == kJitter) return counts.four * points / (fps * fps * fps);
  return counts.one;  // head position, penetration, and the aligned distance, which is a mean already
}
// Whether a jerk has overflowed: then it is above the recording's, whatever that is.
template <class T>
MGRPO_HD bool overflowed(T jerk) {
  return jerk > Precision<T>::kLargest;
}
template <class T>
MGRPO_HD T sign_of_jitter(T sum, T recorded_sum) {
  return overflowed(sum) ? T(1) : sign_of(sum - recorded_sum);
}
// The error from its sum; jitter compares with the recording's.
template <class T>
MGRPO_HD T error_of(const RewardOptions& options, int kind, T sum, T recorded_sum, FrameCounts<T> counts) {
  const T terms = terms_of(options, kind, counts);
  const T error = sum / terms;
  return kind == kJitter && !overflowed(error) ? abs(error - recorded_sum / terms) : error;
}
// dL/d(sum) from dL/d(error) and dL/d(reward); jitter's without the sign. Of no meaning where nothing counts.
template <class T>
MGRPO_HD T strength_of(const RewardOptions& options, int kind, T slope, T grad_error, T grad_reward, T reward,
                       FrameCounts<T> counts) {
  const T terms = terms_of(options, kind, counts);
  return (grad_error - slope * reward * grad_reward) / terms;
}

}  // namespace MGRPO_NAMESPACE
#endif
