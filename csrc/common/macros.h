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

// A large function: called rather than copied into every caller, which keeps builds short. CUDA has no cheap calls.
#if defined(__GNUC__) && !defined(__CUDACC__)
#define MGRPO_CALLED __attribute__((noinline))
#else
#define MGRPO_CALLED MGRPO_HD
#endif

#if !defined(MGRPO_NAMESPACE)
#define MGRPO_NAMESPACE mgrpo
#endif
