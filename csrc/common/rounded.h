// A number whose operations are rounded one by one. On a GPU they are the intrinsics that the compiler never fuses into
// multiply-adds and never replaces by approximations, whatever its flags; elsewhere the plain operators.
#pragma once

#include <math.h>

#include "macros.h"

namespace mgrpo {

template <class T>
struct Rounded;

#if defined(__CUDA_ARCH__)
#define MGRPO_ROUNDED(on_gpu, elsewhere) on_gpu
#else
#define MGRPO_ROUNDED(on_gpu, elsewhere) elsewhere
#endif

template <>
struct Rounded<float> {
  float value;

  Rounded() = default;
  MGRPO_HD Rounded(float value) : value(value) {}

  friend MGRPO_HD Rounded operator+(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__fadd_rn(a.value, b.value), a.value + b.value);
  }
  friend MGRPO_HD Rounded operator-(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__fsub_rn(a.value, b.value), a.value - b.value);
  }
  friend MGRPO_HD Rounded operator*(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__fmul_rn(a.value, b.value), a.value * b.value);
  }
};

template <>
struct Rounded<double> {
  double value;

  Rounded() = default;
  MGRPO_HD Rounded(double value) : value(value) {}

  friend MGRPO_HD Rounded operator+(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__dadd_rn(a.value, b.value), a.value + b.value);
  }
  friend MGRPO_HD Rounded operator-(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__dsub_rn(a.value, b.value), a.value - b.value);
  }
  friend MGRPO_HD Rounded operator*(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__dmul_rn(a.value, b.value), a.value * b.value);
  }
  friend MGRPO_HD Rounded operator/(Rounded a, Rounded b) {
    return MGRPO_ROUNDED(__ddiv_rn(a.value, b.value), a.value / b.value);
  }
};

MGRPO_HD Rounded<float> rounded_sqrt(Rounded<float> a) { return MGRPO_ROUNDED(__fsqrt_rn(a.value), sqrtf(a.value)); }

#undef MGRPO_ROUNDED

}  // namespace mgrpo
