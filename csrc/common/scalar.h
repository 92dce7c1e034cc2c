// The elementary operations that formulas use besides + - * / and comparisons, for float and double. pack.h has the
// same for vectors; so a formula written with these is generic in its number type.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_SCALAR_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_SCALAR_H
#include <cfloat>
#include <cmath>

#include "macros.h"
#endif

namespace MGRPO_NAMESPACE {

MGRPO_HD float sqrt(float x) { return ::sqrtf(x); }
MGRPO_HD double sqrt(double x) { return ::sqrt(x); }
MGRPO_HD float abs(float x) { return ::fabsf(x); }
MGRPO_HD double abs(double x) { return ::fabs(x); }
// Where an argument is NaN the second one is the result, as in the vector instructions.
MGRPO_HD float max(float a, float b) { return a > b ? a : b; }
MGRPO_HD double max(double a, double b) { return a > b ? a : b; }
MGRPO_HD float min(float a, float b) { return a < b ? a : b; }
MGRPO_HD double min(double a, double b) { return a < b ? a : b; }

// A condition on numbers is a bool here and a mask of lanes for vectors: combine with & | !, choose with select.
MGRPO_HD bool any(bool condition) { return condition; }
MGRPO_HD bool all(bool condition) { return condition; }
MGRPO_HD float select(bool condition, float yes, float no) { return condition ? yes : no; }
MGRPO_HD double select(bool condition, double yes, double no) { return condition ? yes : no; }

template <class T>
struct Number;  // of a number type: its element type and its condition type
template <>
struct Number<float> {
  using Element = float;
  using Condition = bool;
};
template <>
struct Number<double> {
  using Element = double;
  using Condition = bool;
};

template <class Element>
struct Precision;
template <>
struct Precision<float> {
  static constexpr float kEpsilon = FLT_EPSILON, kLargest = FLT_MAX, kSmallestNormal = FLT_MIN;
};
template <>
struct Precision<double> {
  static constexpr double kEpsilon = DBL_EPSILON, kLargest = DBL_MAX, kSmallestNormal = DBL_MIN;
};

}  // namespace MGRPO_NAMESPACE
#endif
