// The part of CUDA's host interface that launchers use, and the launch itself. Everything is done when a call returns.
#pragma once

#include <functional>
#include <string>
#include <tuple>

#include "scheduler.h"

typedef struct CUstream_st* cudaStream_t;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };

namespace mgrpo::emulation {

constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr size_t kSharedAtMost = 227 << 10;  // sm_90 and sm_100; 163 KiB on sm_80, 99 KiB on sm_120

// What cudaFuncSetAttribute last set for a kernel.
size_t shared_limit(const void* kernel);
void set_shared_limit(const void* kernel, size_t bytes);

cudaError_t& last_error();

// The arguments are copied once; every thread gets its own copy of each, like parameters on the device.
template <class... Parameters>
class Launcher {
 public:
  Launcher(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes)
      : kernel_(kernel), grid_(grid), block_(block), shared_bytes_(shared_bytes) {}

  template <class... Arguments>
  void operator()(Arguments&&... arguments) const {
    const std::tuple<Parameters...> parameters(static_cast<Parameters>(arguments)...);
    const std::function<void()> thread = [&] { std::apply(kernel_, parameters); };
    const size_t limit = shared_limit(reinterpret_cast<const void*>(kernel_));
    last_error() = cudaError_t(launch(grid_, block_, shared_bytes_, limit, thread));
  }

 private:
  void (*kernel_)(Parameters...);
  dim3 grid_, block_;
  size_t shared_bytes_;
};

template <class... Parameters>
Launcher<Parameters...> launcher(
    void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t) {
  return {kernel, grid, block, shared_bytes};
}

}  // namespace mgrpo::emulation

// kernel<<<grid, block, shared_bytes, stream>>>(arguments)
#define MGRPO_LAUNCH(kernel, grid, block, shared_bytes, stream) \
  ::mgrpo::emulation::launcher(kernel, grid, block, shared_bytes, stream)
// extern __shared__ T name[]
#define MGRPO_DYN_SMEM(T, name) T* name = reinterpret_cast<T*>(::mgrpo::emulation::current_block->shared.get())

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* address, int byte, size_t count, cudaStream_t stream = nullptr);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > ::mgrpo::emulation::kSharedAtMost) return cudaErrorInvalidValue;
  ::mgrpo::emulation::set_shared_limit(reinterpret_cast<const void*>(kernel), size_t(value));
  return cudaSuccess;
}
