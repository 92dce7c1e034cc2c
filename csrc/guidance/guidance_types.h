// What the CPU loops and the CUDA kernel of motion_guidance share: the problem, its tree and its workspace. Torch-free.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace mgrpo {

constexpr int kBodyJoints = 21, kFingerJoints = 15, kMostJoints = kBodyJoints + 2 * kFingerJoints;
constexpr int kHead = 14, kTorsoPoints = 5, kFeet = 4, kKeypoints = 16;

MGRPO_HD int torso_joint(int i) { return i < 3 ? i : i == 3 ? 5 : 8; }  // hips, spine
MGRPO_HD int foot_joint(int i) { return i < 2 ? 6 + i : 7 + i; }        // ankles, toes
MGRPO_HD int wrist_joint(int hand) { return 19 + hand; }
MGRPO_HD int keypoint_joint(int hand, int i) { return i == 0 ? wrist_joint(hand) : kBodyJoints + kFingerJoints * hand + i - 1; }

// The kinematic tree seen from a head that does not move.
struct GuidanceTree {
  int joints;         // of the rotations given
  int moved;          // the first joints, which have costs
  int posed;          // the first joints, whose places are needed
  int coupled_count;  // joints that move a point that has a cost: their rotations make one block per frame
  int free_count;     // the other moved joints: chains of their own
  signed char parents[kMostJoints], coupled[kMostJoints], free_joints[kMostJoints];
  uint64_t ancestors[kMostJoints];  // bits of the strict ancestors
  uint64_t spine;                   // bits of the joints between root and head, and of the head

  // A rotation between root and head moves all that does not hang from it, the other way round; both can cancel.
  MGRPO_HD int moves_place(int k, int joint) const {
    return static_cast<int>(ancestors[joint] >> k & 1) - static_cast<int>(spine >> k & 1);
  }
  MGRPO_HD int turns(int k, int joint) const {
    return static_cast<int>((ancestors[joint] | uint64_t{1} << joint) >> k & 1) - static_cast<int>(spine >> k & 1);
  }
};

// In the order of kernels/guidance/problem.py.
struct GuidanceWeights {
  double rotation_prior, position_prior, delta_smoothness, smoothness, velocity_smoothness, foot_skating;
  double hand_prior, hand_smoothness, hand_rotations, wrist_position, wrist_orientation, keypoints;
};
struct DampingRule {
  double good, poor, less, more;
};

template <class T>
struct GuidanceJob {
  int64_t rows;
  int frames, iterations;
  bool se3;  // the wrists' residual
  GuidanceTree tree;
  GuidanceWeights weights;
  DampingRule rule;
  // (rows, frames, joints, 3, 3), (rows, joints, 3), (rows, frames, 7), (rows, frames, 4); (rows) both
  const T *rotmats, *offsets, *head, *contacts;
  const int64_t *lengths, *held;
  // (rows, frames, 2, 7), (.., 2), (.., 30, 3, 3), (.., 2), (.., 2, 16, 2), (.., 2), (.., 7); null where there are none
  const T *wrist_poses, *wrist_confidence, *hand_rotmats, *hand_confidence, *uv, *uv_confidence, *camera;
  T *out, *costs;  // like rotmats; (rows, iterations + 1)
  int64_t* done;   // (rows)

  // Numbers of a frame's block, and of the columns of its panel (this frame, right side, next frame, the one after),
  // of what is still to be subtracted from the two next blocks, and of the rows of points (places, right side).
  MGRPO_HD int block() const { return 3 * tree.coupled_count; }
  MGRPO_HD int panel_stride() const { return rounded(3 * block() + 1); }
  MGRPO_HD int rest_stride() const { return rounded(2 * block() + 1); }
  MGRPO_HD int point_stride() const { return rounded(block() + 1); }
  MGRPO_HD int point_rows() const {
    return 3 * (kTorsoPoints + kFeet) + (wrist_poses ? 12 : 0) + (uv ? 4 * kKeypoints : 0);
  }
  static MGRPO_HD int rounded(int numbers) { return (numbers + 3) / 4 * 4; }

  MGRPO_HD int64_t panel_numbers() const { return int64_t{block()} * panel_stride() + kSlack; }
  MGRPO_HD int64_t rest_numbers() const { return int64_t{2 * block() + 1} * rest_stride() + kSlack; }
  MGRPO_HD int64_t point_numbers() const { return 2 * int64_t{point_rows()} * (point_stride() + 1) + kSlack; }
  static constexpr int kSlack = 16;  // vector registers read beyond the end
};

constexpr int kChainNumbers = 30;          // gradient, blocks (t, t), (t, t + 1), (t, t + 2) of a joint in a frame
constexpr int kPoseNumbers = 12;           // orientation, place
constexpr int kWristNumbers = 42;          // 6 x 6 derivative by place and turn, residual
constexpr int kKeypointNumbers = 8;        // 2 x 3 derivative by place, residual
constexpr int kSums = 4;

// Where the numbers of one row's search lie.
template <class T>
struct GuidanceSpace {
  T *start, *now, *next;        // quaternions (frames, moved, 4)
  T *pose_now, *pose_next;      // (frames, posed, 12)
  T* torso;                     // places at the start (frames, 5, 3)
  T* chains;                    // (frames, moved, 30)
  T* panels;                    // (frames, block, panel stride)
  T* step;                      // (frames, moved, 3)
  T* frame_costs;               // (frames)
  T* measured;                  // derivatives and residuals of wrists and keypoints, of one frame
  T* solution;                  // (3, block): steps of three frames; (block): right side
  T* control;                   // what all threads must know
  T* sums;                      // (most threads, 4)
  T *panel, *rest, *points;     // of one frame; `panel` may be null: then it is the one in `panels`

  // Places everything that is null so far from `memory` on; the first number behind it.
  MGRPO_HD T* place(const GuidanceJob<T>& job, T* memory, int threads, bool own_panel) {
    const int64_t F = job.frames, N = job.tree.moved, n = job.block();
    take(start, memory, F * N * 4), take(now, memory, F * N * 4), take(next, memory, F * N * 4);
    take(pose_now, memory, F * job.tree.posed * kPoseNumbers), take(pose_next, memory, F * job.tree.posed * kPoseNumbers);
    take(torso, memory, F * kTorsoPoints * 3);
    take(chains, memory, F * N * kChainNumbers);
    take(panels, memory, F * n * job.panel_stride() + GuidanceJob<T>::kSlack);
    take(step, memory, F * N * 3);
    take(frame_costs, memory, F);
    take(measured, memory, 2 * kWristNumbers + 2 * kKeypoints * kKeypointNumbers);
    take(solution, memory, 4 * n);
    take(control, memory, 4);
    take(sums, memory, int64_t{threads} * kSums);
    if (own_panel) take(panel, memory, job.panel_numbers());
    take(rest, memory, job.rest_numbers());
    take(points, memory, job.point_numbers());
    return memory;
  }
  static MGRPO_HD void take(T*& part, T*& memory, int64_t numbers) {
    if (part != nullptr) return;
    part = memory;
    memory += (numbers + 3) / 4 * 4;
  }
};

// Numbers of the workspace of one row.
template <class T>
MGRPO_HD int64_t guidance_numbers(const GuidanceJob<T>& job, int threads, bool own_panel) {
  GuidanceSpace<T> space = {};
  T* const origin = reinterpret_cast<T*>(uintptr_t{64});
  return space.place(job, origin, threads, own_panel) - origin;
}

}  // namespace mgrpo
