// What a call of the reward operators asks for: plain numbers that every backend's loops read. Torch-free.
#pragma once

#include <stdint.h>

#include "../common/macros.h"

namespace mgrpo {

// In the order of kernels/rewards/_names.py.
enum RewardKind {
  kPosition,
  kAlignedPosition,
  kRotation,
  kVelocity,
  kFootSkate,
  kGroundPenetration,
  kJitter,
  kHeadPosition,
  kRewardKinds
};
enum RotationError { kGeodesic, kAxisAngle, kFrobenius };
enum Alignment { kStandard, kEgoallo };
enum Representation { kMatrix, kQuaternion, kRot6d };

constexpr int kMostFeet = 16;
constexpr int kMostJoints = 64;

struct RewardOptions {
  int joints;           // N points of a body, root first where bodies are posed here; 0: no joint reward is wanted
  int rotations;        // J local rotations; 0: none are compared or posed
  int kinds[kRewardKinds], kind_count;
  bool wanted[kRewardKinds];
  double slopes[kRewardKinds];
  double fps;
  int rotation_error, alignment;
  int head;             // row among the N points
  int feet[kMostFeet], foot_count;
  double foot_heights[kMostFeet];

  // Only where bodies are posed here.
  bool posed;
  int parents[kMostJoints];      // among the J joints, -1: the root
  int turn_slot[kMostJoints];    // where the rotation from the root is kept of a joint that others hang from, or -1
  int turn_slots;
  int head_joint;                // among the J joints
  int shape_numbers;             // S, or 0 where the shape has no influence
  int representation;
  bool project;

};

// Numbers that a rotation is given by.
MGRPO_HD int numbers_per_rotation(int representation) {
  return representation == kMatrix ? 9 : representation == kQuaternion ? 4 : 6;
}

// Gives a slot to each joint that others, or the pupils, hang from. Slots of joints whose last child is posed may be
// used again where `reuse`; the head keeps its own.
inline void assign_turn_slots(RewardOptions& options, bool reuse) {
  int last_child[kMostJoints];
  for (int j = 0; j < options.rotations; ++j) {
    last_child[j] = -1;
    if (options.parents[j] >= 0) last_child[options.parents[j]] = j;
  }
  bool taken[kMostJoints] = {};
  options.turn_slots = 0;
  for (int j = 0; j < options.rotations; ++j) {
    const int p = options.parents[j];
    // The parent's rotation is read before this joint's is written.
    if (reuse && p >= 0 && last_child[p] == j && p != options.head_joint) taken[options.turn_slot[p]] = false;
    options.turn_slot[j] = -1;
    if (last_child[j] < 0 && j != options.head_joint) continue;
    int slot = 0;
    while (taken[slot]) ++slot;
    taken[slot] = true;
    options.turn_slot[j] = slot;
    if (slot >= options.turn_slots) options.turn_slots = slot + 1;
  }
}

}  // namespace mgrpo
