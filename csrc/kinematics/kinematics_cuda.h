// Launchers of forward kinematics. T is float or double; counts must not be 0.
#pragma once

#include "../common/cuda_compat.h"
#include "../common/row_view.h"
#include "kinematics_modes.h"

namespace mgrpo {

constexpr int kMostJoints = 256;  // what a kernel's arguments and shared memory hold; op.py refuses more

// A tree by value: nothing has to be copied to the device before a launch.
struct Tree {
  int J;
  int parents[kMostJoints];
};

// What the kernels read. `root` is the pose of the root, or of the central pupil frame where t_head_cpf has data.
template <class T>
struct PoseInputs {
  RowView<T> rotations, offsets;
  RowView<T> root;        // no data: the identity
  RowView<T> t_head_cpf;  // no data: `root` is the root
  Tree tree;
  int head;
};
template <class T>
struct PoseOutputs {
  T *joints, *world, *root;
};
template <class T>
struct PoseOutputGradients {  // no data where nothing depends on that result
  RowView<T> joints, world, root;
};
template <class T>
struct PoseInputGradients {  // null where nobody asks
  T *rotations, *offsets, *root, *t_head_cpf;
};

template <class T>
cudaError_t launch_pose(int representation, int output, const PoseInputs<T>& in, const PoseOutputs<T>& out, cudaStream_t stream);

template <class T>
cudaError_t launch_pose_backward(
    int representation, int output, const PoseInputs<T>& in, const PoseOutputGradients<T>& given,
    const PoseInputGradients<T>& out, cudaStream_t stream);

// out (rows, K) = mean (K) + directions (K, S) betas (rows, S)
template <class T>
cudaError_t launch_joint_offsets(
    const T* mean, const T* directions, int K, const RowView<T>& betas, T* out, cudaStream_t stream);

// out (rows, S) = grad (rows, K) directions (K, S)
template <class T>
cudaError_t launch_joint_offsets_backward(
    const T* directions, int S, const RowView<T>& grad, T* out, cudaStream_t stream);

}  // namespace mgrpo
