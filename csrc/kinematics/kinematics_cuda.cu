// One thread per pose. All threads of a block copy its poses into shared memory, side by side, and the results back, so
// that device memory sees whole cache lines; the recursion then runs there, on tables of odd row length (no bank
// conflicts). A tree walks any way it likes: nothing of it is a register array, so nothing spills.
#include "kinematics_cuda.h"
#include "kinematics_math.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 128;
constexpr int kMostPoses = 32;           // of a block: one warp computes while others' loads are in flight
constexpr size_t kSharedBytes = 48 << 10;  // that a block aims at, so that a processor holds several
// Blocks that a processor holds: a bound for the registers, which float64 needs twice as many of.
template <class T>
constexpr int kBlocksPerProcessor = sizeof(T) == 4 ? 4 : 2;

constexpr int larger(int a, int b) { return a > b ? a : b; }

// Numbers per joint of the gradient's slots.
constexpr int gradient_stride(bool general, int output) { return general ? 9 : larger(numbers_out(output), 3); }

// One pose's part of shared memory.
struct PoseSpace {
  int J, local, world, vectors, grads;  // numbers per joint, in this order; 3 of each for positions or forces
  MGRPO_HD int row() const { return (J * (local + world + vectors + grads)) | 1; }
};

MGRPO_HD PoseSpace forward_space(int J, int in, int state, int output) {
  const int out = numbers_out(output);
  const int widest = in > state ? in : state;
  return {J, widest > out ? widest : out, 0, 3, 0};
}
MGRPO_HD PoseSpace backward_space(int J, int in, int state, bool general, int output) {
  return {J, in, state, 3, gradient_stride(general, output)};
}

// Poses per block that fit.
int poses_per_block(const PoseSpace& space, size_t element) {
  int poses = kMostPoses;
  while (poses > 1 && poses * space.row() * element > kSharedBytes) poses /= 2;
  return poses;
}

// Rows first .. first + rows - 1 of J joints, kNumbers each, to tables whose joints lie `stride` apart.
template <int kNumbers, class T>
__device__ __forceinline__ void load_joints(T* tables, int row_stride, int stride, const RowView<T>& from, int64_t first,
                                            int rows, int J) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < rows; row += kThreads / 32) {
    const T* source = from.at(first + row);
    T* target = tables + row * row_stride;
    for (int i = lane; i < J * kNumbers; i += 32) target[i / kNumbers * stride + i % kNumbers] = source[i];
  }
}
template <int kNumbers, class T>
__device__ __forceinline__ void store_joints(T* to, const T* tables, int row_stride, int stride, int64_t first, int rows,
                                             int J) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < rows; row += kThreads / 32) {
    const T* source = tables + row * row_stride;
    T* target = to + (first + row) * (J * kNumbers);
    for (int i = lane; i < J * kNumbers; i += 32) target[i] = source[i / kNumbers * stride + i % kNumbers];
  }
}
template <class T>
__device__ __forceinline__ void fill_joints(T* tables, int row_stride, int rows, int numbers) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < rows; row += kThreads / 32)
    for (int i = lane; i < numbers; i += 32) tables[row * row_stride + i] = T(0);
}

__device__ __forceinline__ void load_parents(int* parents, const Tree& tree) {
  for (int j = threadIdx.x; j < tree.J; j += kThreads) parents[j] = tree.parents[j];
}
__device__ __forceinline__ int rows_of_block(int64_t count, int64_t first, int poses) {
  return count - first < poses ? static_cast<int>(count - first) : poses;
}

template <class Kind, class T>
__device__ __forceinline__ RootPose<Kind, T> given_root(const PoseInputs<T>& in, int64_t pose) {
  return in.root.data == nullptr ? identity_root<Kind, T>() : load_root<Kind>(in.root.at(pose));
}

template <class Kind, class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>)
    pose_kernel(const __grid_constant__ PoseInputs<T> in, int output, int poses, PoseOutputs<T> out) {
  MGRPO_DYN_SMEM(T, tables);
  __shared__ int parents[kMostJoints];
  const int J = in.tree.J;
  const PoseSpace space = forward_space(J, Kind::kIn, Kind::kState, output);
  const int row = space.row(), stride = space.local;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * poses;
  const int rows = rows_of_block(in.rotations.count(), first, poses);
  load_parents(parents, in.tree);
  load_joints<Kind::kIn>(tables, row, stride, in.rotations, first, rows, J);
  __syncthreads();
  T* const positions = tables + J * stride;
  if (const int thread = threadIdx.x; thread < rows) {
    const int64_t pose = first + thread;
    const Table<T> world = {tables + thread * row, stride};
    const Table<const T> local = {world.at, stride};
    const T* const offsets = in.offsets.at(pose);
    RootPose<Kind, T> root = given_root<Kind>(in, pose);
    if (in.t_head_cpf.data != nullptr) {
      const Vec3<T> t_head_cpf = load_vec3(in.t_head_cpf.at(pose));
      root = root_under_cpf(root, cpf_from_root<Kind>(parents, in.head, local, offsets, t_head_cpf));
      store_quat(out.root + kRootNumbers * pose, as_quat(root.R));
      store_vec3(out.root + kRootNumbers * pose + 4, root.t);
    }
    pose_tree(parents, J, root, local, offsets, world, positions + thread * row);
    if (output != kToPositions && numbers_out(output) != Kind::kState) {
      for (int j = 0; j < J; ++j) {
        auto R = root.R;
        load_state(local[j], R);
        if (output == kToMatrices)
          store_mat3(world[j], as_matrix(R));
        else
          store_quat(world[j], as_quat(R));
      }
    }
  }
  __syncthreads();
  store_joints<3>(out.joints, positions, row, 3, first, rows, J);
  if (output == kToMatrices) store_joints<9>(out.world, tables, row, stride, first, rows, J);
  if (output == kToQuaternions) store_joints<4>(out.world, tables, row, stride, first, rows, J);
}

template <class Kind, class T>
__device__ __forceinline__ RootGradient<Kind, T> joint_gradients(
    int output, const int* parents, int J, const RootPose<Kind, T>& root, Table<const T> local, const T* offsets,
    Table<const T> world, T* forces, Table<T> grads) {
  if constexpr (Kind::kGeneral)
    return tree_gradient<Kind>(output, parents, J, root, local, offsets, world, forces, grads);
  else
    return tree_torques<Kind>(output, parents, J, root, offsets, world, forces, grads);
}

template <class Kind, class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor<T>) pose_backward_kernel(
    const __grid_constant__ PoseInputs<T> in, const __grid_constant__ PoseOutputGradients<T> given, int output, int poses,
    PoseInputGradients<T> out) {
  MGRPO_DYN_SMEM(T, tables);
  __shared__ int parents[kMostJoints];
  const int J = in.tree.J;
  const PoseSpace space = backward_space(J, Kind::kIn, Kind::kState, Kind::kGeneral, output);
  const int row = space.row(), stride = space.grads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * poses;
  const int rows = rows_of_block(in.rotations.count(), first, poses);
  T* const world_tables = tables + J * Kind::kIn;
  T* const force_tables = world_tables + J * Kind::kState;
  T* const grad_tables = force_tables + 3 * J;
  load_parents(parents, in.tree);
  load_joints<Kind::kIn>(tables, row, Kind::kIn, in.rotations, first, rows, J);
  if (given.joints.data != nullptr)
    load_joints<3>(force_tables, row, 3, given.joints, first, rows, J);
  else
    fill_joints(force_tables, row, rows, 3 * J);
  if (output == kToMatrices) load_joints<9>(grad_tables, row, stride, given.world, first, rows, J);
  if (output == kToQuaternions) load_joints<4>(grad_tables, row, stride, given.world, first, rows, J);
  __syncthreads();
  if (const int thread = threadIdx.x; thread < rows) {
    const int64_t pose = first + thread;
    const int own = thread * row;
    const Table<const T> local = {tables + own, Kind::kIn}, world = {world_tables + own, Kind::kState};
    const Table<T> grads = {grad_tables + own, stride};
    T* const forces = force_tables + own;
    const T* const offsets = in.offsets.at(pose);
    const RootPose<Kind, T> placed = given_root<Kind>(in, pose);
    RootPose<Kind, T> root = placed;
    Vec3<T> t_head_cpf = {T(0), T(0), T(0)};
    if (in.t_head_cpf.data != nullptr) {
      t_head_cpf = load_vec3(in.t_head_cpf.at(pose));
      root = root_under_cpf(placed, cpf_from_root<Kind>(parents, in.head, local, offsets, t_head_cpf));
    }
    turn_tree(parents, J, root, local, Table<T>{world_tables + own, Kind::kState});
    RootGradient<Kind, T> root_grad = joint_gradients(output, parents, J, root, local, offsets, world, forces, grads);
    if (in.t_head_cpf.data != nullptr) {
      if (given.root.data != nullptr) add_root_pose_gradient(root, given.root.at(pose), root_grad);
      const CpfGradient<Kind, T> cpf_grad =
          cpf_gradient(parents, in.head, placed, root, root_grad, local, offsets, t_head_cpf, world, forces, grads);
      root_grad = cpf_grad.pose;
      if (out.t_head_cpf != nullptr) store_vec3(out.t_head_cpf + 3 * pose, cpf_grad.t_head_cpf);
    }
    if (out.root != nullptr) store_root_gradient(in.root.at(pose), root_grad, out.root + kRootNumbers * pose);
    if constexpr (!Kind::kGeneral) {
      if (out.rotations != nullptr)
        for (int j = 0; j < J; ++j) Kind::pull_back(tables + own + Kind::kIn * j, load_vec3(grads[j]));
    }
  }
  __syncthreads();
  if (out.offsets != nullptr) store_joints<3>(out.offsets, force_tables, row, 3, first, rows, J);
  if (out.rotations != nullptr)
    store_joints<Kind::kIn>(out.rotations, Kind::kGeneral ? grad_tables : tables, row,
                            Kind::kGeneral ? stride : Kind::kIn, first, rows, J);
}

template <class T>
__global__ void __launch_bounds__(kThreads) joint_offsets_kernel(const T* __restrict__ mean, const T* __restrict__ directions,
                                                                 int K, const __grid_constant__ RowView<T> betas,
                                                                 T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= betas.count() * K) return;
  const int k = static_cast<int>(i % K), S = static_cast<int>(betas.row_size());
  const T* const beta = betas.at(i / K);
  T sum = 0;
  for (int s = 0; s < S; ++s) sum += directions[k * S + s] * beta[s];
  out[i] = mean[k] + sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) joint_offsets_backward_kernel(const T* __restrict__ directions, int S,
                                                                          const __grid_constant__ RowView<T> grad,
                                                                          T* __restrict__ out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= grad.count() * S) return;
  const int s = static_cast<int>(i % S), K = static_cast<int>(grad.row_size());
  const T* const row = grad.at(i / S);
  T sum = 0;
  for (int k = 0; k < K; ++k) sum += directions[k * S + s] * row[k];
  out[i] = sum;
}

unsigned blocks(int64_t count, int64_t per_block) { return static_cast<unsigned>((count + per_block - 1) / per_block); }

template <class Kind, class T>
cudaError_t launch_kind(int output, const PoseInputs<T>& in, const PoseOutputs<T>& out, cudaStream_t stream) {
  const PoseSpace space = forward_space(in.tree.J, Kind::kIn, Kind::kState, output);
  const int poses = poses_per_block(space, sizeof(T));
  const size_t bytes = poses * space.row() * sizeof(T);
  const cudaError_t allowed = allow_dynamic_shared(pose_kernel<Kind, T>, bytes);
  if (allowed != cudaSuccess) return allowed;
  MGRPO_LAUNCH((pose_kernel<Kind, T>), blocks(in.rotations.count(), poses), kThreads, bytes, stream)(in, output, poses, out);
  return cudaGetLastError();
}

template <class Kind, class T>
cudaError_t launch_kind_backward(int output, const PoseInputs<T>& in, const PoseOutputGradients<T>& given,
                                 const PoseInputGradients<T>& out, cudaStream_t stream) {
  const int read = given.world.data == nullptr ? static_cast<int>(kToPositions) : output;
  const PoseSpace space = backward_space(in.tree.J, Kind::kIn, Kind::kState, Kind::kGeneral, read);
  const int poses = poses_per_block(space, sizeof(T));
  const size_t bytes = poses * space.row() * sizeof(T);
  const cudaError_t allowed = allow_dynamic_shared(pose_backward_kernel<Kind, T>, bytes);
  if (allowed != cudaSuccess) return allowed;
  MGRPO_LAUNCH((pose_backward_kernel<Kind, T>), blocks(in.rotations.count(), poses), kThreads, bytes, stream)
  (in, given, read, poses, out);
  return cudaGetLastError();
}

}  // namespace

template <class T>
cudaError_t launch_pose(int representation, int output, const PoseInputs<T>& in, const PoseOutputs<T>& out,
                        cudaStream_t stream) {
  if (representation == kFromMatrices) return launch_kind<MatrixKind>(output, in, out, stream);
  if (representation == kFromQuaternions) return launch_kind<QuaternionKind>(output, in, out, stream);
  return launch_kind<Rot6dKind>(output, in, out, stream);
}

template <class T>
cudaError_t launch_pose_backward(int representation, int output, const PoseInputs<T>& in,
                                 const PoseOutputGradients<T>& given, const PoseInputGradients<T>& out,
                                 cudaStream_t stream) {
  if (representation == kFromMatrices) return launch_kind_backward<MatrixKind>(output, in, given, out, stream);
  if (representation == kFromQuaternions) return launch_kind_backward<QuaternionKind>(output, in, given, out, stream);
  return launch_kind_backward<Rot6dKind>(output, in, given, out, stream);
}

template <class T>
cudaError_t launch_joint_offsets(const T* mean, const T* directions, int K, const RowView<T>& betas, T* out,
                                 cudaStream_t stream) {
  MGRPO_LAUNCH(joint_offsets_kernel<T>, blocks(betas.count() * K, kThreads), kThreads, 0, stream)
  (mean, directions, K, betas, out);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_joint_offsets_backward(const T* directions, int S, const RowView<T>& grad, T* out, cudaStream_t stream) {
  MGRPO_LAUNCH(joint_offsets_backward_kernel<T>, blocks(grad.count() * S, kThreads), kThreads, 0, stream)
  (directions, S, grad, out);
  return cudaGetLastError();
}

#define MGRPO_KINEMATICS_OF(T)                                                                                        \
  template cudaError_t launch_pose(int, int, const PoseInputs<T>&, const PoseOutputs<T>&, cudaStream_t);              \
  template cudaError_t launch_pose_backward(int, int, const PoseInputs<T>&, const PoseOutputGradients<T>&,            \
                                            const PoseInputGradients<T>&, cudaStream_t);                              \
  template cudaError_t launch_joint_offsets(const T*, const T*, int, const RowView<T>&, T*, cudaStream_t);            \
  template cudaError_t launch_joint_offsets_backward(const T*, int, const RowView<T>&, T*, cudaStream_t)
MGRPO_KINEMATICS_OF(float);
MGRPO_KINEMATICS_OF(double);

}  // namespace mgrpo
