// Four numbers, one counter, per thread and turn; a block writes a piece of one row.
#include "../common/cuda_compat.h"
#include "../common/philox_thread.h"
#include "rng_cuda.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 256;
constexpr int kTurns = 4;
constexpr int64_t kPiece = 4 * kThreads * kTurns;  // numbers per block

template <bool kNormal>
__global__ void __launch_bounds__(kThreads) philox_kernel(
    PhiloxSeed seed, const int64_t* __restrict__ step_member, const int64_t* __restrict__ condition, int64_t count,
    int64_t pieces_per_row, float* __restrict__ out) {
  const int64_t row = blockIdx.x / pieces_per_row, first = blockIdx.x % pieces_per_row * kPiece;
  const PhiloxRow key = {seed.k0, seed.k1, seed.first_word, static_cast<uint32_t>(step_member[row]),
                         static_cast<uint32_t>(condition[row]), seed.iteration};
  float* row_out = out + row * count;
  const bool as_vectors = count % 4 == 0;  // then every row begins at a multiple of 16 bytes
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t at = first + 4 * (turn * kThreads + static_cast<int>(threadIdx.x));
    if (at >= count) return;
    float n[4];
    if (kNormal)
      philox_normals(key, static_cast<uint32_t>(at / 4), n);
    else
      philox_uniforms(key, static_cast<uint32_t>(at / 4), n);
    if (as_vectors) {
      *reinterpret_cast<float4*>(row_out + at) = make_float4(n[0], n[1], n[2], n[3]);
    } else {
      for (int i = 0; i < 4; ++i)
        if (at + i < count) row_out[at + i] = n[i];
    }
  }
}

}  // namespace

cudaError_t launch_philox(bool normal, const PhiloxSeed& seed, const int64_t* step_member, const int64_t* condition,
                          int64_t rows, int64_t count, float* out, cudaStream_t stream) {
  const int64_t pieces = (count + kPiece - 1) / kPiece;
  if (rows > 0x7fffffff / pieces) return cudaErrorInvalidConfiguration;
  const unsigned blocks = static_cast<unsigned>(rows * pieces);
  if (normal) {
    MGRPO_LAUNCH(philox_kernel<true>, blocks, kThreads, 0, stream)(seed, step_member, condition, count, pieces, out);
  } else {
    MGRPO_LAUNCH(philox_kernel<false>, blocks, kThreads, 0, stream)(seed, step_member, condition, count, pieces, out);
  }
  return cudaGetLastError();
}

}  // namespace mgrpo
