// One thread per pair of clouds. A block copies its clouds through shared memory, so that reads and writes of device
// memory are whole cache lines, and each cloud is read once although the thread passes over it three times. Clouds too
// large for that are read where they lie.
#include "../common/cuda_compat.h"
#include "procrustes_math.h"
#include "procrustes_cuda.h"

namespace mgrpo {
namespace {

constexpr int kMaxThreads = 128;
// Blocks per processor, at least: without a number the compiler aims higher and spills registers.
constexpr int kForwardBlocks = 3, kBackwardBlocks = 2;
constexpr size_t kMostShared = 96u << 10;  // bytes a block may ask for on every architecture that we build for
constexpr int kWarp = 32;

// Odd distances between rows, so that the threads of a warp, one row each, meet no bank conflicts.
MGRPO_HD int row_stride(int row_size) { return row_size | 1; }

template <class T>
__device__ __forceinline__ void load_rows_to(T* tile, const RowView<T>& from, int64_t first, int rows, int row_size) {
  const int stride = row_stride(row_size);
  for (int row = threadIdx.x / kWarp; row < rows; row += blockDim.x / kWarp) {
    const T* source = from.at(first + row);
    for (int k = threadIdx.x % kWarp; k < row_size; k += kWarp) tile[row * stride + k] = source[k];
  }
}
template <class T>
__device__ __forceinline__ void store_rows_from(T* to, const T* tile, int64_t first, int rows, int row_size) {
  const int stride = row_stride(row_size);
  for (int row = threadIdx.x / kWarp; row < rows; row += blockDim.x / kWarp)
    for (int k = threadIdx.x % kWarp; k < row_size; k += kWarp)
      to[(first + row) * row_size + k] = tile[row * stride + k];
}

template <class T>
struct Tiles {
  T *source, *target, *weights, *grad;
};
template <bool kGiven, class T>
__device__ __forceinline__ Tiles<T> tiles_in(T* memory, int N) {
  const int points = row_stride(3 * N) * blockDim.x, weights = kGiven ? row_stride(N) * blockDim.x : 0;
  return {memory, memory + points, memory + 2 * points, memory + 2 * points + weights};
}

// The clouds of this thread, in shared memory (kStaged) or where they are. Every thread of the block must call it.
template <class T>
struct OwnClouds {
  int64_t first, pair;
  int rows;
  bool active;
  const T *source, *target, *weights;
};
template <bool kGiven, bool kStaged, class T>
__device__ __forceinline__ OwnClouds<T> own_clouds(const CloudViews<T>& clouds, const Tiles<T>& tiles) {
  OwnClouds<T> own;
  own.first = static_cast<int64_t>(blockIdx.x) * blockDim.x;
  own.pair = own.first + threadIdx.x;
  const int64_t left = clouds.source.count() - own.first;
  own.rows = static_cast<int>(left < blockDim.x ? left : blockDim.x);
  own.active = static_cast<int>(threadIdx.x) < own.rows;
  if constexpr (kStaged) {
    load_rows_to(tiles.source, clouds.source, own.first, own.rows, 3 * clouds.N);
    load_rows_to(tiles.target, clouds.target, own.first, own.rows, 3 * clouds.N);
    if constexpr (kGiven) load_rows_to(tiles.weights, clouds.weights, own.first, own.rows, clouds.N);
    const int offset = threadIdx.x * row_stride(3 * clouds.N);
    own.source = tiles.source + offset;
    own.target = tiles.target + offset;
    own.weights = tiles.weights + threadIdx.x * row_stride(clouds.N);
  } else {
    const int64_t row = own.active ? own.pair : 0;
    own.source = clouds.source.at(row);
    own.target = clouds.target.at(row);
    own.weights = kGiven ? clouds.weights.at(row) : nullptr;
  }
  return own;
}

template <bool kGiven, class T>
__device__ __forceinline__ auto weights_of(const OwnClouds<T>& own, int N) {
  if constexpr (kGiven) {
    return given_weights(own.weights, N);
  } else {
    return unit_weights<T>(N);
  }
}

template <class T, bool kGiven, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, kForwardBlocks)
    align_kernel(const __grid_constant__ CloudViews<T> clouds, const AlignmentOut<T> out) {
  MGRPO_DYN_SMEM(T, memory);
  const int N = clouds.N;
  const Tiles<T> tiles = tiles_in<kGiven>(memory, N);
  const OwnClouds<T> own = own_clouds<kGiven, kStaged>(clouds, tiles);
  if constexpr (kStaged) __syncthreads();
  if (own.active) {
    const auto pair = measured_pair<T>(own.source, own.target, weights_of<kGiven>(own, N), N);
    const Fit<T> fit = fit_similarity<T>(pair, clouds.with_scale, clouds.fix_det);
    store_mat3(out.R + 9 * own.pair, fit.R);
    store_vec3(out.t + 3 * own.pair, translation(pair, fit));
    out.scale[own.pair] = fit.scale;
    T* aligned = out.aligned + 3 * N * own.pair;
    if constexpr (kStaged) aligned = tiles.source + threadIdx.x * row_stride(3 * N);
    align_points(pair, fit, aligned);
  }
  if constexpr (kStaged) {
    __syncthreads();
    store_rows_from(out.aligned, tiles.source, own.first, own.rows, 3 * N);
  }
}

template <class T, bool kGiven, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, kForwardBlocks)
    residual_kernel(const __grid_constant__ CloudViews<T> clouds, T* __restrict__ residual) {
  MGRPO_DYN_SMEM(T, memory);
  const int N = clouds.N;
  const OwnClouds<T> own = own_clouds<kGiven, kStaged>(clouds, tiles_in<kGiven>(memory, N));
  if constexpr (kStaged) __syncthreads();
  if (!own.active) return;
  const auto pair = measured_pair<T>(own.source, own.target, weights_of<kGiven>(own, N), N);
  residual[own.pair] = mean_distance(pair, fit_similarity<T>(pair, clouds.with_scale, clouds.fix_det));
}

// Where this thread writes its gradients: over its clouds in shared memory, or to their final place.
template <bool kStaged, class T>
__device__ __forceinline__ CloudGrads<T> own_grads(
    const CloudGrads<T>& out, const OwnClouds<T>& own, T* source_tile, const Tiles<T>& tiles, int N) {
  if constexpr (kStaged) {
    const int offset = threadIdx.x * row_stride(3 * N);
    return {
        out.source ? source_tile + offset : nullptr, out.target ? tiles.target + offset : nullptr,
        out.weights ? tiles.weights + threadIdx.x * row_stride(N) : nullptr};
  } else {
    return {
        out.source ? out.source + 3 * N * own.pair : nullptr, out.target ? out.target + 3 * N * own.pair : nullptr,
        out.weights ? out.weights + N * own.pair : nullptr};
  }
}
template <class T>
__device__ __forceinline__ void store_grads(
    const CloudGrads<T>& out, const OwnClouds<T>& own, const T* source_tile, const Tiles<T>& tiles, int N) {
  __syncthreads();
  if (out.source) store_rows_from(out.source, source_tile, own.first, own.rows, 3 * N);
  if (out.target) store_rows_from(out.target, static_cast<const T*>(tiles.target), own.first, own.rows, 3 * N);
  if (out.weights) store_rows_from(out.weights, static_cast<const T*>(tiles.weights), own.first, own.rows, N);
}

template <class T, bool kGiven, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, kBackwardBlocks) align_backward_kernel(
    const __grid_constant__ AlignmentGrads<T> grads, const __grid_constant__ CloudViews<T> clouds,
    const CloudGrads<T> out) {
  MGRPO_DYN_SMEM(T, memory);
  const int N = clouds.N;
  const Tiles<T> tiles = tiles_in<kGiven>(memory, N);
  const OwnClouds<T> own = own_clouds<kGiven, kStaged>(clouds, tiles);
  if constexpr (kStaged) {
    load_rows_to(tiles.grad, grads.aligned, own.first, own.rows, 3 * N);
    __syncthreads();
  }
  if (own.active) {
    const T* grad_aligned = kStaged ? tiles.grad + threadIdx.x * row_stride(3 * N) : grads.aligned.at(own.pair);
    const CloudGrads<T> to = own_grads<kStaged>(out, own, tiles.grad, tiles, N);
    align_gradient<T>(
        measured_pair<T>(own.source, own.target, weights_of<kGiven>(own, N), N), clouds.with_scale, clouds.fix_det,
        grad_aligned, load_mat3(grads.R.at(own.pair)), load_vec3(grads.t.at(own.pair)), *grads.scale.at(own.pair),
        to.source, to.target, to.weights);
  }
  if constexpr (kStaged) store_grads<T>(out, own, tiles.grad, tiles, N);
}

template <class T, bool kGiven, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, kBackwardBlocks) residual_backward_kernel(
    const __grid_constant__ RowView<T> grad, const __grid_constant__ CloudViews<T> clouds, const CloudGrads<T> out) {
  MGRPO_DYN_SMEM(T, memory);
  const int N = clouds.N;
  const Tiles<T> tiles = tiles_in<kGiven>(memory, N);
  const OwnClouds<T> own = own_clouds<kGiven, kStaged>(clouds, tiles);
  if constexpr (kStaged) __syncthreads();
  if (own.active) {
    const CloudGrads<T> to = own_grads<kStaged>(out, own, tiles.source, tiles, N);
    residual_gradient<T>(
        measured_pair<T>(own.source, own.target, weights_of<kGiven>(own, N), N), clouds.with_scale, clouds.fix_det,
        *grad.at(own.pair), to.source, to.target, to.weights);
  }
  if constexpr (kStaged) store_grads<T>(out, own, tiles.source, tiles, N);
}

// ---- launches ----

struct Shape {
  unsigned blocks;
  int threads;
  size_t shared;  // bytes; 0 where clouds are not staged
};

// As many threads as fit with `tiles` clouds of points each, and weights if given.
template <class T>
Shape shape_of(const CloudViews<T>& clouds, int tiles) {
  const bool given = clouds.weights.data != nullptr;
  const size_t per_thread =
      sizeof(T) * (static_cast<size_t>(tiles) * row_stride(3 * clouds.N) + (given ? row_stride(clouds.N) : 0));
  Shape shape = {0, kMaxThreads, 0};
  for (int threads = kMaxThreads; threads >= kWarp; threads /= 2)
    if (threads * per_thread <= kMostShared) {
      shape.threads = threads;
      shape.shared = threads * per_thread;
      break;
    }
  shape.blocks = static_cast<unsigned>((clouds.source.count() + shape.threads - 1) / shape.threads);
  return shape;
}

template <class Kernel, class... Arguments>
cudaError_t start(Kernel* kernel, const Shape& shape, cudaStream_t stream, const Arguments&... arguments) {
  const cudaError_t error = allow_dynamic_shared(kernel, shape.shared);
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(kernel, shape.blocks, shape.threads, shape.shared, stream)(arguments...);
  return cudaGetLastError();
}

// The instance of a kernel template for these clouds.
#define MGRPO_CHOOSE(kernel, T, clouds, shape)                                           \
  ((clouds).weights.data ? ((shape).shared ? kernel<T, true, true> : kernel<T, true, false>) \
                         : ((shape).shared ? kernel<T, false, true> : kernel<T, false, false>))

}  // namespace

template <class T>
cudaError_t launch_procrustes_align(const CloudViews<T>& clouds, const AlignmentOut<T>& out, cudaStream_t stream) {
  const Shape shape = shape_of(clouds, 2);
  return start(MGRPO_CHOOSE(align_kernel, T, clouds, shape), shape, stream, clouds, out);
}

template <class T>
cudaError_t launch_procrustes_residual(const CloudViews<T>& clouds, T* residual, cudaStream_t stream) {
  const Shape shape = shape_of(clouds, 2);
  return start(MGRPO_CHOOSE(residual_kernel, T, clouds, shape), shape, stream, clouds, residual);
}

template <class T>
cudaError_t launch_procrustes_align_backward(
    const AlignmentGrads<T>& grads, const CloudViews<T>& clouds, const CloudGrads<T>& out, cudaStream_t stream) {
  const Shape shape = shape_of(clouds, 3);
  return start(MGRPO_CHOOSE(align_backward_kernel, T, clouds, shape), shape, stream, grads, clouds, out);
}

template <class T>
cudaError_t launch_procrustes_residual_backward(
    const RowView<T>& grad, const CloudViews<T>& clouds, const CloudGrads<T>& out, cudaStream_t stream) {
  const Shape shape = shape_of(clouds, 2);
  return start(MGRPO_CHOOSE(residual_backward_kernel, T, clouds, shape), shape, stream, grad, clouds, out);
}

#define MGRPO_INSTANTIATE(T)                                                                                       \
  template cudaError_t launch_procrustes_align(const CloudViews<T>&, const AlignmentOut<T>&, cudaStream_t);        \
  template cudaError_t launch_procrustes_residual(const CloudViews<T>&, T*, cudaStream_t);                         \
  template cudaError_t launch_procrustes_align_backward(                                                           \
      const AlignmentGrads<T>&, const CloudViews<T>&, const CloudGrads<T>&, cudaStream_t);                         \
  template cudaError_t launch_procrustes_residual_backward(                                                        \
      const RowView<T>&, const CloudViews<T>&, const CloudGrads<T>&, cudaStream_t);
MGRPO_INSTANTIATE(float)
MGRPO_INSTANTIATE(double)

}  // namespace mgrpo
