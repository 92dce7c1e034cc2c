// mgrpo_native::sde_step and projected_sde_step on the CPU.
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

#define MGRPO_ISA_BODY "../transition/step_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

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

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def("sde_step_fwd" MGRPO_SDE_STEP);
  m.def("projected_sde_step_fwd" MGRPO_PROJECTED_SDE_STEP);
  m.def("projected_sde_step_bwd" MGRPO_PROJECTED_SDE_STEP_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("sde_step_fwd", TORCH_BOX(&mgrpo::sde_step_cpu));
  m.impl("projected_sde_step_fwd", TORCH_BOX(&mgrpo::projected_sde_step_cpu));
  m.impl("projected_sde_step_bwd", TORCH_BOX(&mgrpo::projected_sde_step_backward_cpu));
}
