// mgrpo_native::group_advantages_fwd, grpo_loss_fwd and grpo_loss_bwd on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "advantages_math.h"
#include "policy_glue.h"

#define MGRPO_ISA_BODY "../policy/loss_lanes.h"
#include "../common/for_each_isa.h"

namespace mgrpo {
namespace {

constexpr int64_t kMembersPerTask = 1024;
constexpr int64_t kElementsPerTask = 4096;  // sums are made per task, so it is part of the result's last bits

// f(item) for every item, on all threads; items are independent, so the number of threads changes nothing.
template <class F>
void for_each_item(int64_t items, int64_t cost, F&& f) {
  const int64_t grain = kMembersPerTask / (cost > 0 ? cost : 1) + 1;
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) f(item);
  });
}

template <class T>
void compute_advantages(const AdvantageJob<T>& job) {
  const int64_t members = job.B * job.G, C = job.C(), columns = job.B * C;
  for_each_item(members, job.K, [&](int64_t i) { score_member(job, i); });
  if (job.ranks()) for_each_item(members * job.K, job.G, [&](int64_t i) { rate_member(job, i); });
  for_each_item(columns, job.G, [&](int64_t i) { measure_column(job, i); });
  for (int64_t c = 0; c < C; ++c) {
    Moments whole = {0, 0, 0};
    for (int64_t b = 0; b < job.B; ++b) whole = merged(whole, job.columns[b * C + c].all);
    job.batch_std[c] = standard_deviation(whole, job.options.ddof);
  }
  for_each_item(columns, job.G, [&](int64_t i) { judge_column(job, i); });
  for_each_item(members, job.K, [&](int64_t i) { advantage_of_member(job, i); });
  if (job.options.scheme == Scheme::kGdpo) {
    for_each_item(job.B, job.G, [&](int64_t b) { measure_group(job, b); });
    *job.whole = {0, 0, 0};
    for (int64_t b = 0; b < job.B; ++b) *job.whole = merged(*job.whole, job.groups[b]);
  }
  for_each_item(members, 1, [&](int64_t i) { finish_member(job, i); });
}

AdvantageTensors group_advantages_cpu(Tensor rewards, std::optional<Tensor> valid, Tensor weights, int64_t scheme,
                                      int64_t ddof, double eps, double std_floor_ratio, double dead_ratio,
                                      double dead_abs, double trim, double clamp) {
  const AdvantageOptions options{
      static_cast<Scheme>(scheme), static_cast<int>(ddof), eps, std_floor_ratio, dead_ratio, dead_abs, trim, clamp};
  return with_advantage_job(rewards, valid, weights, options, [](const auto& job) { compute_advantages(job); });
}

LossTensors grpo_loss_cpu(Tensor log_ratio, Tensor advantages, std::optional<Tensor> valid,
                          std::optional<Tensor> weights, std::optional<Tensor> kl, std::optional<Tensor> denominator,
                          double fixed_denominator, double clip_low, double clip_high, double kl_coef) {
  return with_loss_inputs(
      log_ratio, advantages, valid, weights, kl, denominator, clip_low, clip_high,
      [&](const auto& in, auto* ratio, const auto& results, const double* counted) {
        const int64_t tasks = (in.count + kElementsPerTask - 1) / kElementsPerTask;
        std::vector<LossSums> parts(static_cast<size_t>(tasks));
        torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) {
            const int64_t first = task * kElementsPerTask;
            const int64_t last = first + kElementsPerTask < in.count ? first + kElementsPerTask : in.count;
            parts[static_cast<size_t>(task)] = MGRPO_ISA_CALL(sum_losses, in, first, last, ratio);
          }
        });
        LossSums sums = {0, 0, 0, 0, 0, 0};
        for (const LossSums& part : parts) sums = sums + part;
        store_loss(results, sums, loss_divisor(fixed_denominator, counted, sums.count), kl_coef);
      });
}

std::tuple<Tensor, Tensor> grpo_loss_backward_cpu(Tensor grad_loss, Tensor log_ratio, Tensor advantages,
                                                  std::optional<Tensor> valid, std::optional<Tensor> weights,
                                                  Tensor divisor, double clip_low, double clip_high, double kl_coef,
                                                  bool with_kl) {
  return with_loss_gradients(
      grad_loss, log_ratio, advantages, valid, weights, divisor, clip_low, clip_high, with_kl,
      [&](const auto& in, const auto* grad, const double* divided_by, auto* grad_log_ratio, auto* grad_kl) {
        const double scale = static_cast<double>(*grad) / *divided_by;
        torch::stable::parallel_for(0, in.count, kElementsPerTask, [&](int64_t begin, int64_t end) {
          MGRPO_ISA_CALL(differentiate_losses, in, begin, end, scale, kl_coef, grad_log_ratio, grad_kl);
        });
      });
}

}  // namespace
}  // namespace mgrpo

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_native, m) {
  m.def(
      "group_advantages_fwd(Tensor rewards, Tensor? valid, Tensor weights, int scheme, int ddof, float eps,"
      " float std_floor_ratio, float dead_ratio, float dead_abs, float trim, float clamp)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "grpo_loss_fwd(Tensor log_ratio, Tensor advantages, Tensor? valid, Tensor? weights, Tensor? kl,"
      " Tensor? denominator, float fixed_denominator, float clip_low, float clip_high, float kl_coef)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "grpo_loss_bwd(Tensor grad_loss, Tensor log_ratio, Tensor advantages, Tensor? valid, Tensor? weights,"
      " Tensor divisor, float clip_low, float clip_high, float kl_coef, bool with_kl) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(mgrpo_native, CPU, m) {
  m.impl("group_advantages_fwd", TORCH_BOX(&mgrpo::group_advantages_cpu));
  m.impl("grpo_loss_fwd", TORCH_BOX(&mgrpo::grpo_loss_cpu));
  m.impl("grpo_loss_bwd", TORCH_BOX(&mgrpo::grpo_loss_backward_cpu));
}
