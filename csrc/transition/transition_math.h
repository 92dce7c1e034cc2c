// Formulas of one transition, generic in the number type; derivations in kernels/transition/README.md.
//
// The step's operations are rounded one by one, in this order, in every backend: whoever includes this keeps the
// compiler from fusing them (see common/philox_math.h).
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_TRANSITION_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_TRANSITION_MATH_H
#include <math.h>

#include "state.h"
#endif

namespace MGRPO_NAMESPACE {

constexpr double kHalfLog2Pi = 0.91893853320467274178;

template <class T>
MGRPO_HD T step_mean(T x_t, T x0_pred, T A, T B) {
  return x_t * A + x0_pred * B;
}

template <class T>
MGRPO_HD T step_residual(T x_prev, T x_t, T x0_pred, T A, T B) {
  return x_prev - x_t * A - x0_pred * B;
}

// The power of two at or below |x|, held within what a float and its inverse can be. Dividing by it is exact, so sums of
// squares neither overflow nor vanish however small s or large B / s is; the factor that remains enters in double.
MGRPO_HD double power_of_two_below(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int64_t exponent = static_cast<int64_t>(bits >> 52 & 0x7FF);
  exponent = exponent < 1023 - 126 ? 1023 - 126 : exponent > 1023 + 126 ? 1023 + 126 : exponent;
  const uint64_t power = static_cast<uint64_t>(exponent) << 52;
  double value;
  memcpy(&value, &power, sizeof value);
  return value;
}

// Log-density of a row from the weighted sum of its squared normal numbers.
MGRPO_HD double log_density(double squares, double s, double weight, bool mean) {
  return (-0.5 * squares - (log(s) + kHalfLog2Pi) * weight) * row_scale(weight, mean);
}

// The same from the weighted sum of ((x_prev - mean) / unit)^2, and its gradient.
struct LogProbRow {
  double s, unit;

  MGRPO_HD explicit LogProbRow(double s) : s(s), unit(power_of_two_below(s)) {}

  MGRPO_HD double value(double squares, double weight, bool mean) const {
    const double ratio = unit / s;
    return log_density(squares * ratio * ratio, s, weight, mean);
  }
  // dL/dx_prev = slope * weight * (x_prev - mean) / unit; minus A or B times that for x_t and x0_pred.
  MGRPO_HD double slope(double grad, double weight, bool mean) const {
    if (grad == 0) return 0;  // whatever s is: a row that the loss leaves out gets exact zeros
    return -(grad * row_scale(weight, mean)) * (unit / s) / s;
  }
};

// Which terms of noise delta - delta^2 / 2 a log-ratio has.
enum class RatioTerms : int { kBoth, kLinear, kDivergence };

// Log-ratio of a row from the weighted sums of noise d and d^2, d = (x0_pred - x0_pred_old) unit; delta = factor d.
struct RatioRow {
  double gain, unit, factor;

  MGRPO_HD explicit RatioRow(double gain) : gain(gain), unit(power_of_two_below(gain)), factor(gain / unit) {}

  MGRPO_HD double value(RatioTerms terms, double linear, double squares, double weight, bool mean) const {
    const double scale = row_scale(weight, mean);
    if (terms == RatioTerms::kDivergence) return 0.5 * factor * factor * squares * scale;
    if (terms == RatioTerms::kLinear) return factor * linear * scale;
    return (factor * linear - 0.5 * factor * factor * squares) * scale;
  }
  // dL/dx0_pred = slope * weight * (noise - delta), or slope * weight * delta for the divergence.
  MGRPO_HD double slope(double grad, double weight, bool mean) const {
    if (grad == 0) return 0;
    return grad * row_scale(weight, mean) * gain;
  }
};

}  // namespace MGRPO_NAMESPACE
#endif
