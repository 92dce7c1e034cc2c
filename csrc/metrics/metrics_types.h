// What a call of motion_metrics asks for and what is summed over a sequence's frames. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

namespace mgrpo {

// In the order of MotionMetrics in kernels/metrics.
enum Metric {
  kMpjpe,
  kPaMpjpe,
  kPaMpjpeEgoallo,
  kMpjve,
  kMpjreGeodesic,
  kMpjrePaper,
  kJitter,
  kJitterRatio,
  kGpMean,
  kGpSum,
  kFsPerContact,
  kFsEgoallo,
  kHeadPosition,
  kHeadAngle,
  kHeadFrobenius,
  kGnd,
  kMetricCount
};

constexpr int kMostFeet = 8;

struct MetricOptions {
  int64_t sequences, frames;
  int joints, rotations, head;
  int feet[kMostFeet], foot_count;
  double foot_heights[kMostFeet];
  double fps;
  bool with_scale, short_way, with_head;
};

// Sums over frames: of the first pass, then of the second, which knows the clip's lowest height.
enum MetricSum {
  kFrames,   // how many frames count
  kPairs,    // how many pairs of neighbouring frames
  kFours,    // how many times four in a row
  kPosition,
  kAligned,
  kAlignedEgoallo,
  kVelocity,
  kGeodesic,
  kComponents,
  kJerk,
  kTargetJerk,
  kDepth,
  kHead,
  kHeadTurn,
  kHeadNorm,
  kLowFeet,  // frames with a foot below its contact height over z = 0
  kFirstPass,
  kSkate = kFirstPass,
  kSlide,
  kContacts,
  kSumCount
};

// The measures from the sums of one sequence; out[metric * stride].
template <class T>
MGRPO_HD void finish_metrics(const MetricOptions& o, const T* sums, T* out, int64_t stride) {
  const T degrees = T(57.295779513082321), fps = T(o.fps), millimetres = T(1000);
  const T joints = T(o.joints), rotations = T(o.rotations), frames = sums[kFrames];
  const T jerk = sums[kJerk] / (joints * sums[kFours]), target_jerk = sums[kTargetJerk] / (joints * sums[kFours]);
  const T unknown = static_cast<T>(NAN);
  out[kMpjpe * stride] = millimetres * (sums[kPosition] / (joints * frames));
  out[kPaMpjpe * stride] = millimetres * (sums[kAligned] / (joints * frames));
  out[kPaMpjpeEgoallo * stride] = millimetres * (sums[kAlignedEgoallo] / (joints * frames));
  out[kMpjve * stride] = millimetres * fps * (sums[kVelocity] / (joints * sums[kPairs]));
  out[kMpjreGeodesic * stride] = degrees * (sums[kGeodesic] / (rotations * frames));
  out[kMpjrePaper * stride] = degrees * (sums[kComponents] / (T(3) * rotations * frames));
  out[kJitter * stride] = fps * fps * fps * jerk;
  out[kJitterRatio * stride] = jerk / target_jerk;
  out[kGpMean * stride] = millimetres * (sums[kDepth] / frames);
  out[kGpSum * stride] = sums[kDepth];
  out[kFsPerContact * stride] = millimetres * (sums[kSlide] / sums[kContacts]);
  out[kFsEgoallo * stride] = sums[kSkate];
  out[kHeadPosition * stride] = millimetres * (sums[kHead] / frames);
  out[kHeadAngle * stride] = o.with_head ? degrees * (sums[kHeadTurn] / frames) : unknown;
  out[kHeadFrobenius * stride] = o.with_head ? sums[kHeadNorm] / frames : unknown;
  out[kGnd * stride] = sums[kLowFeet] > T(0) ? T(1) : T(0);
}

}  // namespace mgrpo
