// group_advantages_fwd, grpo_loss_fwd and grpo_loss_bwd on a GPU.
#include "../common/cuda_op.h"
#include "policy_cuda.h"
#include "policy_glue.h"

namespace mgrpo {
namespace {

void check_device_of(const std::optional<Tensor>& tensor, const Tensor& first, const char* name) {
  if (tensor.has_value()) check_same_device(*tensor, first, name);
}

AdvantageTensors group_advantages_cuda(Tensor rewards, std::optional<Tensor> valid, Tensor weights, int64_t scheme,
                                       int64_t ddof, double eps, double std_floor_ratio, double dead_ratio,
                                       double dead_abs, double trim, double clamp) {
  check_device_of(valid, rewards, "valid");
  check_same_device(weights, rewards, "weights");
  const CudaCall call(rewards);
  const AdvantageOptions options{
      static_cast<Scheme>(scheme), static_cast<int>(ddof), eps, std_floor_ratio, dead_ratio, dead_abs, trim, clamp};
  return with_advantage_job(rewards, valid, weights, options, [&](const auto& job) {
    check_launch(launch_group_advantages(job, call.stream()));
  });
}

LossTensors grpo_loss_cuda(Tensor log_ratio, Tensor advantages, std::optional<Tensor> valid,
                           std::optional<Tensor> weights, std::optional<Tensor> kl, std::optional<Tensor> denominator,
                           double fixed_denominator, double clip_low, double clip_high, double kl_coef) {
  check_same_device(advantages, log_ratio, "advantages");
  check_device_of(valid, log_ratio, "valid");
  check_device_of(weights, log_ratio, "weights");
  check_device_of(kl, log_ratio, "kl");
  check_device_of(denominator, log_ratio, "denominator");
  const CudaCall call(log_ratio);
  return with_loss_inputs(
      log_ratio, advantages, valid, weights, kl, denominator, clip_low, clip_high,
      [&](const auto& in, auto* ratio, const auto& results, const double* counted) {
        constexpr int64_t kNumbers = sizeof(LossSums) / sizeof(double);
        Tensor parts = torch::stable::new_empty(log_ratio, {kNumbers * loss_blocks(in.count)}, ScalarType::Double);
        check_launch(launch_grpo_loss(in, ratio, results, reinterpret_cast<LossSums*>(output<double>(parts)),
                                      fixed_denominator, counted, kl_coef, call.stream()));
      });
}

std::tuple<Tensor, Tensor> grpo_loss_backward_cuda(Tensor grad_loss, Tensor log_ratio, Tensor advantages,
                                                   std::optional<Tensor> valid, std::optional<Tensor> weights,
                                                   Tensor divisor, double clip_low, double clip_high, double kl_coef,
                                                   bool with_kl) {
  check_same_device(grad_loss, log_ratio, "grad_loss");
  check_same_device(advantages, log_ratio, "advantages");
  check_device_of(valid, log_ratio, "valid");
  check_device_of(weights, log_ratio, "weights");
  check_same_device(divisor, log_ratio, "divisor");
  const CudaCall call(log_ratio);
  return with_loss_gradients(
      grad_loss, log_ratio, advantages, valid, weights, divisor, clip_low, clip_high, with_kl,
      [&](const auto& in, const auto* grad, const double* divided_by, auto* grad_log_ratio, auto* grad_kl) {
        if (in.count == 0) return;
        check_launch(
            launch_grpo_loss_backward(in, grad, divided_by, kl_coef, grad_log_ratio, grad_kl, call.stream()));
      });
}

}  // namespace
}  // namespace mgrpo

MGRPO_CUDA_OPERATOR(
    "group_advantages_fwd",
    "(Tensor rewards, Tensor? valid, Tensor weights, int scheme, int ddof, float eps, float std_floor_ratio,"
    " float dead_ratio, float dead_abs, float trim, float clamp) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    mgrpo::group_advantages_cuda);
MGRPO_CUDA_OPERATOR(
    "grpo_loss_fwd",
    "(Tensor log_ratio, Tensor advantages, Tensor? valid, Tensor? weights, Tensor? kl, Tensor? denominator,"
    " float fixed_denominator, float clip_low, float clip_high, float kl_coef)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    mgrpo::grpo_loss_cuda);
MGRPO_CUDA_OPERATOR(
    "grpo_loss_bwd",
    "(Tensor grad_loss, Tensor log_ratio, Tensor advantages, Tensor? valid, Tensor? weights, Tensor divisor,"
    " float clip_low, float clip_high, float kl_coef, bool with_kl) -> (Tensor, Tensor)",
    mgrpo::grpo_loss_backward_cuda);
