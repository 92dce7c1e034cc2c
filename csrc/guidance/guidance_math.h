// The formulas of motion_guidance: rotations and the derivatives of their logarithms, by right perturbations q exp(d).
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_GUIDANCE_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_GUIDANCE_MATH_H
#include "../common/mat3.h"
#include "guidance_types.h"
#endif
#include "../common/angles.h"

namespace MGRPO_NAMESPACE {

template <class T>
MGRPO_HD UnitQuaternion<T> operator*(const UnitQuaternion<T>& a, const UnitQuaternion<T>& b) {
  return {a.w * b.w - dot(a.xyz, b.xyz), a.w * b.xyz + b.w * a.xyz + cross(a.xyz, b.xyz)};
}
template <class T>
MGRPO_HD UnitQuaternion<T> inverse(const UnitQuaternion<T>& a) {
  return {a.w, T(-1) * a.xyz};
}
template <class T>
MGRPO_HD UnitQuaternion<T> load_quaternion(const T* p) {
  return {p[0], {p[1], p[2], p[3]}};
}
template <class T>
MGRPO_HD void store_quaternion(T* p, const UnitQuaternion<T>& q) {
  p[0] = q.w;
  store_vec3(p + 1, q.xyz);
}
template <class T>
MGRPO_HD Mat3<T> rotation(const UnitQuaternion<T>& q) {
  const T x = q.xyz.x, y = q.xyz.y, z = q.xyz.z, w = q.w, one = T(1), two = T(2);
  return {{{one - two * (y * y + z * z), two * (x * y - z * w), two * (x * z + y * w)},
           {two * (x * y + z * w), one - two * (x * x + z * z), two * (y * z - x * w)},
           {two * (x * z - y * w), two * (y * z + x * w), one - two * (x * x + y * y)}}};
}

// Sine and cosine by Taylor series around the nearest multiple of pi / 2: no library has them for every instruction set.
// Beyond some thousand turns they are those of another angle.
template <class T>
MGRPO_HD void sine_cosine(T angle, T& sine, T& cosine) {
  const T turns = angle * T(0.63661977236758134), limit = T(1 << 20);
  const int quarter = static_cast<int>(max(min(turns + select(turns < T(0), T(-0.5), T(0.5)), limit), -limit));
  const double exact = static_cast<double>(angle) - static_cast<double>(quarter) * 1.5707963267948966;
  const T x = max(min(static_cast<T>(exact), T(1)), T(-1)), z = -x * x;
  T s = T(1), c = T(1);
  for (int k = sizeof(T) == 8 ? 8 : 5; k > 0; --k) {
    s = T(1) + z * s * (T(1) / T(2 * k * (2 * k + 1)));
    c = T(1) + z * c * (T(1) / T(2 * k * (2 * k - 1)));
  }
  s = s * x;
  const bool odd = quarter & 1;
  sine = odd ? c : s;
  cosine = odd ? s : c;
  if (quarter & 2) sine = -sine;
  if ((quarter + 1) & 2) cosine = -cosine;
}

// q exp(d), of unit length.
template <class T>
MGRPO_HD UnitQuaternion<T> retract(const UnitQuaternion<T>& q, Vec3<T> d) {
  const T square = dot(d, d);
  T real, factor;
  if (square < T(1e-4)) {
    real = T(1) - square * T(1.0 / 8) * (T(1) - square * T(1.0 / 48));
    factor = T(0.5) - square * T(1.0 / 48) * (T(1) - square * T(1.0 / 80));
  } else {
    const T angle = sqrt(square);
    T sine;
    sine_cosine(T(0.5) * angle, sine, real);
    factor = sine / angle;
  }
  const UnitQuaternion<T> moved = q * UnitQuaternion<T>{real, factor * d};
  const T scale = T(1) / sqrt(moved.w * moved.w + dot(moved.xyz, moved.xyz));
  return {scale * moved.w, scale * moved.xyz};
}

// A rotation vector, and the factor of its squared cross matrix in the derivative of the logarithm.
template <class T>
struct Logarithm {
  Vec3<T> vector;
  T curl;
};
template <class T>
MGRPO_HD Logarithm<T> logarithm(const UnitQuaternion<T>& q) {
  const Vec3<T> r = short_rotation_vector(q);
  const T square = dot(r, r);
  const T near = T(1.0 / 12) * (T(1) + square * T(1.0 / 60) * (T(1) + square * T(1.0 / 42)));
  if (square < (sizeof(T) == 8 ? T(1e-3) : T(1e-2))) return {r, near};
  return {r, (T(1) - T(0.5) * sqrt(square) * abs(q.w) / length(q.xyz)) / square};
}
// d log(R exp(d)) / d d; its transpose is the derivative by a left perturbation.
template <class T>
MGRPO_HD Mat3<T> right_jacobian_inverse(const Logarithm<T>& log) {
  const Vec3<T> r = log.vector;
  const T c = log.curl, diagonal = T(1) - c * dot(r, r), half = T(0.5);
  return {{{diagonal + c * r.x * r.x, c * r.x * r.y - half * r.z, c * r.x * r.z + half * r.y},
           {c * r.x * r.y + half * r.z, diagonal + c * r.y * r.y, c * r.y * r.z - half * r.x},
           {c * r.x * r.z - half * r.y, c * r.y * r.z + half * r.x, diagonal + c * r.z * r.z}}};
}
template <class T>
MGRPO_HD Mat3<T> transposed(const Mat3<T>& a) {
  return from_columns(row(a, 0), row(a, 1), row(a, 2));
}

// The block Q of the left Jacobian of SE(3) at the twist (rho, phi).
template <class T>
MGRPO_HD Mat3<T> se3_coupling(Vec3<T> rho, Vec3<T> phi) {
  const T square = dot(phi, phi);
  T a, b, c;
  if (square < (sizeof(T) == 8 ? T(0.25) : T(1))) {  // the closed forms cancel almost all digits
    a = T(1.0 / 6), b = T(1.0 / 24), c = T(1.0 / 120);
    T term = T(1);
    T sum_a = T(0), sum_b = T(0), sum_c = T(0);
    // Terms of (x - sin x) / x^3, (x^2 + 2 cos x - 2) / (2 x^4) and (2 x - 3 sin x + x cos x) / (2 x^5).
    T term_a = a, term_b = b, term_c = c;
    for (int k = 0; k < 8; ++k) {
      sum_a = sum_a + term_a, sum_b = sum_b + term_b, sum_c = sum_c + T(k + 1) * term_c;
      term = T(2 * k);
      term_a = -term_a * square / ((term + T(4)) * (term + T(5)));
      term_b = -term_b * square / ((term + T(5)) * (term + T(6)));
      term_c = -term_c * square / ((term + T(6)) * (term + T(7)));
    }
    a = sum_a, b = sum_b, c = sum_c;
  } else {
    const T angle = sqrt(square);
    T sine, cosine;
    sine_cosine(angle, sine, cosine);
    a = (angle - sine) / (square * angle);
    b = (square + T(2) * cosine - T(2)) / (T(2) * square * square);
    c = (T(2) * angle - T(3) * sine + angle * cosine) / (T(2) * square * square * angle);
  }
  const Mat3<T> R = cross_matrix(rho), P = cross_matrix(phi), PR = P * R, RP = R * P, PRP = PR * P;
  const Mat3<T> PPR = P * PR, RPP = RP * P;
  return T(0.5) * R + a * (PR + RP + PRP) + b * (PPR + RPP + T(-3) * PRP) + c * (PRP * P + P * PRP);
}

// The inverse of the Cholesky factor of a symmetric matrix, by its upper triangle: {l00, l10, l11, l20, l21, l22}; false
// where the matrix is not positive or not finite.
template <class T>
struct LowerInverse {
  T m00, m10, m11, m20, m21, m22;
};
template <class T>
MGRPO_HD bool invert_cholesky(T a00, T a01, T a02, T a11, T a12, T a22, LowerInverse<T>& out) {
  const T limit = Precision<T>::kLargest;
  if (!(a00 > T(0) && a00 < limit)) return false;
  const T i0 = T(1) / sqrt(a00), l10 = a01 * i0, l20 = a02 * i0, d1 = a11 - l10 * l10;
  if (!(d1 > T(0) && d1 < limit)) return false;
  const T i1 = T(1) / sqrt(d1), l21 = (a12 - l20 * l10) * i1, d2 = a22 - l20 * l20 - l21 * l21;
  if (!(d2 > T(0) && d2 < limit)) return false;
  const T i2 = T(1) / sqrt(d2);
  out = {i0, -l10 * i0 * i1, i1, (l10 * l21 * i1 - l20) * i0 * i2, -l21 * i1 * i2, i2};
  return true;
}
template <class T>
MGRPO_HD Vec3<T> apply(const LowerInverse<T>& L, Vec3<T> v) {
  return {L.m00 * v.x, L.m10 * v.x + L.m11 * v.y, L.m20 * v.x + L.m21 * v.y + L.m22 * v.z};
}
template <class T>
MGRPO_HD Vec3<T> apply_transposed(const LowerInverse<T>& L, Vec3<T> v) {
  return {L.m00 * v.x + L.m10 * v.y + L.m20 * v.z, L.m11 * v.y + L.m21 * v.z, L.m22 * v.z};
}
template <class T>
MGRPO_HD Mat3<T> apply(const LowerInverse<T>& L, const Mat3<T>& a) {
  return from_columns(apply(L, column(a, 0)), apply(L, column(a, 1)), apply(L, column(a, 2)));
}

}  // namespace MGRPO_NAMESPACE
#endif
