// One block searches for a row from start to end: every iteration of it in one launch, without a word to the host.
//
// What a frame's elimination works on lies in shared memory where there is room (33 coupled numbers: 40 KB, 57 with the
// wrists: 93 KB or 112 KB; 117 with image points stay in device memory, which the caches hold); the rest of a row's
// workspace, 2.4 MB for 128 frames and 33 numbers, is read and written in device memory.
#include "guidance_cuda.h"

#include "search_math.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocks = 3;  // per multiprocessor, as registers allow
constexpr int kTile = 3;  // numbers of a thread's part of a product, by rows and by columns

struct Block {
  static constexpr bool kAlone = false;

  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
  __device__ int segment() const { return 16; }  // frames of a chain: eight threads for 128, which repeat two each

  template <class T>
  __device__ void copy(T* to, int stride_to, const T* from, int stride_from, int rows, int columns) const {
    for (int item = rank(); item < rows * columns; item += size()) {
      const int i = item / columns, j = item % columns;
      to[i * stride_to + j] = from[i * stride_from + j];
    }
  }
  template <class T>
  __device__ void clear(T* to, int stride, int rows, int columns) const {
    for (int item = rank(); item < rows * columns; item += size()) to[item / columns * stride + item % columns] = T(0);
  }
  template <class T>
  __device__ T dot(const T* a, const T* b, int count) const {
    T sum = T(0);
    for (int k = 0; k < count; ++k) sum += a[k] * b[k];
    return sum;
  }

  template <class T>
  __device__ void products(const Products<T>& p) const {
    const int down = (p.rows + kTile - 1) / kTile, across = (p.columns + kTile - 1) / kTile;
    for (int item = rank(); item < down * across; item += size()) {
      const int i = item / across * kTile, j = item % across * kTile;
      if (p.symmetric && j + kTile <= i) continue;
      T sum[kTile][kTile] = {};
      int row[kTile], column[kTile];
      for (int r = 0; r < kTile; ++r) row[r] = i + r < p.rows ? i + r : p.rows - 1;
      for (int c = 0; c < kTile; ++c) column[c] = j + c < p.columns ? j + c : p.columns - 1;
      for (int k = p.first(j); k < p.depth; ++k) {
        T a[kTile];
        for (int r = 0; r < kTile; ++r) a[r] = p.factor[k] * p.A[k * p.stride_a + row[r]];
        for (int c = 0; c < kTile; ++c) {
          const T b = p.B[k * p.stride_b + column[c]];
          for (int r = 0; r < kTile; ++r) sum[r][c] += a[r] * b;
        }
      }
      for (int r = 0; r < kTile; ++r)
        for (int c = 0; c < kTile; ++c)
          if (i + r < p.rows && j + c < p.columns && !(p.symmetric && j + c < i + r))
            p.C[(i + r) * p.stride_c + j + c] += sum[r][c];
    }
  }

  template <class T>
  __device__ void eliminate(const Panel<T>& panel, int block) const {
    const int first = 3 * block, below = panel.n - first - 3, width = panel.end(block) - first - 3;
    const T *const r0 = panel.row(first), *const r1 = panel.row(first + 1), *const r2 = panel.row(first + 2);
    for (int item = rank(); item < below * width; item += size()) {
      const int i = first + 3 + item / width, j = first + 3 + item % width;
      if (j >= i) panel.row(i)[j] -= r0[i] * r0[j] + r1[i] * r1[j] + r2[i] * r2[j];
    }
  }
};

// Parts that a frame's elimination works on, the most useful first.
template <class T>
__host__ __device__ void take_shared(const GuidanceJob<T>& job, int parts, GuidanceSpace<T>& space, T*& memory) {
  if (parts > 0) space.take(space.panel, memory, job.panel_numbers());
  if (parts > 1) space.take(space.rest, memory, job.rest_numbers());
  if (parts > 2) space.take(space.points, memory, job.point_numbers());
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    guidance_kernel(const __grid_constant__ GuidanceJob<T> job, T* __restrict__ workspace, int64_t numbers, int parts) {
  MGRPO_DYN_SMEM(T, shared);
  GuidanceSpace<T> space = {};
  T* memory = shared;
  take_shared(job, parts, space, memory);
  space.place(job, workspace + static_cast<int64_t>(blockIdx.x) * numbers, kThreads, parts > 0);
  Block team;
  for (int64_t row = blockIdx.x; row < job.rows; row += gridDim.x) guide_row(job, row, space, team);
}

}  // namespace

template <class T>
cudaError_t plan_guidance(const GuidanceJob<T>& job, GuidanceLaunch* plan) {
  int device = 0, room = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  plan->shared_parts = 0;
  plan->shared_bytes = 0;
  for (int parts = 1; parts <= 3; ++parts) {
    GuidanceSpace<T> space = {};
    T* const origin = reinterpret_cast<T*>(uintptr_t{64});
    T* memory = origin;
    take_shared(job, parts, space, memory);
    const size_t bytes = static_cast<size_t>(memory - origin) * sizeof(T);
    if (bytes > static_cast<size_t>(room)) break;
    plan->shared_parts = parts;
    plan->shared_bytes = bytes;
  }
  // No more blocks than can be at work together: each has a workspace.
  const int64_t most = int64_t{kBlocks} * processors;
  plan->blocks = static_cast<int>(job.rows < most ? job.rows : most);
  plan->workspace = plan->blocks * guidance_numbers(job, kThreads, true);
  return cudaSuccess;
}

template <class T>
cudaError_t launch_guidance(const GuidanceJob<T>& job, const GuidanceLaunch& plan, T* workspace, cudaStream_t stream) {
  const cudaError_t error = allow_dynamic_shared(guidance_kernel<T>, plan.shared_bytes);
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(guidance_kernel<T>, static_cast<unsigned>(plan.blocks), kThreads, plan.shared_bytes, stream)
  (job, workspace, plan.workspace / plan.blocks, plan.shared_parts);
  return cudaGetLastError();
}

#define MGRPO_INSTANTIATE(T)                                                   \
  template cudaError_t plan_guidance(const GuidanceJob<T>&, GuidanceLaunch*); \
  template cudaError_t launch_guidance(const GuidanceJob<T>&, const GuidanceLaunch&, T*, cudaStream_t)
MGRPO_INSTANTIATE(float);  // double would spill registers, and is for checking, which the CPU does

}  // namespace mgrpo
