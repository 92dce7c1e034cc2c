// The first header of every CUDA source: the real CUDA, or its emulation on the CPU (csrc/emulation) for tests.
//
// A kernel is plain CUDA C++ but for two macros, which stand for what g++ cannot read:
//   MGRPO_LAUNCH((kernel<float, 3>), grid, block, shared_bytes, stream)(arguments);
//   MGRPO_DYN_SMEM(float, tile);   // declares tile, the dynamic shared memory of the block
#pragma once

#include <cstddef>

#if defined(MGRPO_EMULATION)
#include "../emulation/cuda_emulation.h"
#else
#include <cuda_runtime.h>
#if defined(__CUDACC__)
#define MGRPO_LAUNCH(kernel, grid, block, shared_bytes, stream) kernel<<<grid, block, shared_bytes, stream>>>
#define MGRPO_DYN_SMEM(T, name)                                 \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)
#endif
#endif

#if defined(__CUDACC__) || defined(MGRPO_EMULATION)
namespace mgrpo {

// Must come before the launch of a kernel that wants more than 48 KiB of dynamic shared memory.
template <class Kernel>
cudaError_t allow_dynamic_shared(Kernel* kernel, size_t bytes) {
  if (bytes <= (48u << 10)) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace mgrpo
#endif
