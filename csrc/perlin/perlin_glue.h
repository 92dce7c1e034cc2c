// Between the operator's tensors and the raw pointers of perlin_noise; the CPU and the CUDA glue share it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/rows.h"
#include "perlin_types.h"

namespace mgrpo {

constexpr int64_t kPerlinMaxOctaves = 8;
constexpr int64_t kPerlinStream = 2;  // STREAM_PERLIN of kernels/rng

// Calls compute(job), unless there is nothing to compute, and returns the (rows, frames, channels) noise.
template <class Compute>
Tensor with_perlin_job(const Tensor& given_condition, const Tensor& given_member, int64_t frames, int64_t channels,
                       double scale, double lattice, int64_t octaves, int64_t seed, int64_t iteration,
                       Compute&& compute) {
  STD_TORCH_CHECK(
      given_condition.dim() == 1 && given_member.dim() == 1 && given_condition.size(0) == given_member.size(0) &&
          given_condition.scalar_type() == ScalarType::Long && given_member.scalar_type() == ScalarType::Long,
      "perlin_noise: condition and member must have shape (N,), int64");
  STD_TORCH_CHECK(
      frames >= 1 && channels >= 1 && octaves >= 1 && octaves <= kPerlinMaxOctaves && lattice >= 1 &&
          (static_cast<double>(frames) * static_cast<double>(1 << (octaves - 1)) / lattice + 3) *
                  static_cast<double>(channels) <= static_cast<double>(int64_t{1} << 30),
      "perlin_noise: a size is out of range");
  const Tensor condition = torch::stable::contiguous(given_condition);
  const Tensor member = torch::stable::contiguous(given_member);
  Tensor out = torch::stable::new_empty(condition, {condition.size(0), frames, channels}, ScalarType::Float);
  PerlinJob job;
  job.condition = static_cast<const int64_t*>(condition.const_data_ptr());
  job.member = static_cast<const int64_t*>(member.const_data_ptr());
  job.rows = condition.size(0);
  job.frames = frames;
  job.channels = channels;
  job.octaves = static_cast<int>(octaves);
  job.scale = scale;
  job.lattice = lattice;
  job.seed = philox_seed(seed, iteration, kPerlinStream);
  job.out = output<float>(out);
  if (job.rows > 0) compute(job);
  return out;
}

}  // namespace mgrpo
