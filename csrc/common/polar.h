// The rotation nearest to a 3x3 matrix, and its gradient. Mathematics and conventions: kernels/so3/README.md.
//
// Generic in the number type T: a float or double in one thread, or a Pack of them with one matrix per lane. Nothing
// branches on the data of one matrix; the branches below skip work that no lane needs, so a lane's result never depends
// on its neighbours.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_POLAR_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_POLAR_H
#include "mat3.h"
#endif

namespace MGRPO_NAMESPACE {

template <class Element>
struct PolarLimits;
template <>
struct PolarLimits<float> {
  static constexpr int kSweeps = 4, kNewtonSteps = 10;
  static constexpr float kNewtonChange = 1e-8f, kLeastDeterminant = 0.001f;
  static constexpr float kGradientFloor = 1e-5f;
};
template <>
struct PolarLimits<double> {
  static constexpr int kSweeps = 6, kNewtonSteps = 12;
  static constexpr double kNewtonChange = 1e-17, kLeastDeterminant = 0.001;
  static constexpr double kGradientFloor = 1e-10;
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
  T size = T(0);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const T value = abs(a.m[i][j]);
      size = select((value > size) | (value != value), value, size);
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

// a over its largest entry `size`, with one division: a power of two first brings both to a size whose inverse is normal.
template <class T>
MGRPO_HD Mat3<T> normalised(const Mat3<T>& a, T size) {
  const T lift = select(size > T(1), T(0x1p-64f), T(0x1p64f)), inverse = T(1) / (size * lift);
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = a.m[i][j] * lift * inverse;
  return c;
}

// Rotates columns p and q of B and V so that the columns of B become orthogonal (one-sided Jacobi).
template <class T>
MGRPO_HD void orthogonalise(Mat3<T>& B, Mat3<T>& V, int p, int q) {
  const Vec3<T> bp = column(B, p), bq = column(B, q);
  const T difference = dot(bq, bq) - dot(bp, bp), product = T(2) * dot(bp, bq);
  const T denominator = abs(difference) + sqrt(difference * difference + product * product);
  T tangent = select(denominator > T(0), product / denominator, T(0));
  tangent = select(difference < T(0), -tangent, tangent);
  const T cosine = T(1) / sqrt(T(1) + tangent * tangent), sine = tangent * cosine;
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
  const auto swap = dot(bp, bp) < dot(bq, bq);
  for (int i = 0; i < 3; ++i) {
    const T b = B.m[i][p], v = V.m[i][p];
    B.m[i][p] = select(swap, B.m[i][q], b);
    B.m[i][q] = select(swap, -b, B.m[i][q]);
    V.m[i][p] = select(swap, V.m[i][q], v);
    V.m[i][q] = select(swap, -v, V.m[i][q]);
  }
}

// Some unit vector at a right angle to the unit vector a.
template <class T>
MGRPO_HD Vec3<T> any_perpendicular(Vec3<T> a) {
  const T x = abs(a.x), y = abs(a.y), z = abs(a.z), one = T(1), zero = T(0);
  const Vec3<T> axis = {select((x <= y) & (x <= z), one, zero), select((y < x) & (y <= z), one, zero),
                        select((z < x) & (z < y), one, zero)};
  const Vec3<T> c = cross(a, axis);
  return (one / sqrt(dot(c, c))) * c;
}

// The part of b at a right angle to the unit vector a, as a unit vector; any such vector if b has no usable one.
template <class T>
MGRPO_HD Vec3<T> perpendicular_part(Vec3<T> a, Vec3<T> b) {
  const T size = max(abs(b.x), max(abs(b.y), abs(b.z)));
  auto usable = size > T(0);
  b = {b.x / size, b.y / size, b.z / size};
  for (int pass = 0; pass < 2; ++pass) {  // the second pass removes what cancellation left in the first
    b = b - dot(a, b) * a;
    const T length = sqrt(dot(b, b));
    usable = usable & (length > T(0.125));
    b = (T(1) / length) * b;
  }
  return select(usable, b, any_perpendicular(a));
}

// The polar factor of a well-conditioned B with positive determinant, by Newton's iteration X <- (X + X^-T) / 2.
// Returns where it is that; elsewhere R is of no use.
template <class T>
MGRPO_HD typename Number<T>::Condition newton_polar(const Mat3<T>& B, Mat3<T>& R) {
  using Limits = PolarLimits<typename Number<T>::Element>;
  R = sqrt(T(3) / inner(B, B)) * B;  // the size of a rotation
  auto usable = T(0) < T(1), done = T(1) < T(0);
  for (int step = 0; step < Limits::kNewtonSteps; ++step) {
    const Vec3<T> a = row(R, 0), b = row(R, 1), c = row(R, 2);
    const Vec3<T> bc = cross(b, c), ca = cross(c, a), ab = cross(a, b);  // the cofactors: X^-T times the determinant
    const T determinant = dot(a, bc);
    usable = usable & (done | (determinant > T(Limits::kLeastDeterminant)));
    if (!any(usable & !done)) break;
    // Higham's scaling (|X^-1| / |X|)^(1/2) saves steps far from a rotation, where the determinant is far from 1.
    T scaling = T(1);
    const auto far = abs(determinant - T(1)) > T(0.25);
    if (any(far & usable)) {
      const T squares = dot(a, a) + dot(b, b) + dot(c, c), cofactor_squares = dot(bc, bc) + dot(ca, ca) + dot(ab, ab);
      scaling = select(far, sqrt(sqrt(cofactor_squares / squares) / determinant), scaling);
    }
    const T keep = T(0.5) * scaling, add = T(0.5) / (scaling * determinant);
    const Mat3<T> next = {{{keep * a.x + add * bc.x, keep * a.y + add * bc.y, keep * a.z + add * bc.z},
                           {keep * b.x + add * ca.x, keep * b.y + add * ca.y, keep * b.z + add * ca.z},
                           {keep * c.x + add * ab.x, keep * c.y + add * ab.y, keep * c.z + add * ab.z}}};
    const Mat3<T> change = next + T(-1) * R;
    R = select(done, R, next);
    // The error after this step is about the square of the change.
    done = done | (inner(change, change) < T(Limits::kNewtonChange));
  }
  return usable & done;
}

// The nearest rotation of M (fix_det) or the nearest orthogonal matrix, with what the gradient needs.
template <class T>
MGRPO_CALLED Polar<T> polar(const Mat3<T>& M, bool fix_det) {
  using Element = typename Number<T>::Element;
  const T size = largest_entry(M);
  const auto finite = size <= T(Precision<Element>::kLargest);
  Mat3<T> B = select((size > T(0)) & finite, normalised(M, size), identity3<T>());
  Mat3<T> V = identity3<T>();
  for (int sweep = 0; sweep < PolarLimits<Element>::kSweeps; ++sweep) {
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
  const T s1 = sqrt(dot(b1, b1));
  const Vec3<T> u1 = (T(1) / s1) * b1;
  const Vec3<T> u2 = perpendicular_part(u1, b2);
  Vec3<T> u3 = cross(u1, u2);
  const T s2 = abs(dot(u2, b2));
  T s3 = dot(u3, b3);
  if (!fix_det) {
    const auto reflected = s3 < T(0);
    u3 = select(reflected, T(-1) * u3, u3);
    s3 = abs(s3);
  }

  Polar<T> result;
  result.R = times_transposed(from_columns(u1, u2, u3), V);
  result.V = V;
  result.pair_sums = {s2 + s3, s1 + s3, s1 + s2};
  result.s_1 = s1;
  const T undefined = size - size;  // NaN where an entry is NaN or infinite
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) result.R.m[i][j] = select(finite, result.R.m[i][j], undefined);
  return result;
}

// The nearest rotation alone: Newton's iteration where it is accurate, singular vectors elsewhere.
template <class T>
MGRPO_CALLED Mat3<T> nearest_rotation(const Mat3<T>& M, bool fix_det) {
  const T size = largest_entry(M);
  Mat3<T> R;
  const auto regular = (size > T(0)) & (size <= T(Precision<typename Number<T>::Element>::kLargest));
  const auto found = regular & newton_polar(normalised(M, size), R);
  if (all(found)) return R;
  return select(found, R, polar(M, fix_det).R);
}

// dL/dM from dL/dR, where R is the polar factor of M that `polar` returned.
template <class T>
MGRPO_CALLED Mat3<T> polar_gradient(const Mat3<T>& grad_R, const Mat3<T>& M, const Mat3<T>& R, bool fix_det) {
  const T size = largest_entry(M), least = T(PolarLimits<typename Number<T>::Element>::kGradientFloor);
  const Mat3<T> S = transposed_times(R, normalised(M, size));
  const T trace = S.m[0][0] + S.m[1][1] + S.m[2][2], half = T(-0.5);
  const T k01 = half * (S.m[0][1] + S.m[1][0]), k02 = half * (S.m[0][2] + S.m[2][0]);
  const T k12 = half * (S.m[1][2] + S.m[2][1]);
  const Vec3<T> a = {trace - S.m[0][0], k01, k02}, b = {k01, trace - S.m[1][1], k12}, c = {k02, k12, trace - S.m[2][2]};
  const Vec3<T> g = axial(transposed_times(R, grad_R));

  // Solve K x = g, K = (a b c). Its eigenvalues are the pair sums, and the test below is a lower bound of the smallest:
  // passing it proves the case regular; otherwise the singular vectors decide, and give the same x if it was.
  const Vec3<T> bc = cross(b, c);
  const T determinant = dot(a, bc), sum = T(2) * trace;
  Vec3<T> x = (T(1) / determinant) * (from_columns(bc, cross(c, a), cross(a, b)) * g);
  const auto regular = T(4) * determinant > least * sum * sum * sum;
  if (!all(regular)) {
    const Polar<T> p = polar(M, fix_det);
    const T floor = least * p.s_1;
    const Vec3<T> h = transposed_times(p.V, g);
    // The last pair sum is never below s_1.
    const Vec3<T> solved = {h.x / max(p.pair_sums.x, floor), h.y / max(p.pair_sums.y, floor), h.z / p.pair_sums.z};
    x = select(regular, x, p.V * solved);
  }
  return select(size == T(0), zero3<T>(), divided(R * cross_matrix(x), size));
}

#if defined(MGRPO_ISA_SECTION)
// One copy of each, made in polar_cpu.cpp: so a rotation has the same bits whichever operator asked for it, also where the
// operator's own file forbids fused multiply-adds.
#define MGRPO_POLAR_FUNCTIONS(keyword, T)                                            \
  keyword template Polar<Pack<T>> polar(const Mat3<Pack<T>>&, bool);                 \
  keyword template Mat3<Pack<T>> nearest_rotation(const Mat3<Pack<T>>&, bool);       \
  keyword template Mat3<Pack<T>> polar_gradient(const Mat3<Pack<T>>&, const Mat3<Pack<T>>&, const Mat3<Pack<T>>&, bool);
#if !defined(MGRPO_POLAR_DEFINED_HERE)
MGRPO_POLAR_FUNCTIONS(extern, float)
MGRPO_POLAR_FUNCTIONS(extern, double)
#endif
#endif

}  // namespace MGRPO_NAMESPACE
#endif
