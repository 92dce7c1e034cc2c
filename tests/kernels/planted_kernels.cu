// Kernels for tests of the emulation itself: right ones, whose results are known, and ones with a planted mistake.
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../csrc/common/cuda_compat.h"
#include "../../csrc/common/cuda_half.h"

namespace {

constexpr int kThreads = 96;

// Every thread writes to its place and reads its neighbour's.
template <bool kWithBarrier>
__global__ void shift(float* out) {
  __shared__ float tile[kThreads];
  const int i = threadIdx.x;
  tile[i] = 0.0f;
  __syncthreads();
  tile[i] = float(100 * blockIdx.x + i);
  if (kWithBarrier) __syncthreads();
  out[blockIdx.x * kThreads + i] = tile[(i + 1) % kThreads];
}

__global__ void shuffle_that_half_of_a_warp_leaves_out(float* out) {
  float value = float(threadIdx.x);
  if (threadIdx.x % 2 == 0) value = __shfl_xor_sync(0xffffffffu, value, 2);
  out[threadIdx.x] = value;
  __syncthreads();
}

__global__ void two_barriers_at_once(float* out) {
  if (threadIdx.x < 32) {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void different_masks(float* out) {
  const unsigned mask = threadIdx.x < 8 ? 0x0000ffffu : 0xffffffffu;
  out[threadIdx.x] = __shfl_sync(mask, float(threadIdx.x), 0);
}

__global__ void mask_without_the_caller(float* out) { out[threadIdx.x] = __shfl_sync(1u, float(threadIdx.x), 0); }

__global__ void reads_a_lane_that_takes_no_part(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, float(threadIdx.x), 8);
}

__global__ void reads_unwritten_memory(float* out) {
  MGRPO_DYN_SMEM(float, tile);
  if (threadIdx.x > 0) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void writes_past_the_output(float* out, int count) { out[threadIdx.x] = float(count); }

// The same address, about which the compiler knows nothing more.
template <class T>
T* unknown(T* address) {
  asm("" : "+r"(address));
  return address;
}

__global__ void writes_past_static_shared_memory(float* out) {
  __shared__ float tile[kThreads];
  float* address = unknown(tile);
  address[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = address[threadIdx.x];
}

template <class T>
__global__ void template_writes_past_static_shared_memory(T* out) {
  __shared__ T tile[kThreads];
  T* address = unknown(tile);
  address[threadIdx.x + 1] = T(1);
  __syncthreads();
  out[threadIdx.x] = address[threadIdx.x];
}

__global__ void writes_past_dynamic_shared_memory(float* out) {
  MGRPO_DYN_SMEM(float, tile);
  tile[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void misaligned_vector(float* out) {
  reinterpret_cast<float4*>(out + 1)[threadIdx.x] = make_float4(1, 2, 3, 4);
}

__global__ void does_nothing(float*) {}

// One number per feature, so that a test can say which one is wrong.
__global__ void features(float* out) {
  const int i = int(threadIdx.x), lane = i % 32, warp = i / 32;
  float* mine = out + 32 * i;
  mine[0] = __shfl_sync(~0u, float(i), 5);
  mine[1] = __shfl_xor_sync(~0u, float(i), 16);
  mine[2] = __shfl_down_sync(~0u, float(i), 3, 8);
  mine[3] = __shfl_up_sync(~0u, float(i), 3, 8);
  mine[4] = float(__popc(__ballot_sync(~0u, lane % 3 == 0)));
  mine[5] = float(__any_sync(~0u, i == 40)) + 2.0f * float(__all_sync(~0u, i < 40));
  mine[6] = float(__reduce_add_sync(~0u, lane)) + float(__reduce_max_sync(~0u, lane) - __reduce_min_sync(~0u, lane));
  mine[7] = float(__syncthreads_count(i % 5 == 0));
  mine[8] = float(__syncthreads_or(i == 7)) + 2.0f * float(__syncthreads_and(i != 7));
  double sum = double(i);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  mine[9] = float(sum);
  if (lane < 4) mine[10] = __shfl_sync(0xfu, float(i), 3);
  __syncwarp();
  __shared__ int counter, largest;
  if (i == 0) counter = largest = 0;
  __syncthreads();
  atomicAdd(&counter, i);
  atomicMax(&largest, i);
  __syncthreads();
  mine[11] = float(counter) + 10000.0f * float(largest);
  mine[12] = __bfloat162float(__float2bfloat16(1.0f + float(i) / 300.0f));
  mine[13] = __half2float(__float2half(1.0f + float(i) / 3000.0f));
  mine[14] = float(__umulhi(0x80000000u, unsigned(4 * i)));
  mine[15] = float(__clz(i)) + 100.0f * float(__ffs(i)) + 10000.0f * float(warp);
}

// Fills its dynamic shared memory and gives it out backwards.
__global__ void reverses_shared_memory(float* out, int count) {
  MGRPO_DYN_SMEM(float, tile);
  for (int i = int(threadIdx.x); i < count; i += kThreads) tile[i] = float(i);
  __syncthreads();
  for (int i = int(threadIdx.x); i < count; i += kThreads) out[i] = tile[count - 1 - i];
}

__global__ void indices(int* out) {
  const int thread = int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  const int block = int(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  out[block * int(blockDim.x * blockDim.y * blockDim.z) + thread] = 1000 * block + thread;
}

// Threads that leave early, and a last warp that is not whole.
__global__ void early_exits(float* out) {
  if (threadIdx.x >= 50) return;
  __syncthreads();
  float sum = 1.0f;
  const unsigned mask = __ballot_sync(threadIdx.x < 32 ? ~0u : 0x3ffffu, 1);
  sum += __shfl_sync(mask, float(threadIdx.x), 1);
  __syncthreads();
  out[threadIdx.x] = sum;
}

template <class Kernel>
void run(Kernel* kernel, float* out, unsigned blocks = 1, size_t shared_bytes = 0) {
  MGRPO_LAUNCH(kernel, blocks, kThreads, shared_bytes, nullptr)(out);
}

// Memory that AddressSanitizer watches, and only `count` numbers of it.
std::vector<float>& heap(int count) {
  static std::vector<float> memory;
  memory.assign(size_t(count), 0.0f);
  memory.shrink_to_fit();
  return memory;
}

const std::map<std::string, std::function<void(float*)>> kernels = {
    {"shift", [](float* out) { run(shift<true>, out, 4); }},
    {"missing_barrier", [](float* out) { run(shift<false>, out, 4); }},
    {"features", [](float* out) { run(features, out); }},
    {"early_exits", [](float* out) { run(early_exits, out); }},
    {"indices",
     [](float* out) {
       MGRPO_LAUNCH(indices, dim3(3, 2, 2), dim3(4, 3, 2), 0, nullptr)(reinterpret_cast<int*>(out));
     }},
    {"divergent_shuffle", [](float* out) { run(shuffle_that_half_of_a_warp_leaves_out, out); }},
    {"two_barriers", [](float* out) { run(two_barriers_at_once, out); }},
    {"different_masks", [](float* out) { run(different_masks, out); }},
    {"mask_without_the_caller", [](float* out) { run(mask_without_the_caller, out); }},
    {"absent_lane", [](float* out) { run(reads_a_lane_that_takes_no_part, out); }},
    {"unwritten_memory", [](float* out) { run(reads_unwritten_memory, out, 1, kThreads * sizeof(float)); }},
    {"too_many_threads", [](float* out) { MGRPO_LAUNCH(does_nothing, 1, 1025, 0, nullptr)(out); }},
    {"no_blocks", [](float* out) { run(does_nothing, out, 0); }},
    {"shared_not_asked_for", [](float* out) { run(does_nothing, out, 1, 49 << 10); }},
    {"shared_asked_for",
     [](float* out) {
       mgrpo::allow_dynamic_shared(reverses_shared_memory, 50 << 10);
       MGRPO_LAUNCH(reverses_shared_memory, 1, kThreads, 50 << 10, nullptr)(out, (50 << 10) / int(sizeof(float)));
     }},
    {"more_shared_than_asked_for",
     [](float* out) {
       mgrpo::allow_dynamic_shared(reverses_shared_memory, 50 << 10);
       MGRPO_LAUNCH(reverses_shared_memory, 1, kThreads, 51 << 10, nullptr)(out, 1);
     }},
    {"out_of_bounds_output",
     [](float*) { MGRPO_LAUNCH(writes_past_the_output, 1, kThreads, 0, nullptr)(heap(kThreads - 1).data(), 1); }},
    {"out_of_bounds_static", [](float* out) { run(writes_past_static_shared_memory, out); }},
    {"out_of_bounds_static_in_template", [](float* out) { run(template_writes_past_static_shared_memory<float>, out); }},
    {"out_of_bounds_dynamic",
     [](float* out) { run(writes_past_dynamic_shared_memory, out, 1, kThreads * sizeof(float)); }},
    {"misaligned_vector", [](float*) { MGRPO_LAUNCH(misaligned_vector, 1, 2, 0, nullptr)(heap(16).data()); }},
};

}  // namespace

// Runs a kernel in the given order of threads (see csrc/emulation/scheduler.h); the error, or null.
extern "C" __attribute__((visibility("default"))) const char* run_planted(
    const char* name, unsigned order, int os_threads, float* out) {
  mgrpo::emulation::options() = {order, os_threads};
  const auto found = kernels.find(name);
  if (found == kernels.end()) return "no such kernel";
  found->second(out);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
