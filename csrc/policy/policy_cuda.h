// Launchers of the policy's kernels, T float or double.
#pragma once

#include "../common/cuda_compat.h"
#include "advantages_math.h"
#include "policy_types.h"

namespace mgrpo {

// B G must not be 0.
template <class T>
cudaError_t launch_group_advantages(const AdvantageJob<T>& job, cudaStream_t stream);

// Blocks that sum `count` elements, each to one of the `parts` of launch_grpo_loss.
int64_t loss_blocks(int64_t count);

// parts: loss_blocks(count) of them. `counted` may be null, see loss_divisor.
template <class T>
cudaError_t launch_grpo_loss(const LossInputs<T>& in, T* ratio, const LossResults<T>& results, LossSums* parts,
                             double fixed_denominator, const double* counted, double kl_coef, cudaStream_t stream);

// grad_kl may be null; count must not be 0.
template <class T>
cudaError_t launch_grpo_loss_backward(const LossInputs<T>& in, const T* grad_loss, const double* divisor, double kl_coef,
                                      T* grad_log_ratio, T* grad_kl, cudaStream_t stream);

}  // namespace mgrpo
