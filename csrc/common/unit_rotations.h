// Rotations from numbers of any length (quaternions, two columns) and quaternions from rotations, each with its
// gradient; generic in the number type. Derivations: kernels/kinematics/README.md.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_UNIT_ROTATIONS_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_UNIT_ROTATIONS_H
#include "mat3.h"
#endif

namespace MGRPO_NAMESPACE {

// ---- unit vectors ----

// Squares between kLeast and kLargest are computed without overflow or loss. Vectors beyond them are brought there by
// powers of two, kUp and kDown, whatever their magnitude.
template <class Element>
struct SquareRange;
template <>
struct SquareRange<float> {
  static constexpr float kLeast = 1e-24f, kLargest = 1e30f, kUp = 0x1p100f, kDown = 0x1p-80f;
};
template <>
struct SquareRange<double> {
  static constexpr double kLeast = 1e-250, kLargest = 1e250, kUp = 0x1p700, kDown = 0x1p-700;
};

// What a vector was multiplied with, the square of it after that, and whether no lane was touched, as is usual.
template <class T>
struct Rescaled {
  T factor, square;
  bool ordinary;
};
template <int N, class T>
MGRPO_HD T sum_of_squares(const T (&v)[N]) {
  T sum = v[0] * v[0];
  for (int i = 1; i < N; ++i) sum = sum + v[i] * v[i];
  return sum;
}
template <int N, class T>
MGRPO_HD Rescaled<T> rescale(T (&v)[N]) {
  using Range = SquareRange<typename Number<T>::Element>;
  const T square = sum_of_squares(v);
  const auto above = square > T(Range::kLeast), below = square < T(Range::kLargest);
  if (all(above & below)) return {T(1), square, true};
  const T factor = select(above, select(below, T(1), T(Range::kDown)), T(Range::kUp));
  for (int i = 0; i < N; ++i) v[i] = factor * v[i];
  // Lanes within the range keep the same number, whatever the others hold.
  return {factor, select(above & below, square, sum_of_squares(v)), false};
}
// One over the length before it was multiplied, from that afterwards; kept a number, and not zero.
template <class T>
MGRPO_HD T inverse_before(const Rescaled<T>& scale, T inverse) {
  using Limits = Precision<typename Number<T>::Element>;
  if (scale.ordinary) return inverse;
  return max(min(scale.factor * inverse, T(Limits::kLargest)), T(Limits::kSmallestNormal));
}

// Divides v by its length, whatever its magnitude, and returns one over the length. A zero vector stays, with result 0.
template <int N, class T>
MGRPO_HD T normalise(T (&v)[N]) {
  const Rescaled<T> scale = rescale(v);
  const auto zero = scale.square == T(0);
  const T inverse = select(zero, T(0), T(1) / sqrt(scale.square));
  for (int i = 0; i < N; ++i) v[i] = inverse * v[i];
  return scale.ordinary ? inverse : select(zero, T(0), inverse_before(scale, inverse));
}

// ---- quaternions wxyz ----

template <class T>
struct Quat {
  T w, x, y, z;
};

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
MGRPO_HD Mat3<T> quat_matrix(Quat<T> q) {
  const T x2 = q.x + q.x, y2 = q.y + q.y, z2 = q.z + q.z;
  const T xx = q.x * x2, yy = q.y * y2, zz = q.z * z2, xy = q.x * y2, xz = q.x * z2, yz = q.y * z2;
  const T wx = q.w * x2, wy = q.w * y2, wz = q.w * z2;
  return {{{T(1) - (yy + zz), xy - wz, xz + wy},
           {xy + wz, T(1) - (xx + zz), yz - wx},
           {xz - wy, yz + wx, T(1) - (xx + yy)}}};
}
// Of a quaternion of any length, zero being the identity, without the square root of a normalisation.
template <class T>
MGRPO_HD Mat3<T> matrix_of_any_quat(const T* p) {
  T v[4] = {p[0], p[1], p[2], p[3]};
  const T square = rescale(v).square, one = T(1);
  const T two = select(square == T(0), T(0), T(2) / square);
  const T w = v[0], x = v[1], y = v[2], z = v[3];
  return {{{one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)},
           {two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)},
           {two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)}}};
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

// The unit quaternion of a rotation and what its gradient needs: which component was largest, and one over the length
// of the four linear terms.
template <class T>
struct MatrixQuat {
  using Condition = typename Number<T>::Condition;
  Quat<T> q;
  T inverse_length;
  Condition by_w, by_x, by_y, by_z;
};

// The four sums are written out: with signs chosen first, rotation_gradients_kernel<double> of the rewards spills.
template <class T>
MGRPO_HD MatrixQuat<T> matrix_quat(const Mat3<T>& R) {
  const T m00 = R.m[0][0], m11 = R.m[1][1], m22 = R.m[2][2], one = T(1);
  const Vec3<T> a = axial(R);
  const Vec3<T> s = {R.m[2][1] + R.m[1][2], R.m[0][2] + R.m[2][0], R.m[1][0] + R.m[0][1]};
  const auto low = m22 < T(0), x_over_y = m00 > m11, turned = m00 < -m11;
  MatrixQuat<T> m;
  m.by_x = low & x_over_y;
  m.by_y = low & !x_over_y;
  m.by_z = (!low) & turned;
  m.by_w = (!low) & !turned;
  const auto by_x = m.by_x, by_y = m.by_y, by_z = m.by_z;
  // The chosen component's own term is at least 1.
  const T w = select(by_x, a.x, select(by_y, a.y, select(by_z, a.z, one + m00 + m11 + m22)));
  const T x = select(by_x, one + m00 - m11 - m22, select(by_y, s.z, select(by_z, s.y, a.x)));
  const T y = select(by_x, s.z, select(by_y, one - m00 + m11 - m22, select(by_z, s.x, a.y)));
  const T z = select(by_x, s.y, select(by_y, s.x, select(by_z, one - m00 - m11 + m22, a.z)));
  m.inverse_length = one / sqrt(w * w + x * x + y * y + z * z);
  m.q = {m.inverse_length * w, m.inverse_length * x, m.inverse_length * y, m.inverse_length * z};
  return m;
}
// dL/dR from dL/dq
template <class T>
MGRPO_HD Mat3<T> matrix_quat_gradient(const MatrixQuat<T>& m, Quat<T> g) {
  const Quat<T> q = m.q;
  const T along = q.w * g.w + q.x * g.x + q.y * g.y + q.z * g.z, zero = T(0);
  const T w = m.inverse_length * (g.w - along * q.w), x = m.inverse_length * (g.x - along * q.x),
          y = m.inverse_length * (g.y - along * q.y), z = m.inverse_length * (g.z - along * q.z);
  const auto by_w = m.by_w, by_x = m.by_x, by_y = m.by_y, by_z = m.by_z;
  const Vec3<T> a = {select(by_x, w, select(by_w, x, zero)), select(by_y, w, select(by_w, y, zero)),
                     select(by_z, w, select(by_w, z, zero))};
  const Vec3<T> s = {select(by_z, y, select(by_y, z, zero)), select(by_z, x, select(by_x, z, zero)),
                     select(by_y, x, select(by_x, y, zero))};
  const T pivot = select(by_x, x, select(by_y, y, select(by_z, z, w)));
  return {{{select(by_x | by_w, pivot, -pivot), s.z - a.z, s.y + a.y},
           {s.z + a.z, select(by_y | by_w, pivot, -pivot), s.x - a.x},
           {s.y - a.y, s.x + a.x, select(by_z | by_w, pivot, -pivot)}}};
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
  const T inverse_a = normalise(a);
  const Rescaled<T> scale = rescale(b);
  const Vec3<T> u = {a[0], a[1], a[2]}, second = {b[0], b[1], b[2]};
  const T along = dot(u, second);
  const Vec3<T> c = second - along * u;
  const T squares = dot(c, c);
  const auto degenerate = (squares <= T(kParallel * kParallel) * scale.square) | (inverse_a == T(0));
  const T over_c = select(degenerate, T(0), T(1) / sqrt(squares));
  GramSchmidt<T> g;
  g.u = select(degenerate, Vec3<T>{T(1), T(0), T(0)}, u);
  g.v = select(degenerate, Vec3<T>{T(0), T(1), T(0)}, over_c * c);
  g.w = cross(g.u, g.v);
  g.inverse_a = select(degenerate, T(0), inverse_a);
  g.inverse_c = select(degenerate, T(0), inverse_before(scale, over_c));
  g.slope = along * over_c;
  return g;
}
// dL/d(the six numbers) from dL/d(angle), the torque about the axes of the frame that the rotation maps to; `out` may
// be what the numbers were read from.
template <class T>
MGRPO_HD void gram_schmidt_gradient(const GramSchmidt<T>& g, Vec3<T> torque, T* out) {
  const T about_u = dot(g.u, torque), about_v = dot(g.v, torque), about_w = dot(g.w, torque);
  store_vec3(out, g.inverse_a * (about_w * g.v - (about_v + about_u * g.slope) * g.w));
  store_vec3(out + 3, (about_u * g.inverse_c) * g.w);
}

}  // namespace MGRPO_NAMESPACE
#endif
