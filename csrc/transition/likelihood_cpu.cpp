// mgrpo_native::sde_log_prob and sde_log_ratio on the CPU.
#include <algorithm>
#include <tuple>

#include "../common/rows.h"

// No fused multiply-add from here on: each rounding of a step and of its noise is part of the result.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "transition_args.h"
#include "transition_tasks_cpu.h"

#define MGRPO_ISA_BODY "../transition/likelihood_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

std::tuple<Tensor, Tensor> sde_log_prob_cpu(
    const Tensor& x_prev, const Tensor& x_t, const Tensor& x0_pred, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, const OptionalTensor& mask,
    const OptionalTensor& channel_weights, bool mean, bool keep) {
  TransitionArguments arguments(x_prev);
  LogProbJob job =
      log_prob_job(arguments, x_prev, x_t, x0_pred, A, B, s, A_rows, B_rows, s_rows, mask, channel_weights, mean);
  Tensor kept = new_kept(arguments, x_prev, keep);
  if (keep) job.kept = new_output(kept);
  job.past_caches = keep && is_large(job.batch.rows * job.batch.row_size());
  Tensor log_prob = torch::stable::new_empty(x_prev, {job.batch.rows}, compute_dtype(arguments.is_double));
  const Tasks tasks(job.batch);
  std::vector<double> parts(static_cast<size_t>(tasks.count));
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> weights = weights_as<T>(job.batch);
    const T* weights_data = job.batch.weights == nullptr ? nullptr : weights.data();
    for_tasks(job.batch, tasks, Order::kForward, [&](const Task& task, int64_t index) {
      parts[index] = MGRPO_ISA_CALL_OF(T, log_prob_task, job, task, weights_data);
    });
    const std::vector<double> totals = row_weights(job.batch);
    T* values = output<T>(log_prob);
    for (int64_t row = 0; row < job.batch.rows; ++row)
      values[row] =
          static_cast<T>(LogProbRow(job.s.at(row)).value(row_sum(parts, tasks, row), totals[row], job.batch.mean));
  });
  return {log_prob, kept};
}

// Incoming gradients (N,) in the compute type.
std::vector<double> incoming(const Tensor& grad, const Weighting& batch) {
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == batch.rows, "grad must have shape (N,)");
  const Tensor values = torch::stable::contiguous(grad);
  std::vector<double> result(static_cast<size_t>(batch.rows));
  dispatch_float_double(values, [&](auto zero) {
    using T = decltype(zero);
    const T* numbers = static_cast<const T*>(values.const_data_ptr());
    std::copy(numbers, numbers + batch.rows, result.begin());
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> sde_log_prob_backward_cpu(
    const Tensor& grad, const Tensor& x_prev_or_kept, const OptionalTensor& x_t, const OptionalTensor& x0_pred, double A,
    double B, double s, const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows,
    const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean, bool needs_x_prev, bool needs_x_t,
    bool needs_x0_pred) {
  TransitionArguments arguments(x_prev_or_kept);
  LogProbGradientJob job{};
  job.forward = log_prob_job(
      arguments, x_prev_or_kept, x_t, x0_pred, A, B, s, A_rows, B_rows, s_rows, mask, channel_weights, mean);
  const Weighting& batch = job.forward.batch;
  std::vector<double> slopes = incoming(grad, batch);
  const std::vector<double> totals = row_weights(batch);
  for (int64_t row = 0; row < batch.rows; ++row)
    slopes[row] = LogProbRow(job.forward.s.at(row)).slope(slopes[row], totals[row], batch.mean);
  job.slopes = slopes.data();
  job.past_caches = is_large(batch.rows * batch.row_size());
  Tensor grad_x_prev = new_gradient(x_prev_or_kept, needs_x_prev),
         grad_x_t = new_log_prob_gradient(x_t, x_prev_or_kept, needs_x_t),
         grad_x0_pred = new_log_prob_gradient(x0_pred, x_prev_or_kept, needs_x0_pred);
  if (needs_x_prev) job.grad_x_prev = new_output(grad_x_prev);
  if (needs_x_t) job.grad_x_t = new_output(grad_x_t);
  if (needs_x0_pred) job.grad_x0_pred = new_output(grad_x0_pred);
  // What the forward pass kept past the caches is in none of them.
  const Order order = job.past_caches && !x_t.has_value() ? Order::kForward : Order::kBackward;
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> weights = weights_as<T>(batch);
    const T* weights_data = batch.weights == nullptr ? nullptr : weights.data();
    for_tasks(batch, Tasks(batch), order, [&](const Task& task, int64_t) {
      MGRPO_ISA_CALL_OF(T, log_prob_gradient_task, job, task, weights_data);
    });
  });
  return {grad_x_prev, grad_x_t, grad_x0_pred};
}

Tensor sde_log_ratio_cpu(const Tensor& x0_pred, const Tensor& other, const OptionalTensor& noise,
                         const OptionalTensor& step_member, const OptionalTensor& condition, int64_t seed,
                         int64_t iteration, int64_t stream, double gain, const OptionalTensor& gain_rows,
                         const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean,
                         bool drop_quadratic) {
  TransitionArguments arguments(x0_pred);
  const RatioJob job = ratio_job(arguments, x0_pred, other, noise, step_member, condition, seed, iteration, stream, gain,
                                 gain_rows, mask, channel_weights, mean, drop_quadratic);
  Tensor ratio = torch::stable::new_empty(x0_pred, {job.batch.rows}, compute_dtype(arguments.is_double));
  const Tasks tasks(job.batch);
  std::vector<double> linear(static_cast<size_t>(tasks.count)), squares(linear.size());
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> weights = weights_as<T>(job.batch);
    const T* weights_data = job.batch.weights == nullptr ? nullptr : weights.data();
    for_tasks(job.batch, tasks, Order::kForward, [&](const Task& task, int64_t index) {
      double sums[2];
      MGRPO_ISA_CALL_OF(T, ratio_task, job, task, weights_data, sums);
      linear[index] = sums[0];
      squares[index] = sums[1];
    });
    const std::vector<double> totals = row_weights(job.batch);
    T* values = output<T>(ratio);
    for (int64_t row = 0; row < job.batch.rows; ++row)
      values[row] = static_cast<T>(RatioRow(job.gain.at(row)).value(static_cast<RatioTerms>(job.terms),
                                                                     row_sum(linear, tasks, row),
                                                                     row_sum(squares, tasks, row), totals[row],
                                                                     job.batch.mean));
  });
  return ratio;
}

Tensor sde_log_ratio_backward_cpu(const Tensor& grad, const Tensor& x0_pred, const Tensor& other,
                                  const OptionalTensor& noise, const OptionalTensor& step_member,
                                  const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream,
                                  double gain, const OptionalTensor& gain_rows, const OptionalTensor& mask,
                                  const OptionalTensor& channel_weights, bool mean, bool drop_quadratic) {
  TransitionArguments arguments(x0_pred);
  RatioGradientJob job{};
  job.forward = ratio_job(arguments, x0_pred, other, noise, step_member, condition, seed, iteration, stream, gain,
                          gain_rows, mask, channel_weights, mean, drop_quadratic);
  const Weighting& batch = job.forward.batch;
  std::vector<double> slopes = incoming(grad, batch);
  const std::vector<double> totals = row_weights(batch);
  for (int64_t row = 0; row < batch.rows; ++row)
    slopes[row] = RatioRow(job.forward.gain.at(row)).slope(slopes[row], totals[row], batch.mean);
  job.slopes = slopes.data();
  job.past_caches = is_large(batch.rows * batch.row_size());
  Tensor grad_x0_pred = new_state(x0_pred, x0_pred.scalar_type());
  job.grad = new_output(grad_x0_pred);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> weights = weights_as<T>(batch);
    const T* weights_data = batch.weights == nullptr ? nullptr : weights.data();
    for_tasks(batch, Tasks(batch), Order::kBackward, [&](const Task& task, int64_t) {
      MGRPO_ISA_CALL_OF(T, ratio_gradient_task, job, task, weights_data);
    });
  });
  return grad_x0_pred;
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("sde_log_prob_fwd" MGRPO_SDE_LOG_PROB);
  m.def("sde_log_prob_bwd" MGRPO_SDE_LOG_PROB_BACKWARD);
  m.def("sde_log_ratio_fwd" MGRPO_SDE_LOG_RATIO);
  m.def("sde_log_ratio_bwd" MGRPO_SDE_LOG_RATIO_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("sde_log_prob_fwd", TORCH_BOX(&mgrpo::sde_log_prob_cpu));
  m.impl("sde_log_prob_bwd", TORCH_BOX(&mgrpo::sde_log_prob_backward_cpu));
  m.impl("sde_log_ratio_fwd", TORCH_BOX(&mgrpo::sde_log_ratio_cpu));
  m.impl("sde_log_ratio_bwd", TORCH_BOX(&mgrpo::sde_log_ratio_backward_cpu));
}
