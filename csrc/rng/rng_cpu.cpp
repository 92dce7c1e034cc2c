// mgrpo_native::philox_normal_fwd and philox_uniform_fwd on the CPU.
#include "../common/philox_keys.h"

#include <algorithm>

// No fused multiply-add from here on: each rounding is part of the result.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define MGRPO_ISA_BODY "../rng/rng_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kNumbersPerTask = 8192;  // about 10 us, well above the cost of handing out a task

template <class Fill>
Tensor draw(const Tensor& step_member, const Tensor& condition, int64_t count, int64_t seed, int64_t iteration,
            int64_t stream, Fill fill) {
  const PhiloxKeys keys(step_member, condition, seed, iteration, stream);
  STD_TORCH_CHECK(count >= 0 && count <= kPhiloxMaxCount, "philox: count must be in [0, 2^30]");
  const int64_t rows = keys.rows();
  Tensor out = new_result(condition, {rows, count}, ScalarType::Float);
  float* numbers = output<float>(out);
  const int64_t tasks_per_row = (count + kNumbersPerTask - 1) / kNumbersPerTask;
  // Which thread draws a number changes nothing: each is a function of its own counter.
  torch::stable::parallel_for(0, rows * tasks_per_row, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / tasks_per_row, first = (task % tasks_per_row) * kNumbersPerTask;
      fill(keys.row(row), first, std::min(kNumbersPerTask, count - first), numbers + row * count + first);
    }
  });
  return out;
}

Tensor philox_normal_cpu(const Tensor& step_member, const Tensor& condition, int64_t count, int64_t seed,
                         int64_t iteration, int64_t stream) {
  return draw(step_member, condition, count, seed, iteration, stream,
              [](const PhiloxRow& row, int64_t begin, int64_t wanted, float* out) {
                MGRPO_ISA_CALL(fill_normal, row, begin, wanted, out);
              });
}

Tensor philox_uniform_cpu(const Tensor& step_member, const Tensor& condition, int64_t count, int64_t seed,
                          int64_t iteration, int64_t stream) {
  return draw(step_member, condition, count, seed, iteration, stream,
              [](const PhiloxRow& row, int64_t begin, int64_t wanted, float* out) {
                MGRPO_ISA_CALL(fill_uniform, row, begin, wanted, out);
              });
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
