// Advantages: one block, because a thousand rewards are too few for more and the batch's spread couples all groups; its
// threads stride over the items of one phase after the other. Loss: blocks sum their elements in a fixed tree, a last
// block sums the blocks. No atomics, so every run gives the same bits.
#include "loss_math.h"
#include "policy_cuda.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kElementsPerBlock = 8 * kThreads;

// `combine` over the values of all threads, in a fixed tree; `shared` holds one value per thread.
template <class Value, class Combine>
__device__ __forceinline__ Value block_reduce(const Value& own, Value* shared, const Combine& combine) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = own;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) shared[thread] = combine(shared[thread], shared[thread + half]);
    __syncthreads();
  }
  const Value result = shared[0];
  __syncthreads();
  return result;
}

// f(item) for every item, then a barrier, after which all threads see what was written.
template <class F>
__device__ __forceinline__ void for_each_item(int64_t items, const F& f) {
  for (int64_t item = threadIdx.x; item < items; item += kThreads) f(item);
  __syncthreads();
}

template <class Value>
__device__ __forceinline__ Moments merge_all(int64_t count, Moments* shared, const Value& value) {
  Moments own = {0, 0, 0};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) own = merged(own, value(i));
  return block_reduce(own, shared, [](const Moments& a, const Moments& b) { return merged(a, b); });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)  // of one block: without a number the compiler spills registers
    group_advantages_kernel(const __grid_constant__ AdvantageJob<T> job) {
  __shared__ Moments shared[kThreads];
  const int64_t members = job.B * job.G, C = job.C(), columns = job.B * C;
  for_each_item(members, [&](int64_t i) { score_member(job, i); });
  if (job.ranks()) for_each_item(members * job.K, [&](int64_t i) { rate_member(job, i); });
  for_each_item(columns, [&](int64_t i) { measure_column(job, i); });
  for (int64_t c = 0; c < C; ++c) {
    const Moments whole = merge_all(job.B, shared, [&](int64_t b) { return job.columns[b * C + c].all; });
    if (threadIdx.x == 0) job.batch_std[c] = standard_deviation(whole, job.options.ddof);
  }
  __syncthreads();
  for_each_item(columns, [&](int64_t i) { judge_column(job, i); });
  for_each_item(members, [&](int64_t i) { advantage_of_member(job, i); });
  if (job.options.scheme == Scheme::kGdpo) {
    for_each_item(job.B, [&](int64_t b) { measure_group(job, b); });
    const Moments whole = merge_all(job.B, shared, [&](int64_t b) { return job.groups[b]; });
    if (threadIdx.x == 0) *job.whole = whole;
    __syncthreads();
  }
  for_each_item(members, [&](int64_t i) { finish_member(job, i); });
}

// Element i as numbers; all zero where it is not valid, whatever memory holds there.
struct LossElement {
  double log_ratio, advantage, weight, kl, valid;
};
template <class T>
__device__ __forceinline__ LossElement load_element(const LossInputs<T>& in, int64_t i) {
  if (in.valid != nullptr && !in.valid[i]) return {0, 0, 0, 0, 0};
  return {static_cast<double>(in.log_ratio[i]), static_cast<double>(in.advantages[i]),
          in.weights != nullptr ? static_cast<double>(in.weights[i]) : 1.0,
          in.kl != nullptr ? static_cast<double>(in.kl[i]) : 0.0, 1.0};
}

__device__ __forceinline__ LossSums block_sum(const LossSums& own, LossSums* shared) {
  return block_reduce(own, shared, [](const LossSums& a, const LossSums& b) { return a + b; });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const __grid_constant__ LossInputs<T> in, T* __restrict__ ratio, const __grid_constant__ LossResults<T> results,
                LossSums* __restrict__ parts, double fixed_denominator, const double* __restrict__ counted, double kl_coef) {
  __shared__ LossSums shared[kThreads];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kElementsPerBlock;
  const int64_t end = first + kElementsPerBlock < in.count ? first + kElementsPerBlock : in.count;
  LossSums own = {0, 0, 0, 0, 0, 0};
  for (int64_t i = first + threadIdx.x; i < end; i += kThreads) {
    const LossElement x = load_element(in, i);
    const SurrogateElement e = surrogate_element(x.log_ratio, x.advantage, in.clip_low, in.clip_high);
    ratio[i] = static_cast<T>(e.ratio);
    own = own + LossSums{x.weight * e.loss, x.kl, e.k3, x.valid, e.low ? 1.0 : 0.0, e.high ? 1.0 : 0.0};
  }
  const LossSums sums = block_sum(own, shared);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1)
    store_loss(results, sums, loss_divisor(fixed_denominator, counted, sums.count), kl_coef);
  else
    parts[blockIdx.x] = sums;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    loss_finish_kernel(const __grid_constant__ LossResults<T> results, const LossSums* __restrict__ parts, int64_t count,
                       double fixed_denominator, const double* __restrict__ counted, double kl_coef) {
  __shared__ LossSums shared[kThreads];
  LossSums own = {0, 0, 0, 0, 0, 0};
  for (int64_t i = threadIdx.x; i < count; i += kThreads) own = own + parts[i];
  const LossSums sums = block_sum(own, shared);
  if (threadIdx.x == 0) store_loss(results, sums, loss_divisor(fixed_denominator, counted, sums.count), kl_coef);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    loss_backward_kernel(const __grid_constant__ LossInputs<T> in, const T* __restrict__ grad_loss,
                         const double* __restrict__ divisor, double kl_coef, T* __restrict__ grad_log_ratio,
                         T* __restrict__ grad_kl) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= in.count) return;
  const double scale = static_cast<double>(*grad_loss) / *divisor;
  const LossElement x = load_element(in, i);
  const SurrogateElement e = surrogate_element(x.log_ratio, x.advantage, in.clip_low, in.clip_high);
  // A cut element has slope 0 and keeps it, also times an infinite weight or scale.
  grad_log_ratio[i] = static_cast<T>(e.slope == 0.0 ? 0.0 : scale * x.weight * e.slope);
  if (grad_kl != nullptr) grad_kl[i] = static_cast<T>(x.valid != 0.0 ? scale * kl_coef : 0.0);
}

}  // namespace

template <class T>
cudaError_t launch_group_advantages(const AdvantageJob<T>& job, cudaStream_t stream) {
  MGRPO_LAUNCH(group_advantages_kernel<T>, 1, kThreads, 0, stream)(job);
  return cudaGetLastError();
}

int64_t loss_blocks(int64_t count) {
  return count > kElementsPerBlock ? (count + kElementsPerBlock - 1) / kElementsPerBlock : 1;
}

template <class T>
cudaError_t launch_grpo_loss(const LossInputs<T>& in, T* ratio, const LossResults<T>& results, LossSums* parts,
                             double fixed_denominator, const double* counted, double kl_coef, cudaStream_t stream) {
  const int64_t blocks = loss_blocks(in.count);
  MGRPO_LAUNCH(loss_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0, stream)
  (in, ratio, results, parts, fixed_denominator, counted, kl_coef);
  const cudaError_t error = cudaGetLastError();
  if (blocks == 1 || error != cudaSuccess) return error;
  MGRPO_LAUNCH(loss_finish_kernel<T>, 1, kThreads, 0, stream)
  (results, parts, blocks, fixed_denominator, counted, kl_coef);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_grpo_loss_backward(const LossInputs<T>& in, const T* grad_loss, const double* divisor, double kl_coef,
                                      T* grad_log_ratio, T* grad_kl, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((in.count + kThreads - 1) / kThreads);
  MGRPO_LAUNCH(loss_backward_kernel<T>, blocks, kThreads, 0, stream)
  (in, grad_loss, divisor, kl_coef, grad_log_ratio, grad_kl);
  return cudaGetLastError();
}

#define MGRPO_INSTANTIATE(T)                                                                                            \
  template cudaError_t launch_group_advantages(const AdvantageJob<T>&, cudaStream_t);                                   \
  template cudaError_t launch_grpo_loss(const LossInputs<T>&, T*, const LossResults<T>&, LossSums*, double,             \
                                        const double*, double, cudaStream_t);                                           \
  template cudaError_t launch_grpo_loss_backward(const LossInputs<T>&, const T*, const double*, double, T*, T*,         \
                                                 cudaStream_t)
MGRPO_INSTANTIATE(float);
MGRPO_INSTANTIATE(double);

}  // namespace mgrpo
