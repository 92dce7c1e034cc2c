// What lets one header of formulas serve CUDA threads, plain C++ and the vector lanes of every instruction set.
//
// Such a header is generic in the number type T and holds no #include outside its guard:
//
//   #if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_THING_MATH_H)
//   #if !defined(MGRPO_ISA_SECTION)
//   #define MGRPO_THING_MATH_H
//   #include "../common/mat3.h"
//   #endif
//   namespace MGRPO_NAMESPACE { ... }
//   #endif
//
// Inside a section of for_each_isa.h the body includes it, once, after common/pack.h, mat3.h and polar.h, which the
// section has already.
#pragma once

#if defined(__CUDACC__)
#define MGRPO_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MGRPO_HD inline __attribute__((always_inline))
#else
#define MGRPO_HD inline
#endif

#if !defined(MGRPO_NAMESPACE)
#define MGRPO_NAMESPACE mgrpo
#endif
