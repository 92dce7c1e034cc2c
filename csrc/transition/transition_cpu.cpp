// mgrpo_native::sde_step, sde_log_prob, sde_log_ratio and projected_sde_step on the CPU.
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

#define MGRPO_ISA_BODY "../transition/transition_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kTasksAtOnce = 4;  // 32,768 numbers: some ten microseconds, well above the cost of handing them out

// Calls run(task, index of the task) for all tasks, on all threads. A backward pass goes from the last to the first: what
// the forward pass read last is what a cache may still hold.
enum class Order { kForward, kBackward };
template <class Run>
void for_tasks(const Weighting& batch, const Tasks& tasks, Order order, Run run) {
  torch::stable::parallel_for(0, tasks.count, kTasksAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = order == Order::kForward ? i : end - 1 - (i - begin);
      const int64_t first = index % tasks.per_row * tasks.frames_per_task;
      run(Task{index / tasks.per_row, first, std::min(first + tasks.frames_per_task, batch.frames)}, index);
    }
  });
}

template <class T>
std::vector<T> weights_as(const Weighting& batch) {
  if (batch.weights == nullptr) return {};
  return std::vector<T>(batch.weights, batch.weights + batch.channels);
}

// The sum of each row's weights.
std::vector<double> row_weights(const Weighting& batch) {
  double per_frame = static_cast<double>(batch.channels);
  if (batch.weights != nullptr) {
    per_frame = 0;
    for (int64_t channel = 0; channel < batch.channels; ++channel) per_frame += batch.weights[channel];
  }
  std::vector<double> weights(static_cast<size_t>(batch.rows), static_cast<double>(batch.frames) * per_frame);
  if (batch.mask != nullptr) {
    for (int64_t row = 0; row < batch.rows; ++row) {
      int64_t frames = 0;
      for (int64_t frame = 0; frame < batch.frames; ++frame) frames += batch.mask[row * batch.frames + frame];
      weights[row] = static_cast<double>(frames) * per_frame;
    }
  }
  return weights;
}

double row_sum(const std::vector<double>& parts, const Tasks& tasks, int64_t row) {
  double sum = 0;
  for (int64_t part = row * tasks.per_row; part < (row + 1) * tasks.per_row; ++part) sum += parts[part];
  return sum;
}

std::tuple<Tensor, Tensor> step(TransitionArguments& arguments, StepJob& job, const Tensor& like, Tensor projected) {
  const ScalarType dtype = compute_dtype(arguments.is_double);
  Tensor x_prev = new_state(like, dtype);
  Tensor log_prob = torch::stable::new_empty(like, {job.sum_noise ? job.batch.rows : 0}, dtype);
  job.x_prev = new_output(x_prev);
  job.past_caches = is_large(job.batch.rows * job.batch.row_size());
  if (job.matrices > 0) job.projected = new_output(projected);
  const Tasks tasks(job.batch);
  std::vector<double> parts(job.sum_noise ? static_cast<size_t>(tasks.count) : 0);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> weights = weights_as<T>(job.batch);
    const T* weights_data = job.batch.weights == nullptr ? nullptr : weights.data();
    for_tasks(job.batch, tasks, Order::kForward, [&](const Task& task, int64_t index) {
      const double sum = MGRPO_ISA_CALL_OF(T, step_task, job, task, weights_data);
      if (job.sum_noise) parts[index] = sum;
    });
    if (!job.sum_noise) return;
    const std::vector<double> totals = row_weights(job.batch);
    T* values = output<T>(log_prob);
    for (int64_t row = 0; row < job.batch.rows; ++row)
      values[row] = static_cast<T>(log_density(row_sum(parts, tasks, row), job.s.at(row), totals[row], job.batch.mean));
  });
  return {x_prev, log_prob};
}

std::tuple<Tensor, Tensor> sde_step_cpu(
    const Tensor& x_t, const Tensor& x0_pred, const OptionalTensor& noise, const OptionalTensor& step_member,
    const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, const OptionalTensor& mask,
    const OptionalTensor& channel_weights, bool mean, bool with_log_prob) {
  TransitionArguments arguments(x_t);
  arguments.weighting(mask, channel_weights, mean);
  StepJob job = step_job(arguments, x_t, x0_pred, noise, step_member, condition, seed, iteration, stream, A, B, s, A_rows,
                         B_rows, s_rows);
  STD_TORCH_CHECK(!with_log_prob || job.noise.kind != Noise::Kind::kNone, "a step without noise has no density");
  job.sum_noise = with_log_prob;
  return step(arguments, job, x_t, x_t);
}

std::tuple<Tensor, Tensor> projected_sde_step_cpu(
    const Tensor& x_t, const Tensor& x0_pred, const OptionalTensor& noise, const OptionalTensor& step_member,
    const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, int64_t first_channel,
    int64_t matrices, bool fix_det) {
  TransitionArguments arguments(x_t);
  StepJob job = step_job(arguments, x_t, x0_pred, noise, step_member, condition, seed, iteration, stream, A, B, s, A_rows,
                         B_rows, s_rows);
  check_matrices(arguments.batch, first_channel, matrices);
  job.first_channel = first_channel;
  job.matrices = matrices;
  job.fix_det = fix_det;
  Tensor projected = new_state(x_t, compute_dtype(arguments.is_double));
  return {std::get<0>(step(arguments, job, x_t, projected)), projected};
}

Tensor projected_sde_step_backward_cpu(
    const OptionalTensor& grad_x_prev, const OptionalTensor& grad_projected, const Tensor& x0_pred,
    const Tensor& projected, double B, const OptionalTensor& B_rows, int64_t first_channel, int64_t matrices, bool fix_det) {
  TransitionArguments arguments(x0_pred);
  ProjectionGradientJob job = projection_gradient_job(
      arguments, grad_x_prev, grad_projected, x0_pred, projected, B, B_rows, first_channel, matrices, fix_det);
  Tensor grad = new_state(x0_pred, x0_pred.scalar_type());
  job.grad = new_output(grad);
  dispatch_float_double(x0_pred, [&](auto zero) {
    using T = decltype(zero);
    for_tasks(job.batch, Tasks(job.batch), Order::kBackward,
              [&](const Task& task, int64_t) { MGRPO_ISA_CALL_OF(T, projection_gradient_task, job, task); });
  });
  return grad;
}

Tensor sde_log_prob_cpu(const Tensor& x_prev, const Tensor& x_t, const Tensor& x0_pred, double A, double B, double s,
                        const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows,
                        const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean) {
  TransitionArguments arguments(x_prev);
  const LogProbJob job =
      log_prob_job(arguments, x_prev, x_t, x0_pred, A, B, s, A_rows, B_rows, s_rows, mask, channel_weights, mean);
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
  return log_prob;
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
    const Tensor& grad, const Tensor& x_prev, const Tensor& x_t, const Tensor& x0_pred, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, const OptionalTensor& mask,
    const OptionalTensor& channel_weights, bool mean, bool needs_x_prev, bool needs_x_t, bool needs_x0_pred) {
  TransitionArguments arguments(x_prev);
  LogProbGradientJob job{};
  job.forward =
      log_prob_job(arguments, x_prev, x_t, x0_pred, A, B, s, A_rows, B_rows, s_rows, mask, channel_weights, mean);
  const Weighting& batch = job.forward.batch;
  std::vector<double> slopes = incoming(grad, batch);
  const std::vector<double> totals = row_weights(batch);
  for (int64_t row = 0; row < batch.rows; ++row)
    slopes[row] = LogProbRow(job.forward.s.at(row)).slope(slopes[row], totals[row], batch.mean);
  job.slopes = slopes.data();
  job.past_caches = is_large(batch.rows * batch.row_size());
  Tensor grad_x_prev = new_gradient(x_prev, needs_x_prev), grad_x_t = new_gradient(x_t, needs_x_t),
         grad_x0_pred = new_gradient(x0_pred, needs_x0_pred);
  if (needs_x_prev) job.grad_x_prev = new_output(grad_x_prev);
  if (needs_x_t) job.grad_x_t = new_output(grad_x_t);
  if (needs_x0_pred) job.grad_x0_pred = new_output(grad_x0_pred);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<T> weights = weights_as<T>(batch);
    const T* weights_data = batch.weights == nullptr ? nullptr : weights.data();
    for_tasks(batch, Tasks(batch), Order::kBackward, [&](const Task& task, int64_t) {
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
  m.def("sde_step_fwd" MGRPO_SDE_STEP);
  m.def("projected_sde_step_fwd" MGRPO_PROJECTED_SDE_STEP);
  m.def("projected_sde_step_bwd" MGRPO_PROJECTED_SDE_STEP_BACKWARD);
  m.def("sde_log_prob_fwd" MGRPO_SDE_LOG_PROB);
  m.def("sde_log_prob_bwd" MGRPO_SDE_LOG_PROB_BACKWARD);
  m.def("sde_log_ratio_fwd" MGRPO_SDE_LOG_RATIO);
  m.def("sde_log_ratio_bwd" MGRPO_SDE_LOG_RATIO_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("sde_step_fwd", TORCH_BOX(&mgrpo::sde_step_cpu));
  m.impl("projected_sde_step_fwd", TORCH_BOX(&mgrpo::projected_sde_step_cpu));
  m.impl("projected_sde_step_bwd", TORCH_BOX(&mgrpo::projected_sde_step_backward_cpu));
  m.impl("sde_log_prob_fwd", TORCH_BOX(&mgrpo::sde_log_prob_cpu));
  m.impl("sde_log_prob_bwd", TORCH_BOX(&mgrpo::sde_log_prob_backward_cpu));
  m.impl("sde_log_ratio_fwd", TORCH_BOX(&mgrpo::sde_log_ratio_cpu));
  m.impl("sde_log_ratio_bwd", TORCH_BOX(&mgrpo::sde_log_ratio_backward_cpu));
}
