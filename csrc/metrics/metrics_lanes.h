// Sequences one after the other, 16 (8, 4, 2) frames of one in the lanes of a vector; compiled once per instruction set
// (common/for_each_isa.h). One thread scores a sequence from start to end, so neither the batch nor the number of threads
// has an influence on it.
#include "metrics_math.h"

namespace MGRPO_NAMESPACE {

// Per lane the value `frames` <= 3 frames ago; `before` and `older` are the two preceding blocks (two lanes reach into
// both).
template <class T>
MGRPO_HD Pack<T> ago(Pack<T> older, Pack<T> before, Pack<T> now, int frames) {
  constexpr int n = Pack<T>::kLanes;
  const int start = frames <= n ? n - frames : 2 * n - frames;
  typename Lane<T>::Integers index;
  for (int lane = 0; lane < n; ++lane) index[lane] = start + lane;
  return Pack<T>(frames <= n ? __builtin_shuffle(before.v, now.v, index) : __builtin_shuffle(older.v, before.v, index));
}

template <class T>
struct LaneHistory {
  const Pack<T>*older, *before, *now;
  MGRPO_HD Pack<T> number(int i, int frames) const { return ago(older[i], before[i], now[i], frames); }
  MGRPO_HD Vec3<Pack<T>> at(int joint, int frames) const {
    const int i = 3 * joint;
    if (frames == 0) return load_vec3(now + i);
    return {number(i, frames), number(i + 1, frames), number(i + 2, frames)};
  }
};

// The joints of this block of frames and of the two before.
template <class T>
struct LaneJoints {
  Pack<T>*older, *before, *now;
  MGRPO_HD LaneJoints(Pack<T>* memory, int numbers) : older(memory), before(memory + numbers), now(memory + 2 * numbers) {
    for (int i = 0; i < 2 * numbers; ++i) memory[i] = Pack<T>(T(0));
  }
  MGRPO_HD LaneHistory<T> history() const { return {older, before, now}; }
  MGRPO_HD void advance() {
    Pack<T>* const free = older;
    older = before;
    before = now;
    now = free;
  }
};

template <class T>
int64_t metric_blocks(const MetricOptions& o) {
  return (o.frames + Pack<T>::kLanes - 1) / Pack<T>::kLanes;
}
template <class T>
int64_t metric_scratch_bytes(const MetricOptions& o) {
  const int64_t packs = 18 * o.joints + 18 * o.rotations + (metric_blocks<T>(o) + 2) * (3 * o.foot_count + 1);
  return packs * static_cast<int64_t>(sizeof(Pack<T>));
}

// 1 for the frames first, first + 1, ... that count, 0 for others and beyond the end.
template <class T>
MGRPO_HD Pack<T> counted_frames(const bool* mask, int64_t first, int valid) {
  T flags[Pack<T>::kLanes];
  for (int lane = 0; lane < Pack<T>::kLanes; ++lane)
    flags[lane] = lane < valid && (mask == nullptr || mask[first + lane]) ? T(1) : T(0);
  return load_pack(flags);
}

template <class T>
__attribute__((noinline)) void rotation_block(const MetricOptions& o, const Pack<T>* pred, const Pack<T>* target,
                                              Mask<T> counted, Pack<T>* sums) {
  add_rotations(o, pred, target, counted, sums);
}
template <class T>
__attribute__((noinline)) void position_block(const MetricOptions& o, const Pack<T>* x, const Pack<T>* y,
                                              Mask<T> counted, Pack<T>* sums) {
  add_positions(o, x, y, counted, sums);
}

// out[metric * stride]; scratch: metric_scratch_bytes, aligned for vectors.
template <class T>
void score_sequence(const MetricTensors& rows, int64_t sequence, void* scratch, T* out, int64_t stride) {
  const MetricOptions& o = rows.options;
  using Lanes = Pack<T>;
  constexpr int n = Lanes::kLanes;
  const int J3 = 3 * o.joints, K9 = 9 * o.rotations, F3 = 3 * o.foot_count;
  const int64_t blocks = metric_blocks<T>(o);
  Lanes* const memory = static_cast<Lanes*>(scratch);
  LaneJoints<T> x(memory, J3), y(memory + 3 * J3, J3);
  Lanes *pred = memory + 6 * J3, *target = pred + K9;
  Lanes *feet = target + K9, *flags = feet + (blocks + 2) * F3;  // the two blocks before the first are all zero
  for (int i = 0; i < 2 * F3; ++i) feet[i] = Lanes(T(0));
  flags[0] = flags[1] = Lanes(T(0));
  const bool* mask = rows.mask.has_value() ? rows.mask->at<bool>(sequence) : nullptr;

  Lanes sums[kSumCount];
  for (int i = 0; i < kSumCount; ++i) sums[i] = Lanes(T(0));
  const Lanes infinite = Lanes(T(Precision<T>::kLargest)) * Lanes(T(2)), half = Lanes(T(0.5));
  Lanes lowest = infinite;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * n, row = sequence * o.frames + first;
    const int valid = static_cast<int>(o.frames - first < n ? o.frames - first : n);
    const Lanes flag = counted_frames<T>(mask, first, valid);
    flags[block + 2] = flag;
    const LaneHistory<T> counts{flags + block, flags + block + 1, flags + block + 2};
    const Mask<T> counted = flag > half, pair = counted & (counts.number(0, 1) > half);
    const Mask<T> four = pair & (counts.number(0, 2) * counts.number(0, 3) > half);

    load_rows(block_rows<T>(rows.pred_joints, row, valid), J3, x.now);
    load_rows(block_rows<T>(rows.target_joints, row, valid), J3, y.now);
    position_block(o, x.now, y.now, counted, sums);
    add_motion(o, x.history(), y.history(), pair, four, sums);
    const Lanes height = lowest_height(o, x.now);
    lowest = select(counted & ((height < lowest) | (height != height)), height, lowest);
    for (int foot = 0; foot < o.foot_count; ++foot)
      for (int axis = 0; axis < 3; ++axis) feet[(block + 2) * F3 + 3 * foot + axis] = x.now[3 * o.feet[foot] + axis];
    x.advance();
    y.advance();

    load_rows(block_rows<T>(rows.pred_rotmats, row, valid), K9, pred);
    load_rows(block_rows<T>(rows.target_rotmats, row, valid), K9, target);
    rotation_block(o, pred, target, counted, sums);
    if (o.with_head) {
      Mat3<Lanes> A, B;
      load_rows(block_rows<T>(*rows.pred_head, row, valid), 9, &A.m[0][0]);
      load_rows(block_rows<T>(*rows.target_head, row, valid), 9, &B.m[0][0]);
      add_head(A, B, counted, sums);
    }
  }

  // The clip is put down on its lowest joint; a NaN height stays.
  T heights[n], floor = infinite.v[0];
  store_pack(heights, lowest);
  for (int lane = 0; lane < n; ++lane)
    floor = heights[lane] < floor || heights[lane] != heights[lane] ? heights[lane] : floor;
  for (int64_t block = 0; block < blocks; ++block) {
    const LaneHistory<T> counts{flags + block, flags + block + 1, flags + block + 2};
    const LaneHistory<T> steps{feet + block * F3, feet + (block + 1) * F3, feet + (block + 2) * F3};
    const Mask<T> pair = (flags[block + 2] > half) & (counts.number(0, 1) > half);
    for (int foot = 0; foot < o.foot_count; ++foot)
      add_step(steps.at(foot, 0), steps.at(foot, 1), Lanes(floor), Lanes(static_cast<T>(o.foot_heights[foot])), pair,
               sums);
  }
  T totals[kSumCount];
  for (int i = 0; i < kSumCount; ++i) totals[i] = sum_lanes(sums[i]);
  finish_metrics(o, totals, out, stride);
}

}  // namespace MGRPO_NAMESPACE
