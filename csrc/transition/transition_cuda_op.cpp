// sde_step, projected_sde_step, sde_log_prob and sde_log_ratio on a GPU.
#include <tuple>

#include "../common/cuda_op.h"
#include "transition_args.h"
#include "transition_cuda.h"

namespace mgrpo {
namespace {

bool is_empty(const Weighting& batch) { return batch.rows == 0 || batch.row_size() == 0; }

// Workspace for sums over pieces of rows.
Tensor new_parts(const Tensor& like, const Weighting& batch, int64_t sums) {
  return torch::stable::new_empty(like, {sums, batch.rows, cuda_parts_per_row(batch)}, ScalarType::Double);
}

std::tuple<Tensor, Tensor> sde_step_cuda(
    const Tensor& x_t, const Tensor& x0_pred, const OptionalTensor& noise, const OptionalTensor& step_member,
    const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, const OptionalTensor& mask,
    const OptionalTensor& channel_weights, bool mean, bool with_log_prob) {
  const CudaCall call(x_t);
  TransitionArguments arguments(x_t);
  arguments.weighting(mask, channel_weights, mean);
  StepJob job = step_job(arguments, x_t, x0_pred, noise, step_member, condition, seed, iteration, stream, A, B, s, A_rows,
                         B_rows, s_rows);
  STD_TORCH_CHECK(!with_log_prob || job.noise.kind != Noise::Kind::kNone, "a step without noise has no density");
  job.sum_noise = with_log_prob;
  const ScalarType dtype = compute_dtype(arguments.is_double);
  Tensor x_prev = new_state(x_t, dtype);
  Tensor log_prob = torch::stable::new_empty(x_t, {with_log_prob ? job.batch.rows : 0}, dtype);
  if (is_empty(job.batch)) return {x_prev, torch::stable::zero_(log_prob)};
  job.x_prev = new_output(x_prev);
  Tensor parts = with_log_prob ? new_parts(x_t, job.batch, 1) : log_prob;
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_step(job, with_log_prob ? output<double>(parts) : nullptr, output<T>(log_prob), call.stream()));
  });
  return {x_prev, log_prob};
}

std::tuple<Tensor, Tensor> projected_sde_step_cuda(
    const Tensor& x_t, const Tensor& x0_pred, const OptionalTensor& noise, const OptionalTensor& step_member,
    const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, int64_t first_channel,
    int64_t matrices, bool fix_det) {
  const CudaCall call(x_t);
  TransitionArguments arguments(x_t);
  StepJob job = step_job(arguments, x_t, x0_pred, noise, step_member, condition, seed, iteration, stream, A, B, s, A_rows,
                         B_rows, s_rows);
  check_matrices(arguments.batch, first_channel, matrices);
  job.first_channel = first_channel;
  job.matrices = matrices;
  job.fix_det = fix_det;
  const ScalarType dtype = compute_dtype(arguments.is_double);
  Tensor x_prev = new_state(x_t, dtype), projected = new_state(x_t, dtype);
  if (is_empty(job.batch)) return {x_prev, projected};
  job.x_prev = new_output(x_prev);
  job.projected = new_output(projected);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_step<T>(job, nullptr, nullptr, call.stream()));
  });
  return {x_prev, projected};
}

Tensor projected_sde_step_backward_cuda(
    const OptionalTensor& grad_x_prev, const OptionalTensor& grad_projected, const Tensor& x0_pred,
    const Tensor& projected, double B, const OptionalTensor& B_rows, int64_t first_channel, int64_t matrices, bool fix_det) {
  const CudaCall call(x0_pred);
  TransitionArguments arguments(x0_pred);
  ProjectionGradientJob job = projection_gradient_job(
      arguments, grad_x_prev, grad_projected, x0_pred, projected, B, B_rows, first_channel, matrices, fix_det);
  Tensor grad = new_state(x0_pred, x0_pred.scalar_type());
  if (is_empty(job.batch)) return grad;
  job.grad = new_output(grad);
  dispatch_float_double(x0_pred, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_projection_gradient<T>(job, call.stream()));
  });
  return grad;
}

std::tuple<Tensor, Tensor> sde_log_prob_cuda(
    const Tensor& x_prev, const Tensor& x_t, const Tensor& x0_pred, double A, double B, double s,
    const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows, const OptionalTensor& mask,
    const OptionalTensor& channel_weights, bool mean, bool keep) {
  const CudaCall call(x_prev);
  TransitionArguments arguments(x_prev);
  LogProbJob job =
      log_prob_job(arguments, x_prev, x_t, x0_pred, A, B, s, A_rows, B_rows, s_rows, mask, channel_weights, mean);
  Tensor log_prob = torch::stable::new_empty(x_prev, {job.batch.rows}, compute_dtype(arguments.is_double));
  Tensor kept = new_kept(arguments, x_prev, keep);
  if (is_empty(job.batch)) return {torch::stable::zero_(log_prob), kept};
  if (keep) job.kept = new_output(kept);
  Tensor parts = new_parts(x_prev, job.batch, 1);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_log_prob(job, output<double>(parts), output<T>(log_prob), call.stream()));
  });
  return {log_prob, kept};
}

// The incoming gradient (N,), which must be of the type that is computed in.
Tensor incoming(const Tensor& grad, const TransitionArguments& arguments, const Tensor& first) {
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == arguments.batch.rows &&
                      grad.scalar_type() == compute_dtype(arguments.is_double),
                  "grad has the wrong shape or dtype");
  check_same_device(grad, first, "grad");
  return torch::stable::contiguous(grad);
}

std::tuple<Tensor, Tensor, Tensor> sde_log_prob_backward_cuda(
    const Tensor& grad, const Tensor& x_prev_or_kept, const OptionalTensor& x_t, const OptionalTensor& x0_pred, double A,
    double B, double s, const OptionalTensor& A_rows, const OptionalTensor& B_rows, const OptionalTensor& s_rows,
    const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean, bool needs_x_prev, bool needs_x_t,
    bool needs_x0_pred) {
  const CudaCall call(x_prev_or_kept);
  TransitionArguments arguments(x_prev_or_kept);
  LogProbGradientJob job{};
  job.forward = log_prob_job(
      arguments, x_prev_or_kept, x_t, x0_pred, A, B, s, A_rows, B_rows, s_rows, mask, channel_weights, mean);
  const Tensor grads = incoming(grad, arguments, x_prev_or_kept);
  Tensor grad_x_prev = new_gradient(x_prev_or_kept, needs_x_prev),
         grad_x_t = new_log_prob_gradient(x_t, x_prev_or_kept, needs_x_t),
         grad_x0_pred = new_log_prob_gradient(x0_pred, x_prev_or_kept, needs_x0_pred);
  if (is_empty(job.forward.batch)) return {grad_x_prev, grad_x_t, grad_x0_pred};
  if (needs_x_prev) job.grad_x_prev = new_output(grad_x_prev);
  if (needs_x_t) job.grad_x_t = new_output(grad_x_t);
  if (needs_x0_pred) job.grad_x0_pred = new_output(grad_x0_pred);
  Tensor slopes = torch::stable::new_empty(x_prev_or_kept, {job.forward.batch.rows}, ScalarType::Double);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_log_prob_gradient(
        job, static_cast<const T*>(grads.const_data_ptr()), output<double>(slopes), call.stream()));
  });
  return {grad_x_prev, grad_x_t, grad_x0_pred};
}

Tensor sde_log_ratio_cuda(const Tensor& x0_pred, const Tensor& other, const OptionalTensor& noise,
                          const OptionalTensor& step_member, const OptionalTensor& condition, int64_t seed,
                          int64_t iteration, int64_t stream, double gain, const OptionalTensor& gain_rows,
                          const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean,
                          bool drop_quadratic) {
  const CudaCall call(x0_pred);
  TransitionArguments arguments(x0_pred);
  const RatioJob job = ratio_job(arguments, x0_pred, other, noise, step_member, condition, seed, iteration, stream, gain,
                                 gain_rows, mask, channel_weights, mean, drop_quadratic);
  Tensor ratio = torch::stable::new_empty(x0_pred, {job.batch.rows}, compute_dtype(arguments.is_double));
  if (is_empty(job.batch)) return torch::stable::zero_(ratio);
  Tensor parts = new_parts(x0_pred, job.batch, 2);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_ratio(job, output<double>(parts), output<T>(ratio), call.stream()));
  });
  return ratio;
}

Tensor sde_log_ratio_backward_cuda(const Tensor& grad, const Tensor& x0_pred, const Tensor& other,
                                   const OptionalTensor& noise, const OptionalTensor& step_member,
                                   const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream,
                                   double gain, const OptionalTensor& gain_rows, const OptionalTensor& mask,
                                   const OptionalTensor& channel_weights, bool mean, bool drop_quadratic) {
  const CudaCall call(x0_pred);
  TransitionArguments arguments(x0_pred);
  RatioGradientJob job{};
  job.forward = ratio_job(arguments, x0_pred, other, noise, step_member, condition, seed, iteration, stream, gain,
                          gain_rows, mask, channel_weights, mean, drop_quadratic);
  const Tensor grads = incoming(grad, arguments, x0_pred);
  Tensor grad_x0_pred = new_state(x0_pred, x0_pred.scalar_type());
  if (is_empty(job.forward.batch)) return grad_x0_pred;
  job.grad = new_output(grad_x0_pred);
  Tensor slopes = torch::stable::new_empty(x0_pred, {job.forward.batch.rows}, ScalarType::Double);
  with_compute_type(arguments.is_double, [&](auto zero) {
    using T = decltype(zero);
    check_launch(launch_ratio_gradient(
        job, static_cast<const T*>(grads.const_data_ptr()), output<double>(slopes), call.stream()));
  });
  return grad_x0_pred;
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR("sde_step_fwd", MGRPO_SDE_STEP, mgrpo::sde_step_cuda);
MGRPO_CUDA_OPERATOR("projected_sde_step_fwd", MGRPO_PROJECTED_SDE_STEP, mgrpo::projected_sde_step_cuda);
MGRPO_CUDA_OPERATOR(
    "projected_sde_step_bwd", MGRPO_PROJECTED_SDE_STEP_BACKWARD, mgrpo::projected_sde_step_backward_cuda);
MGRPO_CUDA_OPERATOR("sde_log_prob_fwd", MGRPO_SDE_LOG_PROB, mgrpo::sde_log_prob_cuda);
MGRPO_CUDA_OPERATOR("sde_log_prob_bwd", MGRPO_SDE_LOG_PROB_BACKWARD, mgrpo::sde_log_prob_backward_cuda);
MGRPO_CUDA_OPERATOR("sde_log_ratio_fwd", MGRPO_SDE_LOG_RATIO, mgrpo::sde_log_ratio_cuda);
MGRPO_CUDA_OPERATOR("sde_log_ratio_bwd", MGRPO_SDE_LOG_RATIO_BACKWARD, mgrpo::sde_log_ratio_backward_cuda);
