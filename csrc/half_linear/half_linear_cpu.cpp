// mgrpo_native::half_linear_fwd on CPUs with AVX512-FP16; half_linear_runs says whether this is one.
#include "../common/result_memory.h"
#include "../common/scratch.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MGRPO_HAS_FP16 1
#include "half_linear_avx512.h"
#endif

namespace mgrpo {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool half_linear_runs() {
#if defined(MGRPO_HAS_FP16)
  const char* wanted = std::getenv("MGRPO_ISA");  // as for the other operators: v3 and baseline do without AVX-512
  const bool allowed = wanted == nullptr || !std::strcmp(wanted, "v4");
  return allowed && __builtin_cpu_supports("avx512fp16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

Tensor half_linear_cpu(const Tensor& x, const Tensor& values, const Tensor& scales, const Tensor& bias, int64_t outputs,
                       int64_t activation) {
#if defined(MGRPO_HAS_FP16)
  using namespace half_linear;
  STD_TORCH_CHECK(half_linear_runs(), "half_linear needs a processor with AVX512-FP16");
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.scalar_type() == ScalarType::Float,
                  "x must be contiguous float32 of two axes");
  const int64_t rows = x.size(0), inputs = x.size(1), panels = (outputs + kPanel - 1) / kPanel;
  STD_TORCH_CHECK(values.dim() == 3 && values.is_contiguous() && values.scalar_type() == ScalarType::Half &&
                      values.size(0) == panels && values.size(1) == inputs && values.size(2) == kPanel,
                  "values does not fit x and the number of outputs");
  for (const Tensor* one : {&scales, &bias})
    STD_TORCH_CHECK(one->dim() == 1 && one->is_contiguous() && one->scalar_type() == ScalarType::Float &&
                        one->size(0) == panels * kPanel,
                    "scales or bias does not fit the number of outputs");
  STD_TORCH_CHECK(activation >= kNone && activation <= kRelu, "no such activation");

  Tensor result = new_result(x, {rows, outputs});
  const int64_t tiles = (rows + kRows - 1) / kRows, chunks = (inputs + kChunk - 1) / kChunk;
  const int64_t tile_size = chunks * kRows * kChunk;
  const Scratch packed_memory(tiles * tile_size * 4), scale_memory(tiles * kRows * 4);
  uint32_t* const packed = reinterpret_cast<uint32_t*>(packed_memory.get());
  float* const row_scales = reinterpret_cast<float*>(scale_memory.get());
  const float* const numbers = static_cast<const float*>(x.const_data_ptr());
  torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      row_scales[row] = pack_row(numbers + row * inputs, inputs,
                                 packed + row / kRows * tile_size + row % kRows * kChunk, kRows * kChunk);
  });

  const uint16_t* const weights = static_cast<const uint16_t*>(values.const_data_ptr());
  const float* const column_scales = static_cast<const float*>(scales.const_data_ptr());
  const float* const offsets = static_cast<const float*>(bias.const_data_ptr());
  float* const out = static_cast<float*>(result.mutable_data_ptr());
  const int64_t blocks = (tiles + kBlock - 1) / kBlock;
  // Panel after panel for the same rows: these stay in the second cache, and the weights come from the third.
  torch::stable::parallel_for(0, blocks * panels, 1, [&](int64_t begin, int64_t end) {
    const Scratch memory(int64_t{kBlock} * kRows * kPanel * 4);
    float* const sums = reinterpret_cast<float*>(memory.get());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task % panels, first = task / panels * kBlock, last = std::min(first + kBlock, tiles);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int count = static_cast<int>(std::min<int64_t>(kChunk, inputs - chunk * kChunk));
        const uint16_t* const part = weights + (panel * inputs + chunk * kChunk) * kPanel;
        const int64_t lines = int64_t{count} * kPanel * 2 / 64, share = (lines + last - first - 1) / (last - first);
        const char* const next = reinterpret_cast<const char*>(part + int64_t{count} * kPanel);
        for (int64_t tile = first; tile < last; ++tile) {
          // What the next chunk will read (or the next panel: they follow each other), a part with each tile.
          for (int64_t line = (tile - first) * share; line < (tile - first + 1) * share; ++line)
            __builtin_prefetch(next + line * 64, 0, 2);
          multiply_rows(static_cast<int>(std::min<int64_t>(kRows, rows - tile * kRows)),
                        packed + tile * tile_size + chunk * kRows * kChunk, part, count, chunk == 0,
                        sums + (tile - first) * kRows * kPanel);
        }
      }
      const int columns = static_cast<int>(std::min<int64_t>(kPanel, outputs - panel * kPanel));
      for (int64_t row = first * kRows; row < std::min(last * kRows, rows); ++row)
        finish_row(sums + (row - first * kRows) * kPanel, row_scales[row], column_scales + panel * kPanel,
                   offsets + panel * kPanel, static_cast<Activation>(activation), columns,
                   out + row * outputs + panel * kPanel);
    }
  });
  return result;
#else
  STD_TORCH_CHECK(false, "half_linear needs AVX512-FP16, which this build or its compiler lacks");
  return x;
#endif
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("half_linear_runs() -> bool");
  m.def("half_linear_fwd(Tensor x, Tensor values, Tensor scales, Tensor bias, int outputs, int activation) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CompositeExplicitAutograd, m) {
  m.impl("half_linear_runs", TORCH_BOX(&mgrpo::half_linear_runs));
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("half_linear_fwd", TORCH_BOX(&mgrpo::half_linear_cpu));
}
