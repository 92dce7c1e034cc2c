// How callers name representations of rotations, and what a kernel returns. The numbers are those of kinematics/op.py.
#pragma once

namespace mgrpo {

enum Representation : int { kFromMatrices = 0, kFromQuaternions = 1, kFromRot6d = 2 };
enum Output : int { kToMatrices = 0, kToQuaternions = 1, kToPositions = 2 };

constexpr int kRootNumbers = 7;  // a pose: quaternion wxyz, then translation

constexpr int numbers_in(int representation) {
  return representation == kFromMatrices ? 9 : representation == kFromQuaternions ? 4 : 6;
}
constexpr int numbers_out(int output) { return output == kToMatrices ? 9 : output == kToQuaternions ? 4 : 0; }

}  // namespace mgrpo
