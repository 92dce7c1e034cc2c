// The words that CUDA adds to C++: qualifiers, vector types, built-in variables.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// A block runs from its start to its end in one OS thread before the next begins there, so a thread's own variable is
// the block's own. Like the real thing it holds leftovers when a block starts.
#if defined(MGRPO_EMULATION_SANITIZE)
// AddressSanitizer watches the ends of global variables, but not of those that each thread has: one OS thread runs all.
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define MGRPO_EMULATION_VECTOR(T, name, align2, align4)                         \
  struct alignas(align2) name##2 {                                              \
    T x, y;                                                                     \
  };                                                                            \
  struct name##3 {                                                              \
    T x, y, z;                                                                  \
  };                                                                            \
  struct alignas(align4) name##4 {                                              \
    T x, y, z, w;                                                               \
  };                                                                            \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                    \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }            \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

MGRPO_EMULATION_VECTOR(float, float, 8, 16)
MGRPO_EMULATION_VECTOR(double, double, 16, 16)
MGRPO_EMULATION_VECTOR(int, int, 8, 16)
MGRPO_EMULATION_VECTOR(unsigned, uint, 8, 16)
MGRPO_EMULATION_VECTOR(long long, longlong, 16, 16)
#undef MGRPO_EMULATION_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1) : x(x_size), y(y_size), z(z_size) {}
};
