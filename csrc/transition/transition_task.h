// How a batch of transitions is cut into tasks for threads, and what each operator hands to the loops over a task.
#pragma once

#include "state.h"

namespace mgrpo {

// A task is some frames of one row. How a row is cut depends on the number of channels alone, so neither the other rows
// nor the number of threads nor frames that a mask leaves out at the end change how a row is summed.
struct Tasks {
  int64_t frames_per_task, per_row, count;

  explicit Tasks(const Weighting& batch) {
    constexpr int64_t kNumbersPerTask = 8192;
    frames_per_task = batch.channels < kNumbersPerTask ? kNumbersPerTask / (batch.channels > 0 ? batch.channels : 1) : 1;
    per_row = (batch.frames + frames_per_task - 1) / frames_per_task;
    count = batch.rows * per_row;
  }
};

// Frames begin, ..., end - 1 of a row.
struct Task {
  int64_t row, begin, end;
};

struct StepJob {
  Weighting batch;
  State x_t, x0_pred;
  Noise noise;
  Scalar A, B, s;
  Output x_prev, projected;
  // Rotation matrices per frame that are projected first, from channel `first_channel` on; 0 for none.
  int64_t first_channel, matrices;
  bool fix_det;
  bool sum_noise, past_caches;
};

struct LogProbJob {
  Weighting batch;
  State x_prev, x_t, x0_pred;
  Scalar A, B, s;
  Output kept;  // (x_prev - mean) / unit, all that the gradient needs
  bool past_caches;
};

struct LogProbGradientJob {
  LogProbJob forward;    // without x_t and x0_pred, x_prev is what the forward pass kept
  const double* slopes;  // (N,)
  Output grad_x_prev, grad_x_t, grad_x0_pred;
  bool past_caches;
};

struct RatioJob {
  Weighting batch;
  State x0_pred, other;
  Noise noise;
  Scalar gain;
  int terms;  // RatioTerms
};

struct RatioGradientJob {
  RatioJob forward;
  const double* slopes;  // (N,)
  Output grad;
  bool past_caches;
};

struct ProjectionGradientJob {
  Weighting batch;
  State grad_x_prev, grad_projected, x0_pred, projected;
  Scalar B;
  int64_t first_channel, matrices;
  bool fix_det;
  Output grad;
};

}  // namespace mgrpo
