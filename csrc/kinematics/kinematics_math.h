// Forward kinematics of one pose and its gradient, generic in the number type: one thread's numbers, or Packs with one
// pose per lane. Derivations: kernels/kinematics/README.md.
//
// A Kind says how a joint's rotation is given and what the recursion carries: general matrices, quaternions, or
// rotation matrices made from six numbers. Tables of joints lie in memory of the caller: a scratch array on the CPU,
// shared memory on a GPU. A table may be its own result, where the comments say so.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_KINEMATICS_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_KINEMATICS_MATH_H
#include <cstdint>

#include "../common/unit_rotations.h"
#include "kinematics_modes.h"
#endif

namespace MGRPO_NAMESPACE {

// Joint j's numbers stand at `at + j * stride`.
template <class T>
struct Table {
  T* at;
  int stride;
  MGRPO_HD T* operator[](int joint) const { return at + joint * stride; }
};

// ---- products of quaternions ----

template <class T>
MGRPO_HD Quat<T> conjugate(Quat<T> q) {
  return {q.w, -q.x, -q.y, -q.z};
}
template <class T>
MGRPO_HD Quat<T> operator*(Quat<T> a, Quat<T> b) {
  return {a.w * b.w - a.x * b.x - a.y * b.y - a.z * b.z, a.w * b.x + a.x * b.w + a.y * b.z - a.z * b.y,
          a.w * b.y - a.x * b.z + a.y * b.w + a.z * b.x, a.w * b.z + a.x * b.y - a.y * b.x + a.z * b.w};
}
// q v q*, for a unit quaternion
template <class T>
MGRPO_HD Vec3<T> rotate(Quat<T> q, Vec3<T> v) {
  const Vec3<T> twice = T(2) * cross(imaginary(q), v);
  return v + q.w * twice + cross(imaginary(q), twice);
}

// ---- kinds ----

template <class T>
MGRPO_HD Vec3<T> rotate(const Mat3<T>& R, Vec3<T> v) {
  return R * v;
}
template <class T>
MGRPO_HD Vec3<T> rotate_back(const Mat3<T>& R, Vec3<T> v) {
  return transposed_times(R, v);
}
template <class T>
MGRPO_HD Vec3<T> rotate_back(Quat<T> q, Vec3<T> v) {
  return rotate(conjugate(q), v);
}
template <class T>
MGRPO_HD Mat3<T> inverse(const Mat3<T>& R) {
  return {{{R.m[0][0], R.m[1][0], R.m[2][0]}, {R.m[0][1], R.m[1][1], R.m[2][1]}, {R.m[0][2], R.m[1][2], R.m[2][2]}}};
}
template <class T>
MGRPO_HD Quat<T> inverse(Quat<T> q) {
  return conjugate(q);
}
template <class T>
MGRPO_HD void load_state(const T* p, Mat3<T>& R) {
  R = load_mat3(p);
}
template <class T>
MGRPO_HD void load_state(const T* p, Quat<T>& q) {
  q = load_quat(p);
}
template <class T>
MGRPO_HD void store_state(T* p, const Mat3<T>& R) {
  store_mat3(p, R);
}
template <class T>
MGRPO_HD void store_state(T* p, Quat<T> q) {
  store_quat(p, q);
}
template <class T>
MGRPO_HD void from_unit_quat(Quat<T> q, Mat3<T>& R) {
  R = quat_matrix(q);
}
template <class T>
MGRPO_HD void from_unit_quat(Quat<T> q, Quat<T>& state) {
  state = q;
}
template <class T>
MGRPO_HD Quat<T> as_quat(const Mat3<T>& R) {
  return matrix_quat(R).q;
}
template <class T>
MGRPO_HD Quat<T> as_quat(Quat<T> q) {
  return q;
}
template <class T>
MGRPO_HD Mat3<T> as_matrix(const Mat3<T>& R) {
  return R;
}
template <class T>
MGRPO_HD Mat3<T> as_matrix(Quat<T> q) {
  return quat_matrix(q);
}

// Matrices as they are: the gradient has all nine numbers.
struct MatrixKind {
  static constexpr int kIn = 9, kState = 9;
  static constexpr bool kGeneral = true;
  template <class T>
  using State = Mat3<T>;
  template <class T>
  static MGRPO_HD Mat3<T> decode(const T* p) {
    return load_mat3(p);
  }
};

// Kinds that give proper rotations have gradients of three numbers, torques; `pull_back` turns the torque about the axes
// of the parent's frame into dL/d(numbers of the representation), in place.
struct QuaternionKind {
  static constexpr int kIn = 4, kState = 4;
  static constexpr bool kGeneral = false;
  template <class T>
  using State = Quat<T>;
  template <class T>
  static MGRPO_HD Quat<T> decode(const T* p) {
    return load_unit_quat(p).q;
  }
  template <class T>
  static MGRPO_HD void pull_back(T* p, Vec3<T> torque) {
    store_quat(p, quat_gradient(load_unit_quat(p), torque));
  }
};

struct Rot6dKind {
  static constexpr int kIn = 6, kState = 9;
  static constexpr bool kGeneral = false;
  template <class T>
  using State = Mat3<T>;
  template <class T>
  static MGRPO_HD Mat3<T> decode(const T* p) {
    const GramSchmidt<T> g = gram_schmidt(p);
    return from_columns(g.u, g.v, g.w);
  }
  template <class T>
  static MGRPO_HD void pull_back(T* p, Vec3<T> torque) {
    gram_schmidt_gradient(gram_schmidt(p), torque, p);
  }
};

// ---- the pose of the root ----

template <class Kind, class T>
struct RootPose {
  typename Kind::template State<T> R;
  Vec3<T> t;
};

template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> identity_root() {
  RootPose<Kind, T> root;
  from_unit_quat(Quat<T>{T(1), T(0), T(0), T(0)}, root.R);
  root.t = {T(0), T(0), T(0)};
  return root;
}
template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> load_root(const T* p) {
  RootPose<Kind, T> root;
  from_unit_quat(load_unit_quat(p).q, root.R);
  root.t = load_vec3(p + 4);
  return root;
}

// The central pupil frame as seen from the root.
template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> cpf_from_root(const int* parents, int head, Table<const T> local, const T* offsets,
                                         Vec3<T> t_head_cpf) {
  RootPose<Kind, T> cpf;
  cpf.R = Kind::decode(local[head]);
  cpf.t = load_vec3(offsets + 3 * head) + rotate(cpf.R, t_head_cpf);
  for (int joint = parents[head]; joint >= 0; joint = parents[joint]) {
    const auto L = Kind::decode(local[joint]);
    cpf.R = L * cpf.R;
    cpf.t = load_vec3(offsets + 3 * joint) + rotate(L, cpf.t);
  }
  return cpf;
}
// The root's pose where the central pupil frame has pose `cpf`.
template <class Kind, class T>
MGRPO_HD RootPose<Kind, T> root_under_cpf(const RootPose<Kind, T>& cpf, const RootPose<Kind, T>& cpf_in_root) {
  RootPose<Kind, T> root;
  root.R = cpf.R * inverse(cpf_in_root.R);
  root.t = cpf.t - rotate(root.R, cpf_in_root.t);
  return root;
}

// ---- forward ----

// World rotations of all joints, as states, and positions. `world` may be `local`, if strides agree and hold a state.
template <class Kind, class T>
MGRPO_HD void pose_tree(const int* parents, int J, const RootPose<Kind, T>& root, Table<const T> local, const T* offsets,
                        Table<T> world, T* positions) {
  for (int j = 0; j < J; ++j) {
    const int p = parents[j];
    auto R_parent = root.R;
    Vec3<T> t_parent = root.t;
    if (p >= 0) {
      load_state(world[p], R_parent);
      t_parent = load_vec3(positions + 3 * p);
    }
    store_state(world[j], R_parent * Kind::decode(local[j]));
    store_vec3(positions + 3 * j, t_parent + rotate(R_parent, load_vec3(offsets + 3 * j)));
  }
}
// The same without positions, for the backward pass.
template <class Kind, class T>
MGRPO_HD void turn_tree(const int* parents, int J, const RootPose<Kind, T>& root, Table<const T> local, Table<T> world) {
  for (int j = 0; j < J; ++j) {
    auto R_parent = root.R;
    if (parents[j] >= 0) load_state(world[parents[j]], R_parent);
    store_state(world[j], R_parent * Kind::decode(local[j]));
  }
}

// ---- backward ----
//
// `forces` holds dL/d(joint position) (J, 3) and gets dL/d(offset). `grads` holds dL/d(world rotation) in the first
// numbers of each joint: nothing, 4 or 9. The root's gradient goes into RootGradient.

// dL/d(root's pose), as a torque about the root (proper rotations) or as nine numbers (general matrices).
template <class Kind, class T, bool kGeneral = Kind::kGeneral>
struct RootGradient {
  Mat3<T> R;
  Vec3<T> t;
};
template <class Kind, class T>
struct RootGradient<Kind, T, false> {
  Vec3<T> R, t;
};

// What `grads` says about a world rotation, in the form that the recursion carries (matrix or torque).
template <class T, class State>
MGRPO_HD Mat3<T> general_gradient(int output, const T* grad, const State& world) {
  if (output == kToMatrices) return load_mat3(grad);
  if (output == kToQuaternions) return matrix_quat_gradient(matrix_quat(world), load_quat(grad));
  return zero3<T>();
}
template <class T, class State>
MGRPO_HD Vec3<T> torque_gradient(int output, const T* grad, const State& world) {
  if (output == kToMatrices) return torque_on(as_matrix(world), load_mat3(grad));
  if (output == kToQuaternions) return torque_on(as_quat(world), load_quat(grad));
  return {T(0), T(0), T(0)};
}

// General matrices. Each joint of `grads` has room for nine numbers and gets dL/d(local rotation).
template <class Kind, class T>
MGRPO_HD RootGradient<Kind, T, true> tree_gradient(int output, const int* parents, int J, const RootPose<Kind, T>& root,
                                                   Table<const T> local, const T* offsets, Table<const T> world, T* forces,
                                                   Table<T> grads) {
  for (int j = 0; j < J; ++j) {
    Mat3<T> R;
    load_state(world[j], R);
    if (output != kToMatrices) store_mat3(grads[j], general_gradient(output, grads[j], R));
  }
  RootGradient<Kind, T, true> root_grad = {zero3<T>(), {T(0), T(0), T(0)}};
  for (int j = J - 1; j >= 0; --j) {  // children first
    const int p = parents[j];
    Mat3<T> R_parent = root.R;
    if (p >= 0) load_state(world[p], R_parent);
    const Mat3<T> G = load_mat3(grads[j]);
    const Vec3<T> force = load_vec3(forces + 3 * j);
    const Mat3<T> through = times_transposed(G, load_mat3(local[j])) + outer(force, load_vec3(offsets + 3 * j));
    if (p >= 0) {
      store_mat3(grads[p], load_mat3(grads[p]) + through);
      store_vec3(forces + 3 * p, load_vec3(forces + 3 * p) + force);
    } else {
      root_grad.R = root_grad.R + through;
      root_grad.t = root_grad.t + force;
    }
    store_mat3(grads[j], transposed_times(R_parent, G));
    store_vec3(forces + 3 * j, transposed_times(R_parent, force));
  }
  return root_grad;
}

// Proper rotations. Each joint of `grads` has room for three numbers and gets the torque about its parent's axes.
template <class Kind, class T>
MGRPO_HD RootGradient<Kind, T, false> tree_torques(int output, const int* parents, int J, const RootPose<Kind, T>& root,
                                                   const T* offsets, Table<const T> world, T* forces, Table<T> grads) {
  for (int j = 0; j < J; ++j) {
    auto R = root.R;
    load_state(world[j], R);
    store_vec3(grads[j], torque_gradient(output, grads[j], R));
  }
  RootGradient<Kind, T, false> root_grad = {{T(0), T(0), T(0)}, {T(0), T(0), T(0)}};
  for (int j = J - 1; j >= 0; --j) {
    const int p = parents[j];
    auto R_parent = root.R;
    if (p >= 0) load_state(world[p], R_parent);
    const Vec3<T> torque = load_vec3(grads[j]), force = load_vec3(forces + 3 * j);
    const Vec3<T> through = torque + cross(rotate(R_parent, load_vec3(offsets + 3 * j)), force);
    if (p >= 0) {
      store_vec3(grads[p], load_vec3(grads[p]) + through);
      store_vec3(forces + 3 * p, load_vec3(forces + 3 * p) + force);
    } else {
      root_grad.R = root_grad.R + through;
      root_grad.t = root_grad.t + force;
    }
    store_vec3(grads[j], rotate_back(R_parent, torque));
    store_vec3(forces + 3 * j, rotate_back(R_parent, force));
  }
  return root_grad;
}

// dL/d(T_world_root as given: quaternion of any length, translation)
template <class Kind, class T>
MGRPO_HD void store_root_gradient(const T* root, const RootGradient<Kind, T>& grad, T* out) {
  store_quat(out, quat_gradient(load_unit_quat(root), grad.R));
  store_vec3(out + 4, grad.t);
}

// Adds what dL/d(resulting T_world_root) says about the root.
template <class Kind, class T>
MGRPO_HD void add_root_pose_gradient(const RootPose<Kind, T>& root, const T* grad_pose, RootGradient<Kind, T, true>& grad) {
  grad.R = grad.R + matrix_quat_gradient(matrix_quat(root.R), load_quat(grad_pose));
  grad.t = grad.t + load_vec3(grad_pose + 4);
}
template <class Kind, class T>
MGRPO_HD void add_root_pose_gradient(const RootPose<Kind, T>& root, const T* grad_pose, RootGradient<Kind, T, false>& grad) {
  grad.R = grad.R + torque_on(as_quat(root.R), load_quat(grad_pose));
  grad.t = grad.t + load_vec3(grad_pose + 4);
}

template <class Kind, class T>
struct CpfGradient {
  RootGradient<Kind, T> pose;
  Vec3<T> t_head_cpf;
};

// From the root's gradient to that of the central pupil frame, adding to the gradients of the joints between the two.
// General matrices: the derivative of root_under_cpf as written, which takes the transpose for the inverse.
template <class Kind, class T>
MGRPO_HD CpfGradient<Kind, T> cpf_gradient(const int* parents, int head, const RootPose<Kind, T>& cpf,
                                           const RootPose<Kind, T>& root, const RootGradient<Kind, T, true>& root_grad,
                                           Table<const T> local, const T* offsets, Vec3<T> t_head_cpf,
                                           Table<const T> /*world*/, T* forces, Table<T> grads) {
  const RootPose<Kind, T> in_root = cpf_from_root<Kind>(parents, head, local, offsets, t_head_cpf);
  const Mat3<T> G = root_grad.R + T(-1) * outer(root_grad.t, in_root.t);
  const Vec3<T> force = T(-1) * transposed_times(root.R, root_grad.t);  // on the pupils, in the root's frame
  CpfGradient<Kind, T> result;
  result.pose.R = G * in_root.R;
  result.pose.t = root_grad.t;
  result.t_head_cpf = transposed_times(in_root.R, force);
  Mat3<T> G_joint = transposed_times(G, cpf.R) + outer(force, t_head_cpf);
  for (int joint = head; joint >= 0; joint = parents[joint]) {
    // The parent's rotation from the root, anew for each joint: the path is short, and storing it costs memory.
    Mat3<T> R_parent = identity3<T>();
    for (int above = parents[joint]; above >= 0; above = parents[above]) R_parent = load_mat3(local[above]) * R_parent;
    store_mat3(grads[joint], load_mat3(grads[joint]) + transposed_times(R_parent, G_joint));
    store_vec3(forces + 3 * joint, load_vec3(forces + 3 * joint) + transposed_times(R_parent, force));
    G_joint = times_transposed(G_joint, load_mat3(local[joint])) + outer(force, load_vec3(offsets + 3 * joint));
  }
  return result;
}
// Proper rotations: with the pupils held, turning a joint between them and the root turns the rest of the body back.
template <class Kind, class T>
MGRPO_HD CpfGradient<Kind, T> cpf_gradient(const int* parents, int head, const RootPose<Kind, T>& /*cpf*/,
                                           const RootPose<Kind, T>& root, const RootGradient<Kind, T, false>& root_grad,
                                           Table<const T> /*local*/, const T* offsets, Vec3<T> t_head_cpf,
                                           Table<const T> world, T* forces, Table<T> grads) {
  const Vec3<T> force = root_grad.t;
  auto R = root.R;
  load_state(world[head], R);
  CpfGradient<Kind, T> result;
  result.t_head_cpf = T(-1) * rotate_back(R, force);
  // Sums of world offsets below each joint: from the joint at hand to the pupils.
  Vec3<T> to_pupils = rotate(R, t_head_cpf);
  // From the root to the pupils.
  Vec3<T> reach = to_pupils;
  for (int joint = head; joint >= 0; joint = parents[joint]) {
    auto R_parent = root.R;
    if (parents[joint] >= 0) load_state(world[parents[joint]], R_parent);
    reach = reach + rotate(R_parent, load_vec3(offsets + 3 * joint));
  }
  for (int joint = head; joint >= 0; joint = parents[joint]) {
    auto R_parent = root.R;
    if (parents[joint] >= 0) load_state(world[parents[joint]], R_parent);
    const Vec3<T> torque = cross(reach - to_pupils, force) - root_grad.R;
    store_vec3(grads[joint], load_vec3(grads[joint]) + rotate_back(R_parent, torque));
    store_vec3(forces + 3 * joint, load_vec3(forces + 3 * joint) - rotate_back(R_parent, force));
    to_pupils = to_pupils + rotate(R_parent, load_vec3(offsets + 3 * joint));
  }
  result.pose.R = root_grad.R - cross(reach, force);
  result.pose.t = force;
  return result;
}

}  // namespace MGRPO_NAMESPACE
#endif
