// Launchers of the transitions' kernels. Rows, frames and channels must not be 0; T is float or double, the type that is
// computed in. Jobs and their pointers are as in transition_task.h, all on the device.
#pragma once

#include <cstdint>

#include "../common/cuda_compat.h"
#include "transition_task.h"

namespace mgrpo {

// How many partial sums of a row the kernels below write, for one or two sums.
int64_t cuda_parts_per_row(const Weighting& batch);

// parts: (rows, cuda_parts_per_row) if the job sums its noise, which then become log_prob (rows,).
template <class T>
cudaError_t launch_step(const StepJob& job, double* parts, T* log_prob, cudaStream_t stream);

template <class T>
cudaError_t launch_log_prob(const LogProbJob& job, double* parts, T* log_prob, cudaStream_t stream);

// slopes: (rows,) workspace; the job's own is not read.
template <class T>
cudaError_t launch_log_prob_gradient(const LogProbGradientJob& job, const T* grad, double* slopes, cudaStream_t stream);

// parts: twice (rows, cuda_parts_per_row).
template <class T>
cudaError_t launch_ratio(const RatioJob& job, double* parts, T* ratio, cudaStream_t stream);

template <class T>
cudaError_t launch_ratio_gradient(const RatioGradientJob& job, const T* grad, double* slopes, cudaStream_t stream);

template <class T>
cudaError_t launch_projection_gradient(const ProjectionGradientJob& job, cudaStream_t stream);

}  // namespace mgrpo
