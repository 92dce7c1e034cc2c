// Compiles one body of loops once per instruction set, into one binary that runs on any processor of its architecture.
//
//   #include "../common/rows.h"                    // everything with standard headers comes first
//   #define MGRPO_ISA_BODY "../so3/so3_lanes.h"    // seen from csrc/common
//   #include "../common/for_each_isa.h"
//   ...
//   MGRPO_ISA_CALL_OF(T, project_rows, in, out, begin, end);   // the widest version that this processor can run
//
// The body stands in a namespace of its own per instruction set (MGRPO_NAMESPACE) and may use common/pack.h, scalar.h,
// mat3.h and polar.h, which are there. It must not call standard-library templates: their code, compiled for a wide
// instruction set, could replace the plain one at link time. (Types alone, as those of <utility>, hold no code.)
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "mat3.h"
#include "polar.h"

#define MGRPO_ISA_SECTION 1
#undef MGRPO_NAMESPACE

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MGRPO_MANY_ISAS 1

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi,bmi2")
#define MGRPO_NAMESPACE mgrpo::x86_64_v4
#define MGRPO_ISA_BYTES 64
#include "isa_section.h"
#undef MGRPO_NAMESPACE
#undef MGRPO_ISA_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#define MGRPO_NAMESPACE mgrpo::x86_64_v3
#define MGRPO_ISA_BYTES 32
#include "isa_section.h"
#undef MGRPO_NAMESPACE
#undef MGRPO_ISA_BYTES
#pragma GCC pop_options
#endif

// What only old processors and float64 take is compiled with less effort: a quarter of the build's time.
#if defined(MGRPO_MANY_ISAS)
#pragma GCC push_options
#pragma GCC optimize("O1")
#endif
#define MGRPO_NAMESPACE mgrpo::baseline
#define MGRPO_ISA_BYTES 16
#include "isa_section.h"
#if defined(MGRPO_MANY_ISAS)
#pragma GCC pop_options
#endif
#undef MGRPO_NAMESPACE
#undef MGRPO_ISA_BYTES

#undef MGRPO_ISA_SECTION
#define MGRPO_NAMESPACE mgrpo

namespace mgrpo {

// 4, 3 or 0 for x86-64-v4, x86-64-v3 and the baseline. The environment variable MGRPO_ISA (v4, v3, baseline) lowers it.
inline int isa_level() {
  static const int level = [] {
#if defined(MGRPO_MANY_ISAS)
    const char* wanted = getenv("MGRPO_ISA");
    const int limit = wanted == nullptr || !strcmp(wanted, "v4") ? 4 : !strcmp(wanted, "v3") ? 3 : 0;
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const int best = v4 ? 4 : v3 ? 3 : 0;
    return best < limit ? best : limit;
#else
    return 0;
#endif
  }();
  return level;
}

}  // namespace mgrpo

// MGRPO_ISA_CALL(function, arguments...) calls the widest version of a function that this processor can run;
// MGRPO_ISA_CALL_OF(T, function, arguments...) that of function<T>, T being float or double. Doubles are for checking, so
// one version, the baseline, is enough for them and keeps builds short.
#if defined(MGRPO_MANY_ISAS)
#define MGRPO_ISA_CALL(function, ...)                                           \
  (::mgrpo::isa_level() == 4   ? ::mgrpo::x86_64_v4::function(__VA_ARGS__)      \
   : ::mgrpo::isa_level() == 3 ? ::mgrpo::x86_64_v3::function(__VA_ARGS__)      \
                               : ::mgrpo::baseline::function(__VA_ARGS__))
#define MGRPO_ISA_CALL_OF(T, function, ...)                                     \
  [&] {                                                                         \
    if constexpr (sizeof(T) == sizeof(double))                                  \
      return ::mgrpo::baseline::function<T>(__VA_ARGS__);                       \
    else                                                                        \
      return MGRPO_ISA_CALL(function<T>, __VA_ARGS__);                          \
  }()
#else
#define MGRPO_ISA_CALL(function, ...) (::mgrpo::baseline::function(__VA_ARGS__))
#define MGRPO_ISA_CALL_OF(T, function, ...) (::mgrpo::baseline::function<T>(__VA_ARGS__))
#endif
