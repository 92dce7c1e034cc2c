// The rotation nearest to a 3x3 matrix, and its gradient. Mathematics and conventions: kernels/so3/README.md.
//
// Straight-line code without data-dependent trip counts, apart from degenerate inputs, so that a later version can run
// it with a vector register in the place of T.
#pragma once

#include <cfloat>
#include <cmath>

#include "mat3.h"

namespace mgrpo {

template <class T>
struct PolarLimits;
template <>
struct PolarLimits<float> {
  static constexpr int kSweeps = 4, kNewtonSteps = 10;
  static constexpr float kNewtonChange = 1e-8f, kLeastDeterminant = 0.02f;
  static constexpr float kGradientFloor = 1e-5f;
  static constexpr float kLargest = FLT_MAX;
};
template <>
struct PolarLimits<double> {
  static constexpr int kSweeps = 6, kNewtonSteps = 12;
  static constexpr double kNewtonChange = 1e-17, kLeastDeterminant = 0.02;
  static constexpr double kGradientFloor = 1e-10;
  static constexpr double kLargest = DBL_MAX;
};

template <class T>
struct Polar {
  Mat3<T> R;
  Mat3<T> V;          // right singular vectors, a rotation
  Vec3<T> pair_sums;  // s_2 + s_3, s_1 + s_3, s_1 + s_2 of M over its largest entry; s_3 < 0 where the sign was fixed
  T s_1;
};

// Largest absolute entry; NaN if any entry is.
template <class T>
MGRPO_HD T largest_entry(const Mat3<T>& a) {
  T size = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const T value = std::fabs(a.m[i][j]);
      size = (value > size || value != value) ? value : size;
    }
  return size;
}

// Divides every entry; not a product with 1 / size, which overflows for a subnormal size.
template <class T>
MGRPO_HD Mat3<T> divided(const Mat3<T>& a, T size) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = a.m[i][j] / size;
  return c;
}

// Rotates columns p and q of B and V so that the columns of B become orthogonal (one-sided Jacobi).
template <class T>
MGRPO_HD void orthogonalise(Mat3<T>& B, Mat3<T>& V, int p, int q) {
  const Vec3<T> bp = column(B, p), bq = column(B, q);
  const T difference = dot(bq, bq) - dot(bp, bp), product = 2 * dot(bp, bq);
  const T denominator = std::fabs(difference) + std::sqrt(difference * difference + product * product);
  T tangent = denominator > 0 ? product / denominator : T(0);
  tangent = difference < 0 ? -tangent : tangent;
  const T cosine = 1 / std::sqrt(1 + tangent * tangent), sine = tangent * cosine;
  for (int i = 0; i < 3; ++i) {
    const T b = B.m[i][p], v = V.m[i][p];
    B.m[i][p] = cosine * b - sine * B.m[i][q];
    B.m[i][q] = sine * b + cosine * B.m[i][q];
    V.m[i][p] = cosine * v - sine * V.m[i][q];
    V.m[i][q] = sine * v + cosine * V.m[i][q];
  }
}

// Puts the longer of columns p and q first. One of them changes sign, which keeps V a rotation.
template <class T>
MGRPO_HD void order_columns(Mat3<T>& B, Mat3<T>& V, int p, int q) {
  const Vec3<T> bp = column(B, p), bq = column(B, q);
  const bool swap = dot(bp, bp) < dot(bq, bq);
  for (int i = 0; i < 3; ++i) {
    const T b = B.m[i][p], v = V.m[i][p];
    B.m[i][p] = swap ? B.m[i][q] : b;
    B.m[i][q] = swap ? -b : B.m[i][q];
    V.m[i][p] = swap ? V.m[i][q] : v;
    V.m[i][q] = swap ? -v : V.m[i][q];
  }
}

// Some unit vector at a right angle to the unit vector a.
template <class T>
MGRPO_HD Vec3<T> any_perpendicular(Vec3<T> a) {
  const T x = std::fabs(a.x), y = std::fabs(a.y), z = std::fabs(a.z);
  const Vec3<T> axis = {T(x <= y && x <= z), T(y < x && y <= z), T(z < x && z < y)};
  const Vec3<T> c = cross(a, axis);
  return (1 / std::sqrt(dot(c, c))) * c;
}

// The part of b at a right angle to the unit vector a, as a unit vector; any such vector if b has no usable one.
template <class T>
MGRPO_HD Vec3<T> perpendicular_part(Vec3<T> a, Vec3<T> b) {
  const T size = std::fmax(std::fabs(b.x), std::fmax(std::fabs(b.y), std::fabs(b.z)));
  if (!(size > 0)) return any_perpendicular(a);
  b = {b.x / size, b.y / size, b.z / size};
  for (int pass = 0; pass < 2; ++pass) {  // the second pass removes what cancellation left in the first
    b = b - dot(a, b) * a;
    const T length = std::sqrt(dot(b, b));
    if (!(length > T(0.125))) return any_perpendicular(a);
    b = (1 / length) * b;
  }
  return b;
}

// The polar factor of a well-conditioned B with positive determinant, by Newton's iteration X <- (X + X^-T) / 2 with
// Higham's scaling. False where B is not such a matrix; then R is not set.
template <class T>
MGRPO_HD bool newton_polar(const Mat3<T>& B, Mat3<T>& R) {
  Mat3<T> X = B;
  for (int step = 0; step < PolarLimits<T>::kNewtonSteps; ++step) {
    const Vec3<T> a = row(X, 0), b = row(X, 1), c = row(X, 2);
    const Vec3<T> bc = cross(b, c), ca = cross(c, a), ab = cross(a, b);  // the cofactors: X^-T times the determinant
    const T determinant = dot(a, bc);
    if (!(determinant > PolarLimits<T>::kLeastDeterminant)) return false;
    const T squares = dot(a, a) + dot(b, b) + dot(c, c), cofactor_squares = dot(bc, bc) + dot(ca, ca) + dot(ab, ab);
    // The scaling (|X^-1| / |X|)^(1/2) is 1 at a rotation and saves steps far from one.
    const T scaling = std::sqrt(std::sqrt(cofactor_squares / squares) / determinant);
    const T keep = scaling / 2, add = 1 / (2 * scaling * determinant);
    const Mat3<T> Y = {{{keep * a.x + add * bc.x, keep * a.y + add * bc.y, keep * a.z + add * bc.z},
                        {keep * b.x + add * ca.x, keep * b.y + add * ca.y, keep * b.z + add * ca.z},
                        {keep * c.x + add * ab.x, keep * c.y + add * ab.y, keep * c.z + add * ab.z}}};
    const Mat3<T> change = Y + T(-1) * X;
    X = Y;
    // The error after this step is about the square of the change.
    if (inner(change, change) < PolarLimits<T>::kNewtonChange) {
      R = X;
      return true;
    }
  }
  return false;
}

// The nearest rotation of M (fix_det) or the nearest orthogonal matrix, with what the gradient needs.
template <class T>
MGRPO_HD Polar<T> polar(const Mat3<T>& M, bool fix_det) {
  const T size = largest_entry(M);
  const bool usable = size > 0 && size <= PolarLimits<T>::kLargest;
  Mat3<T> B = usable ? divided(M, size) : identity3<T>();
  Mat3<T> V = identity3<T>();
  for (int sweep = 0; sweep < PolarLimits<T>::kSweeps; ++sweep) {
    orthogonalise(B, V, 0, 1);
    orthogonalise(B, V, 0, 2);
    orthogonalise(B, V, 1, 2);
  }
  order_columns(B, V, 0, 1);
  order_columns(B, V, 0, 2);
  order_columns(B, V, 1, 2);

  // B = U diag(s). The third direction follows from the first two, so the product is a rotation also where B is
  // singular, and s_3, the smallest, carries the sign of the determinant: that is the nearest rotation.
  const Vec3<T> b1 = column(B, 0), b2 = column(B, 1), b3 = column(B, 2);
  const T s1 = std::sqrt(dot(b1, b1));
  const Vec3<T> u1 = (1 / s1) * b1;
  const Vec3<T> u2 = perpendicular_part(u1, b2);
  Vec3<T> u3 = cross(u1, u2);
  const T s2 = std::fabs(dot(u2, b2));
  T s3 = dot(u3, b3);
  if (!fix_det && s3 < 0) {
    u3 = T(-1) * u3;
    s3 = -s3;
  }

  Polar<T> result;
  result.R = times_transposed(from_columns(u1, u2, u3), V);
  result.V = V;
  result.pair_sums = {s2 + s3, s1 + s3, s1 + s2};
  result.s_1 = s1;
  if (!(size <= PolarLimits<T>::kLargest)) result.R = T(NAN) * identity3<T>() + T(NAN) * result.R;
  return result;
}

// The nearest rotation alone: Newton's iteration where it is accurate, singular vectors elsewhere.
template <class T>
MGRPO_HD Mat3<T> nearest_rotation(const Mat3<T>& M, bool fix_det) {
  const T size = largest_entry(M);
  Mat3<T> R;
  if (size > 0 && size <= PolarLimits<T>::kLargest && newton_polar(divided(M, size), R)) return R;
  return polar(M, fix_det).R;
}

// dL/dM from dL/dR, where R is the polar factor of M that `polar` returned.
template <class T>
MGRPO_HD Mat3<T> polar_gradient(const Mat3<T>& grad_R, const Mat3<T>& M, const Mat3<T>& R, bool fix_det) {
  const T size = largest_entry(M);
  if (size == 0) return zero3<T>();
  const Mat3<T> S = transposed_times(R, divided(M, size));
  const T trace = S.m[0][0] + S.m[1][1] + S.m[2][2];
  const T k01 = -(S.m[0][1] + S.m[1][0]) / 2, k02 = -(S.m[0][2] + S.m[2][0]) / 2, k12 = -(S.m[1][2] + S.m[2][1]) / 2;
  const Vec3<T> a = {trace - S.m[0][0], k01, k02}, b = {k01, trace - S.m[1][1], k12}, c = {k02, k12, trace - S.m[2][2]};
  const Vec3<T> g = axial(transposed_times(R, grad_R));

  // Solve K x = g, K = (a b c). Its eigenvalues are the pair sums, and the test below is a lower bound of the smallest:
  // passing it proves the case regular; otherwise the singular vectors decide, and give the same x if it was.
  const Vec3<T> bc = cross(b, c);
  const T determinant = dot(a, bc), sum = 2 * trace;
  Vec3<T> x;
  if (4 * determinant > PolarLimits<T>::kGradientFloor * sum * sum * sum) {
    x = (1 / determinant) * (from_columns(bc, cross(c, a), cross(a, b)) * g);
  } else {
    const Polar<T> p = polar(M, fix_det);
    const T floor = PolarLimits<T>::kGradientFloor * p.s_1;
    const Vec3<T> h = transposed_times(p.V, g);
    // The last pair sum is never below s_1.
    x = p.V * Vec3<T>{h.x / std::fmax(p.pair_sums.x, floor), h.y / std::fmax(p.pair_sums.y, floor), h.z / p.pair_sums.z};
  }
  return divided(R * cross_matrix(x), size);
}

}  // namespace mgrpo
