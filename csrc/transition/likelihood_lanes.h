// The loops of sde_log_prob, sde_log_ratio and sde_kl over one task's elements; compiled once per instruction set
// (common/for_each_isa.h).
#include "transition_pieces.h"

namespace MGRPO_NAMESPACE {

// ---- sde_log_prob ----

template <class T, bool kWeights>
struct LogProbBody {
  const T *x_prev, *x_t, *x0_pred, *weights;
  T* kept;
  Pack<T> A, B, inverse_unit;
  Run<T> run{};

  template <class Access>
  MGRPO_HD void operator()(Access access, int64_t i, int pack) {
    const Pack<T> z =
        step_residual(access.load(x_prev + i), access.load(x_t + i), access.load(x0_pred + i), A, B) * inverse_unit;
    if (kept != nullptr) access.store(kept + i, z);
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
  PieceBuffer<T> buffers[3];

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const int64_t first = task.row * job.batch.row_size() + offset;
    if (!counted) {
      if (job.kept.data != nullptr) write_zeros(job.kept, first, count);
      return;
    }
    LogProbBody<T, kWeights> body{read(job.x_prev, task.row, offset, count, buffers[0].numbers),
                                  read(job.x_t, task.row, offset, count, buffers[1].numbers),
                                  read(job.x0_pred, task.row, offset, count, buffers[2].numbers),
                                  weights_from<kWeights>(weights, channel),
                                  job.kept.data == nullptr ? nullptr : static_cast<T*>(job.kept.data) + first,
                                  A,
                                  B,
                                  inverse_unit};
    sweep_to_results<T, kWeights>(job.past_caches && is_aligned(body.kept), count, body);
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
  if (job.past_caches) finish_stores();
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
    const Pack<T> first = access.load(x_prev + i);
    const Pack<T> z =
        x_t == nullptr ? first : step_residual(first, access.load(x_t + i), access.load(x0_pred + i), A, B) * inverse_unit;
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
  PieceBuffer<T> buffers[3], out_buffers[3];

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const Output* outputs[3] = {&job.grad_x_prev, &job.grad_x_t, &job.grad_x0_pred};
    const int64_t first = task.row * job.forward.batch.row_size() + offset;
    if (!counted || all_zero) {
      for (int k = 0; k < 3; ++k)
        if (outputs[k]->data != nullptr) write_zeros(*outputs[k], first, count);
      return;
    }
    LogProbGradientBody<T, kWeights> body{read(job.forward.x_prev, task.row, offset, count, buffers[0].numbers),
                                          read_if_there(job.forward.x_t, task.row, offset, count, buffers[1].numbers),
                                          read_if_there(
                                              job.forward.x0_pred, task.row, offset, count, buffers[2].numbers),
                                          weights_from<kWeights>(weights, channel),
                                          {},
                                          A,
                                          B,
                                          inverse_unit,
                                          {slope[0], slope[1], slope[2]}};
    for (int k = 0; k < 3; ++k)
      body.out[k] = outputs[k]->data == nullptr ? nullptr : write_to<T>(*outputs[k], first, out_buffers[k].numbers);
    bool past_caches = job.past_caches;
    for (int k = 0; k < 3; ++k)
      past_caches &= body.out[k] == nullptr || (body.out[k] != out_buffers[k].numbers && is_aligned(body.out[k]));
    sweep_to_results<T, kWeights>(past_caches, count, body);
    for (int k = 0; k < 3; ++k)
      if (outputs[k]->data != nullptr) finish<T>(*outputs[k], first, count, out_buffers[k].numbers);
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
  PieceBuffer<T> buffers[2];
  NoiseBuffer<T> noise_buffer;

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    if (!counted) return;
    const T* x0 = read(job.x0_pred, task.row, offset, count, buffers[0].numbers);
    const T* other = read(job.other, task.row, offset, count, buffers[1].numbers);
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
  PieceBuffer<T> buffers[2], out_buffer;
  NoiseBuffer<T> noise_buffer;

  MGRPO_HD void operator()(int64_t offset, int64_t count, bool counted, int64_t channel) {
    const int64_t first = task.row * job.forward.batch.row_size() + offset;
    if (!counted || all_zero) return write_zeros(job.grad, first, count);
    T* out = write_to<T>(job.grad, first, out_buffer.numbers);
    const T *x0 = out, *other = out, *noise = nullptr;  // the linear term's gradient needs no prediction
    if constexpr (kTerms != RatioTerms::kLinear) {
      x0 = read(job.forward.x0_pred, task.row, offset, count, buffers[0].numbers);
      other = read(job.forward.other, task.row, offset, count, buffers[1].numbers);
    }
    if constexpr (kTerms != RatioTerms::kDivergence)
      noise = read_noise(job.forward.noise, task.row, offset, count, noise_buffer,
                         {{x0, other, job.past_caches ? x0 : out}});
    RatioGradientBody<T, kTerms, kWeights> body{
        x0, other, noise, weights_from<kWeights>(weights, channel), out, unit, factor, slope};
    sweep_to_results<T, kWeights>(job.past_caches && out != out_buffer.numbers && is_aligned(out), count, body);
    finish<T>(job.grad, first, count, out_buffer.numbers);
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

}  // namespace MGRPO_NAMESPACE
