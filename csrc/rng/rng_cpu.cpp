// CPU backend of philox_normal and philox_uniform: 32 counters at a time in plain arrays that the compiler vectorises.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>

// No fused multiply-add from here on: each rounding is part of the result.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "philox_math.h"

namespace mgrpo {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One binary for every x86-64 processor: the loader picks the widest version that this one can run. `flatten` puts the
// whole loop body into each version. Other compilers and systems get one version, with the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define MGRPO_MULTIARCH __attribute__((target_clones("avx512f", "avx2", "default"), flatten))
#else
#define MGRPO_MULTIARCH
#endif

constexpr int kLanes = 32;             // counters per inner loop
constexpr int64_t kTile = 4 * kLanes;  // numbers per inner loop
constexpr int64_t kTilesPerTask = 64;  // 8192 numbers: about 15 us, well above the cost of handing out a task

struct Key {
  uint32_t k0, k1;
};

// The three counter words that a row's elements share.
struct RowCounter {
  uint32_t step_member, condition, iteration;
};

// Words of counters first .. first + kLanes - 1.
MGRPO_HD void philox_tile(uint32_t first, RowCounter row, Key key, uint32_t* w0, uint32_t* w1, uint32_t* w2, uint32_t* w3) {
  for (int lane = 0; lane < kLanes; ++lane) {
    w0[lane] = first + static_cast<uint32_t>(lane);
    w1[lane] = row.step_member;
    w2[lane] = row.condition;
    w3[lane] = row.iteration;
  }
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int lane = 0; lane < kLanes; ++lane) {
      philox_round(w0[lane], w1[lane], w2[lane], w3[lane], key.k0, key.k1);
    }
    key.k0 += kPhiloxWeyl0;
    key.k1 += kPhiloxWeyl1;
  }
}

MGRPO_HD void interleave(const float (&lanes)[4][kLanes], float* out) {
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int word = 0; word < 4; ++word) out[4 * lane + word] = lanes[word][lane];
  }
}

// Each writes `tiles` whole tiles of kTile numbers, starting with counter `first`.
MGRPO_MULTIARCH void fill_normal(float* out, int64_t tiles, uint32_t first, RowCounter row, Key key) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    uint32_t w0[kLanes], w1[kLanes], w2[kLanes], w3[kLanes];
    philox_tile(first + static_cast<uint32_t>(tile * kLanes), row, key, w0, w1, w2, w3);
    float lanes[4][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) box_muller(w0[lane], w1[lane], lanes[0][lane], lanes[1][lane]);
    for (int lane = 0; lane < kLanes; ++lane) box_muller(w2[lane], w3[lane], lanes[2][lane], lanes[3][lane]);
    interleave(lanes, out + tile * kTile);
  }
}

MGRPO_MULTIARCH void fill_uniform(float* out, int64_t tiles, uint32_t first, RowCounter row, Key key) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    uint32_t w0[kLanes], w1[kLanes], w2[kLanes], w3[kLanes];
    philox_tile(first + static_cast<uint32_t>(tile * kLanes), row, key, w0, w1, w2, w3);
    float lanes[4][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[0][lane] = word_to_uniform(w0[lane]);
      lanes[1][lane] = word_to_uniform(w1[lane]);
      lanes[2][lane] = word_to_uniform(w2[lane]);
      lanes[3][lane] = word_to_uniform(w3[lane]);
    }
    interleave(lanes, out + tile * kTile);
  }
}

template <class Fill>
Tensor draw(
    Tensor step_member, Tensor condition, int64_t count, int64_t seed, int64_t iteration, int64_t stream, Fill fill) {
  STD_TORCH_CHECK(
      step_member.dim() == 1 && condition.dim() == 1 && step_member.size(0) == condition.size(0),
      "philox: step_member and condition must have shape (N,)");
  STD_TORCH_CHECK(
      step_member.scalar_type() == ScalarType::Long && condition.scalar_type() == ScalarType::Long,
      "philox: step_member and condition must be int64");
  STD_TORCH_CHECK(count >= 0 && count <= (int64_t{1} << 30), "philox: count must be in [0, 2^30]");
  step_member = torch::stable::contiguous(step_member);
  condition = torch::stable::contiguous(condition);
  const int64_t rows = condition.size(0);
  Tensor out = torch::stable::new_empty(condition, {rows, count}, ScalarType::Float);
  if (rows == 0 || count == 0) return out;

  const int64_t* step_member_words = static_cast<const int64_t*>(step_member.const_data_ptr());
  const int64_t* condition_words = static_cast<const int64_t*>(condition.const_data_ptr());
  float* numbers = static_cast<float*>(out.mutable_data_ptr());
  const Key key{static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
  const uint32_t stream_bits = static_cast<uint32_t>(stream) << 28;
  const int64_t tiles_per_row = (count + kTile - 1) / kTile;
  const int64_t tasks_per_row = (tiles_per_row + kTilesPerTask - 1) / kTilesPerTask;

  // Which thread draws a number changes nothing: each is a function of its own counter.
  torch::stable::parallel_for(0, rows * tasks_per_row, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / tasks_per_row;
      const int64_t first_tile = (task % tasks_per_row) * kTilesPerTask;
      const int64_t first_number = first_tile * kTile;
      const int64_t wanted = std::min(count - first_number, kTilesPerTask * kTile);
      const int64_t whole = wanted / kTile;
      const RowCounter words{
          static_cast<uint32_t>(step_member_words[row]),
          static_cast<uint32_t>(condition_words[row]),
          static_cast<uint32_t>(iteration)};
      float* target = numbers + row * count + first_number;
      const uint32_t first_counter = stream_bits | static_cast<uint32_t>(first_tile * kLanes);
      fill(target, whole, first_counter, words, key);
      const int64_t rest = wanted - whole * kTile;
      if (rest > 0) {
        float tail[kTile];
        fill(tail, 1, first_counter + static_cast<uint32_t>(whole * kLanes), words, key);
        std::memcpy(target + whole * kTile, tail, static_cast<size_t>(rest) * sizeof(float));
      }
    }
  });
  return out;
}

Tensor philox_normal_cpu(
    Tensor step_member, Tensor condition, int64_t count, int64_t seed, int64_t iteration, int64_t stream) {
  return draw(step_member, condition, count, seed, iteration, stream, fill_normal);
}

Tensor philox_uniform_cpu(
    Tensor step_member, Tensor condition, int64_t count, int64_t seed, int64_t iteration, int64_t stream) {
  return draw(step_member, condition, count, seed, iteration, stream, fill_uniform);
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("philox_normal_fwd(Tensor step_member, Tensor condition, int count, int seed, int iteration, int stream) -> Tensor");
  m.def("philox_uniform_fwd(Tensor step_member, Tensor condition, int count, int seed, int iteration, int stream) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("philox_normal_fwd", TORCH_BOX(&mgrpo::philox_normal_cpu));
  m.impl("philox_uniform_fwd", TORCH_BOX(&mgrpo::philox_uniform_cpu));
}
