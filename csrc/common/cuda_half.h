// __nv_bfloat16 and __half as storage types, with __bfloat162float, __float2bfloat16, __half2float and __float2half.
// Apart from cuda_compat.h because nvcc reads these headers once per architecture.
#pragma once

#include "cuda_compat.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif
