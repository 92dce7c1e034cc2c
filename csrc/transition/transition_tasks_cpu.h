// Calling the loops for all tasks of a batch, on the CPU, and adding up what they return.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/rows.h"
#include "transition_task.h"

namespace mgrpo {

constexpr int64_t kTasksAtOnce = 4;  // 32,768 numbers: some ten microseconds, well above the cost of handing them out

// Calls run(task, index of the task) for all tasks, on all threads. A backward pass goes from the last to the first: what
// the forward pass read last is what a cache may still hold. It does so in runs of tasks, each from its first to its
// last: memory is read ahead of a stream that goes on, and a task alone is too short for that.
enum class Order { kForward, kBackward };
constexpr int64_t kTasksInARun = 16;
template <class Run>
void for_tasks(const Weighting& batch, const Tasks& tasks, Order order, Run run) {
  torch::stable::parallel_for(0, tasks.count, kTasksAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t index = i;
      if (order == Order::kBackward) {
        const int64_t done = i - begin, run_end = end - done / kTasksInARun * kTasksInARun;
        index = std::max(begin, run_end - kTasksInARun) + done % kTasksInARun;
      }
      const int64_t first = index % tasks.per_row * tasks.frames_per_task;
      run(Task{index / tasks.per_row, first, std::min(first + tasks.frames_per_task, batch.frames)}, index);
    }
  });
}

template <class T>
std::vector<T> weights_as(const Weighting& batch) {
  if (batch.weights == nullptr) return {};
  return std::vector<T>(batch.weights, batch.weights + batch.channels);
}

// The sum of each row's weights.
inline std::vector<double> row_weights(const Weighting& batch) {
  double per_frame = static_cast<double>(batch.channels);
  if (batch.weights != nullptr) {
    per_frame = 0;
    for (int64_t channel = 0; channel < batch.channels; ++channel) per_frame += batch.weights[channel];
  }
  std::vector<double> weights(static_cast<size_t>(batch.rows), static_cast<double>(batch.frames) * per_frame);
  if (batch.mask != nullptr) {
    for (int64_t row = 0; row < batch.rows; ++row) {
      int64_t frames = 0;
      for (int64_t frame = 0; frame < batch.frames; ++frame) frames += batch.mask[row * batch.frames + frame];
      weights[row] = static_cast<double>(frames) * per_frame;
    }
  }
  return weights;
}

inline double row_sum(const std::vector<double>& parts, const Tasks& tasks, int64_t row) {
  double sum = 0;
  for (int64_t part = row * tasks.per_row; part < (row + 1) * tasks.per_row; ++part) sum += parts[part];
  return sum;
}

}  // namespace mgrpo
