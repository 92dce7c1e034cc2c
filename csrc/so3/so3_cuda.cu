// One thread per matrix. A block copies its matrices through shared memory, so that reads and writes of device memory
// are whole cache lines although each thread wants nine numbers in a row.
#include "../common/cuda_tile.h"
#include "../common/polar.h"
#include "so3_cuda.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocksPerProcessor = 4;  // at least: without a number the compiler aims higher and spills registers
constexpr int kStride = tile_stride(9);

__device__ __forceinline__ int rows_of_block(int64_t count) {
  const int64_t left = count - static_cast<int64_t>(blockIdx.x) * kThreads;
  return left < kThreads ? static_cast<int>(left) : kThreads;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    project_so3_kernel(const __grid_constant__ RowView<T> matrices, bool fix_det, T* __restrict__ R) {
  __shared__ T tile[kThreads * kStride];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads;
  const int rows = rows_of_block(matrices.count());
  load_tile<9>(tile, matrices, first, rows);
  __syncthreads();
  const int thread = threadIdx.x;
  T* own = tile + thread * kStride;
  if (thread < rows) store_mat3(own, nearest_rotation(load_mat3(own), fix_det));
  __syncthreads();
  store_tile<9>(R, tile, first, rows);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) project_so3_backward_kernel(
    const __grid_constant__ RowView<T> grad_R, const __grid_constant__ RowView<T> matrices,
    const __grid_constant__ RowView<T> R, bool fix_det, T* __restrict__ grad) {
  __shared__ T tiles[3][kThreads * kStride];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads;
  const int rows = rows_of_block(matrices.count());
  load_tile<9>(tiles[0], grad_R, first, rows);
  load_tile<9>(tiles[1], matrices, first, rows);
  load_tile<9>(tiles[2], R, first, rows);
  __syncthreads();
  const int thread = threadIdx.x, own = thread * kStride;
  if (thread < rows)
    store_mat3(
        tiles[0] + own,
        polar_gradient(load_mat3(tiles[0] + own), load_mat3(tiles[1] + own), load_mat3(tiles[2] + own), fix_det));
  __syncthreads();
  store_tile<9>(grad, tiles[0], first, rows);
}

unsigned blocks(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

}  // namespace

template <class T>
cudaError_t launch_project_so3(const RowView<T>& matrices, bool fix_det, T* R, cudaStream_t stream) {
  MGRPO_LAUNCH(project_so3_kernel<T>, blocks(matrices.count()), kThreads, 0, stream)(matrices, fix_det, R);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_project_so3_backward(
    const RowView<T>& grad_R, const RowView<T>& matrices, const RowView<T>& R, bool fix_det, T* grad,
    cudaStream_t stream) {
  MGRPO_LAUNCH(project_so3_backward_kernel<T>, blocks(matrices.count()), kThreads, 0, stream)
  (grad_R, matrices, R, fix_det, grad);
  return cudaGetLastError();
}

template cudaError_t launch_project_so3(const RowView<float>&, bool, float*, cudaStream_t);
template cudaError_t launch_project_so3(const RowView<double>&, bool, double*, cudaStream_t);
template cudaError_t launch_project_so3_backward(
    const RowView<float>&, const RowView<float>&, const RowView<float>&, bool, float*, cudaStream_t);
template cudaError_t launch_project_so3_backward(
    const RowView<double>&, const RowView<double>&, const RowView<double>&, bool, double*, cudaStream_t);

}  // namespace mgrpo
