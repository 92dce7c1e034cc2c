// Angles between rotation matrices and rotation vectors, and the elementary functions that they need; no vector library
// has these for every instruction set. Generic in the number type.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_ANGLES_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_ANGLES_H
#include "mat3.h"
#endif

namespace MGRPO_NAMESPACE {

template <class T>
MGRPO_HD T length(Vec3<T> a) {
  return sqrt(dot(a, a));
}
// The larger one; a NaN wins (max forgets it where it stands first).
template <class T>
MGRPO_HD T larger(T a, T b) {
  return select((b > a) | (b != b), b, a);
}

// atan(q) / q as a polynomial in z = q^2 <= tan(pi / 8)^2, to 2e-8 (float) and 4e-17 (double).
template <class T>
MGRPO_HD T atan_series(T z, float) {
  return T(1.0f) + z * (T(-0.33332786f) + z * (T(0.19974083f) + z * (T(-0.1384849f) + z * T(0.07976292f))));
}
template <class T>
MGRPO_HD T atan_series(T z, double) {
  T sum = T(0.021135371786724255);
  sum = sum * z + T(-0.043480509875515695);
  sum = sum * z + T(0.056883483762541064);
  sum = sum * z + T(-0.066402336805179);
  sum = sum * z + T(0.07689953457237089);
  sum = sum * z + T(-0.09090773071361224);
  sum = sum * z + T(0.11111106180288108);
  sum = sum * z + T(-0.14285714180972484);
  sum = sum * z + T(0.19999999998855084);
  sum = sum * z + T(-0.3333333333332844);
  return sum * z + T(1);
}
// atan2(y, x) for y >= 0: an angle in [0, pi].
template <class T>
MGRPO_HD T upper_angle(T y, T x) {
  using Element = typename Number<T>::Element;
  const T size = abs(x), least = min(y, size), most = larger(y, size);
  // Above pi / 8 the angle is measured from pi / 4: tan(a - pi / 4) = (tan a - 1) / (tan a + 1).
  const auto turned = least > T(Element(0.41421356237309503)) * most;
  const T above = select(turned, least - most, least), below = select(turned, least + most, most);
  const T q = select(below == T(0), T(0), above / below);
  T angle = q * atan_series(q * q, Element());
  angle = angle + select(turned, T(Element(0.78539816339744831)), T(0));
  angle = select(y > size, T(Element(1.5707963267948966)) - angle, angle);
  return select(x < T(0), T(Element(3.1415926535897932)) - angle, angle);
}
// 2^u for 0 <= u <= 1.
template <class T>
MGRPO_HD T exp2_series(T u, float) {
  return T(1.0f) +
         u * (T(0.69314694f) +
              u * (T(0.24023046f) +
                   u * (T(0.05548063f) + u * (T(0.009684186f) + u * (T(0.0012391332f) + u * T(0.00021865785f))))));
}
template <class T>
MGRPO_HD T exp2_series(T u, double) {
  T sum = T(6.301915740910197e-10);
  sum = sum * u + T(6.538379972888172e-09);
  sum = sum * u + T(1.0258239631175736e-07);
  sum = sum * u + T(1.3207691263703903e-06);
  sum = sum * u + T(1.5253231598340641e-05);
  sum = sum * u + T(0.00015403509263546417);
  sum = sum * u + T(0.00133335587354168);
  sum = sum * u + T(0.009618129097240033);
  sum = sum * u + T(0.055504108665900845);
  sum = sum * u + T(0.24022650695904288);
  sum = sum * u + T(0.6931471805599465);
  return sum * u + T(1);
}

// The angle of A^T B by its sine (the skew part) and its cosine (the trace): an arc cosine would lose half of the digits
// near zero.
template <class T>
MGRPO_HD T geodesic_angle(const Mat3<T>& A, const Mat3<T>& B) {
  const Vec3<T> skew = cross(row(B, 0), row(A, 0)) + cross(row(B, 1), row(A, 1)) + cross(row(B, 2), row(A, 2));
  return upper_angle(length(skew), inner(A, B) - T(1));
}

// Into [-pi, pi), from less than one turn outside.
template <class T>
MGRPO_HD T wrapped(T angle) {
  using Element = typename Number<T>::Element;
  const T pi = T(Element(3.1415926535897932)), turn = T(Element(6.2831853071795865));
  return select(angle >= pi, angle - turn, select(angle < -pi, angle + turn, angle));
}

template <class T>
struct UnitQuaternion {
  T w;
  Vec3<T> xyz;
};
// With the sign of the case in which it is well defined.
template <class T>
MGRPO_HD UnitQuaternion<T> unit_quaternion(const Mat3<T>& R) {
  const T a0 = R.m[0][0], a4 = R.m[1][1], a8 = R.m[2][2], one = T(1);
  const Vec3<T> skew = axial(R);
  const T yx = R.m[1][0] + R.m[0][1], zx = R.m[0][2] + R.m[2][0], zy = R.m[2][1] + R.m[1][2];
  const auto low = a8 < T(0), x_over_y = a0 > a4, minus = a0 < -a4;
  const auto by_x = low & x_over_y, by_y = low & !x_over_y, by_z = (!low) & minus;
  const T w = select(by_x, skew.x, select(by_y, skew.y, select(by_z, skew.z, one + a0 + a4 + a8)));
  const T x = select(by_x, one + a0 - a4 - a8, select(by_y, yx, select(by_z, zx, skew.x)));
  const T y = select(by_x, yx, select(by_y, one - a0 + a4 - a8, select(by_z, zy, skew.y)));
  const T z = select(by_x, zx, select(by_y, zy, select(by_z, one - a0 - a4 + a8, skew.z)));
  const T inverse = one / sqrt(w * w + x * x + y * y + z * z);
  return {inverse * w, {inverse * x, inverse * y, inverse * z}};
}

template <class Element>
struct RotationVectorLimits;  // squared sine of half an angle under which the logarithm is taken by its series
template <>
struct RotationVectorLimits<float> {
  static constexpr float kTiny = 1e-5f;
};
template <>
struct RotationVectorLimits<double> {
  static constexpr double kTiny = 1e-10;
};

// The rotation vector of a unit quaternion, the short way round; q and -q give the same.
template <class T>
MGRPO_HD Vec3<T> short_rotation_vector(const UnitQuaternion<T>& q) {
  using Element = typename Number<T>::Element;
  const T square = dot(q.xyz, q.xyz);
  const auto tiny = square < T(RotationVectorLimits<Element>::kTiny);
  const T sine = sqrt(select(tiny, T(1), square)), safe_w = select(tiny, q.w, T(1));
  const T series = T(2) / safe_w - T(Element(2.0 / 3)) * square / (safe_w * safe_w * safe_w);
  const T far = select(q.w < T(0), T(-2), T(2)) * upper_angle(sine, abs(q.w)) / sine;
  return select(tiny, series, far) * q.xyz;
}
// The one whose length the sign of w gives, up to two pi.
template <class T>
MGRPO_HD Vec3<T> long_rotation_vector(const UnitQuaternion<T>& q) {
  using Element = typename Number<T>::Element;
  const Vec3<T> v = short_rotation_vector(q);
  const T angle = max(length(v), T(Precision<Element>::kEpsilon));
  return select(q.w < T(0), T(1) - T(Element(6.2831853071795865)) / angle, T(1)) * v;
}

}  // namespace MGRPO_NAMESPACE
#endif
