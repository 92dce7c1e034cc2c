// The loops of sde_step and projected_sde_step over one task's elements; compiled once per instruction set
// (common/for_each_isa.h).
#include "transition_pieces.h"

namespace MGRPO_NAMESPACE {

// ---- sde_step ----

template <class T, bool kNoise, bool kSum, bool kWeights>
struct StepBody {
  const T *x_t, *x0_pred, *noise, *weights;
  T* x_prev;
  Pack<T> A, B, s;
  Run<T> run{};

  template <class Access>
  MGRPO_HD void operator()(Access access, int64_t i, int pack) {
    Pack<T> value = step_mean(access.load(x_t + i), access.load(x0_pred + i), A, B);
    if constexpr (kNoise) {
      const Pack<T> z = access.load(noise + i);
      value = value + z * s;
      if constexpr (kSum) run.lanes[pack] += weighted<kWeights>(z * z, weights, i, access);
    }
    access.store(x_prev + i, value);
  }
};

// 3x3 matrices, one per lane; begin counts a task's matrices in the order of memory.
template <class T>
struct FrameMatrices {
  int64_t channels, first_channel, per_frame;

  MGRPO_HD int64_t offset(int64_t index) const {
    return index / per_frame * channels + first_channel + 9 * (index % per_frame);
  }
  MGRPO_HD Mat3<Pack<T>> load(const T* frames, int64_t begin, int valid) const {
    BlockRows<T> block;
    for (int lane = 0; lane < Pack<T>::kLanes; ++lane)
      block.at[lane] = frames + offset(begin + (lane < valid ? lane : valid - 1));
    Mat3<Pack<T>> matrices;
    load_rows(block, 9, &matrices.m[0][0]);
    return matrices;
  }
  MGRPO_HD void store(T* frames, int64_t begin, int valid, const Mat3<Pack<T>>& matrices) const {
    T side_by_side[9 * Pack<T>::kLanes];
    if (valid > Pack<T>::kLanes) __builtin_unreachable();
    store_rows(side_by_side, valid, 9, &matrices.m[0][0]);
    for (int lane = 0; lane < valid; ++lane) memcpy(frames + offset(begin + lane), side_by_side + 9 * lane, 9 * sizeof(T));
  }
};

// Copies a task's frames of the prediction to `frames`, with their matrices projected.
template <class T>
void project_frames(const StepJob& job, const Task& task, T* frames) {
  const int64_t begin = task.begin * job.batch.channels, end = task.end * job.batch.channels;
  T buffer[kPiece];
  for (int64_t offset = begin; offset < end; offset += kPiece) {
    const int64_t count = end - offset < kPiece ? end - offset : kPiece;
    memcpy(frames + (offset - begin), read(job.x0_pred, task.row, offset, count, buffer), static_cast<size_t>(count) * sizeof(T));
  }
  const FrameMatrices<T> layout{job.batch.channels, job.first_channel, job.matrices};
  const int64_t matrices = (task.end - task.begin) * job.matrices;
  constexpr int n = Pack<T>::kLanes;
  for (int64_t first = 0; first < matrices; first += n) {
    const int valid = static_cast<int>(matrices - first < n ? matrices - first : n);
    layout.store(frames, first, valid, nearest_rotation(layout.load(frames, first, valid), job.fix_det));
  }
}

template <class T, bool kNoise, bool kSum, bool kWeights>
struct StepPieces {
  const StepJob& job;
  const Task& task;
  const State& x0_pred;
  const T* weights;
  Pack<T> A, B, s;
  Total<T> sum{};
  PieceBuffer<T> x_t_buffer, x0_buffer;
  NoiseBuffer<T> noise_buffer;

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const T* x_t = read(job.x_t, task.row, offset, count, x_t_buffer.numbers);
    const T* x0 = read(x0_pred, task.row, offset, count, x0_buffer.numbers);
    T* x_prev = static_cast<T*>(job.x_prev.data) + task.row * job.batch.row_size() + offset;
    const T* noise = nullptr;
    if constexpr (kNoise) noise = read_noise(job.noise, task.row, offset, count, noise_buffer,
                                                   {{x_t, x0, job.past_caches ? x_t : x_prev}});
    if (counted) {
      StepBody<T, kNoise, kSum, kWeights> body{x_t, x0, noise, weights_from<kWeights>(weights, channel), x_prev, A, B, s};
      sweep_to_results<T, kWeights>(job.past_caches && is_aligned(x_prev), count, body);
      if constexpr (kSum) sum.add(body.run);
    } else {
      StepBody<T, kNoise, false, false> body{x_t, x0, noise, nullptr, x_prev, A, B, s};
      sweep<T>(count, body);
    }
  }
};

template <class T, bool kNoise, bool kSum, bool kWeights>
double step_pieces(const StepJob& job, const Task& task, const State& x0_pred, const T* weights) {
  StepPieces<T, kNoise, kSum, kWeights> pieces{job,
                                               task,
                                               x0_pred,
                                               weights,
                                               Pack<T>(static_cast<T>(job.A.at(task.row))),
                                               Pack<T>(static_cast<T>(job.B.at(task.row))),
                                               Pack<T>(static_cast<T>(job.s.at(task.row)))};
  Weighting plain = job.batch;
  if constexpr (!kSum) plain.mask = nullptr;
  if constexpr (!kWeights) plain.weights = nullptr;
  for_pieces(plain, task, pieces);
  if (job.past_caches) finish_stores();
  return pieces.sum.sum();
}

// Writes a task's part of x_prev; the result is the weighted sum of the squared noise, if the job wants it.
template <class T>
double step_task(const StepJob& job, const Task& task, const T* weights) {
  State x0_pred = job.x0_pred;
  if (job.matrices > 0) {
    x0_pred = {job.projected.data, job.batch.row_size(), kDtypeOf<T>};
    project_frames(job, task, static_cast<T*>(job.projected.data) + task.row * job.batch.row_size() + task.begin * job.batch.channels);
  }
  if (job.noise.kind == Noise::Kind::kNone) return step_pieces<T, false, false, false>(job, task, x0_pred, weights);
  if (!job.sum_noise) return step_pieces<T, true, false, false>(job, task, x0_pred, weights);
  if (weights == nullptr) return step_pieces<T, true, true, false>(job, task, x0_pred, weights);
  return step_pieces<T, true, true, true>(job, task, x0_pred, weights);
}

// ---- projected_sde_step, backward ----

// dL/dx0_pred of a task: B grad_x_prev + grad_projected, through the projection where there are matrices. Every state
// is stored as T, and an absent gradient counts as zeros.
template <class T>
void projection_gradient_task(const ProjectionGradientJob& job, const Task& task) {
  const int64_t begin = task.begin * job.batch.channels, count = (task.end - task.begin) * job.batch.channels;
  const auto frames_of = [&](const State& state) __attribute__((always_inline)) {
    return static_cast<const T*>(state.data) + task.row * state.row_stride + begin;
  };
  T* grad = static_cast<T*>(job.grad.data) + task.row * job.batch.row_size() + begin;
  const T B = static_cast<T>(job.B.at(task.row));
  if (job.grad_x_prev.data == nullptr)
    memcpy(grad, frames_of(job.grad_projected), static_cast<size_t>(count) * sizeof(T));
  else if (job.grad_projected.data == nullptr)
    for (int64_t i = 0; i < count; ++i) grad[i] = frames_of(job.grad_x_prev)[i] * B;
  else
    for (int64_t i = 0; i < count; ++i) grad[i] = frames_of(job.grad_x_prev)[i] * B + frames_of(job.grad_projected)[i];

  const FrameMatrices<T> layout{job.batch.channels, job.first_channel, job.matrices};
  const int64_t matrices = (task.end - task.begin) * job.matrices;
  constexpr int n = Pack<T>::kLanes;
  for (int64_t first = 0; first < matrices; first += n) {
    const int valid = static_cast<int>(matrices - first < n ? matrices - first : n);
    layout.store(grad, first, valid,
                 polar_gradient(layout.load(grad, first, valid), layout.load(frames_of(job.x0_pred), first, valid),
                                layout.load(frames_of(job.projected), first, valid), job.fix_det));
  }
}

}  // namespace MGRPO_NAMESPACE
