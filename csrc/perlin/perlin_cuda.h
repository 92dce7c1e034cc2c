// Launcher of perlin_noise's kernel; job.rows must not be 0.
#pragma once

#include "../common/cuda_compat.h"
#include "perlin_types.h"

namespace mgrpo {

cudaError_t launch_perlin_noise(const PerlinJob& job, cudaStream_t stream);

}  // namespace mgrpo
