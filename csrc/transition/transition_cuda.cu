// Element by element over the rows of a batch: a thread takes four neighbours, the numbers of one Philox counter; a block
// takes one piece of one row. A row's sum goes up in two steps, each in a fixed order: the block's piece, then the pieces
// of the row by one warp. So a row has the same bits wherever it stands in a batch.
#include "../common/cuda_compat.h"
#include "../common/polar.h"
#include "../common/philox_thread.h"
#include "transition_cuda.h"
#include "transition_math.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerProcessor = 2;  // at least: without a number the compiler aims higher and spills registers
constexpr int kTurns = 4;
constexpr int64_t kPiece = 4 * kThreads * kTurns;  // elements per block
constexpr int kWarpsPerBlock = 4;                  // of the kernels with one warp per row
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Four neighbouring elements ----

template <class T>
struct Four {
  T v[4];
};

template <class S>
struct alignas(4 * sizeof(S) < 16 ? 4 * sizeof(S) : 16) StoredFour {
  S v[4];
};

template <class S>
__device__ __forceinline__ bool vectors_fit(const S* p, int count) {
  return count == 4 && reinterpret_cast<uintptr_t>(p) % alignof(StoredFour<S>) == 0;
}

template <class S, class Convert, class T>
__device__ __forceinline__ void load_stored(const State& state, int64_t first, int count, Convert convert, Four<T>& four) {
  const S* p = static_cast<const S*>(state.data) + first;
  if (vectors_fit(p, count)) {
    const StoredFour<S> stored = *reinterpret_cast<const StoredFour<S>*>(p);
    for (int i = 0; i < 4; ++i) four.v[i] = convert(stored.v[i]);
  } else {
    for (int i = 0; i < 4; ++i) four.v[i] = i < count ? convert(p[i]) : T(0);
  }
}

// Elements at, ..., at + count - 1 of a row as T; the others are 0.
template <class T>
__device__ __forceinline__ Four<T> load(const State& state, int64_t row, int64_t at, int count) {
  const int64_t first = row * state.row_stride + at;
  Four<T> four;
  switch (state.dtype) {
    case StateDtype::kFloat:
      load_stored<float>(state, first, count, [](float x) { return static_cast<T>(x); }, four);
      break;
    case StateDtype::kDouble:
      load_stored<double>(state, first, count, [](double x) { return static_cast<T>(x); }, four);
      break;
    case StateDtype::kBFloat16:
      load_stored<uint16_t>(state, first, count, [](uint16_t x) { return static_cast<T>(bfloat16_to_float(x)); }, four);
      break;
    case StateDtype::kHalf:
      load_stored<uint16_t>(state, first, count, [](uint16_t x) { return static_cast<T>(half_to_float(x)); }, four);
      break;
  }
  return four;
}

template <class S, class Convert, class T>
__device__ __forceinline__ void store_stored(void* data, int64_t first, int count, Convert convert, const Four<T>& four) {
  S* p = static_cast<S*>(data) + first;
  if (vectors_fit(p, count)) {
    StoredFour<S> stored;
    for (int i = 0; i < 4; ++i) stored.v[i] = convert(four.v[i]);
    *reinterpret_cast<StoredFour<S>*>(p) = stored;
  } else {
    for (int i = 0; i < 4; ++i)
      if (i < count) p[i] = convert(four.v[i]);
  }
}

template <class T>
__device__ __forceinline__ void store(const Output& out, int64_t first, int count, const Four<T>& four) {
  switch (out.dtype) {
    case StateDtype::kFloat:
      store_stored<float>(out.data, first, count, [](T x) { return static_cast<float>(x); }, four);
      break;
    case StateDtype::kDouble:
      store_stored<double>(out.data, first, count, [](T x) { return static_cast<double>(x); }, four);
      break;
    case StateDtype::kBFloat16:
      store_stored<uint16_t>(
          out.data, first, count, [](T x) { return float_to_bfloat16(static_cast<float>(x)); }, four);
      break;
    case StateDtype::kHalf:
      store_stored<uint16_t>(out.data, first, count, [](T x) { return float_to_half(static_cast<float>(x)); }, four);
      break;
  }
}

template <class T>
__device__ __forceinline__ Four<T> load_noise(const Noise& noise, int64_t row, int64_t at, int count) {
  if (noise.kind == Noise::Kind::kGiven) return load<T>(noise.given, row, at, count);
  float n[4];
  philox_normals(noise.key(row), static_cast<uint32_t>(at / 4), n);
  Four<T> four;
  for (int i = 0; i < 4; ++i) four.v[i] = i < count ? static_cast<T>(n[i]) : T(0);
  return four;
}

// What each of four neighbours counts: 0 where the mask or a weight leaves it out.
template <class T>
__device__ __forceinline__ Four<T> load_weights(const Weighting& batch, int64_t row, int64_t at, int count) {
  Four<T> four;
  if (batch.mask == nullptr && batch.weights == nullptr) {
    for (int i = 0; i < 4; ++i) four.v[i] = i < count ? T(1) : T(0);
    return four;
  }
  int64_t frame = at / batch.channels, channel = at - frame * batch.channels;
  for (int i = 0; i < 4; ++i) {
    const bool counted = i < count && (batch.mask == nullptr || batch.mask[row * batch.frames + frame]);
    four.v[i] = !counted ? T(0) : batch.weights == nullptr ? T(1) : static_cast<T>(batch.weights[channel]);
    if (++channel == batch.channels) {
      channel = 0;
      ++frame;
    }
  }
  return four;
}

// weight * value, 0 where the weight is 0 whatever the value is.
template <class T>
__device__ __forceinline__ T weighted(T weight, T value) {
  return weight != T(0) ? weight * value : T(0);
}

// ---- Pieces of rows ----

struct Piece {
  int64_t row, first, index;
};
__device__ __forceinline__ Piece own_piece(int64_t pieces_per_row) {
  const int64_t row = blockIdx.x / pieces_per_row, index = blockIdx.x - row * pieces_per_row;
  return {row, index * kPiece, index};
}

// Calls visit(at, count) for this thread's elements of the block's piece.
template <class Visit>
__device__ __forceinline__ void for_own_elements(const Piece& piece, int64_t row_size, Visit visit) {
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t at = piece.first + 4 * (turn * kThreads + static_cast<int>(threadIdx.x));
    if (at >= row_size) break;
    visit(at, static_cast<int>(row_size - at < 4 ? row_size - at : 4));
  }
}

__device__ __forceinline__ double sum_of_warp(double x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

// The sum over the block's threads, in thread 0.
__device__ __forceinline__ double sum_of_block(double x) {
  __shared__ double of_warps[kThreads / 32];
  x = sum_of_warp(x);
  __syncthreads();  // the memory may still be read for an earlier sum
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warps[warp];
  return sum;
}

// ---- Kernels with one warp per row ----

__device__ __forceinline__ int64_t own_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
}

// The sum of a row's weights, in every lane.
__device__ __forceinline__ double row_weight(const Weighting& batch, int64_t row) {
  const int lane = threadIdx.x % 32;
  double frames = static_cast<double>(batch.frames), per_frame = static_cast<double>(batch.channels);
  if (batch.mask != nullptr) {
    frames = 0;
    for (int64_t frame = lane; frame < batch.frames; frame += 32) frames += batch.mask[row * batch.frames + frame] ? 1 : 0;
    frames = sum_of_warp(frames);
  }
  if (batch.weights != nullptr) {
    per_frame = 0;
    for (int64_t channel = lane; channel < batch.channels; channel += 32) per_frame += batch.weights[channel];
    per_frame = sum_of_warp(per_frame);
  }
  return frames * per_frame;
}

__device__ __forceinline__ double row_sum(const double* parts, int64_t row, int64_t pieces_per_row) {
  double sum = 0;
  for (int64_t piece = threadIdx.x % 32; piece < pieces_per_row; piece += 32) sum += parts[row * pieces_per_row + piece];
  return sum_of_warp(sum);
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) finish_step_kernel(
    const __grid_constant__ Weighting batch, Scalar s, const double* __restrict__ parts, int64_t pieces_per_row,
    T* __restrict__ log_prob) {
  const int64_t row = own_row();
  if (row >= batch.rows) return;
  const double sum = row_sum(parts, row, pieces_per_row), weight = row_weight(batch, row);
  if (threadIdx.x % 32 == 0) log_prob[row] = static_cast<T>(log_density(sum, s.at(row), weight, batch.mean));
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) finish_log_prob_kernel(
    const __grid_constant__ Weighting batch, Scalar s, const double* __restrict__ parts, int64_t pieces_per_row,
    T* __restrict__ log_prob) {
  const int64_t row = own_row();
  if (row >= batch.rows) return;
  const double sum = row_sum(parts, row, pieces_per_row), weight = row_weight(batch, row);
  if (threadIdx.x % 32 == 0) log_prob[row] = static_cast<T>(LogProbRow(s.at(row)).value(sum, weight, batch.mean));
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) finish_ratio_kernel(
    const __grid_constant__ Weighting batch, Scalar gain, RatioTerms terms, const double* __restrict__ linear,
    const double* __restrict__ squares, int64_t pieces_per_row, T* __restrict__ ratio) {
  const int64_t row = own_row();
  if (row >= batch.rows) return;
  const double sums[2] = {row_sum(linear, row, pieces_per_row), row_sum(squares, row, pieces_per_row)};
  const double weight = row_weight(batch, row);
  if (threadIdx.x % 32 == 0)
    ratio[row] = static_cast<T>(RatioRow(gain.at(row)).value(terms, sums[0], sums[1], weight, batch.mean));
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) log_prob_slopes_kernel(
    const __grid_constant__ Weighting batch, Scalar s, const T* __restrict__ grad, double* __restrict__ slopes) {
  const int64_t row = own_row();
  if (row >= batch.rows) return;
  const double weight = row_weight(batch, row);
  if (threadIdx.x % 32 == 0)
    slopes[row] = LogProbRow(s.at(row)).slope(static_cast<double>(grad[row]), weight, batch.mean);
}

template <class T>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) ratio_slopes_kernel(
    const __grid_constant__ Weighting batch, Scalar gain, const T* __restrict__ grad, double* __restrict__ slopes) {
  const int64_t row = own_row();
  if (row >= batch.rows) return;
  const double weight = row_weight(batch, row);
  if (threadIdx.x % 32 == 0)
    slopes[row] = RatioRow(gain.at(row)).slope(static_cast<double>(grad[row]), weight, batch.mean);
}

// ---- Kernels with one block per piece ----

// Four elements of x_prev; returns their weighted squared noise if it is wanted.
template <class T>
__device__ __forceinline__ double step_elements(const StepJob& job, const State& x0_pred, int64_t row, int64_t at,
                                                int count) {
  using R = Rounded<T>;
  const R A = static_cast<T>(job.A.at(row)), B = static_cast<T>(job.B.at(row)), s = static_cast<T>(job.s.at(row));
  const Four<T> x_t = load<T>(job.x_t, row, at, count), x0 = load<T>(x0_pred, row, at, count);
  Four<T> x_prev;
  for (int i = 0; i < 4; ++i) x_prev.v[i] = step_mean(R(x_t.v[i]), R(x0.v[i]), A, B).value;
  double squares = 0;
  if (job.noise.kind != Noise::Kind::kNone) {
    const Four<T> noise = load_noise<T>(job.noise, row, at, count);
    for (int i = 0; i < 4; ++i) x_prev.v[i] = (R(x_prev.v[i]) + R(noise.v[i]) * s).value;
    if (job.sum_noise) {
      const Four<T> w = load_weights<T>(job.batch, row, at, count);
      T sum = 0;
      for (int i = 0; i < 4; ++i) sum += weighted(w.v[i], noise.v[i] * noise.v[i]);
      squares = static_cast<double>(sum);
    }
  }
  store(job.x_prev, row * job.batch.row_size() + at, count, x_prev);
  return squares;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) step_kernel(
    const __grid_constant__ StepJob job, int64_t pieces_per_row, double* __restrict__ parts) {
  const Piece piece = own_piece(pieces_per_row);
  double squares = 0;
  for_own_elements(piece, job.batch.row_size(), [&](int64_t at, int count) {
    squares += step_elements<T>(job, job.x0_pred, piece.row, at, count);
  });
  if (!job.sum_noise) return;
  squares = sum_of_block(squares);
  if (threadIdx.x == 0) parts[blockIdx.x] = squares;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) log_prob_kernel(
    const __grid_constant__ LogProbJob job, int64_t pieces_per_row, double* __restrict__ parts) {
  const Piece piece = own_piece(pieces_per_row);
  const T A = static_cast<T>(job.A.at(piece.row)), B = static_cast<T>(job.B.at(piece.row));
  const T inverse_unit = static_cast<T>(1.0 / LogProbRow(job.s.at(piece.row)).unit);
  double squares = 0;
  for_own_elements(piece, job.batch.row_size(), [&](int64_t at, int count) {
    const Four<T> x_prev = load<T>(job.x_prev, piece.row, at, count), x_t = load<T>(job.x_t, piece.row, at, count);
    const Four<T> x0 = load<T>(job.x0_pred, piece.row, at, count);
    const Four<T> w = load_weights<T>(job.batch, piece.row, at, count);
    Four<T> z;
    T sum = 0;
    for (int i = 0; i < 4; ++i) {
      z.v[i] = step_residual(x_prev.v[i], x_t.v[i], x0.v[i], A, B) * inverse_unit;
      sum += weighted(w.v[i], z.v[i] * z.v[i]);
    }
    if (job.kept.data != nullptr) store(job.kept, piece.row * job.batch.row_size() + at, count, z);
    squares += static_cast<double>(sum);
  });
  squares = sum_of_block(squares);
  if (threadIdx.x == 0) parts[blockIdx.x] = squares;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) log_prob_gradient_kernel(
    const __grid_constant__ LogProbGradientJob job, const double* __restrict__ slopes, int64_t pieces_per_row) {
  const LogProbJob& forward = job.forward;
  const Piece piece = own_piece(pieces_per_row);
  const double A = forward.A.at(piece.row), B = forward.B.at(piece.row), slope = slopes[piece.row];
  const T inverse_unit = static_cast<T>(1.0 / LogProbRow(forward.s.at(piece.row)).unit);
  for_own_elements(piece, forward.batch.row_size(), [&](int64_t at, int count) {
    const int64_t first = piece.row * forward.batch.row_size() + at;
    Four<T> z = {};
    if (slope != 0) {
      z = load<T>(forward.x_prev, piece.row, at, count);
      if (forward.x_t.data != nullptr) {
        const Four<T> x_t = load<T>(forward.x_t, piece.row, at, count);
        const Four<T> x0 = load<T>(forward.x0_pred, piece.row, at, count);
        for (int i = 0; i < 4; ++i)
          z.v[i] = step_residual(z.v[i], x_t.v[i], x0.v[i], static_cast<T>(A), static_cast<T>(B)) * inverse_unit;
      }
      const Four<T> w = load_weights<T>(forward.batch, piece.row, at, count);
      for (int i = 0; i < 4; ++i) z.v[i] = weighted(w.v[i], z.v[i]);
    }
    const auto store_multiple = [&](const Output& out, double factor) {
      if (out.data == nullptr) return;
      Four<T> grad;
      for (int i = 0; i < 4; ++i) grad.v[i] = z.v[i] * static_cast<T>(factor);
      store(out, first, count, grad);
    };
    store_multiple(job.grad_x_prev, slope);
    store_multiple(job.grad_x_t, slope == 0 ? 0 : -A * slope);
    store_multiple(job.grad_x0_pred, slope == 0 ? 0 : -B * slope);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) ratio_kernel(
    const __grid_constant__ RatioJob job, int64_t pieces_per_row, double* __restrict__ linear_parts,
    double* __restrict__ square_parts) {
  const Piece piece = own_piece(pieces_per_row);
  const T unit = static_cast<T>(RatioRow(job.gain.at(piece.row)).unit);
  const bool with_noise = job.noise.kind != Noise::Kind::kNone;
  double linear = 0, squares = 0;
  for_own_elements(piece, job.batch.row_size(), [&](int64_t at, int count) {
    const Four<T> x0 = load<T>(job.x0_pred, piece.row, at, count), other = load<T>(job.other, piece.row, at, count);
    const Four<T> w = load_weights<T>(job.batch, piece.row, at, count);
    Four<T> noise = {};
    if (with_noise) noise = load_noise<T>(job.noise, piece.row, at, count);
    T linear_sum = 0, square_sum = 0;
    for (int i = 0; i < 4; ++i) {
      const T d = (x0.v[i] - other.v[i]) * unit;
      if (with_noise) linear_sum += weighted(w.v[i], noise.v[i] * d);
      square_sum += weighted(w.v[i], d * d);
    }
    linear += static_cast<double>(linear_sum);
    squares += static_cast<double>(square_sum);
  });
  linear = sum_of_block(linear);
  squares = sum_of_block(squares);
  if (threadIdx.x == 0) {
    linear_parts[blockIdx.x] = linear;
    square_parts[blockIdx.x] = squares;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) ratio_gradient_kernel(
    const __grid_constant__ RatioGradientJob job, const double* __restrict__ slopes, int64_t pieces_per_row) {
  const RatioJob& forward = job.forward;
  const RatioTerms terms = static_cast<RatioTerms>(forward.terms);
  const Piece piece = own_piece(pieces_per_row);
  const RatioRow row(forward.gain.at(piece.row));
  const T unit = static_cast<T>(row.unit), factor = static_cast<T>(row.factor);
  const T slope = static_cast<T>(slopes[piece.row]);
  for_own_elements(piece, forward.batch.row_size(), [&](int64_t at, int count) {
    Four<T> grad = {};
    if (slope != T(0)) {
      const Four<T> w = load_weights<T>(forward.batch, piece.row, at, count);
      if (terms != RatioTerms::kLinear) {
        const Four<T> x0 = load<T>(forward.x0_pred, piece.row, at, count);
        const Four<T> other = load<T>(forward.other, piece.row, at, count);
        for (int i = 0; i < 4; ++i) grad.v[i] = (x0.v[i] - other.v[i]) * unit * factor;
      }
      if (terms != RatioTerms::kDivergence) {
        const Four<T> noise = load_noise<T>(forward.noise, piece.row, at, count);
        for (int i = 0; i < 4; ++i) grad.v[i] = noise.v[i] - grad.v[i];
      }
      for (int i = 0; i < 4; ++i) grad.v[i] = weighted(w.v[i], grad.v[i] * slope);
    }
    store(job.grad, piece.row * forward.batch.row_size() + at, count, grad);
  });
}

// ---- Kernels with one block per group of frames, for the projection ----

constexpr int kFrames = 8;  // a multiple of four: a group's elements begin with a Philox counter
constexpr int kFrameThreads = 128;

struct Frames {
  int64_t row, first, count;  // elements of the group: first, ..., first + count - 1 of the row
  int64_t frames;
};
__device__ __forceinline__ Frames own_frames(const Weighting& batch) {
  const int64_t groups = (batch.frames + kFrames - 1) / kFrames;
  const int64_t row = blockIdx.x / groups, begin = (blockIdx.x - row * groups) * kFrames;
  const int64_t frames = batch.frames - begin < kFrames ? batch.frames - begin : kFrames;
  return {row, begin * batch.channels, frames * batch.channels, frames};
}

template <class Visit>
__device__ __forceinline__ void for_own_elements(const Frames& frames, Visit visit) {
  for (int64_t i = 4 * static_cast<int64_t>(threadIdx.x); i < frames.count; i += 4 * kFrameThreads)
    visit(frames.first + i, static_cast<int>(frames.count - i < 4 ? frames.count - i : 4));
}

// Calls visit(offset of a matrix from the group's first element) for this thread's matrices.
template <class Visit>
__device__ __forceinline__ void for_own_matrices(const Frames& frames, int64_t channels, int64_t first_channel,
                                                 int64_t matrices, Visit visit) {
  for (int64_t index = threadIdx.x; index < frames.frames * matrices; index += kFrameThreads)
    visit(index / matrices * channels + first_channel + 9 * (index % matrices));
}

template <class T>
__global__ void __launch_bounds__(kFrameThreads, 4) projected_step_kernel(const __grid_constant__ StepJob job) {
  const Frames frames = own_frames(job.batch);
  const int64_t row_size = job.batch.row_size();
  for_own_elements(frames, [&](int64_t at, int count) {
    store(job.projected, frames.row * row_size + at, count, load<T>(job.x0_pred, frames.row, at, count));
  });
  __syncthreads();
  T* projected = static_cast<T*>(job.projected.data) + frames.row * row_size + frames.first;
  for_own_matrices(frames, job.batch.channels, job.first_channel, job.matrices, [&](int64_t offset) {
    store_mat3(projected + offset, nearest_rotation(load_mat3(projected + offset), job.fix_det));
  });
  __syncthreads();
  const State x0_pred = {job.projected.data, row_size, job.projected.dtype};
  for_own_elements(frames, [&](int64_t at, int count) { step_elements<T>(job, x0_pred, frames.row, at, count); });
}

template <class T>
__global__ void __launch_bounds__(kFrameThreads, 4)
    projection_gradient_kernel(const __grid_constant__ ProjectionGradientJob job) {
  const Frames frames = own_frames(job.batch);
  const int64_t row_size = job.batch.row_size();
  const T B = static_cast<T>(job.B.at(frames.row));
  for_own_elements(frames, [&](int64_t at, int count) {
    Four<T> grad = {};
    if (job.grad_x_prev.data != nullptr) {
      grad = load<T>(job.grad_x_prev, frames.row, at, count);
      for (int i = 0; i < 4; ++i) grad.v[i] *= B;
    }
    if (job.grad_projected.data != nullptr) {
      const Four<T> more = load<T>(job.grad_projected, frames.row, at, count);
      for (int i = 0; i < 4; ++i) grad.v[i] += more.v[i];
    }
    store(job.grad, frames.row * row_size + at, count, grad);
  });
  __syncthreads();
  T* grad = static_cast<T*>(job.grad.data) + frames.row * row_size + frames.first;
  const T* x0_pred = static_cast<const T*>(job.x0_pred.data) + frames.row * job.x0_pred.row_stride + frames.first;
  const T* projected = static_cast<const T*>(job.projected.data) + frames.row * job.projected.row_stride + frames.first;
  for_own_matrices(frames, job.batch.channels, job.first_channel, job.matrices, [&](int64_t offset) {
    store_mat3(grad + offset, polar_gradient(load_mat3(grad + offset), load_mat3(x0_pred + offset),
                                             load_mat3(projected + offset), job.fix_det));
  });
}

// ---- Launching ----

constexpr int64_t kMostBlocks = 0x7fffffff;

unsigned warp_blocks(const Weighting& batch) {
  return static_cast<unsigned>((batch.rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

bool fits(int64_t rows, int64_t blocks_per_row) { return rows <= kMostBlocks / blocks_per_row; }

int64_t frame_groups(const Weighting& batch) { return (batch.frames + kFrames - 1) / kFrames; }

}  // namespace

int64_t cuda_parts_per_row(const Weighting& batch) { return (batch.row_size() + kPiece - 1) / kPiece; }

template <class T>
cudaError_t launch_step(const StepJob& job, double* parts, T* log_prob, cudaStream_t stream) {
  if (job.matrices > 0) {
    const int64_t groups = frame_groups(job.batch);
    if (!fits(job.batch.rows, groups)) return cudaErrorInvalidConfiguration;
    MGRPO_LAUNCH(projected_step_kernel<T>, static_cast<unsigned>(job.batch.rows * groups), kFrameThreads, 0, stream)(job);
    return cudaGetLastError();
  }
  const int64_t pieces = cuda_parts_per_row(job.batch);
  if (!fits(job.batch.rows, pieces)) return cudaErrorInvalidConfiguration;
  MGRPO_LAUNCH(step_kernel<T>, static_cast<unsigned>(job.batch.rows * pieces), kThreads, 0, stream)(job, pieces, parts);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || !job.sum_noise) return error;
  MGRPO_LAUNCH(finish_step_kernel<T>, warp_blocks(job.batch), 32 * kWarpsPerBlock, 0, stream)
  (job.batch, job.s, parts, pieces, log_prob);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_log_prob(const LogProbJob& job, double* parts, T* log_prob, cudaStream_t stream) {
  const int64_t pieces = cuda_parts_per_row(job.batch);
  if (!fits(job.batch.rows, pieces)) return cudaErrorInvalidConfiguration;
  MGRPO_LAUNCH(log_prob_kernel<T>, static_cast<unsigned>(job.batch.rows * pieces), kThreads, 0, stream)(job, pieces, parts);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(finish_log_prob_kernel<T>, warp_blocks(job.batch), 32 * kWarpsPerBlock, 0, stream)
  (job.batch, job.s, parts, pieces, log_prob);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_log_prob_gradient(const LogProbGradientJob& job, const T* grad, double* slopes, cudaStream_t stream) {
  const Weighting& batch = job.forward.batch;
  const int64_t pieces = cuda_parts_per_row(batch);
  if (!fits(batch.rows, pieces)) return cudaErrorInvalidConfiguration;
  MGRPO_LAUNCH(log_prob_slopes_kernel<T>, warp_blocks(batch), 32 * kWarpsPerBlock, 0, stream)
  (batch, job.forward.s, grad, slopes);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(log_prob_gradient_kernel<T>, static_cast<unsigned>(batch.rows * pieces), kThreads, 0, stream)
  (job, slopes, pieces);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_ratio(const RatioJob& job, double* parts, T* ratio, cudaStream_t stream) {
  const int64_t pieces = cuda_parts_per_row(job.batch), blocks = job.batch.rows * pieces;
  if (!fits(job.batch.rows, pieces)) return cudaErrorInvalidConfiguration;
  MGRPO_LAUNCH(ratio_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0, stream)(job, pieces, parts, parts + blocks);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(finish_ratio_kernel<T>, warp_blocks(job.batch), 32 * kWarpsPerBlock, 0, stream)
  (job.batch, job.gain, static_cast<RatioTerms>(job.terms), parts, parts + blocks, pieces, ratio);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_ratio_gradient(const RatioGradientJob& job, const T* grad, double* slopes, cudaStream_t stream) {
  const Weighting& batch = job.forward.batch;
  const int64_t pieces = cuda_parts_per_row(batch);
  if (!fits(batch.rows, pieces)) return cudaErrorInvalidConfiguration;
  MGRPO_LAUNCH(ratio_slopes_kernel<T>, warp_blocks(batch), 32 * kWarpsPerBlock, 0, stream)
  (batch, job.forward.gain, grad, slopes);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(ratio_gradient_kernel<T>, static_cast<unsigned>(batch.rows * pieces), kThreads, 0, stream)
  (job, slopes, pieces);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_projection_gradient(const ProjectionGradientJob& job, cudaStream_t stream) {
  const int64_t groups = frame_groups(job.batch);
  if (!fits(job.batch.rows, groups)) return cudaErrorInvalidConfiguration;
  MGRPO_LAUNCH(projection_gradient_kernel<T>, static_cast<unsigned>(job.batch.rows * groups), kFrameThreads, 0, stream)
  (job);
  return cudaGetLastError();
}

#define MGRPO_INSTANTIATE(T)                                                                             \
  template cudaError_t launch_step(const StepJob&, double*, T*, cudaStream_t);                           \
  template cudaError_t launch_log_prob(const LogProbJob&, double*, T*, cudaStream_t);                    \
  template cudaError_t launch_log_prob_gradient(const LogProbGradientJob&, const T*, double*, cudaStream_t); \
  template cudaError_t launch_ratio(const RatioJob&, double*, T*, cudaStream_t);                         \
  template cudaError_t launch_ratio_gradient(const RatioGradientJob&, const T*, double*, cudaStream_t);  \
  template cudaError_t launch_projection_gradient<T>(const ProjectionGradientJob&, cudaStream_t)
MGRPO_INSTANTIATE(float);
MGRPO_INSTANTIATE(double);

}  // namespace mgrpo
