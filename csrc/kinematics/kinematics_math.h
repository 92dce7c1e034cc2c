// Forward kinematics of one pose and its gradient. Torch-free; derivation: kernels/kinematics/README.md.
#pragma once

#include <cstdint>

#include "../common/mat3.h"

namespace mgrpo {

// joints (J, 3) and R_world (J, 3, 3) from local (J, 3, 3), offsets (J, 3) and the root's pose; parents[j] < j.
template <class T>
MGRPO_HD void fk_forward(const T* local, const T* offsets, const T* R_root, const T* t_root, const int64_t* parents,
                         int64_t J, T* joints, T* R_world) {
  for (int64_t j = 0; j < J; ++j) {
    const int64_t p = parents[j];
    const Mat3<T> R_parent = load_mat3(p < 0 ? R_root : R_world + 9 * p);
    const Vec3<T> t_parent = load_vec3(p < 0 ? t_root : joints + 3 * p);
    store_mat3(R_world + 9 * j, R_parent * load_mat3(local + 9 * j));
    store_vec3(joints + 3 * j, t_parent + R_parent * load_vec3(offsets + 3 * j));
  }
}

// Gradients of one pose. `grad_R_world` (J, 3, 3) and `grad_joints` (J, 3) are read, and used as the accumulators of the
// children's contributions, so the caller passes copies. grad_R_root (3, 3) and grad_t_root (3) are overwritten.
template <class T>
MGRPO_HD void fk_backward(const T* local, const T* offsets, const T* R_root, const T* R_world, const int64_t* parents,
                          int64_t J, T* grad_joints, T* grad_R_world, T* grad_local, T* grad_offsets, T* grad_R_root,
                          T* grad_t_root) {
  store_mat3(grad_R_root, zero3<T>());
  store_vec3(grad_t_root, Vec3<T>{0, 0, 0});
  for (int64_t j = J; j-- > 0;) {  // children first
    const int64_t p = parents[j];
    const Mat3<T> R_parent = load_mat3(p < 0 ? R_root : R_world + 9 * p);
    const Mat3<T> grad_R = load_mat3(grad_R_world + 9 * j);
    const Vec3<T> grad_x = load_vec3(grad_joints + 3 * j);
    store_mat3(grad_local + 9 * j, transposed_times(R_parent, grad_R));
    store_vec3(grad_offsets + 3 * j, transposed_times(R_parent, grad_x));
    T* grad_R_parent = p < 0 ? grad_R_root : grad_R_world + 9 * p;
    T* grad_x_parent = p < 0 ? grad_t_root : grad_joints + 3 * p;
    const Mat3<T> through = times_transposed(grad_R, load_mat3(local + 9 * j)) + outer(grad_x, load_vec3(offsets + 3 * j));
    store_mat3(grad_R_parent, load_mat3(grad_R_parent) + through);
    store_vec3(grad_x_parent, load_vec3(grad_x_parent) + grad_x);
  }
}

}  // namespace mgrpo
