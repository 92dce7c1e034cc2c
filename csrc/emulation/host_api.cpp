#include "host_api.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace mgrpo::emulation {

namespace {

std::mutex limits_mutex;
std::map<const void*, size_t> limits;

}  // namespace

size_t shared_limit(const void* kernel) {
  const std::lock_guard<std::mutex> lock(limits_mutex);
  const auto found = limits.find(kernel);
  return found == limits.end() ? kSharedWithoutAsking : std::max(found->second, kSharedWithoutAsking);
}

void set_shared_limit(const void* kernel, size_t bytes) {
  const std::lock_guard<std::mutex> lock(limits_mutex);
  limits[kernel] = bytes;
}

cudaError_t& last_error() {
  thread_local cudaError_t error = cudaSuccess;
  return error;
}

}  // namespace mgrpo::emulation

cudaError_t cudaGetLastError() { return std::exchange(mgrpo::emulation::last_error(), cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return mgrpo::emulation::last_error(); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument (too much dynamic shared memory, or not asked for?)";
    case cudaErrorInvalidConfiguration: return "invalid configuration of grid or block";
    case cudaErrorLaunchFailure: return mgrpo::emulation::last_failure().c_str();
  }
  return "unknown error";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // Few multiprocessors, so that loops over a grid as large as the device go round in tests as well.
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : int(mgrpo::emulation::kSharedAtMost);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int byte, size_t count, cudaStream_t) {
  memset(address, byte, count);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
