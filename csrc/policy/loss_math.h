// One element of the clipped surrogate, in double and without branches, so that a loop over elements vectorises.
// Torch-free. Maths: kernels/policy/README.md.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_LOSS_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_LOSS_MATH_H
#include <stdint.h>
#include <string.h>

#include "../common/macros.h"
#endif

namespace MGRPO_NAMESPACE {

struct Exponential {
  double ratio;   // e^x
  double change;  // e^x - 1, relative error below 1e-15 also near x = 0
  double k3;      // e^x - 1 - x
};

MGRPO_HD int64_t double_bits(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

MGRPO_HD double bits_double(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// x = n ln 2 + r with |r| <= ln(2) / 2; the tail e^r - 1 - r is its Taylor series up to r^13 / 13!, whose rest is below
// 2e-17 of it.
MGRPO_HD Exponential exponential(double x) {
  constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer, which then stands in the low bits
  const double bounded = x < -800.0 ? -800.0 : x > 800.0 ? 800.0 : x;  // e^-800 = 0, e^800 = infinity; NaN stays
  const double n = (bounded * 0x1.71547652b82fep0 + kRound) - kRound;
  const double r = (bounded - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  const double tail = p * r * r;
  // 2^n as two factors, so that neither leaves the range of exponents before the product does.
  const double half = n * 0.5 + kRound;
  const double first = bits_double(static_cast<int64_t>(static_cast<uint64_t>(double_bits(half) + 1023) << 52));
  const double rest = (n - (half - kRound)) + kRound;
  const double second = bits_double(static_cast<int64_t>(static_cast<uint64_t>(double_bits(rest) + 1023) << 52));
  const double ratio = (1.0 + (r + tail)) * first * second;
  const bool near = n == 0;
  const double change = near ? r + tail : ratio - 1.0;
  return {ratio, change, near ? tail : change - x};
}

struct SurrogateElement {
  double loss;    // max(-A r, -A clip(r))
  double slope;   // its derivative with respect to ln r
  double ratio, k3;
  bool low, high;  // the clip is active below, above
};

MGRPO_HD SurrogateElement surrogate_element(double log_ratio, double advantage, double clip_low, double clip_high) {
  const Exponential e = exponential(log_ratio);
  const bool high = (advantage > 0) & (e.change > clip_high);
  const bool low = (advantage < 0) & (e.change < -clip_low);
  const bool cut = high | low, free = !(cut | (advantage == 0));
  // Where the ratio does not matter it enters no product: an infinite one stays harmless.
  const double bound = high ? 1.0 + clip_high : 1.0 - clip_low;
  const double clipped = cut ? bound : free ? e.ratio : 1.0;
  const double loss = -advantage * clipped;
  return {loss, free ? loss : 0.0, e.ratio, e.k3, low, high};
}

}  // namespace MGRPO_NAMESPACE
#endif
