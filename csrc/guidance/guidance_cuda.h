// Launcher of motion_guidance's kernel, T float; job.rows must not be 0.
#pragma once

#include "../common/cuda_compat.h"
#include "guidance_types.h"

namespace mgrpo {

// How the kernel runs on the current device.
struct GuidanceLaunch {
  int blocks;                // which share the rows
  size_t shared_bytes;       // dynamic, of a block
  int shared_parts;          // how many of panel, rest and points lie there
  int64_t workspace;         // numbers of T in device memory that all blocks need
};

template <class T>
cudaError_t plan_guidance(const GuidanceJob<T>& job, GuidanceLaunch* plan);

// workspace: plan.workspace numbers.
template <class T>
cudaError_t launch_guidance(const GuidanceJob<T>& job, const GuidanceLaunch& plan, T* workspace, cudaStream_t stream);

}  // namespace mgrpo
