// What a call of the reward operators asks for: plain numbers that every backend's loops read. Torch-free.
#pragma once

#include <stdint.h>

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

constexpr int kMostFeet = 8;
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
  bool turns_others[kMostJoints];  // some joint, or the pupils, hang from it
  int head_joint;                // among the J joints
  int shape_numbers;             // S, or 0 where the shape has no influence
  int representation;
  bool project;

  int numbers_per_rotation() const { return representation == kMatrix ? 9 : representation == kQuaternion ? 4 : 6; }
};

}  // namespace mgrpo
