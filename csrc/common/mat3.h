// 3-vectors and 3x3 matrices by value, generic in the number type. Torch-free; row-major like the tensors.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_MAT3_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_MAT3_H
#include "scalar.h"
#endif

namespace MGRPO_NAMESPACE {

template <class T>
struct Vec3 {
  T x, y, z;
};

template <class T>
struct Mat3 {
  T m[3][3];
};

template <class T>
MGRPO_HD Vec3<T> operator+(Vec3<T> a, Vec3<T> b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class T>
MGRPO_HD Vec3<T> operator-(Vec3<T> a, Vec3<T> b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class T>
MGRPO_HD Vec3<T> operator*(T s, Vec3<T> a) {
  return {s * a.x, s * a.y, s * a.z};
}
template <class T>
MGRPO_HD T dot(Vec3<T> a, Vec3<T> b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}
template <class T>
MGRPO_HD Vec3<T> cross(Vec3<T> a, Vec3<T> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <class T>
MGRPO_HD Vec3<T> load_vec3(const T* p) {
  return {p[0], p[1], p[2]};
}
template <class T>
MGRPO_HD void store_vec3(T* p, Vec3<T> a) {
  p[0] = a.x;
  p[1] = a.y;
  p[2] = a.z;
}
template <class T>
MGRPO_HD Mat3<T> load_mat3(const T* p) {
  Mat3<T> a;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) a.m[i][j] = p[3 * i + j];
  return a;
}
template <class T>
MGRPO_HD void store_mat3(T* p, const Mat3<T>& a) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) p[3 * i + j] = a.m[i][j];
}

template <class T>
MGRPO_HD Mat3<T> identity3() {
  return {{{T(1), T(0), T(0)}, {T(0), T(1), T(0)}, {T(0), T(0), T(1)}}};
}
template <class T>
MGRPO_HD Mat3<T> zero3() {
  return {{{T(0), T(0), T(0)}, {T(0), T(0), T(0)}, {T(0), T(0), T(0)}}};
}
template <class T>
MGRPO_HD Vec3<T> row(const Mat3<T>& a, int i) {
  return {a.m[i][0], a.m[i][1], a.m[i][2]};
}
template <class T>
MGRPO_HD Vec3<T> column(const Mat3<T>& a, int j) {
  return {a.m[0][j], a.m[1][j], a.m[2][j]};
}
template <class T>
MGRPO_HD Mat3<T> from_columns(Vec3<T> a, Vec3<T> b, Vec3<T> c) {
  return {{{a.x, b.x, c.x}, {a.y, b.y, c.y}, {a.z, b.z, c.z}}};
}

template <class T>
MGRPO_HD Mat3<T> operator+(const Mat3<T>& a, const Mat3<T>& b) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = a.m[i][j] + b.m[i][j];
  return c;
}
template <class T>
MGRPO_HD Mat3<T> operator*(T s, const Mat3<T>& a) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = s * a.m[i][j];
  return c;
}
template <class T>
MGRPO_HD Mat3<T> operator*(const Mat3<T>& a, const Mat3<T>& b) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = a.m[i][0] * b.m[0][j] + a.m[i][1] * b.m[1][j] + a.m[i][2] * b.m[2][j];
  return c;
}
// a^T b
template <class T>
MGRPO_HD Mat3<T> transposed_times(const Mat3<T>& a, const Mat3<T>& b) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = a.m[0][i] * b.m[0][j] + a.m[1][i] * b.m[1][j] + a.m[2][i] * b.m[2][j];
  return c;
}
// a b^T
template <class T>
MGRPO_HD Mat3<T> times_transposed(const Mat3<T>& a, const Mat3<T>& b) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = a.m[i][0] * b.m[j][0] + a.m[i][1] * b.m[j][1] + a.m[i][2] * b.m[j][2];
  return c;
}
template <class T>
MGRPO_HD Vec3<T> operator*(const Mat3<T>& a, Vec3<T> b) {
  return {dot(row(a, 0), b), dot(row(a, 1), b), dot(row(a, 2), b)};
}
// a^T b
template <class T>
MGRPO_HD Vec3<T> transposed_times(const Mat3<T>& a, Vec3<T> b) {
  return {dot(column(a, 0), b), dot(column(a, 1), b), dot(column(a, 2), b)};
}
// a b^T
template <class T>
MGRPO_HD Mat3<T> outer(Vec3<T> a, Vec3<T> b) {
  return {{{a.x * b.x, a.x * b.y, a.x * b.z}, {a.y * b.x, a.y * b.y, a.y * b.z}, {a.z * b.x, a.z * b.y, a.z * b.z}}};
}
// sum of the elementwise product
template <class T>
MGRPO_HD T inner(const Mat3<T>& a, const Mat3<T>& b) {
  return dot(row(a, 0), row(b, 0)) + dot(row(a, 1), row(b, 1)) + dot(row(a, 2), row(b, 2));
}
// [a]x, with [a]x b = a x b
template <class T>
MGRPO_HD Mat3<T> cross_matrix(Vec3<T> a) {
  return {{{T(0), -a.z, a.y}, {a.z, T(0), -a.x}, {-a.y, a.x, T(0)}}};
}
// the vector a with A - A^T = [a]x
template <class T>
MGRPO_HD Vec3<T> axial(const Mat3<T>& a) {
  return {a.m[2][1] - a.m[1][2], a.m[0][2] - a.m[2][0], a.m[1][0] - a.m[0][1]};
}

template <class Condition, class T>
MGRPO_HD Vec3<T> select(Condition condition, Vec3<T> yes, Vec3<T> no) {
  return {select(condition, yes.x, no.x), select(condition, yes.y, no.y), select(condition, yes.z, no.z)};
}
template <class Condition, class T>
MGRPO_HD Mat3<T> select(Condition condition, const Mat3<T>& yes, const Mat3<T>& no) {
  Mat3<T> c;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) c.m[i][j] = select(condition, yes.m[i][j], no.m[i][j]);
  return c;
}

}  // namespace MGRPO_NAMESPACE
#endif
