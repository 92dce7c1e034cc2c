// A block scores one sequence, one thread per frame; frames come in tiles of as many as the block has threads.
//
// Rows of a frame live in shared memory, each thread's at an odd distance from the next: the joints, and beside them
// first what posing needs (a few joints' rotations at a time, and the rotations that others hang from), then the recorded
// joints. So three blocks fit on a processor. Differences over time reach into the rows of neighbouring threads; the last
// three frames of a tile are kept for the next. Sums over frames are made in a fixed order, without atomics.
#include "../common/cuda_tile.h"
#include "rewards_cuda.h"
#include "rewards_math.h"

namespace mgrpo {
namespace {

constexpr int kWarp = 32;
constexpr int kBefore = 3;        // frames that the longest difference reaches back
constexpr int kChunk = 2;         // joints whose rotations are in shared memory at a time
constexpr int kShapeNumbers = kMostShapeNumbersCuda;
constexpr size_t kMostShared = 99u << 10;  // what every GPU since sm_80 allows a block
constexpr int kTotals = kRewardKinds + 4;  // sums of the kinds, the recording's jerk, counts of frames, pairs, quadruples
constexpr int kRecordedJerk = kRewardKinds, kOnes = kRewardKinds + 1, kPairs = kRewardKinds + 2, kFours = kRewardKinds + 3;

template <class T>
constexpr bool kSpills = sizeof(T) == sizeof(double);

// Numbers that a vector load brings at once.
template <class T>
struct alignas(16) Quad {
  T v[4];
};

MGRPO_HD int64_t odd(int64_t size) { return size | 1; }
MGRPO_HD int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Where the forward kernel's shared memory has what, in numbers, for a block of n threads. `spill`: doubles need all
// registers for the projection and the alignment, so each thread's sums and betas are there too.
struct ForwardLayout {
  int64_t points, region, shape, totals, sums, betas, size;

  MGRPO_HD ForwardLayout(const RewardOptions& options, int n, bool spill) {
    const int64_t joint_row = odd(3 * options.joints);
    // While a body is posed: turns, a chunk of predicted and one of recorded rotations, or betas, or the pose of the eyes.
    const int64_t turn_row = options.posed ? odd(9 * options.turn_slots) : 0;
    int64_t region_row = turn_row + 2 * odd(9 * kChunk);
    if (region_row < turn_row + odd(options.shape_numbers)) region_row = turn_row + odd(options.shape_numbers);
    const int64_t recorded = (n + kBefore) * joint_row, posing = kBefore * joint_row + n * region_row;
    shape = 0;
    points = options.posed ? round_up((3 * options.rotations + 3) * (kShapeNumbers + 4), 4) : 0;
    region = points + (n + kBefore) * joint_row;
    totals = region + (recorded > posing ? recorded : posing);
    sums = totals + (n / kWarp) * kTotals;
    betas = sums + (spill ? n * odd(kTotals) : 0);
    size = betas + (spill ? n * odd(kShapeNumbers) : 0);
  }
};

// Numbers first .. first + count - 1 of `rows` rows to a tile, count known when compiling where it matters.
template <class T>
__device__ __forceinline__ void stage(T* tile, int64_t stride, const RowView<T>& from, int64_t row, int rows, int first,
                                      int count) {
  for (int i = threadIdx.x; i < rows * count; i += blockDim.x) {
    const int r = i / count, c = i - r * count;
    tile[r * stride + c] = from.at(row + r)[first + c];
  }
}
template <int kCount, class T>
__device__ __forceinline__ void stage(T* tile, int64_t stride, const RowView<T>& from, int64_t row, int rows,
                                      int first) {
  for (int i = threadIdx.x; i < rows * kCount; i += blockDim.x)
    tile[i / kCount * stride + i % kCount] = from.at(row + i / kCount)[first + i % kCount];
}
template <class T>
__device__ __forceinline__ void unstage(T* to, const T* tile, int64_t stride, int64_t row, int rows, int count) {
  T* target = to + row * count;
  for (int i = threadIdx.x; i < rows * count; i += blockDim.x) target[i] = tile[i / count * stride + i % count];
}

// The skeleton's offsets as rows of (constant, -, -, -, 16 directions) for vector loads.
template <class T>
__device__ __forceinline__ void stage_skeleton(const RewardOptions& options, const RewardViews<T>& views, T* shape) {
  const int S = options.shape_numbers, entries = 3 * options.rotations + 3, split = 3 * options.rotations;
  for (int i = threadIdx.x; i < entries * (kShapeNumbers + 4); i += blockDim.x) {
    const int entry = i / (kShapeNumbers + 4), s = i % (kShapeNumbers + 4) - 4;
    const bool eyes = entry >= split;
    T value = T(0);
    if (s == -4) value = eyes ? views.t_head_cpf[entry - split] : views.t_parent_joint[entry];
    if (s >= 0 && s < S)
      value = eyes ? views.t_head_cpf_shapedirs[(entry - split) * S + s] : views.t_parent_joint_shapedirs[entry * S + s];
    shape[i] = value;
  }
}
// Three entries of it for one body.
template <class T>
__device__ __forceinline__ Vec3<T> shaped(const T* shape, int entry, int S, const T* betas) {
  T result[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const Quad<T>* row = reinterpret_cast<const Quad<T>*>(shape + (entry + axis) * (kShapeNumbers + 4));
    T sum = row[0].v[0];
    if (S > 0) {
#pragma unroll
      for (int q = 0; q < kShapeNumbers / 4; ++q) {
        const Quad<T> d = row[1 + q];
#pragma unroll
        for (int k = 0; k < 4; ++k) sum += d.v[k] * betas[4 * q + k];
      }
    }
    result[axis] = sum;
  }
  return {result[0], result[1], result[2]};
}
template <class T>
__device__ __forceinline__ void own_betas(const RewardOptions& options, const T* row, T* betas) {
#pragma unroll
  for (int s = 0; s < kShapeNumbers; ++s) betas[s] = s < options.shape_numbers ? row[s] : T(0);
}

// Which of the frames t, t - 1, ... of a sequence count.
struct FrameMask {
  const uint8_t* mask;
  int64_t frames;
  __device__ __forceinline__ bool one(int64_t t) const { return t >= 0 && t < frames && mask[t] != 0; }
  __device__ __forceinline__ bool pair(int64_t t) const { return one(t) && one(t - 1); }
  __device__ __forceinline__ bool four(int64_t t) const { return pair(t) && pair(t - 2); }
};

// The sum over all threads of each of `count` values, in the same order whatever runs first; in totals[0 .. count - 1].
template <class T>
__device__ __forceinline__ void sum_over_block(const T* values, int count, T* totals) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
  for (int k = 0; k < kTotals; ++k) {
    if (k >= count) break;
    T value = values[k];
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
    if (lane == 0) totals[warp * kTotals + k] = value;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count)
    for (int w = 1; w < warps; ++w) totals[threadIdx.x] += totals[w * kTotals + threadIdx.x];
  __syncthreads();
}

template <class T>
__device__ __forceinline__ T size_of_third_differences(int N, const T* now, int64_t row) {
  T sum = T(0);
  for (int i = 0; i < 3 * N; i += 3)
    sum += length(third_difference(load_vec3(now + i - 3 * row), load_vec3(now + i - 2 * row), load_vec3(now + i - row),
                                   load_vec3(now + i)));
  return sum;
}

// Poses the bodies of a tile: joints to `own` (this thread's row), the rotations' error as result.
template <class T, int kNumbers>
__device__ __forceinline__ T pose_tile(const RewardOptions& options, const RewardViews<T>& views, int64_t frame,
                                       int64_t recorded, int rows, const T* shape, T* kept, T* own, T* region) {
  const int n = blockDim.x, thread = threadIdx.x, J = options.rotations, S = options.shape_numbers;
  const bool bodies = options.posed && options.joints > 0, compared = options.wanted[kRotation];
  const int64_t turn_row = options.posed ? odd(9 * options.turn_slots) : 0;
  const int64_t chunk_row = odd(9 * kChunk);
  T* turns = region + thread * turn_row;
  T* staged = region + n * turn_row;
  T* compare = staged + n * chunk_row;
  T registers[kShapeNumbers];
  T* betas = kSpills<T> ? kept : registers;
  if (bodies && S > 0) {
    stage(staged, odd(S), views.betas, frame, rows, 0, S);
    __syncthreads();
    own_betas(options, staged + thread * odd(S), betas);
    __syncthreads();
  }
  if (bodies) store_vec3(own, zero_vec3<T>());
  T difference = T(0);
  for (int chunk = 0; chunk < J; chunk += kChunk) {
    const int joints = J - chunk < kChunk ? J - chunk : kChunk;
    if (joints == kChunk) {
      stage<kNumbers * kChunk>(staged, chunk_row, views.rotations, frame, rows, kNumbers * chunk);
      if (compared) stage<9 * kChunk>(compare, chunk_row, views.target_rotmats, recorded, rows, 9 * chunk);
    } else {
      stage(staged, chunk_row, views.rotations, frame, rows, kNumbers * chunk, kNumbers * joints);
      if (compared) stage(compare, chunk_row, views.target_rotmats, recorded, rows, 9 * chunk, 9 * joints);
    }
    __syncthreads();
    if (thread < rows)
      for (int k = 0; k < joints; ++k) {
        const int j = chunk + k;
        const Mat3<T> R =
            decode_rotation(options.representation, options.project, staged + thread * chunk_row + kNumbers * k);
        if (compared) {
          T target[9];
          prepare_target(options.rotation_error, compare + thread * chunk_row + 9 * k, target);
          difference += rotation_difference(options.rotation_error, R, target);
        }
        if (bodies) pose_joint(options, j, R, shaped(shape, 3 * j, S, betas), turns, own);
      }
    __syncthreads();
  }
  if (bodies) {
    stage<7>(staged, 7, views.cpf, recorded, rows, 0);
    __syncthreads();
    if (thread < rows) {
      const T* pose = staged + thread * 7;
      const Placement<T> place = place_pupils(options, turns, own, shaped(shape, 3 * J, S, betas),
                                              matrix_of_any_quat(pose), load_vec3(pose + 4));
      place_points(place, options.joints, own, own);
    }
    __syncthreads();
  }
  return difference;
}

template <class T>
__device__ __forceinline__ T pose_tile(const RewardOptions& options, const RewardViews<T>& views, int64_t frame,
                                       int64_t recorded, int rows, const T* shape, T* kept, T* own, T* region) {
  if (options.representation == kQuaternion)
    return pose_tile<T, 4>(options, views, frame, recorded, rows, shape, kept, own, region);
  if (options.representation == kRot6d)
    return pose_tile<T, 6>(options, views, frame, recorded, rows, shape, kept, own, region);
  return pose_tile<T, 9>(options, views, frame, recorded, rows, shape, kept, own, region);
}

// Carries the last frames of a full tile, in the rows after the first kBefore, to the front for the next tile.
template <class T>
__device__ __forceinline__ void carry(T* rows, int64_t row) {
  for (int i = threadIdx.x; i < kBefore * row; i += blockDim.x) rows[i] = rows[blockDim.x * row + i];
}

template <class T>
__global__ void __launch_bounds__(128, sizeof(T) == 4 ? 3 : 2)
    rewards_kernel(const __grid_constant__ RewardOptions options, const __grid_constant__ RewardViews<T> views,
                   T* __restrict__ errors, T* __restrict__ rewards, T* __restrict__ joints_out) {
  MGRPO_DYN_SMEM(T, memory);
  const int n = blockDim.x, thread = threadIdx.x, N = options.joints;
  const int64_t row = odd(3 * N), sequence = blockIdx.x, b = sequence / views.members;
  constexpr bool kSpill = kSpills<T>;
  const ForwardLayout layout(options, n, kSpill);
  T *points = memory + layout.points, *recorded = memory + layout.region;
  T *region = recorded + kBefore * row, *totals = memory + layout.totals;
  T *own = points + (kBefore + thread) * row, *own_recorded = recorded + (kBefore + thread) * row;
  if (options.posed) stage_skeleton(options, views, memory + layout.shape);
  for (int i = thread; i < kBefore * row; i += n) points[i] = recorded[i] = T(0);  // no frame is before the first
  __syncthreads();

  const FrameMask mask = {joints_out ? nullptr : views.mask.at(sequence), views.frames};
  T own_sums[kTotals];
  T* sums = kSpill ? memory + layout.sums + thread * odd(kTotals) : own_sums;
#pragma unroll
  for (int k = 0; k < kTotals; ++k) sums[k] = T(0);
  for (int64_t start = 0; start < views.frames; start += n) {
    const int rows = views.frames - start < n ? static_cast<int>(views.frames - start) : n;
    const int64_t frame = sequence * views.frames + start, target = b * views.frames + start;
    T turned = T(0);
    if (options.rotations > 0)
      turned = pose_tile(options, views, frame, target, rows, memory + layout.shape,
                         memory + layout.betas + thread * odd(kShapeNumbers), own, region);
    if (joints_out) {
      unstage(joints_out, points + kBefore * row, row, frame, rows, 3 * N);
      __syncthreads();
      continue;
    }
    if (N > 0) {
      if (!options.posed) stage(points + kBefore * row, row, views.joints, frame, rows, 0, 3 * N);
      stage(recorded + kBefore * row, row, views.target_joints, target, rows, 0, 3 * N);
      __syncthreads();
    }
    const int64_t t = start + thread;
    const T *x = own, *y = own_recorded;
    if (mask.one(t)) {
      sums[kOnes] += T(1);
      if (options.wanted[kPosition]) sums[kPosition] += sum_of_distances(N, x, y);
      if (options.wanted[kAlignedPosition]) sums[kAlignedPosition] += aligned_distance(options.alignment, N, x, y);
      if (options.wanted[kRotation]) sums[kRotation] += turned;
      if (options.wanted[kGroundPenetration]) sums[kGroundPenetration] += penetration(N, x);
      if (options.wanted[kHeadPosition])
        sums[kHeadPosition] += length(load_vec3(x + 3 * options.head) - load_vec3(y + 3 * options.head));
    }
    if (mask.pair(t)) {
      sums[kPairs] += T(1);
      if (options.wanted[kVelocity])
        for (int i = 0; i < 3 * N; i += 3)
          sums[kVelocity] += length((load_vec3(x + i) - load_vec3(y + i)) -
                                    (load_vec3(x - row + i) - load_vec3(y - row + i)));
      if (options.wanted[kFootSkate])
        for (int k = 0; k < options.foot_count; ++k) {
          const int i = 3 * options.feet[k];
          sums[kFootSkate] +=
              slide(load_vec3(x - row + i), load_vec3(x + i), static_cast<T>(1 / options.foot_heights[k]));
        }
    }
    if (mask.four(t)) {
      sums[kFours] += T(1);
      if (options.wanted[kJitter]) {
        sums[kJitter] += size_of_third_differences(N, x, row);
        sums[kRecordedJerk] += size_of_third_differences(N, y, row);
      }
    }
    __syncthreads();
    if (start + n < views.frames) {
      carry(points, row);
      carry(recorded, row);
      __syncthreads();
    }
  }
  if (joints_out) return;
  sum_over_block(sums, kTotals, totals);
  if (thread < options.kind_count) {
    const int kind = options.kinds[thread];
    const FrameCounts<T> counts = {totals[kOnes], totals[kPairs], totals[kFours]};
    const T error = error_of(options, kind, totals[kind], totals[kRecordedJerk], counts);
    const int64_t entry = sequence * options.kind_count + thread;
    errors[entry] = error;
    rewards[entry] = exp(-static_cast<T>(options.slopes[thread]) * error);
  }
}

// ---- gradient ----

// Rows of a tile and of three frames on either side, as far as the sequence has them; others are left as they are.
template <class T>
__device__ __forceinline__ void stage_around(T* tile, int64_t row, const RowView<T>& from, int64_t first, int64_t start,
                                             int64_t frames, int rows, int count) {
  const int64_t low = start < kBefore ? 0 : start - kBefore;
  const int64_t high = start + rows + kBefore < frames ? start + rows + kBefore : frames;
  stage(tile + (low - start + kBefore) * row, row, from, first + low, static_cast<int>(high - low), 0, count);
}

template <class T>
__device__ __forceinline__ Vec3<T> velocity_step(const T* x, const T* y, int64_t row) {
  return direction((load_vec3(x) - load_vec3(y)) - (load_vec3(x - row) - load_vec3(y - row)));
}

template <class T>
__global__ void __launch_bounds__(128)
    joint_gradients_kernel(const __grid_constant__ RewardOptions options, const __grid_constant__ RewardViews<T> views,
                           const T* __restrict__ grad_errors, const T* __restrict__ grad_rewards,
                           const T* __restrict__ rewards, T* __restrict__ grad_joints) {
  MGRPO_DYN_SMEM(T, memory);
  const int n = blockDim.x, thread = threadIdx.x, N = options.joints;
  const int64_t row = odd(3 * N), sequence = blockIdx.x, b = sequence / views.members;
  T *points = memory, *recorded = points + (n + 2 * kBefore) * row;
  T *grads = recorded + (n + 2 * kBefore) * row, *scratch = grads + n * row, *totals = scratch + n * row;
  const FrameMask mask = {views.mask.at(sequence), views.frames};
  const T *x = points + (kBefore + thread) * row, *y = recorded + (kBefore + thread) * row;
  T *grad = grads + thread * row, *own_scratch = scratch + thread * row;

  // What counts, and whether the prediction's jerk is above the recording's.
  T sums[kTotals];
#pragma unroll
  for (int k = 0; k < kTotals; ++k) sums[k] = T(0);
  for (int64_t start = 0; start < views.frames; start += n) {
    const int rows = views.frames - start < n ? static_cast<int>(views.frames - start) : n;
    const int64_t t = start + thread;
    sums[kOnes] += static_cast<T>(mask.one(t));
    sums[kPairs] += static_cast<T>(mask.pair(t));
    sums[kFours] += static_cast<T>(mask.four(t));
    if (options.wanted[kJitter]) {
      stage_around(points, row, views.joints, sequence * views.frames, start, views.frames, rows, 3 * N);
      stage_around(recorded, row, views.target_joints, b * views.frames, start, views.frames, rows, 3 * N);
      __syncthreads();
      if (mask.four(t)) {
        sums[kJitter] += size_of_third_differences(N, x, row);
        sums[kRecordedJerk] += size_of_third_differences(N, y, row);
      }
      __syncthreads();
    }
  }
  sum_over_block(sums, kTotals, totals);
  const FrameCounts<T> counts = {totals[kOnes], totals[kPairs], totals[kFours]};
  const T jerk_sign = sign_of_jitter(totals[kJitter], totals[kRecordedJerk]);
  __syncthreads();
  if (thread < kRewardKinds) totals[thread] = T(0);
  __syncthreads();
  if (thread < options.kind_count) {
    const int64_t entry = sequence * options.kind_count + thread;
    const int kind = options.kinds[thread];
    totals[kind] = strength_of(options, kind, static_cast<T>(options.slopes[thread]), grad_errors[entry],
                               grad_rewards[entry], rewards[entry], counts);
  }
  __syncthreads();

  for (int64_t start = 0; start < views.frames; start += n) {
    const int rows = views.frames - start < n ? static_cast<int>(views.frames - start) : n;
    const int64_t t = start + thread, frame = sequence * views.frames + start;
    stage_around(points, row, views.joints, sequence * views.frames, start, views.frames, rows, 3 * N);
    stage_around(recorded, row, views.target_joints, b * views.frames, start, views.frames, rows, 3 * N);
    __syncthreads();
    if (thread < rows) {
      for (int i = 0; i < 3 * N; ++i) grad[i] = T(0);
      if (mask.one(t)) {
        if (options.wanted[kPosition])
          for (int i = 0; i < 3 * N; i += 3) add_distance_gradient(x + i, y + i, totals[kPosition], grad + i);
        if (options.wanted[kAlignedPosition])
          add_aligned_gradient(options.alignment, N, x, y, totals[kAlignedPosition], own_scratch, grad);
        if (options.wanted[kGroundPenetration]) add_penetration_gradient(N, x, totals[kGroundPenetration], grad);
        if (options.wanted[kHeadPosition])
          add_distance_gradient(x + 3 * options.head, y + 3 * options.head, totals[kHeadPosition],
                                grad + 3 * options.head);
      }
      if (options.wanted[kVelocity]) {
        const bool arrives = mask.pair(t), leaves = mask.pair(t + 1);
        for (int i = 0; i < 3 * N; i += 3) {
          if (arrives) add_vec3(grad + i, totals[kVelocity] * velocity_step(x + i, y + i, row));
          if (leaves) add_vec3(grad + i, -totals[kVelocity] * velocity_step(x + row + i, y + row + i, row));
        }
      }
      if (options.wanted[kFootSkate]) {
        const bool arrives = mask.pair(t), leaves = mask.pair(t + 1);
        for (int k = 0; k < options.foot_count; ++k) {
          const int i = 3 * options.feet[k];
          const T inverse_height = static_cast<T>(1 / options.foot_heights[k]);
          if (arrives)
            add_vec3(grad + i, totals[kFootSkate] *
                                   slide_gradient(load_vec3(x - row + i), load_vec3(x + i), inverse_height));
          if (leaves) {
            const Vec3<T> g = slide_gradient(load_vec3(x + i), load_vec3(x + row + i), inverse_height);
            add_vec3(grad + i, -totals[kFootSkate] * Vec3<T>{g.x, g.y, T(0)});
          }
        }
      }
      if (options.wanted[kJitter]) {
        const T strength = jerk_sign * totals[kJitter];
        for (int last = 0; last <= kBefore; ++last) {  // this frame is the last of four, the third, ...
          if (!mask.four(t + last)) continue;
          const T weight = strength * T(last == 0 ? 1 : last == 1 ? -3 : last == 2 ? 3 : -1);
          for (int i = 0; i < 3 * N; i += 3) {
            const T* now = x + last * row + i;
            add_vec3(grad + i, weight * direction(third_difference(load_vec3(now - 3 * row), load_vec3(now - 2 * row),
                                                                   load_vec3(now - row), load_vec3(now))));
          }
        }
      }
    }
    __syncthreads();
    unstage(grad_joints, grads, row, frame, rows, 3 * N);
    __syncthreads();
  }
}

// Rows of the backward pass through the tree, one thread per frame.
struct TreeLayout {
  int64_t rotmats, turns, grad_turns, points, grads, offsets, grad_offsets, row;

  MGRPO_HD explicit TreeLayout(const RewardOptions& options) {
    const bool bodies = options.posed && options.joints > 0;
    const int64_t J = options.rotations, S = options.shape_numbers, slots = bodies ? options.turn_slots : 0;
    rotmats = 0;
    turns = rotmats + 9 * J;
    grad_turns = turns + 9 * slots;
    points = grad_turns + 9 * slots;
    grads = points + (bodies ? 3 * (J + 1) : 0);
    offsets = grads + (bodies ? 3 * (J + 1) : 0);
    grad_offsets = offsets + (bodies ? 3 * J + 3 : 0);
    const int64_t end = grad_offsets + (bodies ? 3 * J + 3 : 0);
    row = odd(end > points + S ? end : points + S);
  }
};

template <class T>
__global__ void __launch_bounds__(kWarp) rotation_gradients_kernel(
    const __grid_constant__ RewardOptions options, const __grid_constant__ RewardViews<T> views,
    const T* __restrict__ grad_errors, const T* __restrict__ grad_rewards, const T* __restrict__ rewards,
    const T* __restrict__ grad_joints, T* __restrict__ grad_rotations, T* __restrict__ grad_betas) {
  MGRPO_DYN_SMEM(T, memory);
  const int n = blockDim.x, thread = threadIdx.x, J = options.rotations, S = options.shape_numbers;
  const bool bodies = options.posed && options.joints > 0;
  const TreeLayout layout(options);
  const int numbers = numbers_per_rotation(options.representation);
  // Blocks go over the tiles of a sequence, then over sequences.
  const int64_t tiles = (views.frames + n - 1) / n, sequence = blockIdx.x / tiles, start = blockIdx.x % tiles * n;
  const int64_t b = sequence / views.members, frame = sequence * views.frames + start;
  const int rows = views.frames - start < n ? static_cast<int>(views.frames - start) : n;
  const FrameMask mask = {views.mask.at(sequence), views.frames};
  T* own = memory + thread * layout.row;
  const bool counted = thread < rows && mask.one(start + thread);

  stage(memory + layout.rotmats, layout.row, views.rotations, frame, rows, 0, numbers * J);
  if (bodies) {
    const RowView<T> grads = {grad_joints, {}};
    for (int i = thread; i < rows * 3 * (J + 1); i += n)
      memory[i / (3 * (J + 1)) * layout.row + layout.grads + i % (3 * (J + 1))] = grads.data[frame * 3 * (J + 1) + i];
  }
  __syncthreads();
  // From the last rotation to the first: a matrix takes more room than what it is decoded from.
  if (counted)
    for (int j = J - 1; j >= 0; --j)
      store_mat3(own + 9 * j, decode_rotation(options.representation, options.project, own + numbers * j));
  if (counted && bodies) {
    const T* betas = S > 0 ? views.betas.at(frame + thread) : nullptr;
    linear_in_shape(views.t_parent_joint, views.t_parent_joint_shapedirs, 3 * J, S, betas, own + layout.offsets);
    linear_in_shape(views.t_head_cpf, views.t_head_cpf_shapedirs, 3, S, betas, own + layout.offsets + 3 * J);
    pose_tree(options, own, own + layout.offsets, own + layout.turns, own + layout.points);
    const Vec3<T> eyes = tree_gradient(
        options, own, own + layout.offsets, own + layout.turns, own + layout.points,
        load_vec3(own + layout.offsets + 3 * J), matrix_of_any_quat(views.cpf.at(b * views.frames + start + thread)),
        own + layout.grads, own + layout.grad_turns, own + layout.grad_offsets);
    store_vec3(own + layout.grad_offsets + 3 * J, eyes);
  }
  __syncthreads();
  if (grad_betas) {
    if (thread < rows) {
      for (int s = 0; s < S; ++s) own[layout.points + s] = T(0);
      if (counted) {
        add_shape_gradient(views.t_parent_joint_shapedirs, 3 * J, S, own + layout.grad_offsets, own + layout.points);
        add_shape_gradient(views.t_head_cpf_shapedirs, 3, S, own + layout.grad_offsets + 3 * J, own + layout.points);
      }
    }
    __syncthreads();
    unstage(grad_betas, memory + layout.points, layout.row, frame, rows, S);
  }
  if (!grad_rotations) return;
  T strength = T(0);
  if (options.wanted[kRotation]) {
    T count = T(0);
    for (int64_t t = 0; t < views.frames; ++t) count += static_cast<T>(mask.one(t));
    for (int k = 0; k < options.kind_count; ++k) {
      const int64_t entry = sequence * options.kind_count + k;
      if (options.kinds[k] == kRotation)
        strength = strength_of(options, kRotation, static_cast<T>(options.slopes[k]), grad_errors[entry],
                               grad_rewards[entry], rewards[entry], {count, T(0), T(0)});
    }
  }
  if (thread < rows)
    for (int j = 0; j < J; ++j) {  // what was given takes no more room than the matrix, whose place it takes
      T* out = own + numbers * j;
      if (!counted) {
        for (int i = 0; i < numbers; ++i) out[i] = T(0);
        continue;
      }
      const Mat3<T> R = load_mat3(own + 9 * j);
      Mat3<T> grad = bodies ? rotation_gradient_of(options, j, own + layout.grad_turns) : zero3<T>();
      if (options.wanted[kRotation]) {
        T target[9];
        prepare_target(options.rotation_error,
                       views.target_rotmats.at(b * views.frames + start + thread) + 9 * j, target);
        grad = grad + rotation_difference_gradient(options.rotation_error, R, target, strength);
      }
      const T* given = views.rotations.at(frame + thread) + numbers * j;
      encode_gradient(options.representation, options.project, given, R, grad, out);
    }
  __syncthreads();
  unstage(grad_rotations, memory + layout.rotmats, layout.row, frame, rows, numbers * J);
}

// The most threads, in whole warps, whose rows fit into shared memory.
template <class Bytes>
int threads_for(int most, int64_t frames, const Bytes& bytes) {
  int threads = most;
  while (threads > kWarp && (bytes(threads) > kMostShared || threads / 2 >= frames)) threads /= 2;
  return threads;
}

}  // namespace

template <class T>
cudaError_t launch_rewards(const RewardOptions& options, const RewardViews<T>& views, T* errors, T* rewards, T* joints,
                           cudaStream_t stream) {
  const auto bytes = [&](int n) {
    return static_cast<size_t>(ForwardLayout(options, n, kSpills<T>).size) * sizeof(T);
  };
  const int threads = threads_for(128, views.frames, bytes);
  const cudaError_t error = allow_dynamic_shared(rewards_kernel<T>, bytes(threads));
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(rewards_kernel<T>, static_cast<unsigned>(views.sequences), threads, bytes(threads), stream)
  (options, views, errors, rewards, joints);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_joint_gradients(const RewardOptions& options, const RewardViews<T>& views, const T* grad_errors,
                                   const T* grad_rewards, const T* rewards, T* grad_joints, cudaStream_t stream) {
  const auto bytes = [&](int n) {
    return static_cast<size_t>((4 * n + 4 * kBefore) * odd(3 * options.joints) + n / kWarp * kTotals) * sizeof(T);
  };
  const int threads = threads_for(128, views.frames, bytes);
  const cudaError_t error = allow_dynamic_shared(joint_gradients_kernel<T>, bytes(threads));
  if (error != cudaSuccess) return error;
  MGRPO_LAUNCH(joint_gradients_kernel<T>, static_cast<unsigned>(views.sequences), threads, bytes(threads), stream)
  (options, views, grad_errors, grad_rewards, rewards, grad_joints);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_rotation_gradients(const RewardOptions& options, const RewardViews<T>& views, const T* grad_errors,
                                      const T* grad_rewards, const T* rewards, const T* grad_joints, T* grad_rotations,
                                      T* grad_betas, cudaStream_t stream) {
  const size_t row = static_cast<size_t>(TreeLayout(options).row) * sizeof(T);
  int threads = kWarp;
  while (threads > 1 && threads * row > kMostShared) threads /= 2;  // a part of a warp, where frames are large
  const cudaError_t error = allow_dynamic_shared(rotation_gradients_kernel<T>, threads * row);
  if (error != cudaSuccess) return error;
  const int64_t blocks = views.sequences * ((views.frames + threads - 1) / threads);
  MGRPO_LAUNCH(rotation_gradients_kernel<T>, static_cast<unsigned>(blocks), threads, threads * row, stream)
  (options, views, grad_errors, grad_rewards, rewards, grad_joints, grad_rotations, grad_betas);
  return cudaGetLastError();
}

#define MGRPO_INSTANTIATE(T)                                                                                           \
  template cudaError_t launch_rewards(const RewardOptions&, const RewardViews<T>&, T*, T*, T*, cudaStream_t);          \
  template cudaError_t launch_joint_gradients(const RewardOptions&, const RewardViews<T>&, const T*, const T*,         \
                                              const T*, T*, cudaStream_t);                                             \
  template cudaError_t launch_rotation_gradients(const RewardOptions&, const RewardViews<T>&, const T*, const T*,      \
                                                 const T*, const T*, T*, T*, cudaStream_t);
MGRPO_INSTANTIATE(float)
MGRPO_INSTANTIATE(double)
#undef MGRPO_INSTANTIATE

}  // namespace mgrpo
