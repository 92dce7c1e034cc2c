// The product of half_linear with AVX512-FP16: 32 multiply-adds per instruction, twice as many as in float32.
//
// A result is a sum of float16 sums of at most kChunk products, added in float32: long enough that widening costs
// little, short enough that a partial sum is not rounded too often, nor overflows (rows and columns are scaled so that
// their largest magnitude is below 16).
#pragma once

// GCC's own headers warn of registers that they leave undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace mgrpo {
namespace half_linear {

constexpr int kPanel = 128;  // columns of the result that are computed together: 4 registers
constexpr int kRows = 6;     // rows of a tile: 24 accumulators, 4 registers of weights and 1 of x make 29 of 32
constexpr int kChunk = 64;   // products per float16 sum; a chunk of a panel is 16 kB and stays in the first cache
constexpr int kBlock = 22;   // tiles that share a panel's chunk: 132 rows, or a window of 128 frames

#define MGRPO_FP16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512fp16,fma,bmi2")))

// A row of x as the tiles read it: scaled by a power of two, rounded, each number twice in 32 bits, so that one load
// fills a register with it. Returns what the row's results are multiplied by.
MGRPO_FP16 inline float pack_row(const float* x, int64_t count, uint32_t* out, int64_t chunk_stride) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 mask = count - k >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - k)) - 1);
    largest = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(mask, x + k)), largest);
  }
  const float magnitude = _mm512_reduce_max_ps(largest);
  int exponent = 3;
  if (magnitude > 0.0f && magnitude <= 3.0e38f) exponent = std::ilogb(magnitude);
  exponent = exponent < -100 ? -100 : exponent;
  const __m512 factor = _mm512_set1_ps(std::ldexp(1.0f, 3 - exponent));
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 mask = count - k >= 16 ? 0xffff : static_cast<__mmask16>((1u << (count - k)) - 1);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + k), factor);
    const __m512i half = _mm512_cvtepu16_epi32(_mm256_castph_si256(_mm512_cvtxps_ph(scaled)));
    uint32_t* place = out + k / kChunk * chunk_stride + k % kChunk;
    _mm512_storeu_si512(place, _mm512_or_si512(half, _mm512_slli_epi32(half, 16)));
  }
  return std::ldexp(1.0f, exponent - 3);
}

// sums (R, kPanel) = or += the products of R rows and a panel over `count` numbers.
template <int R>
MGRPO_FP16 void multiply(const uint32_t* x, const uint16_t* weights, int count, bool first, float* sums) {
  constexpr int kColumns = kPanel / 32;
  __m512h sum[R][kColumns];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < kColumns; ++c) sum[r][c] = _mm512_setzero_ph();
#pragma GCC unroll 2
  for (int k = 0; k < count; ++k) {
    __m512h w[kColumns];
    for (int c = 0; c < kColumns; ++c) w[c] = _mm512_loadu_ph(weights + k * kPanel + 32 * c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512h both = _mm512_castsi512_ph(_mm512_set1_epi32(static_cast<int>(x[r * kChunk + k])));
      for (int c = 0; c < kColumns; ++c) sum[r][c] = _mm512_fmadd_ph(both, w[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      const __m512i bits = _mm512_castph_si512(sum[r][c]);
      __m512 low = _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_castsi512_si256(bits)));
      __m512 high = _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_extracti64x4_epi64(bits, 1)));
      float* place = sums + r * kPanel + 32 * c;
      if (!first) {
        low = _mm512_add_ps(low, _mm512_loadu_ps(place));
        high = _mm512_add_ps(high, _mm512_loadu_ps(place + 16));
      }
      _mm512_storeu_ps(place, low);
      _mm512_storeu_ps(place + 16, high);
    }
}

MGRPO_FP16 inline void multiply_rows(int rows, const uint32_t* x, const uint16_t* weights, int count, bool first,
                                     float* sums) {
  switch (rows) {
    case 6: return multiply<6>(x, weights, count, first, sums);
    case 5: return multiply<5>(x, weights, count, first, sums);
    case 4: return multiply<4>(x, weights, count, first, sums);
    case 3: return multiply<3>(x, weights, count, first, sums);
    case 2: return multiply<2>(x, weights, count, first, sums);
    default: return multiply<1>(x, weights, count, first, sums);
  }
}

// exp(x) for x <= 0, relative error below 1e-6.
MGRPO_FP16 inline __m512 exp_negative(__m512 x) {
  const __m512 powers = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(powers, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(powers, whole);
  __m512 y = _mm512_set1_ps(1.5403530e-4f);  // Taylor's series of 2^rest, |rest| <= 1/2
  for (const float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f})
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(c));
  return _mm512_scalef_ps(y, whole);
}

// x (1 + erf(x / sqrt 2)) / 2, with erf by formula 7.1.26 of Abramowitz and Stegun (absolute error 1.5e-7).
MGRPO_FP16 inline __m512 gelu(__m512 x) {
  const __m512 z = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
  const __m512 t = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
  __m512 y = _mm512_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(c));
  // 1 - erf(z), for negative x the very factor that is wanted: no cancellation where it is small
  const __m512 tail = _mm512_mul_ps(y, exp_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
  const __m512 both = _mm512_mask_sub_ps(tail, positive, _mm512_set1_ps(2.0f), tail);
  return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), both);
}

enum Activation : int64_t { kNone = 0, kGelu = 1, kRelu = 2 };

// Writes a row of a panel: `columns` results from its sums.
MGRPO_FP16 inline void finish_row(const float* sums, float row_scale, const float* scales, const float* bias,
                                  Activation activation, int columns, float* out) {
  for (int n = 0; n < columns; n += 16) {
    const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + n), _mm512_set1_ps(row_scale));
    __m512 y = _mm512_fmadd_ps(_mm512_loadu_ps(sums + n), scale, _mm512_loadu_ps(bias + n));
    if (activation == kGelu) y = gelu(y);
    if (activation == kRelu) y = _mm512_max_ps(_mm512_setzero_ps(), y);
    const __mmask16 mask = columns - n >= 16 ? 0xffff : static_cast<__mmask16>((1u << (columns - n)) - 1);
    _mm512_mask_storeu_ps(out + n, mask, y);
  }
}

#undef MGRPO_FP16
#pragma GCC diagnostic pop

}  // namespace half_linear
}  // namespace mgrpo
