// Gradient noise of one axis at one time. D is double, or a type whose every operation is rounded on its own: the bits
// are the contract, so whoever includes this keeps the compiler from fusing multiplications and additions.
// Torch-free. Maths and keys: kernels/perlin/README.md.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_PERLIN_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_PERLIN_MATH_H
#include <stdint.h>

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

// The four words of block `block` of a row's numbers (Philox4x32-10; counter layout in kernels/rng/README.md).
struct PerlinWords {
  uint32_t word[4];
};
MGRPO_HD PerlinWords perlin_words(uint32_t k0, uint32_t k1, uint32_t block, uint32_t step_member, uint32_t condition,
                                  uint32_t iteration) {
  uint32_t w0 = block, w1 = step_member, w2 = condition, w3 = iteration;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(w0) * 0xD2511F53u, p1 = static_cast<uint64_t>(w2) * 0xCD9E8D57u;
    w0 = static_cast<uint32_t>(p1 >> 32) ^ w1 ^ k0;
    w2 = static_cast<uint32_t>(p0 >> 32) ^ w3 ^ k1;
    w1 = static_cast<uint32_t>(p1);
    w3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{w0, w1, w2, w3}};
}

// 24 bits of a word as a multiple of 2^-24 in [0, 1).
MGRPO_HD double perlin_uniform(uint32_t word) { return static_cast<double>(word >> 8) * 0x1p-24; }

}  // namespace MGRPO_NAMESPACE
#endif
