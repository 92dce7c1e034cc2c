// Forward kinematics of one pose and its gradient, generic in the number type: one thread's numbers, or Packs with one
// pose per lane. Derivations: kernels/kinematics/README.md.
//
// A Kind says how a joint's rotation is given and what the recursion carries: general matrices, quaternions, or
// rotation matrices made from six numbers. Tables of joints lie in memory of the caller: a scratch array on the CPU,
// shared memory on a GPU. A table may be its own result, where the comments say so.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_KINEMATICS_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_KINEMATICS_MATH_H
#include <cstdint>

#include "../common/mat3.h"
#include "kinematics_modes.h"
#endif

namespace MGRPO_NAMESPACE {

template <class T>
struct Quat {
  T w, x, y, z;
};

// Joint j's numbers stand at `at + j * stride`.
template <class T>
struct Table {
  T* at;
  int stride;
  MGRPO_HD T* operator[](int joint) const { return at + joint * stride; }
};

// ---- unit vectors ----

template <class Element>
struct SquareRange;  // squared lengths between these are computed without overflow or loss
template <>
struct SquareRange<float> {
  static constexpr float kLeast = 1e-24f, kLargest = 1e30f;
};
template <>
struct SquareRange<double> {
  static constexpr double kLeast = 1e-250, kLargest = 1e250;
};

// Divides v by its length, whatever its magnitude, and returns one over the length. A zero vector stays, with result 0.
template <int N, class T>
MGRPO_HD T normalise(T (&v)[N]) {
  using Element = typename Number<T>::Element;
  T squares = v[0] * v[0];
  for (int i = 1; i < N; ++i) squares = squares + v[i] * v[i];
  const auto ordinary = (squares > T(SquareRange<Element>::kLeast)) & (squares < T(SquareRange<Element>::kLargest));
  const T inverse = T(1) / sqrt(squares);
  if (all(ordinary)) {
    for (int i = 0; i < N; ++i) v[i] = inverse * v[i];
    return inverse;
  }
  T largest = abs(v[0]);
  for (int i = 1; i < N; ++i) largest = max(abs(v[i]), largest);
  const T divisor = select(largest > T(0), largest, T(1));
  T scaled[N], scaled_squares = T(0);
  for (int i = 0; i < N; ++i) {
    scaled[i] = v[i] / divisor;
    scaled_squares = scaled_squares + scaled[i] * scaled[i];
  }
  const auto zero = scaled_squares == T(0);
  const T factor = select(zero, T(0), T(1) / sqrt(scaled_squares));
  const T bounded = max(min(factor / divisor, T(Precision<Element>::kLargest)), T(Precision<Element>::kSmallestNormal));
  for (int i = 0; i < N; ++i) v[i] = select(ordinary, inverse * v[i], factor * scaled[i]);
  return select(ordinary, inverse, select(zero, T(0), bounded));
}

// ---- quaternions wxyz ----

template <class T>
struct UnitQuat {
  Quat<T> q;
  T inverse_length;  // of what was normalised; 0 where that was zero and q is the identity
};

template <class T>
MGRPO_HD UnitQuat<T> load_unit_quat(const T* p) {
  T v[4] = {p[0], p[1], p[2], p[3]};
  const T inverse = normalise(v);
  return {{select(inverse == T(0), T(1), v[0]), v[1], v[2], v[3]}, inverse};
}
template <class T>
MGRPO_HD Quat<T> load_quat(const T* p) {
  return {p[0], p[1], p[2], p[3]};
}
template <class T>
MGRPO_HD void store_quat(T* p, Quat<T> q) {
  p[0] = q.w;
  p[1] = q.x;
  p[2] = q.y;
  p[3] = q.z;
}
template <class T>
MGRPO_HD Vec3<T> imaginary(Quat<T> q) {
  return {q.x, q.y, q.z};
}
template <class T>
MGRPO_HD Quat<T> conjugate(Quat<T> q) {
  return {q.w, -q.x, -q.y, -q.z};
}
template <class T>
MGRPO_HD Quat<T> operator*(Quat<T> a, Quat<T> b) {
  return {a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z, a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
          a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x, a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w};
}
// q v q*, for a unit quaternion
template <class T>
MGRPO_HD Vec3<T> rotate(Quat<T> q, Vec3<T> v) {
  const Vec3<T> twice = T(2) * cross(imaginary(q), v);
  return v + q.w * twice + cross(imaginary(q), twice);
}
template <class T>
MGRPO_HD Mat3<T> quat_matrix(Quat<T> q) {
  const T x2 = q.x + q.x, y2 = q.y + q.y, z2 = q.z + q.z;
  const T xx = q.x * x2, yy = q.y * y2, zz = q.z * z2, xy = q.x * y2, xz = q.x * z2, yz = q.y * z2;
  const T wx = q.w * x2, wy = q.w * y2, wz = q.w * z2;
  return {{{T(1) - (yy + zz), xy - wz, xz + wy}, {xy + wz, T(1) - (xx + zz), yz - wx}, {xz - wy, yz + wx, T(1) - (xx + yy)}}};
}
// dL/d(unnormalised quaternion) from dL/dR of its matrix
template <class T>
MGRPO_HD Quat<T> quat_gradient(const UnitQuat<T>& unit, const Mat3<T>& G) {
  const Quat<T> q = unit.q;
  const Vec3<T> turn = axial(G), v = imaginary(q);
  const T s01 = G.m[0][1] + G.m[1][0], s02 = G.m[0][2] + G.m[2][0], s12 = G.m[1][2] + G.m[2][1];
  const T two = T(2);
  const Quat<T> g = {dot(v, turn), q.y * s01 + q.z * s02 - two * q.x * (G.m[1][1] + G.m[2][2]) + q.w * turn.x,
                     q.x * s01 + q.z * s12 - two * q.y * (G.m[0][0] + G.m[2][2]) + q.w * turn.y,
                     q.x * s02 + q.y * s12 - two * q.z * (G.m[0][0] + G.m[1][1]) + q.w * turn.z};
  const T along = q.w * g.w + q.x * g.x + q.y * g.y + q.z * g.z, factor = two * unit.inverse_length;
  return {factor * (g.w - along * q.w), factor * (g.x - along * q.x), factor * (g.y - along * q.y),
          factor * (g.z - along * q.z)};
}
// dL/d(unnormalised quaternion) from dL/d(angle), the torque about the axes of the frame that the quaternion maps to
template <class T>
MGRPO_HD Quat<T> quat_gradient(const UnitQuat<T>& unit, Vec3<T> torque) {
  const Quat<T> q = unit.q;
  const T factor = T(2) * unit.inverse_length;
  const Vec3<T> g = q.w * torque + cross(torque, imaginary(q));
  return {-(factor * dot(torque, imaginary(q))), factor * g.x, factor * g.y, factor * g.z};
}
// dL/d(angle) from dL/dq of a unit quaternion
template <class T>
MGRPO_HD Vec3<T> torque_on(Quat<T> q, Quat<T> g) {
  return T(0.5) * (q.w * imaginary(g) - g.w * imaginary(q) + cross(imaginary(q), imaginary(g)));
}
// dL/d(angle) from dL/dR of a rotation
template <class T>
MGRPO_HD Vec3<T> torque_on(const Mat3<T>& R, const Mat3<T>& G) {
  return axial(times_transposed(G, R));
}

// ---- quaternion of a matrix ----

// The unit quaternion of a rotation and what its gradient needs: which component was largest, and one over the length of
// the four linear terms.
template <class T>
struct MatrixQuat {
  using Condition = typename Number<T>::Condition;
  Quat<T> q;
  T inverse_length;
  Condition by_x, by_y, by_z;
};

template <class T>
MGRPO_HD MatrixQuat<T> matrix_quat(const Mat3<T>& R) {
  const T m00 = R.m[0][0], m11 = R.m[1][1], m22 = R.m[2][2];
  const Vec3<T> a = axial(R);
  const Vec3<T> s = {R.m[2][1] + R.m[1][2], R.m[0][2] + R.m[2][0], R.m[1][0] + R.m[0][1]};
  const auto low = m22 < T(0), x_over_y = m00 > m11, turned = m00 < -m11;
  const typename Number<T>::Condition by_x = low & x_over_y, by_y = low & (!x_over_y), by_z = (!low) & turned;
  const T sign_x = select(by_y | by_z, T(-1), T(1)), sign_y = select(by_x | by_z, T(-1), T(1)),
          sign_z = select(by_x | by_y, T(-1), T(1));
  const T pivot = T(1) + sign_x * m00 + sign_y * m11 + sign_z * m22;  // at least 1
  T v[4] = {select(by_x, a.x, select(by_y, a.y, select(by_z, a.z, pivot))),
            select(by_x, pivot, select(by_y, s.z, select(by_z, s.y, a.x))),
            select(by_x, s.z, select(by_y, pivot, select(by_z, s.x, a.y))),
            select(by_x, s.y, select(by_y, s.x, select(by_z, pivot, a.z)))};
  const T inverse = T(1) / sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]);
  return {{inverse * v[0], inverse * v[1], inverse * v[2], inverse * v[3]}, inverse, by_x, by_y, by_z};
}
// dL/dR from dL/dq
template <class T>
MGRPO_HD Mat3<T> matrix_quat_gradient(const MatrixQuat<T>& m, Quat<T> g) {
  const Quat<T> q = m.q;
  const T along = q.w * g.w + q.x * g.x + q.y * g.y + q.z * g.z, zero = T(0);
  const T w = m.inverse_length * (g.w - along * q.w), x = m.inverse_length * (g.x - along * q.x),
          y = m.inverse_length * (g.y - along * q.y), z = m.inverse_length * (g.z - along * q.z);
  const auto by_x = m.by_x, by_y = m.by_y, by_z = m.by_z;
  const T pivot = select(by_x, x, select(by_y, y, select(by_z, z, w)));
  const Vec3<T> a = {select(by_x, w, select(by_y | by_z, zero, x)), select(by_y, w, select(by_x | by_z, zero, y)),
                     select(by_z, w, select(by_x | by_y, zero, z))};
  const Vec3<T> s = {select(by_y, z, select(by_z, y, zero)), select(by_x, z, select(by_z, x, zero)),
                     select(by_x, y, select(by_y, x, zero))};
  return {{{select(by_y | by_z, -pivot, pivot), s.z - a.z, s.y + a.y},
           {s.z + a.z, select(by_x | by_z, -pivot, pivot), s.x - a.x},
           {s.y - a.y, s.x + a.x, select(by_x | by_y, -pivot, pivot)}}};
}

// ---- rotation from two columns ----

template <class T>
struct GramSchmidt {
  Vec3<T> u, v, w;
  T inverse_a, inverse_c;  // over the lengths of the first column and of the second one's part at a right angle to it
  T slope;                 // of the second column along the first, over that part
};

template <class T>
MGRPO_HD GramSchmidt<T> gram_schmidt(const T* p) {
  using Element = typename Number<T>::Element;
  constexpr Element kParallel = 8 * Precision<Element>::kEpsilon;
  T a[3] = {p[0], p[1], p[2]}, b[3] = {p[3], p[4], p[5]};
  const T inverse_a = normalise(a), inverse_b = normalise(b);
  const Vec3<T> u = {a[0], a[1], a[2]}, direction = {b[0], b[1], b[2]};
  const T along = dot(u, direction);
  const Vec3<T> c = direction - along * u;
  const T squares = dot(c, c);
  const auto degenerate = (squares <= T(kParallel * kParallel)) | (inverse_a == T(0));
  const T over_c = select(degenerate, T(0), T(1) / sqrt(squares));
  GramSchmidt<T> g;
  g.u = select(degenerate, Vec3<T>{T(1), T(0), T(0)}, u);
  g.v = select(degenerate, Vec3<T>{T(0), T(1), T(0)}, over_c * c);
  g.w = cross(g.u, g.v);
  g.inverse_a = select(degenerate, T(0), inverse_a);
  g.inverse_c = inverse_b * over_c;
  g.slope = along * over_c;
  return g;
}

// ---- kinds ----

template <class T>
MGRPO_HD Vec3<T> rotate(const Mat3<T>& R, Vec3<T> v) {
  return R * v;
}
template <class T>
MGRPO_HD Vec3<T> rotate_back(const Mat3<T>& R, Vec3<T> v) {
  return transposed_times(R, v);
}
template <class T>
MGRPO_HD Vec3<T> rotate_back(Quat<T> q, Vec3<T> v) {
  return rotate(conjugate(q), v);
}
template <class T>
MGRPO_HD Mat3<T> inverse(const Mat3<T>& R) {
  return {{{R.m[0][0], R.m[1][0], R.m[2][0]}, {R.m[0][1], R.m[1][1], R.m[2][1]}, {R.m[0][2], R.m[1][2], R.m[2][2]}}};
}
template <class T>
MGRPO_HD Quat<T> inverse(Quat<T> q) {
  return conjugate(q);
}
template <class T>
MGRPO_HD void load_state(const T* p, Mat3<T>& R) {
  R = load_mat3(p);
}
template <class T>
MGRPO_HD void load_state(const T* p, Quat<T>& q) {
  q = load_quat(p);
}
template <class T>
MGRPO_HD void store_state(T* p, const Mat3<T>& R) {
  store_mat3(p, R);
}
template <class T>
MGRPO_HD void store_state(T* p, Quat<T> q) {
  store_quat(p, q);
}
template <class T>
MGRPO_HD void from_unit_quat(Quat<T> q, Mat3<T>& R) {
  R = quat_matrix(q);
}
template <class T>
MGRPO_HD void from_unit_quat(Quat<T> q, Quat<T>& state) {
  state = q;
}
template <class T>
MGRPO_HD Quat<T> as_quat(const Mat3<T>& R) {
  return matrix_quat(R).q;
}
template <class T>
MGRPO_HD Quat<T> as_quat(Quat<T> q) {
  return q;
}
template <class T>
MGRPO_HD Mat3<T> as_matrix(const Mat3<T>& R) {
  return R;
}
template <class T>
MGRPO_HD Mat3<T> as_matrix(Quat<T> q) {
  return quat_matrix(q);
}

// Matrices as they are: the gradient has all nine numbers.
struct MatrixKind {
  static constexpr int kIn = 9, kState = 9;
  static constexpr bool kGeneral = true;
  template <class T>
  using State = Mat3<T>;
  template <class T>
  static MGRPO_HD Mat3<T> decode(const T* p) {
    return load_mat3(p);
  }
};

// Kinds that give proper rotations have gradients of three numbers, torques; `pull_back` turns the torque about the axes
// of the parent's frame into dL/d(numbers of the representation), in place.
struct QuaternionKind {
  static constexpr int kIn = 4, kState = 4;
  static constexpr bool kGeneral = false;
  template <class T>
  using State = Quat<T>;
  template <class T>
  static MGRPO_HD Quat<T> decode(const T* p) {
    return load_unit_quat(p).q;
  }
  template <class T>
  static MGRPO_HD void pull_back(T* p, Vec3<T> torque) {
    store_quat(p, quat_gradient(load_unit_quat(p), torque));
  }
};

struct Rot6dKind {
  static constexpr int kIn = 6, kState = 9;
  static constexpr bool kGeneral = false;
  template <class T>
  using State = Mat3<T>;
  template <class T>
  static MGRPO_HD Mat3<T> decode(const T* p) {
    const GramSchmidt<T> g = gram_schmidt(p);
    return from_columns(g.u, g.v, g.w);
  }
  template <class T>
  static MGRPO_HD void pull_back(T* p, Vec3<T> torque) {
    const GramSchmidt<T> g = gram_schmidt(p);
    const T about_u = dot(g.u, torque), about_v = dot(g.v, torque), about_w = dot(g.w, torque);
    store_vec3(p, g.inverse_a * (about_w * g.v - (about_v + about_u * g.slope) * g.w));
    store_vec3(p + 3, (about_u * g.inverse_c) * g.w);
  }
};

// ---- the pose of the root ----

template <class Kind, class T>
struct RootPose {
  typename Kind::template State<T> R;
  Vec3<T> t;
};

template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> identity_root() {
  RootPose<Kind, T> root;
  from_unit_quat(Quat<T>{T(1), T(0), T(0), T(0)}, root.R);
  root.t = {T(0), T(0), T(0)};
  return root;
}
template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> load_root(const T* p) {
  RootPose<Kind, T> root;
  from_unit_quat(load_unit_quat(p).q, root.R);
  root.t = load_vec3(p + 4);
  return root;
}

// The central pupil frame as seen from the root.
template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> cpf_from_root(const int* parents, int head, Table<const T> local, const T* offsets,
                                         Vec3<T> t_head_cpf) {
  RootPose<Kind, T> cpf;
  cpf.R = Kind::decode(local[head]);
  cpf.t = load_vec3(offsets + 3 * head) + rotate(cpf.R, t_head_cpf);
  for (int joint = parents[head]; joint >= 0; joint = parents[joint]) {
    const auto L = Kind::decode(local[joint]);
    cpf.R = L * cpf.R;
    cpf.t = load_vec3(offsets + 3 * joint) + rotate(L, cpf.t);
  }
  return cpf;
}
// The root's pose where the central pupil frame has pose `cpf`.
template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> root_under_cpf(const RootPose<Kind, T>& cpf, const RootPose<Kind, T>& cpf_in_root) {
  RootPose<Kind, T> root;
  root.R = cpf.R * inverse(cpf_in_root.R);
  root.t = cpf.t - rotate(root.R, cpf_in_root.t);
  return root;
}

// ---- forward ----

// World rotations of all joints, as states, and positions. `world` may be `local`, if strides agree and hold a state.
template <class Kind, class T>
MGRPO_HD void pose_tree(const int* parents, int J, const RootPose<Kind, T>& root, Table<const T> local, const T* offsets,
                        Table<T> world, T* positions) {
  for (int j = 0; j < J; ++j) {
    const int p = parents[j];
    auto R_parent = root.R;
    Vec3<T> t_parent = root.t;
    if (p >= 0) {
      load_state(world[p], R_parent);
      t_parent = load_vec3(positions + 3 * p);
    }
    store_state(world[j], R_parent * Kind::decode(local[j]));
    store_vec3(positions + 3 * j, t_parent + rotate(R_parent, load_vec3(offsets + 3 * j)));
  }
}
// The same without positions, for the backward pass.
template <class Kind, class T>
MGRPO_HD void turn_tree(const int* parents, int J, const RootPose<Kind, T>& root, Table<const T> local, Table<T> world) {
  for (int j = 0; j < J; ++j) {
    auto R_parent = root.R;
    if (parents[j] >= 0) load_state(world[parents[j]], R_parent);
    store_state(world[j], R_parent * Kind::decode(local[j]));
  }
}

// ---- backward ----
//
// `forces` holds dL/d(joint position) (J, 3) and gets dL/d(offset). `grads` holds dL/d(world rotation) in the first
// numbers of each joint: nothing, 4 or 9. The root's gradient goes into RootGradient.

// dL/d(root's pose), as a torque about the root (proper rotations) or as nine numbers (general matrices).
template <class Kind, class T, bool kGeneral = Kind::kGeneral>
struct RootGradient {
  Mat3<T> R;
  Vec3<T> t;
};
template <class Kind, class T>
struct RootGradient<Kind, T, false> {
  Vec3<T> R, t;
};

// What `grads` says about a world rotation, in the form that the recursion carries (matrix or torque).
template <class T, class State>
MGRPO_HD Mat3<T> general_gradient(int output, const T* grad, const State& world) {
  if (output == kToMatrices) return load_mat3(grad);
  if (output == kToQuaternions) return matrix_quat_gradient(matrix_quat(world), load_quat(grad));
  return zero3<T>();
}
template <class T, class State>
MGRPO_HD Vec3<T> torque_gradient(int output, const T* grad, const State& world) {
  if (output == kToMatrices) return torque_on(as_matrix(world), load_mat3(grad));
  if (output == kToQuaternions) return torque_on(as_quat(world), load_quat(grad));
  return {T(0), T(0), T(0)};
}

// General matrices. Each joint of `grads` has room for nine numbers and gets dL/d(local rotation).
template <class Kind, class T>
MGRPO_HD RootGradient<Kind, T, true> tree_gradient(int output, const int* parents, int J, const RootPose<Kind, T>& root,
                                                   Table<const T> local, const T* offsets, Table<const T> world, T* forces,
                                                   Table<T> grads) {
  for (int j = 0; j < J; ++j) {
    Mat3<T> R;
    load_state(world[j], R);
    if (output != kToMatrices) store_mat3(grads[j], general_gradient(output, grads[j], R));
  }
  RootGradient<Kind, T, true> root_grad = {zero3<T>(), {T(0), T(0), T(0)}};
  for (int j = J - 1; j >= 0; --j) {  // children first
    const int p = parents[j];
    Mat3<T> R_parent = root.R;
    if (p >= 0) load_state(world[p], R_parent);
    const Mat3<T> G = load_mat3(grads[j]);
    const Vec3<T> force = load_vec3(forces + 3 * j);
    const Mat3<T> through = times_transposed(G, load_mat3(local[j])) + outer(force, load_vec3(offsets + 3 * j));
    if (p >= 0) {
      store_mat3(grads[p], load_mat3(grads[p]) + through);
      store_vec3(forces + 3 * p, load_vec3(forces + 3 * p) + force);
    } else {
      root_grad.R = root_grad.R + through;
      root_grad.t = root_grad.t + force;
    }
    store_mat3(grads[j], transposed_times(R_parent, G));
    store_vec3(forces + 3 * j, transposed_times(R_parent, force));
  }
  return root_grad;
}

// Proper rotations. Each joint of `grads` has room for three numbers and gets the torque about its parent's axes.
template <class Kind, class T>
MGRPO_HD RootGradient<Kind, T, false> tree_torques(int output, const int* parents, int J, const RootPose<Kind, T>& root,
                                                   const T* offsets, Table<const T> world, T* forces, Table<T> grads) {
  for (int j = 0; j < J; ++j) {
    auto R = root.R;
    load_state(world[j], R);
    store_vec3(grads[j], torque_gradient(output, grads[j], R));
  }
  RootGradient<Kind, T, false> root_grad = {{T(0), T(0), T(0)}, {T(0), T(0), T(0)}};
  for (int j = J - 1; j >= 0; --j) {
    const int p = parents[j];
    auto R_parent = root.R;
    if (p >= 0) load_state(world[p], R_parent);
    const Vec3<T> torque = load_vec3(grads[j]), force = load_vec3(forces + 3 * j);
    const Vec3<T> through = torque + cross(rotate(R_parent, load_vec3(offsets + 3 * j)), force);
    if (p >= 0) {
      store_vec3(grads[p], load_vec3(grads[p]) + through);
      store_vec3(forces + 3 * p, load_vec3(forces + 3 * p) + force);
    } else {
      root_grad.R = root_grad.R + through;
      root_grad.t = root_grad.t + force;
    }
    store_vec3(grads[j], rotate_back(R_parent, torque));
    store_vec3(forces + 3 * j, rotate_back(R_parent, force));
  }
  return root_grad;
}

// dL/d(T_world_root as given: quaternion of any length, translation)
template <class Kind, class T>
MGRPO_HD void store_root_gradient(const T* root, const RootGradient<Kind, T>& grad, T* out) {
  store_quat(out, quat_gradient(load_unit_quat(root), grad.R));
  store_vec3(out + 4, grad.t);
}

// Adds what dL/d(resulting T_world_root) says about the root.
template <class Kind, class T>
MGRPO_HD void add_root_pose_gradient(const RootPose<Kind, T>& root, const T* grad_pose, RootGradient<Kind, T, true>& grad) {
  grad.R = grad.R + matrix_quat_gradient(matrix_quat(root.R), load_quat(grad_pose));
  grad.t = grad.t + load_vec3(grad_pose + 4);
}
template <class Kind, class T>
MGRPO_HD void add_root_pose_gradient(const RootPose<Kind, T>& root, const T* grad_pose, RootGradient<Kind, T, false>& grad) {
  grad.R = grad.R + torque_on(as_quat(root.R), load_quat(grad_pose));
  grad.t = grad.t + load_vec3(grad_pose + 4);
}

template <class Kind, class T>
struct CpfGradient {
  RootGradient<Kind, T> pose;
  Vec3<T> t_head_cpf;
};

// From the root's gradient to that of the central pupil frame, adding to the gradients of the joints between the two.
// General matrices: the derivative of root_under_cpf as written, which takes the transpose for the inverse.
template <class Kind, class T>
MGRPO_HD CpfGradient<Kind, T> cpf_gradient(const int* parents, int head, const RootPose<Kind, T>& cpf,
                                           const RootPose<Kind, T>& root, const RootGradient<Kind, T, true>& root_grad,
                                           Table<const T> local, const T* offsets, Vec3<T> t_head_cpf,
                                           Table<const T> /*world*/, T* forces, Table<T> grads) {
  const RootPose<Kind, T> in_root = cpf_from_root<Kind>(parents, head, local, offsets, t_head_cpf);
  const Mat3<T> G = root_grad.R + T(-1) * outer(root_grad.t, in_root.t);
  const Vec3<T> force = T(-1) * transposed_times(root.R, root_grad.t);  // on the pupils, in the root's frame
  CpfGradient<Kind, T> result;
  result.pose.R = G * in_root.R;
  result.pose.t = root_grad.t;
  result.t_head_cpf = transposed_times(in_root.R, force);
  Mat3<T> G_joint = transposed_times(G, cpf.R) + outer(force, t_head_cpf);
  for (int joint = head; joint >= 0; joint = parents[joint]) {
    // The parent's rotation from the root, anew for each joint: the path is short, and storing it costs memory.
    Mat3<T> R_parent = identity3<T>();
    for (int above = parents[joint]; above >= 0; above = parents[above]) R_parent = load_mat3(local[above]) * R_parent;
    store_mat3(grads[joint], load_mat3(grads[joint]) + transposed_times(R_parent, G_joint));
    store_vec3(forces + 3 * joint, load_vec3(forces + 3 * joint) + transposed_times(R_parent, force));
    G_joint = times_transposed(G_joint, load_mat3(local[joint])) + outer(force, load_vec3(offsets + 3 * joint));
  }
  return result;
}
// Proper rotations: with the pupils held, turning a joint between them and the root turns the rest of the body back.
template <class Kind, class T>
MGRPO_HD CpfGradient<Kind, T> cpf_gradient(const int* parents, int head, const RootPose<Kind, T>& /*cpf*/,
                                           const RootPose<Kind, T>& root, const RootGradient<Kind, T, false>& root_grad,
                                           Table<const T> /*local*/, const T* offsets, Vec3<T> t_head_cpf,
                                           Table<const T> world, T* forces, Table<T> grads) {
  const Vec3<T> force = root_grad.t;
  auto R = root.R;
  load_state(world[head], R);
  CpfGradient<Kind, T> result;
  result.t_head_cpf = T(-1) * rotate_back(R, force);
  // Sums of world offsets below each joint: from the joint at hand to the pupils.
  Vec3<T> to_pupils = rotate(R, t_head_cpf);
  // From the root to the pupils.
  Vec3<T> reach = to_pupils;
  for (int joint = head; joint >= 0; joint = parents[joint]) {
    auto R_parent = root.R;
    if (parents[joint] >= 0) load_state(world[parents[joint]], R_parent);
    reach = reach + rotate(R_parent, load_vec3(offsets + 3 * joint));
  }
  for (int joint = head; joint >= 0; joint = parents[joint]) {
    auto R_parent = root.R;
    if (parents[joint] >= 0) load_state(world[parents[joint]], R_parent);
    const Vec3<T> torque = cross(reach - to_pupils, force) - root_grad.R;
    store_vec3(grads[joint], load_vec3(grads[joint]) + rotate_back(R_parent, torque));
    store_vec3(forces + 3 * joint, load_vec3(forces + 3 * joint) - rotate_back(R_parent, force));
    to_pupils = to_pupils + rotate(R_parent, load_vec3(offsets + 3 * joint));
  }
  result.pose.R = root_grad.R - cross(reach, force);
  result.pose.t = force;
  return result;
}

}  // namespace MGRPO_NAMESPACE
#endif
