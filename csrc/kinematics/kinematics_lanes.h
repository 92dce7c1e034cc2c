// Loops over poses, one pose per lane; compiled once per instruction set (common/for_each_isa.h).
#include "../common/unit_rotations.h"
#include "kinematics_math.h"

namespace MGRPO_NAMESPACE {

// The rows of a block of lanes; those beyond `valid` repeat the last.
template <class T>
MGRPO_HD BlockRows<T> rows_of(const Rows& rows, int64_t first, int valid) {
  BlockRows<T> block = {};
  rows.pointers(first, valid, block.at);
  const T* const last = block.at[valid - 1];
  for (int lane = valid; lane < Pack<T>::kLanes; ++lane) block.at[lane] = last;
  return block;
}

// Columns of rows that often stay the same from block to block (one body's offsets): loaded only where they change.
template <class T>
struct SteadyRows {
  const Rows& rows;
  int count;
  Pack<T>* columns;
  BlockRows<T> loaded = {};

  MGRPO_HD void move_to(int64_t first, int valid) {
    const BlockRows<T> wanted = rows_of<T>(rows, first, valid);
    if (memcmp(&wanted, &loaded, sizeof wanted) == 0) return;
    loaded = wanted;
    load_rows(wanted, count, columns);
  }
};

template <class Kind, class T>
MGRPO_HD RootPose<Kind, Pack<T>> load_root_rows(const Rows* root, int64_t first, int valid, Pack<T>* numbers) {
  if (root == nullptr) return identity_root<Kind, Pack<T>>();
  load_rows(rows_of<T>(*root, first, valid), kRootNumbers, numbers);
  return load_root<Kind>(static_cast<const Pack<T>*>(numbers));
}

template <class Kind, class T>
void pose_kind(const PoseRows& in, const PoseResults<T>& out, unsigned char* scratch, int64_t begin, int64_t end) {
  using P = Pack<T>;
  constexpr int n = P::kLanes, kIn = Kind::kIn, kState = Kind::kState;
  const int J = in.J, out_numbers = numbers_out(in.output);
  P* const local = reinterpret_cast<P*>(scratch);
  P* const world = local + J * kIn;
  P* const offsets = world + J * kState;
  P* const joints = offsets + 3 * J;
  P* const converted = joints + 3 * J;
  P* const lines = converted + 9 * J;
  const Table<const P> locals = {local, kIn};
  SteadyRows<T> steady = {in.offsets, 3 * J, offsets};
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    load_rows(rows_of<T>(in.rotations, first, valid), J * kIn, local);
    steady.move_to(first, valid);
    P numbers[kRootNumbers] = {};
    RootPose<Kind, P> root = load_root_rows<Kind, T>(in.root, first, valid, numbers);
    if (in.t_head_cpf != nullptr) {
      P t_head_cpf[3];
      load_rows(rows_of<T>(*in.t_head_cpf, first, valid), 3, t_head_cpf);
      root = root_under_cpf(root, cpf_from_root<Kind>(in.parents, in.head, locals, offsets, load_vec3(t_head_cpf)));
      store_quat(numbers, as_quat(root.R));
      store_vec3(numbers + 4, root.t);
      store_rows(out.root + kRootNumbers * first, valid, kRootNumbers, numbers);
    }
    pose_tree(in.parents, J, root, locals, offsets, Table<P>{world, kState}, joints);
    store_block(out.joints + 3 * J * first, valid, 3 * J, joints, local, out.past_caches);
    if (out_numbers == 0) continue;
    const P* result = world;
    if (out_numbers != kState) {
      for (int j = 0; j < J; ++j) {
        auto R = root.R;
        load_state(world + j * kState, R);
        if (out_numbers == 9)
          store_mat3(converted + 9 * j, as_matrix(R));
        else
          store_quat(converted + 4 * j, as_quat(R));
      }
      result = converted;
    }
    store_block(out.world + int64_t{J} * out_numbers * first, valid, J * out_numbers, result,
                out_numbers <= kIn ? local : lines, out.past_caches);
  }
  if (out.past_caches) finish_stores();
}

template <class T>
void pose_rows(const PoseRows& in, const PoseResults<T>& out, unsigned char* scratch, int64_t begin, int64_t end) {
  if (in.representation == kFromMatrices) return pose_kind<MatrixKind>(in, out, scratch, begin, end);
  if (in.representation == kFromQuaternions) return pose_kind<QuaternionKind>(in, out, scratch, begin, end);
  return pose_kind<Rot6dKind>(in, out, scratch, begin, end);
}

template <class Kind, class T, class P>
MGRPO_HD RootGradient<Kind, P> joint_gradients(int output, const PoseRows& in, const RootPose<Kind, P>& root,
                                               Table<const P> local, const P* offsets, Table<const P> world, P* forces,
                                               Table<P> grads) {
  if constexpr (Kind::kGeneral)
    return tree_gradient<Kind>(output, in.parents, in.J, root, local, offsets, world, forces, grads);
  else
    return tree_torques<Kind>(output, in.parents, in.J, root, offsets, world, forces, grads);
}

template <class Kind, class T>
void pose_kind_backward(const PoseRows& in, const PoseGradients& given, const PoseResultGradients<T>& out,
                        unsigned char* scratch, int64_t begin, int64_t end) {
  using P = Pack<T>;
  constexpr int n = P::kLanes, kIn = Kind::kIn, kState = Kind::kState;
  const int J = in.J;
  const int output = given.world == nullptr ? static_cast<int>(kToPositions) : in.output, out_numbers = numbers_out(output);
  const int stride = Kind::kGeneral ? 9 : out_numbers > 3 ? out_numbers : 3;
  P* const local = reinterpret_cast<P*>(scratch);
  P* const world = local + J * kIn;
  P* const offsets = world + J * kState;
  P* const forces = offsets + 3 * J;
  P* const grad = forces + 3 * J;
  const Table<const P> locals = {local, kIn}, worlds = {world, kState};
  const Table<P> grads = {grad, stride};
  SteadyRows<T> steady = {in.offsets, 3 * J, offsets};
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    load_rows(rows_of<T>(in.rotations, first, valid), J * kIn, local);
    steady.move_to(first, valid);
    P numbers[kRootNumbers] = {}, t_head_cpf[3] = {};
    const RootPose<Kind, P> placed = load_root_rows<Kind, T>(in.root, first, valid, numbers);
    RootPose<Kind, P> root = placed;
    if (in.t_head_cpf != nullptr) {
      load_rows(rows_of<T>(*in.t_head_cpf, first, valid), 3, t_head_cpf);
      root = root_under_cpf(placed, cpf_from_root<Kind>(in.parents, in.head, locals, offsets, load_vec3(t_head_cpf)));
    }
    turn_tree(in.parents, J, root, locals, Table<P>{world, kState});

    if (given.joints != nullptr)
      load_rows(rows_of<T>(*given.joints, first, valid), 3 * J, forces);
    else
      for (int k = 0; k < 3 * J; ++k) forces[k] = P(T(0));
    if (out_numbers != 0) {
      load_rows(rows_of<T>(*given.world, first, valid), J * out_numbers, grad);
      if (out_numbers < stride)  // spread them, the last first
        for (int j = J - 1; j >= 0; --j)
          for (int k = out_numbers - 1; k >= 0; --k) grad[stride * j + k] = grad[out_numbers * j + k];
    }
    RootGradient<Kind, P> root_grad = joint_gradients<Kind, T>(output, in, root, locals, offsets, worlds, forces, grads);
    if (in.t_head_cpf != nullptr) {
      if (given.root != nullptr) {
        P grad_pose[kRootNumbers];
        load_rows(rows_of<T>(*given.root, first, valid), kRootNumbers, grad_pose);
        add_root_pose_gradient(root, static_cast<const P*>(grad_pose), root_grad);
      }
      CpfGradient<Kind, P> cpf_grad = cpf_gradient(in.parents, in.head, placed, root, root_grad, locals,
                                                   static_cast<const P*>(offsets), load_vec3(t_head_cpf), worlds, forces, grads);
      root_grad = cpf_grad.pose;
      if (out.t_head_cpf != nullptr) store_rows(out.t_head_cpf + 3 * first, valid, 3, &cpf_grad.t_head_cpf.x);
    }
    if (out.root != nullptr) {
      P grad_root[kRootNumbers];
      store_root_gradient(static_cast<const P*>(numbers), root_grad, grad_root);
      store_rows(out.root + kRootNumbers * first, valid, kRootNumbers, grad_root);
    }
    if (out.offsets != nullptr)
      store_block(out.offsets + 3 * J * first, valid, 3 * J, forces, world, out.past_caches);
    if (out.rotations != nullptr) {
      if constexpr (Kind::kGeneral) {
        store_block(out.rotations + int64_t{J} * kIn * first, valid, J * kIn, grad, world, out.past_caches);
      } else {
        for (int j = 0; j < J; ++j) Kind::pull_back(local + kIn * j, load_vec3(grads[j]));
        store_block(out.rotations + int64_t{J} * kIn * first, valid, J * kIn, local, world, out.past_caches);
      }
    }
  }
  if (out.past_caches) finish_stores();
}

template <class T>
void pose_rows_backward(const PoseRows& in, const PoseGradients& given, const PoseResultGradients<T>& out,
                        unsigned char* scratch, int64_t begin, int64_t end) {
  if (in.representation == kFromMatrices) return pose_kind_backward<MatrixKind>(in, given, out, scratch, begin, end);
  if (in.representation == kFromQuaternions)
    return pose_kind_backward<QuaternionKind>(in, given, out, scratch, begin, end);
  return pose_kind_backward<Rot6dKind>(in, given, out, scratch, begin, end);
}

// out (rows, K) = mean (K) + directions (K, S) betas (rows, S), K numbers per body
template <class T>
void offset_rows(const T* mean, const T* directions, int K, int S, const Rows& betas, T* out, unsigned char* scratch,
                 int64_t begin, int64_t end) {
  using P = Pack<T>;
  constexpr int n = P::kLanes;
  P* const beta = reinterpret_cast<P*>(scratch);
  P* const result = beta + S;
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    load_rows(rows_of<T>(betas, first, valid), S, beta);
    for (int k = 0; k < K; ++k) {
      P sum = P(T(0));
      for (int s = 0; s < S; ++s) sum += P(directions[k * S + s]) * beta[s];
      result[k] = P(mean[k]) + sum;
    }
    store_rows(out + K * first, valid, K, result);
  }
}

// out (rows, S) = grad (rows, K) directions (K, S)
template <class T>
void offset_rows_backward(const T* directions, int K, int S, const Rows& grad, T* out, unsigned char* scratch,
                          int64_t begin, int64_t end) {
  using P = Pack<T>;
  constexpr int n = P::kLanes;
  P* const given = reinterpret_cast<P*>(scratch);
  P* const result = given + K;
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    load_rows(rows_of<T>(grad, first, valid), K, given);
    for (int s = 0; s < S; ++s) {
      P sum = P(T(0));
      for (int k = 0; k < K; ++k) sum += P(directions[k * S + s]) * given[k];
      result[s] = sum;
    }
    store_rows(out + S * first, valid, S, result);
  }
}

}  // namespace MGRPO_NAMESPACE
