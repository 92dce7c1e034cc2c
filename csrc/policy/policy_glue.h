// Between the operators' tensors and the raw pointers of the computation: checks that protect memory, outputs,
// workspace. The CPU and the CUDA glue share it; allocation follows the device of the inputs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../common/rows.h"
#include "advantages_math.h"
#include "policy_types.h"

namespace mgrpo {

using AdvantageTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using LossTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The tensor, contiguous, after a check of dtype and number of elements.
inline Tensor checked(const Tensor& tensor, ScalarType dtype, int64_t count, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.numel() == count, name, " has the wrong number of elements");
  return torch::stable::contiguous(tensor);
}
inline std::optional<Tensor> checked(const std::optional<Tensor>& tensor, ScalarType dtype, int64_t count,
                                     const char* name) {
  if (!tensor.has_value()) return std::nullopt;
  return checked(*tensor, dtype, count, name);
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) shape.push_back(tensor.size(axis));
  return shape;
}

// Calls compute(job) for rewards (B, G, K).
template <class Compute>
AdvantageTensors with_advantage_job(const Tensor& given, const std::optional<Tensor>& given_valid,
                                    const Tensor& given_weights, const AdvantageOptions& options, Compute&& compute) {
  STD_TORCH_CHECK(given.dim() == 3, "rewards must have three axes");
  const Tensor rewards = torch::stable::contiguous(given);
  const int64_t B = rewards.size(0), G = rewards.size(1), K = rewards.size(2);
  const std::optional<Tensor> valid = checked(given_valid, ScalarType::Bool, B * G, "valid");
  const Tensor weights = checked(given_weights, ScalarType::Double, K, "weights");
  Tensor advantages = torch::stable::new_empty(rewards, {B, G});
  Tensor per_reward = torch::stable::new_empty(rewards, {B, G, K});
  Tensor std = torch::stable::new_empty(rewards, {B, K});
  Tensor dead = torch::stable::new_empty(rewards, {B, K}, ScalarType::Bool);
  Tensor alive = torch::stable::new_empty(rewards, {B}, ScalarType::Bool);
  if (B * G > 0) {
    dispatch_float_double(rewards, [&](auto zero) {
      using T = decltype(zero);
      AdvantageJob<T> job;
      job.options = options;
      job.B = B, job.G = G, job.K = K;
      job.rewards = data<T>(rewards);
      job.valid = data<bool>(valid);
      job.weights = data<double>(weights);
      job.advantages = output<T>(advantages);
      job.per_reward = output<T>(per_reward);
      job.std = output<T>(std);
      job.dead = output<bool>(dead);
      job.alive = output<bool>(alive);
      Tensor workspace = torch::stable::new_empty(rewards, {workspace_doubles(job)}, ScalarType::Double);
      place_workspace(job, output<double>(workspace));
      compute(job);
    });
  }
  return {advantages, per_reward, std, dead, alive};
}

template <class T>
LossInputs<T> loss_inputs(const Tensor& log_ratio, const Tensor& advantages, const std::optional<Tensor>& valid,
                          const std::optional<Tensor>& weights, const std::optional<Tensor>& kl, double clip_low,
                          double clip_high) {
  return {log_ratio.numel(), data<T>(log_ratio), data<T>(advantages), data<bool>(valid),
          data<T>(weights),  data<T>(kl),        clip_low,            clip_high};
}

// Calls compute(inputs, ratio, results, denominator) and returns loss, ratio, clip fractions, approximate KL, divisor.
template <class Compute>
LossTensors with_loss_inputs(const Tensor& given, const Tensor& given_advantages,
                             const std::optional<Tensor>& given_valid, const std::optional<Tensor>& given_weights,
                             const std::optional<Tensor>& given_kl, const std::optional<Tensor>& given_denominator,
                             double clip_low, double clip_high, Compute&& compute) {
  const int64_t count = given.numel();
  const ScalarType dtype = given.scalar_type();
  const Tensor log_ratio = torch::stable::contiguous(given);
  const Tensor advantages = checked(given_advantages, dtype, count, "advantages");
  const std::optional<Tensor> valid = checked(given_valid, ScalarType::Bool, count, "valid");
  const std::optional<Tensor> weights = checked(given_weights, dtype, count, "weights");
  const std::optional<Tensor> kl = checked(given_kl, dtype, count, "kl");
  const std::optional<Tensor> denominator = checked(given_denominator, ScalarType::Double, 1, "denominator");
  Tensor ratio = torch::stable::new_empty(log_ratio, shape_of(log_ratio));
  Tensor loss = torch::stable::new_empty(log_ratio, {}), low = torch::stable::new_empty(log_ratio, {});
  Tensor high = torch::stable::new_empty(log_ratio, {}), approx_kl = torch::stable::new_empty(log_ratio, {});
  Tensor divisor = torch::stable::new_empty(log_ratio, {}, ScalarType::Double);
  dispatch_float_double(log_ratio, [&](auto zero) {
    using T = decltype(zero);
    const LossResults<T> results{output<T>(loss), output<T>(low), output<T>(high), output<T>(approx_kl),
                                 output<double>(divisor)};
    compute(loss_inputs<T>(log_ratio, advantages, valid, weights, kl, clip_low, clip_high), output<T>(ratio), results,
            data<double>(denominator));
  });
  return {loss, ratio, low, high, approx_kl, divisor};
}

// Calls compute(inputs, grad_loss, divisor, grad_log_ratio, grad_kl or null); without KL its gradient is empty.
template <class Compute>
std::tuple<Tensor, Tensor> with_loss_gradients(const Tensor& given_grad, const Tensor& given,
                                               const Tensor& given_advantages, const std::optional<Tensor>& given_valid,
                                               const std::optional<Tensor>& given_weights, const Tensor& given_divisor,
                                               double clip_low, double clip_high, bool with_kl, Compute&& compute) {
  const int64_t count = given.numel();
  const ScalarType dtype = given.scalar_type();
  const Tensor log_ratio = torch::stable::contiguous(given);
  const Tensor grad_loss = checked(given_grad, dtype, 1, "grad_loss");
  const Tensor advantages = checked(given_advantages, dtype, count, "advantages");
  const std::optional<Tensor> valid = checked(given_valid, ScalarType::Bool, count, "valid");
  const std::optional<Tensor> weights = checked(given_weights, dtype, count, "weights");
  const Tensor divisor = checked(given_divisor, ScalarType::Double, 1, "divisor");
  Tensor grad_log_ratio = torch::stable::new_empty(log_ratio, shape_of(log_ratio));
  Tensor grad_kl = torch::stable::new_empty(log_ratio, with_kl ? shape_of(log_ratio) : std::vector<int64_t>{0});
  dispatch_float_double(log_ratio, [&](auto zero) {
    using T = decltype(zero);
    compute(loss_inputs<T>(log_ratio, advantages, valid, weights, std::nullopt, clip_low, clip_high),
            data<T>(grad_loss), data<double>(divisor), output<T>(grad_log_ratio),
            with_kl ? output<T>(grad_kl) : static_cast<T*>(nullptr));
  });
  return {grad_log_ratio, grad_kl};
}

}  // namespace mgrpo
