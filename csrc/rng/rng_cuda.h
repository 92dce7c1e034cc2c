// Launchers of the generator's kernels; rows and count must not be 0.
#pragma once

#include <cstdint>

#include "../common/cuda_compat.h"
#include "../common/philox_row.h"

namespace mgrpo {

// out: (rows, count); step_member, condition: (rows,), on the device.
cudaError_t launch_philox(bool normal, const PhiloxSeed& seed, const int64_t* step_member, const int64_t* condition,
                          int64_t rows, int64_t count, float* out, cudaStream_t stream);

}  // namespace mgrpo
