// Loops over one task's elements; compiled once per instruction set (common/for_each_isa.h).
//
// A row's sum has the same bits on every instruction set: element i of a piece always goes to running sum i modulo
// kSumLanes, and multiplications and additions are not fused.
#include "../common/philox_lanes.h"
#include "transition_math.h"

namespace MGRPO_NAMESPACE {

template <class T>
constexpr int kSumLanes = 128 / sizeof(T);  // two of the widest vectors
constexpr int64_t kPiece = 512;  // elements between two transfers of the running sums into double precision

template <class T>
constexpr int kSumPacks = kSumLanes<T> / Pack<T>::kLanes;

// ---- Access to memory: whole vectors, and the last one of a piece ----

template <bool kPastCaches>
struct Whole {
  template <class T>
  MGRPO_HD Pack<T> load(const T* p) const {
    return load_pack(p);
  }
  template <class T>
  MGRPO_HD void store(T* p, Pack<T> a) const {
    if constexpr (kPastCaches)
      store_past_caches(p, a);
    else
      store_pack(p, a);
  }
};

struct Part {
  int count;

  template <class T>
  MGRPO_HD Pack<T> load(const T* p) const {
    return load_some(p, count);
  }
  template <class T>
  MGRPO_HD void store(T* p, Pack<T> a) const {
    store_some(p, a, count);
  }
};

// Calls body(access, offset, pack) for `count` elements; pack counts vectors modulo kSumPacks.
template <class T, bool kPastCaches = false, class Body>
MGRPO_HD void sweep(int64_t count, Body& body) {
  constexpr int n = Pack<T>::kLanes;
  int64_t i = 0;
  for (; i + kSumLanes<T> <= count; i += kSumLanes<T>) {
#pragma GCC unroll 8
    for (int pack = 0; pack < kSumPacks<T>; ++pack) body(Whole<kPastCaches>{}, i + pack * n, pack);
  }
#pragma GCC unroll 8
  for (int pack = 0; pack < kSumPacks<T>; ++pack) {
    const int64_t left = count - i - pack * n;
    if (left > 0) body(Part{static_cast<int>(left < n ? left : n)}, i + pack * n, pack);
  }
}

// The running sums over one piece, in T. A loop's body holds them by value, which keeps them in registers.
template <class T>
struct Run {
  Pack<T> lanes[kSumPacks<T>];

  MGRPO_HD Run() {
#pragma GCC unroll 8
    for (int pack = 0; pack < kSumPacks<T>; ++pack) lanes[pack] = Pack<T>(T(0));
  }
};

// One sum over a task: the runs' totals in double.
template <class T>
struct Total {
  double lanes[kSumLanes<T>] = {};

  MGRPO_HD void add(const Run<T>& run) {
    T values[kSumLanes<T>];
    memcpy(values, run.lanes, sizeof values);
    for (int lane = 0; lane < kSumLanes<T>; ++lane) lanes[lane] += static_cast<double>(values[lane]);
  }
  MGRPO_HD double sum() const {
    double part[kSumLanes<T>];
    memcpy(part, lanes, sizeof part);
    for (int width = kSumLanes<T> / 2; width > 0; width /= 2)
      for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
    return part[0];
  }
};

// weight * value, 0 where the weight is 0 whatever the value is.
template <bool kWeights, class T, class Access>
MGRPO_HD Pack<T> weighted(Pack<T> value, const T* weights, int64_t i, Access access) {
  if constexpr (kWeights) {
    const Pack<T> w = access.load(weights + i);
    return select(w != Pack<T>(T(0)), value * w, Pack<T>(T(0)));
  } else {
    return value;
  }
}
template <bool kWeights, class T>
MGRPO_HD const T* weights_from(const T* weights, int64_t channel) {
  return kWeights ? weights + channel : nullptr;
}

// ---- Rows as numbers of type T, whatever they are stored as ----

// Another type's numbers as T; of the wider ones T is the widest of a call, so double never becomes float here.
template <class T>
__attribute__((noinline)) void convert_from(const State& state, int64_t first, int64_t count, T* numbers) {
  if (state.dtype == StateDtype::kBFloat16) {
    const uint16_t* stored = static_cast<const uint16_t*>(state.data) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(bfloat16_to_float(stored[i]));
  } else if (state.dtype == StateDtype::kHalf) {
    const uint16_t* stored = static_cast<const uint16_t*>(state.data) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(half_to_float(stored[i]));
  } else {
    const float* stored = static_cast<const float*>(state.data) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(stored[i]);
  }
}
template <class T>
MGRPO_HD const T* read(const State& state, int64_t row, int64_t offset, int64_t count, T* buffer) {
  const int64_t first = row * state.row_stride + offset;
  if (state.dtype == kDtypeOf<T>) return static_cast<const T*>(state.data) + first;
  convert_from(state, first, count, buffer);
  return buffer;
}

// Where to put `count` numbers of a result: in their place, or in a buffer that `finish` converts.
template <class T>
MGRPO_HD T* write_to(const Output& out, int64_t first, T* buffer) {
  return out.dtype == kDtypeOf<T> ? static_cast<T*>(out.data) + first : buffer;
}
template <class T>
__attribute__((noinline)) void convert_to(const Output& out, int64_t first, int64_t count, const T* numbers) {
  if (out.dtype == StateDtype::kBFloat16) {
    uint16_t* stored = static_cast<uint16_t*>(out.data) + first;
    for (int64_t i = 0; i < count; ++i) stored[i] = float_to_bfloat16(static_cast<float>(numbers[i]));
  } else if (out.dtype == StateDtype::kHalf) {
    uint16_t* stored = static_cast<uint16_t*>(out.data) + first;
    for (int64_t i = 0; i < count; ++i) stored[i] = float_to_half(static_cast<float>(numbers[i]));
  } else {
    float* stored = static_cast<float*>(out.data) + first;
    for (int64_t i = 0; i < count; ++i) stored[i] = static_cast<float>(numbers[i]);
  }
}
template <class T>
MGRPO_HD void finish(const Output& out, int64_t first, int64_t count, const T* buffer) {
  if (out.dtype != kDtypeOf<T>) convert_to(out, first, count, buffer);
}

MGRPO_HD void write_zeros(const Output& out, int64_t first, int64_t count) {
  const int64_t size = out.dtype == StateDtype::kDouble ? 8 : out.dtype == StateDtype::kFloat ? 4 : 2;
  memset(static_cast<char*>(out.data) + first * size, 0, static_cast<size_t>(count * size));
}

template <class T>
struct NoiseBuffer {
  float drawn[kPiece + 2 * kPhiloxTile];
  T wide[kPiece];
};
// While numbers are drawn nothing asks for memory, so the other operands of the piece are called for then.
template <class T>
struct FetchBeside {
  const T* streams[3];

  MGRPO_HD void operator()(int64_t first) const {
    for (const T* stream : streams)
      for (int i = 0; i < kPhiloxTile; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(stream + first + i);
  }
};
template <class T>
MGRPO_CALLED const T* read_noise(const Noise& noise, int64_t row, int64_t offset, int64_t count, NoiseBuffer<T>& buffer,
                             const FetchBeside<T>& beside) {
  if (noise.kind == Noise::Kind::kGiven) return read(noise.given, row, offset, count, buffer.wide);
  const int64_t before = offset % 4;
  philox_tiles<NormalNumbers>(noise.key(row), static_cast<uint32_t>(offset / 4),
                              (before + count + kPhiloxTile - 1) / kPhiloxTile, buffer.drawn, beside);
  if constexpr (sizeof(T) == 4) {
    return buffer.drawn + before;
  } else {
    for (int64_t i = 0; i < count; ++i) buffer.wide[i] = buffer.drawn[before + i];
    return buffer.wide;
  }
}

// ---- Which elements count ----

// Calls visit(offset, count, counted, channel) for the pieces of a task's elements, in order: runs of frames that the
// mask keeps or leaves out, or with weights single frames, cut into at most kPiece elements. `channel` is the first
// element's.
template <class Visit>
MGRPO_HD void for_pieces(const Weighting& batch, const Task& task, Visit& visit) {
  const bool* mask = batch.mask == nullptr ? nullptr : batch.mask + task.row * batch.frames;
  for (int64_t frame = task.begin; frame < task.end;) {
    const bool counted = mask == nullptr || mask[frame];
    int64_t next = frame + 1;
    if (batch.weights == nullptr || !counted)
      while (next < task.end && (mask == nullptr || mask[next] == counted)) ++next;
    const int64_t end = next * batch.channels;
    for (int64_t offset = frame * batch.channels; offset < end; offset += kPiece)
      visit(offset, end - offset < kPiece ? end - offset : kPiece, counted, offset - frame * batch.channels);
    frame = next;
  }
}

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
  T x_t_buffer[kPiece], x0_buffer[kPiece];
  NoiseBuffer<T> noise_buffer;

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const T* x_t = read(job.x_t, task.row, offset, count, x_t_buffer);
    const T* x0 = read(x0_pred, task.row, offset, count, x0_buffer);
    T* x_prev = static_cast<T*>(job.x_prev.data) + task.row * job.batch.row_size() + offset;
    const T* noise = nullptr;
    if constexpr (kNoise) noise = read_noise(job.noise, task.row, offset, count, noise_buffer,
                                                   {{x_t, x0, job.past_caches ? x_t : x_prev}});
    if (counted) {
      StepBody<T, kNoise, kSum, kWeights> body{x_t, x0, noise, weights_from<kWeights>(weights, channel), x_prev, A, B, s};
      if (job.past_caches && is_aligned(x_prev))
        sweep<T, true>(count, body);
      else
        sweep<T>(count, body);
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

// ---- sde_log_prob ----

template <class T, bool kWeights>
struct LogProbBody {
  const T *x_prev, *x_t, *x0_pred, *weights;
  Pack<T> A, B, inverse_unit;
  Run<T> run{};

  template <class Access>
  MGRPO_HD void operator()(Access access, int64_t i, int pack) {
    const Pack<T> z =
        step_residual(access.load(x_prev + i), access.load(x_t + i), access.load(x0_pred + i), A, B) * inverse_unit;
    run.lanes[pack] += weighted<kWeights>(z * z, weights, i, access);
  }
};

template <class T, bool kWeights>
struct LogProbPieces {
  const LogProbJob& job;
  const Task& task;
  const T* weights;
  Pack<T> A, B, inverse_unit;
  Total<T> sum{};
  T buffers[3][kPiece];

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    if (!counted) return;
    LogProbBody<T, kWeights> body{read(job.x_prev, task.row, offset, count, buffers[0]),
                                  read(job.x_t, task.row, offset, count, buffers[1]),
                                  read(job.x0_pred, task.row, offset, count, buffers[2]),
                                  weights_from<kWeights>(weights, channel),
                                  A,
                                  B,
                                  inverse_unit};
    sweep<T>(count, body);
    sum.add(body.run);
  }
};

template <class T, bool kWeights>
double log_prob_pieces(const LogProbJob& job, const Task& task, const T* weights) {
  const LogProbRow row(job.s.at(task.row));
  LogProbPieces<T, kWeights> pieces{job,
                                    task,
                                    weights,
                                    Pack<T>(static_cast<T>(job.A.at(task.row))),
                                    Pack<T>(static_cast<T>(job.B.at(task.row))),
                                    Pack<T>(static_cast<T>(1.0 / row.unit))};
  for_pieces(job.batch, task, pieces);
  return pieces.sum.sum();
}

// The weighted sum of ((x_prev - mean) / unit)^2 over a task.
template <class T>
double log_prob_task(const LogProbJob& job, const Task& task, const T* weights) {
  return weights == nullptr ? log_prob_pieces<T, false>(job, task, weights) : log_prob_pieces<T, true>(job, task, weights);
}

// Three gradients are multiples of one another.
template <class T, bool kWeights>
struct LogProbGradientBody {
  const T *x_prev, *x_t, *x0_pred, *weights;
  T* out[3];
  Pack<T> A, B, inverse_unit;
  Pack<T> slope[3];

  template <class Access>
  MGRPO_HD void operator()(Access access, int64_t i, int) {
    const Pack<T> z =
        step_residual(access.load(x_prev + i), access.load(x_t + i), access.load(x0_pred + i), A, B) * inverse_unit;
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k)
      if (out[k] != nullptr) access.store(out[k] + i, weighted<kWeights>(z * slope[k], weights, i, access));
  }
};

template <class T, bool kWeights>
struct LogProbGradientPieces {
  const LogProbGradientJob& job;
  const Task& task;
  const T* weights;
  Pack<T> A, B, inverse_unit;
  Pack<T> slope[3];
  bool all_zero;
  T buffers[3][kPiece], out_buffers[3][kPiece];

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const Output* outputs[3] = {&job.grad_x_prev, &job.grad_x_t, &job.grad_x0_pred};
    const int64_t first = task.row * job.forward.batch.row_size() + offset;
    if (!counted || all_zero) {
      for (int k = 0; k < 3; ++k)
        if (outputs[k]->data != nullptr) write_zeros(*outputs[k], first, count);
      return;
    }
    LogProbGradientBody<T, kWeights> body{read(job.forward.x_prev, task.row, offset, count, buffers[0]),
                                          read(job.forward.x_t, task.row, offset, count, buffers[1]),
                                          read(job.forward.x0_pred, task.row, offset, count, buffers[2]),
                                          weights_from<kWeights>(weights, channel),
                                          {},
                                          A,
                                          B,
                                          inverse_unit,
                                          {slope[0], slope[1], slope[2]}};
    for (int k = 0; k < 3; ++k)
      body.out[k] = outputs[k]->data == nullptr ? nullptr : write_to<T>(*outputs[k], first, out_buffers[k]);
    bool past_caches = job.past_caches;
    for (int k = 0; k < 3; ++k) past_caches &= body.out[k] == nullptr || (body.out[k] != out_buffers[k] && is_aligned(body.out[k]));
    if (past_caches)
      sweep<T, true>(count, body);
    else
      sweep<T>(count, body);
    for (int k = 0; k < 3; ++k)
      if (outputs[k]->data != nullptr) finish<T>(*outputs[k], first, count, out_buffers[k]);
  }
};

template <class T, bool kWeights>
void log_prob_gradient_pieces(const LogProbGradientJob& job, const Task& task, const T* weights) {
  const double A = job.forward.A.at(task.row), B = job.forward.B.at(task.row), slope = job.slopes[task.row];
  const LogProbRow row(job.forward.s.at(task.row));
  LogProbGradientPieces<T, kWeights> pieces{
      job,
      task,
      weights,
      Pack<T>(static_cast<T>(A)),
      Pack<T>(static_cast<T>(B)),
      Pack<T>(static_cast<T>(1.0 / row.unit)),
      {Pack<T>(static_cast<T>(slope)), Pack<T>(static_cast<T>(-A * slope)), Pack<T>(static_cast<T>(-B * slope))},
      slope == 0};
  for_pieces(job.forward.batch, task, pieces);
  if (job.past_caches) finish_stores();
}

template <class T>
void log_prob_gradient_task(const LogProbGradientJob& job, const Task& task, const T* weights) {
  if (weights == nullptr)
    log_prob_gradient_pieces<T, false>(job, task, weights);
  else
    log_prob_gradient_pieces<T, true>(job, task, weights);
}

// ---- sde_log_ratio, sde_kl ----

template <class T, RatioTerms kTerms, bool kWeights>
struct RatioBody {
  const T *x0_pred, *other, *noise, *weights;
  Pack<T> unit;
  Run<T> linear{}, squares{};

  template <class Access>
  MGRPO_HD void operator()(Access access, int64_t i, int pack) {
    const Pack<T> d = (access.load(x0_pred + i) - access.load(other + i)) * unit;
    if constexpr (kTerms != RatioTerms::kDivergence)
      linear.lanes[pack] += weighted<kWeights>(access.load(noise + i) * d, weights, i, access);
    if constexpr (kTerms != RatioTerms::kLinear) squares.lanes[pack] += weighted<kWeights>(d * d, weights, i, access);
  }
};

template <class T, RatioTerms kTerms, bool kWeights>
struct RatioPieces {
  const RatioJob& job;
  const Task& task;
  const T* weights;
  Pack<T> unit;
  Total<T> linear{}, squares{};
  T buffers[2][kPiece];
  NoiseBuffer<T> noise_buffer;

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    if (!counted) return;
    const T* x0 = read(job.x0_pred, task.row, offset, count, buffers[0]);
    const T* other = read(job.other, task.row, offset, count, buffers[1]);
    const T* noise = nullptr;
    if constexpr (kTerms != RatioTerms::kDivergence)
      noise = read_noise(job.noise, task.row, offset, count, noise_buffer, {{x0, other, other}});
    RatioBody<T, kTerms, kWeights> body{x0,
                                        other,
                                        noise,
                                        weights_from<kWeights>(weights, channel),
                                        unit};
    sweep<T>(count, body);
    if constexpr (kTerms != RatioTerms::kDivergence) linear.add(body.linear);
    if constexpr (kTerms != RatioTerms::kLinear) squares.add(body.squares);
  }
};

template <class T, RatioTerms kTerms, bool kWeights>
void ratio_pieces(const RatioJob& job, const Task& task, const T* weights, double* sums) {
  const RatioRow row(job.gain.at(task.row));
  RatioPieces<T, kTerms, kWeights> pieces{job, task, weights, Pack<T>(static_cast<T>(row.unit))};
  for_pieces(job.batch, task, pieces);
  sums[0] = pieces.linear.sum();
  sums[1] = pieces.squares.sum();
}

// The weighted sums of noise d and of d^2 over a task, d = (x0_pred - other) unit, as far as the terms need them.
template <class T>
void ratio_task(const RatioJob& job, const Task& task, const T* weights, double* sums) {
  const RatioTerms terms = static_cast<RatioTerms>(job.terms);
  if (terms == RatioTerms::kBoth) {
    weights == nullptr ? ratio_pieces<T, RatioTerms::kBoth, false>(job, task, weights, sums)
                       : ratio_pieces<T, RatioTerms::kBoth, true>(job, task, weights, sums);
  } else if (terms == RatioTerms::kLinear) {
    weights == nullptr ? ratio_pieces<T, RatioTerms::kLinear, false>(job, task, weights, sums)
                       : ratio_pieces<T, RatioTerms::kLinear, true>(job, task, weights, sums);
  } else {
    weights == nullptr ? ratio_pieces<T, RatioTerms::kDivergence, false>(job, task, weights, sums)
                       : ratio_pieces<T, RatioTerms::kDivergence, true>(job, task, weights, sums);
  }
}

template <class T, RatioTerms kTerms, bool kWeights>
struct RatioGradientBody {
  const T *x0_pred, *other, *noise, *weights;
  T* out;
  Pack<T> unit, factor, slope;

  template <class Access>
  MGRPO_HD void operator()(Access access, int64_t i, int) {
    Pack<T> value;
    if constexpr (kTerms == RatioTerms::kLinear) {
      value = access.load(noise + i);
    } else {
      value = (access.load(x0_pred + i) - access.load(other + i)) * unit * factor;
      if constexpr (kTerms == RatioTerms::kBoth) value = access.load(noise + i) - value;
    }
    access.store(out + i, weighted<kWeights>(value * slope, weights, i, access));
  }
};

template <class T, RatioTerms kTerms, bool kWeights>
struct RatioGradientPieces {
  const RatioGradientJob& job;
  const Task& task;
  const T* weights;
  Pack<T> unit, factor, slope;
  bool all_zero;
  T buffers[2][kPiece], out_buffer[kPiece];
  NoiseBuffer<T> noise_buffer;

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const int64_t first = task.row * job.forward.batch.row_size() + offset;
    if (!counted || all_zero) return write_zeros(job.grad, first, count);
    T* out = write_to<T>(job.grad, first, out_buffer);
    const T *x0 = out, *other = out, *noise = nullptr;  // the linear term's gradient needs no prediction
    if constexpr (kTerms != RatioTerms::kLinear) {
      x0 = read(job.forward.x0_pred, task.row, offset, count, buffers[0]);
      other = read(job.forward.other, task.row, offset, count, buffers[1]);
    }
    if constexpr (kTerms != RatioTerms::kDivergence)
      noise = read_noise(job.forward.noise, task.row, offset, count, noise_buffer,
                         {{x0, other, job.past_caches ? x0 : out}});
    RatioGradientBody<T, kTerms, kWeights> body{
        x0, other, noise, weights_from<kWeights>(weights, channel), out, unit, factor, slope};
    if (job.past_caches && out != out_buffer && is_aligned(out))
      sweep<T, true>(count, body);
    else
      sweep<T>(count, body);
    finish<T>(job.grad, first, count, out_buffer);
  }
};

template <class T, RatioTerms kTerms, bool kWeights>
void ratio_gradient_pieces(const RatioGradientJob& job, const Task& task, const T* weights) {
  const RatioRow row(job.forward.gain.at(task.row));
  const double slope = job.slopes[task.row];
  RatioGradientPieces<T, kTerms, kWeights> pieces{job,
                                                  task,
                                                  weights,
                                                  Pack<T>(static_cast<T>(row.unit)),
                                                  Pack<T>(static_cast<T>(row.factor)),
                                                  Pack<T>(static_cast<T>(slope)),
                                                  slope == 0};
  for_pieces(job.forward.batch, task, pieces);
  if (job.past_caches) finish_stores();
}

template <class T>
void ratio_gradient_task(const RatioGradientJob& job, const Task& task, const T* weights) {
  const RatioTerms terms = static_cast<RatioTerms>(job.forward.terms);
  if (terms == RatioTerms::kBoth) {
    weights == nullptr ? ratio_gradient_pieces<T, RatioTerms::kBoth, false>(job, task, weights)
                       : ratio_gradient_pieces<T, RatioTerms::kBoth, true>(job, task, weights);
  } else if (terms == RatioTerms::kLinear) {
    weights == nullptr ? ratio_gradient_pieces<T, RatioTerms::kLinear, false>(job, task, weights)
                       : ratio_gradient_pieces<T, RatioTerms::kLinear, true>(job, task, weights);
  } else {
    weights == nullptr ? ratio_gradient_pieces<T, RatioTerms::kDivergence, false>(job, task, weights)
                       : ratio_gradient_pieces<T, RatioTerms::kDivergence, true>(job, task, weights);
  }
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
