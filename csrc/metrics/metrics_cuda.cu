// One block per sequence, one frame per thread and turn. Threads read their frames from device memory as they are: a
// frame's neighbours are the frames of other threads, which the cache holds. Sums over threads are made in a fixed tree.
#include "metrics_cuda.h"
#include "metrics_math.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 128;

// Joints of one frame and of the three before, of which those before the first are the first.
template <class T>
struct FrameHistory {
  const T* frames[4];
  __device__ __forceinline__ FrameHistory(const RowView<T>& view, int64_t first, int64_t frame) {
    for (int k = 0; k < 4; ++k) frames[k] = view.at(first + (frame < k ? 0 : frame - k));
  }
  __device__ __forceinline__ Vec3<T> at(int joint, int k) const { return load_vec3(frames[k] + 3 * joint); }
};

template <class T>
__device__ __forceinline__ T block_sum(T own, T* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = own;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] += shared[thread + half];
    __syncthreads();
  }
  const T sum = shared[0];
  __syncthreads();
  return sum;
}

// The smallest value of all threads; NaN if any is.
template <class T>
__device__ __forceinline__ T block_lowest(T own, T* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = own;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) {
      const T other = shared[thread + half];
      if (other < shared[thread] || other != other) shared[thread] = other;
    }
    __syncthreads();
  }
  const T lowest = shared[0];
  __syncthreads();
  return lowest;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    motion_metrics_kernel(const __grid_constant__ MetricViews<T> views, T* __restrict__ out) {
  __shared__ T shared[kThreads];
  const MetricOptions& o = views.options;
  const int64_t sequence = blockIdx.x, first = sequence * o.frames;
  const bool* mask = views.mask.data != nullptr ? views.mask.at(sequence) : nullptr;
  const auto counts = [&](int64_t frame) { return frame >= 0 && (mask == nullptr || mask[frame]); };

  T sums[kSumCount];
  for (int i = 0; i < kSumCount; ++i) sums[i] = T(0);
  const T infinite = static_cast<T>(INFINITY);
  T lowest = infinite;
  for (int64_t frame = threadIdx.x; frame < o.frames; frame += kThreads) {
    const bool counted = counts(frame), pair = counted && counts(frame - 1);
    if (!counted) continue;
    const bool four = pair && counts(frame - 2) && counts(frame - 3);
    const FrameHistory<T> x(views.pred_joints, first, frame), y(views.target_joints, first, frame);
    add_positions(o, x.frames[0], y.frames[0], counted, sums);
    add_motion(o, x, y, pair, four, sums);
    const T height = lowest_height(o, x.frames[0]);
    if (height < lowest || height != height) lowest = height;
    add_rotations(o, views.pred_rotmats.at(first + frame), views.target_rotmats.at(first + frame), counted, sums);
    if (o.with_head)
      add_head(load_mat3(views.pred_head.at(first + frame)), load_mat3(views.target_head.at(first + frame)), counted,
               sums);
  }
  lowest = block_lowest(lowest, shared);
  for (int64_t frame = threadIdx.x; frame < o.frames; frame += kThreads) {
    if (!counts(frame) || !counts(frame - 1)) continue;
    const T *now = views.pred_joints.at(first + frame), *before = views.pred_joints.at(first + frame - 1);
    for (int foot = 0; foot < o.foot_count; ++foot)
      add_step(load_vec3(now + 3 * o.feet[foot]), load_vec3(before + 3 * o.feet[foot]), lowest,
               static_cast<T>(o.foot_heights[foot]), true, sums);
  }
  for (int i = 0; i < kSumCount; ++i) sums[i] = block_sum(sums[i], shared);
  if (threadIdx.x == 0) finish_metrics(o, sums, out + sequence, o.sequences);
}

}  // namespace

template <class T>
cudaError_t launch_motion_metrics(const MetricViews<T>& views, T* out, cudaStream_t stream) {
  MGRPO_LAUNCH(motion_metrics_kernel<T>, static_cast<unsigned>(views.options.sequences), kThreads, 0, stream)
  (views, out);
  return cudaGetLastError();
}

template cudaError_t launch_motion_metrics(const MetricViews<float>&, float*, cudaStream_t);
template cudaError_t launch_motion_metrics(const MetricViews<double>&, double*, cudaStream_t);

}  // namespace mgrpo
