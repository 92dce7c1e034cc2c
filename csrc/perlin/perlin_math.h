// Gradient noise of one axis at one time. D is double, or a type whose every operation is rounded on its own: the bits
// are the contract, so whoever includes this keeps the compiler from fusing multiplications and additions.
// Torch-free. Maths and keys: kernels/perlin/README.md.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_PERLIN_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_PERLIN_MATH_H
#include "../common/macros.h"
#endif

namespace MGRPO_NAMESPACE {

// Noise at the fraction f of a cell whose ends have the gradients `left` and `right`, in [-1, 1].
template <class D>
MGRPO_HD D blend_gradients(D left, D right, D f) {
  const D from_left = left * f, from_right = right * (f - D(1.0));
  const D fade = f * f * f * (f * (f * D(6.0) - D(15.0)) + D(10.0));
  return (from_left + fade * (from_right - from_left)) * D(2.0);
}

}  // namespace MGRPO_NAMESPACE
#endif
