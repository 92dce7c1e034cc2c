// Loops over sequences, 16 (8, 4) frames of one sequence in the lanes of a vector; compiled once per instruction set
// (common/for_each_isa.h). One sequence is scored from start to end by one thread, so neither the batch nor the number
// of threads has an influence on it. What belongs to a recording is prepared once for its group.
#include "../common/angles.h"
#include "../common/unit_rotations.h"
#include "../procrustes/procrustes_math.h"
#include "rewards_math.h"

namespace MGRPO_NAMESPACE {

// Numbers offset, offset + 1, ... of the lanes of a followed by those of b.
template <class T>
MGRPO_HD Pack<T> joined(Pack<T> a, Pack<T> b, int offset) {
  typename Lane<T>::Integers index;
  for (int lane = 0; lane < Pack<T>::kLanes; ++lane) index[lane] = offset + lane;
  return Pack<T>(__builtin_shuffle(a.v, b.v, index));
}
// Per lane the value `frames` frames earlier; `before` is the preceding block.
template <int frames, class T>
MGRPO_HD Pack<T> earlier(Pack<T> before, Pack<T> now) {
  return joined(before, now, Pack<T>::kLanes - frames);
}
template <int frames, class T>
MGRPO_HD Pack<T> later(Pack<T> now, Pack<T> after) {
  return joined(now, after, frames);
}
template <int frames, class T>
MGRPO_HD Vec3<Pack<T>> earlier(const Pack<T>* before, const Pack<T>* now) {
  return {earlier<frames>(before[0], now[0]), earlier<frames>(before[1], now[1]), earlier<frames>(before[2], now[2])};
}

// Takes pieces of one allocation in turn, or only counts them.
template <class T>
struct Pieces {
  Pack<T>* memory;
  int64_t used = 0;
  MGRPO_HD Pack<T>* take(int64_t count) {
    used += count;
    return memory == nullptr ? nullptr : memory + (used - count);
  }
};

// The memory of one thread. Arrays of blocks hold one entry per block of frames.
template <class T>
struct Workspace {
  Pack<T>*target_joints, *target_rotations, *cpf;  // of the group: blocks of 3 N, of 9 or 3 J, of 12
  Pack<T>*one, *pair, *four;                       // which frames, pairs, quadruples (by their last frame) count
  Pack<T>*raw, *betas, *rotmats, *offsets, *turns, *points;  // of one block of frames
  Pack<T>*joints, *before;                                   // joints of this block and of the one before
  // For the gradient: of all blocks.
  Pack<T>*all_joints, *all_rotmats, *all_raw, *grad_joints, *steps;
  Pack<T>*grad_turns, *grad_offsets, *grad_numbers;
  int64_t blocks;

  MGRPO_HD Workspace(const RewardOptions& options, int64_t frames, bool backward, Pack<T>* memory) {
    Pieces<T> s;
    s.memory = memory;
    const int64_t N3 = 3 * options.joints, J9 = 9 * options.rotations, S = options.shape_numbers;
    blocks = (frames + Pack<T>::kLanes - 1) / Pack<T>::kLanes;
    target_joints = s.take(blocks * N3);
    target_rotations = s.take(blocks * J9);
    cpf = s.take(blocks * 12);
    one = s.take(blocks);
    pair = s.take(blocks);
    four = s.take(blocks);
    raw = s.take(J9);
    betas = s.take(S);
    rotmats = s.take(J9);
    offsets = s.take(J9 / 3 + 3);
    turns = s.take(9 * options.turn_slots);
    points = s.take(N3);
    joints = s.take(N3);
    before = s.take(N3);
    const int64_t all = backward ? blocks : 0;
    all_joints = s.take(all * N3);
    all_rotmats = s.take(all * J9);
    all_raw = s.take(all * J9);
    grad_joints = s.take(all * N3);
    steps = s.take(3 * (all + 1));
    grad_turns = s.take(9 * options.turn_slots);
    grad_offsets = s.take(J9 / 3 + 3);
    grad_numbers = s.take(J9 > S ? J9 : S);
    size = s.used;
  }
  int64_t size;
};

template <class T>
int64_t workspace_bytes(const RewardOptions& options, int64_t frames, bool backward) {
  return Workspace<T>(options, frames, backward, nullptr).size * static_cast<int64_t>(sizeof(Pack<T>));
}

// ---- compiled once, not wherever they are used ----

template <class T>
MGRPO_CALLED Pack<T> aligned_block(int alignment, int N, const Pack<T>* x, const Pack<T>* y) {
  return aligned_distance(alignment, N, x, y);
}
template <class T>
MGRPO_CALLED void aligned_block_gradient(int alignment, int N, const Pack<T>* x, const Pack<T>* y,
                                                      Pack<T> strength, Pack<T>* scratch, Pack<T>* grad) {
  add_aligned_gradient(alignment, N, x, y, strength, scratch, grad);
}
template <class T>
MGRPO_CALLED void decode_block(const RewardOptions& options, const Pack<T>* raw, Pack<T>* rotmats) {
  const int size = numbers_per_rotation(options.representation);
  for (int j = 0; j < options.rotations; ++j)
    store_mat3(rotmats + 9 * j, decode_rotation(options.representation, options.project, raw + size * j));
}
template <class T>
MGRPO_CALLED Pack<T> rotation_block(const RewardOptions& options, const Pack<T>* rotmats,
                                                 const Pack<T>* target) {
  const int size = target_numbers(options.rotation_error);
  Pack<T> sum = Pack<T>(T(0));
  for (int j = 0; j < options.rotations; ++j)
    sum += rotation_difference(options.rotation_error, load_mat3(rotmats + 9 * j), target + size * j);
  return sum;
}
template <class T>
MGRPO_CALLED void shape_block(const RewardOptions& options, const RewardRows<T>& rows,
                                           const Pack<T>* betas, Pack<T>* offsets) {
  const int J3 = 3 * options.rotations, S = options.shape_numbers;
  linear_in_shape(rows.t_parent_joint, rows.t_parent_joint_shapedirs, J3, S, betas, offsets);
  linear_in_shape(rows.t_head_cpf, rows.t_head_cpf_shapedirs, 3, S, betas, offsets + J3);
}
template <class T>
MGRPO_CALLED void pose_block(const RewardOptions& options, const Pack<T>* rotmats, const Pack<T>* offsets,
                                          const Pack<T>* cpf, Pack<T>* turns, Pack<T>* points, Pack<T>* joints) {
  pose_tree(options, rotmats, offsets, turns, points);
  const Vec3<Pack<T>> t_head_cpf = load_vec3(offsets + 3 * options.rotations);
  const Placement<Pack<T>> place =
      place_pupils(options, turns, points, t_head_cpf, load_mat3(cpf), load_vec3(cpf + 9));
  place_points(place, options.joints, points, joints);
}

// ---- what a group shares ----

template <class T>
MGRPO_HD int valid_lanes(int64_t frames, int64_t block) {
  const int64_t left = frames - block * Pack<T>::kLanes;
  return static_cast<int>(left < Pack<T>::kLanes ? left : Pack<T>::kLanes);
}

template <class T>
void prepare_group(const RewardOptions& options, const RewardRows<T>& rows, int64_t b, const Workspace<T>& w) {
  const int N3 = 3 * options.joints, J = options.rotations, size = target_numbers(options.rotation_error);
  for (int64_t block = 0; block < w.blocks; ++block) {
    const int64_t first = b * rows.frames + block * Pack<T>::kLanes;
    const int valid = valid_lanes<T>(rows.frames, block);
    if (options.joints > 0)
      load_rows(block_rows<T>(*rows.target_joints, first, valid), N3, w.target_joints + block * N3);
    if (options.wanted[kRotation]) {
      load_rows(block_rows<T>(*rows.target_rotmats, first, valid), 9 * J, w.raw);
      for (int j = 0; j < J; ++j)
        prepare_target(options.rotation_error, w.raw + 9 * j, w.target_rotations + (block * J + j) * size);
    }
    if (options.posed && options.joints > 0) {
      Pack<T> pose[7];
      load_rows(block_rows<T>(*rows.cpf, first, valid), 7, pose);
      store_mat3(w.cpf + 12 * block, matrix_of_any_quat(pose));
      store_vec3(w.cpf + 12 * block + 9, load_vec3(pose + 4));
    }
  }
}

// Which frames count, alone and with those before them; and how many.
template <class T>
FrameCounts<T> prepare_mask(const uint8_t* mask, int64_t frames, const Workspace<T>& w) {
  FrameCounts<T> counts = {T(0), T(0), T(0)};
  for (int64_t block = 0; block < w.blocks; ++block) {
    T one[Pack<T>::kLanes], pair[Pack<T>::kLanes], four[Pack<T>::kLanes];
    for (int lane = 0; lane < Pack<T>::kLanes; ++lane) {
      const int64_t t = block * Pack<T>::kLanes + lane;
      const bool here = t < frames && mask[t];
      const bool two = here && t >= 1 && mask[t - 1];
      const bool all = two && t >= 3 && mask[t - 2] && mask[t - 3];
      one[lane] = static_cast<T>(here);
      pair[lane] = static_cast<T>(two);
      four[lane] = static_cast<T>(all);
      counts.one += one[lane];
      counts.pair += pair[lane];
      counts.four += four[lane];
    }
    w.one[block] = load_pack(one);
    w.pair[block] = load_pack(pair);
    w.four[block] = load_pack(four);
  }
  return counts;
}

template <class T>
MGRPO_HD Pack<T> where(Pack<T> counted, Pack<T> value) {
  return select(counted > Pack<T>(T(0)), value, Pack<T>(T(0)));
}
template <class T>
MGRPO_HD Pack<T> third_differences(int N, const Pack<T>* before, const Pack<T>* now) {
  Pack<T> sum = Pack<T>(T(0));
  for (int i = 0; i < 3 * N; i += 3)
    sum += length(third_difference(earlier<3>(before + i, now + i), earlier<2>(before + i, now + i),
                                   earlier<1>(before + i, now + i), load_vec3(now + i)));
  return sum;
}
// Sum of the sizes of a path's third differences over the frames that count; `joints` of all blocks.
template <class T>
MGRPO_CALLED T sum_of_third_differences(int N, const Pack<T>* joints, const Workspace<T>& w) {
  Pack<T> sum = Pack<T>(T(0));
  for (int64_t block = 0; block < w.blocks; ++block) {
    const Pack<T>* now = joints + 3 * N * block;
    sum += where(w.four[block], third_differences(N, block > 0 ? now - 3 * N : now, now));
  }
  return sum_lanes(sum);
}

// What is the same for all members of a group: prepared when another group's sequence comes.
template <class T>
struct Group {
  int64_t index = -1;
  const uint8_t* mask = nullptr;
  FrameCounts<T> counts;
  T jerk = T(0);  // the recording's sum of third differences

  MGRPO_HD void enter(const RewardOptions& options, const RewardRows<T>& rows, int64_t sequence,
                      const Workspace<T>& w) {
    const int64_t b = sequence / rows.members;
    const uint8_t* wanted = rows.mask->template at<uint8_t>(sequence);
    if (b == index && wanted == mask) return;
    if (b != index) prepare_group(options, rows, b, w);
    counts = prepare_mask(wanted, rows.frames, w);
    if (options.wanted[kJitter]) jerk = sum_of_third_differences(options.joints, w.target_joints, w);
    index = b;
    mask = wanted;
  }
};

// ---- forward ----

// Reads the shape of a sequence's frames: `same` where one row serves all of them, which then is read once.
template <class T>
struct ShapeReader {
  bool same = false;

  MGRPO_HD void enter(const RewardOptions& options, const RewardRows<T>& rows, int64_t sequence,
                      const Workspace<T>& w) {
    if (!options.posed || options.joints == 0) return;
    const int64_t first = sequence * rows.frames;
    same = options.shape_numbers == 0 ||
           rows.betas->template at<T>(first) == rows.betas->template at<T>(first + rows.frames - 1);
    if (same) read(options, rows, first, 1, w);
  }
  MGRPO_HD void block(const RewardOptions& options, const RewardRows<T>& rows, int64_t first, int valid,
                      const Workspace<T>& w) const {
    if (!same) read(options, rows, first, valid, w);
  }
  static MGRPO_HD void read(const RewardOptions& options, const RewardRows<T>& rows, int64_t first, int valid,
                            const Workspace<T>& w) {
    if (options.shape_numbers > 0)
      load_rows(block_rows<T>(*rows.betas, first, valid), options.shape_numbers, w.betas);
    shape_block(options, rows, w.betas, w.offsets);
  }
};

// Rotations and joints of one block of frames; `raw`, `rotmats` and `joints` say where to put them.
template <class T>
MGRPO_HD void read_block(const RewardOptions& options, const RewardRows<T>& rows, const ShapeReader<T>& shape,
                         int64_t first, int valid, int64_t block, const Workspace<T>& w, Pack<T>* raw,
                         Pack<T>* rotmats, Pack<T>* joints) {
  if (options.rotations > 0) {
    const bool as_is = options.representation == kMatrix && !options.project;
    const int count = numbers_per_rotation(options.representation) * options.rotations;
    load_rows(block_rows<T>(*rows.rotations, first, valid), count, as_is ? rotmats : raw);
    if (!as_is) decode_block(options, raw, rotmats);
  }
  if (options.joints == 0) return;
  if (options.posed) {
    shape.block(options, rows, first, valid, w);
    pose_block(options, rotmats, w.offsets, w.cpf + 12 * block, w.turns, w.points, joints);
  } else {
    load_rows(block_rows<T>(*rows.joints, first, valid), 3 * options.joints, joints);
  }
}

template <class T>
void score_sequences(const RewardOptions& options, const RewardRows<T>& rows, void* memory, T* errors, int64_t begin,
                     int64_t end) {
  using P = Pack<T>;
  Workspace<T> w(options, rows.frames, false, static_cast<P*>(memory));
  const int N = options.joints;
  Group<T> group;
  ShapeReader<T> shape;
  for (int64_t sequence = begin; sequence < end; ++sequence) {
    group.enter(options, rows, sequence, w);
    shape.enter(options, rows, sequence, w);
    P sums[kRewardKinds];
    for (P& sum : sums) sum = P(T(0));
    for (int i = 0; i < 3 * N; ++i) w.before[i] = P(T(0));
    for (int64_t block = 0; block < w.blocks; ++block) {
      const int valid = valid_lanes<T>(rows.frames, block);
      read_block(options, rows, shape, sequence * rows.frames + block * P::kLanes, valid, block, w, w.raw, w.rotmats,
                 w.joints);
      const P one = w.one[block], pair = w.pair[block];
      const P *x = w.joints, *y = w.target_joints + 3 * N * block, *y_before = block > 0 ? y - 3 * N : y;
      if (options.wanted[kPosition]) sums[kPosition] += where(one, sum_of_distances(N, x, y));
      if (options.wanted[kAlignedPosition])
        sums[kAlignedPosition] += where(one, aligned_block(options.alignment, N, x, y));
      if (options.wanted[kRotation]) {
        const int size = target_numbers(options.rotation_error) * options.rotations;
        sums[kRotation] += where(one, rotation_block(options, w.rotmats, w.target_rotations + size * block));
      }
      if (options.wanted[kVelocity]) {
        P sum = P(T(0));
        for (int i = 0; i < 3 * N; i += 3)
          sum += length((load_vec3(x + i) - load_vec3(y + i)) -
                        (earlier<1>(w.before + i, x + i) - earlier<1>(y_before + i, y + i)));
        sums[kVelocity] += where(pair, sum);
      }
      if (options.wanted[kFootSkate]) {
        P sum = P(T(0));
        for (int k = 0; k < options.foot_count; ++k) {
          const int i = 3 * options.feet[k];
          sum += slide(earlier<1>(w.before + i, x + i), load_vec3(x + i), P(static_cast<T>(1 / options.foot_heights[k])));
        }
        sums[kFootSkate] += where(pair, sum);
      }
      if (options.wanted[kGroundPenetration]) sums[kGroundPenetration] += where(one, penetration(N, x));
      if (options.wanted[kJitter]) sums[kJitter] += where(w.four[block], third_differences(N, w.before, x));
      if (options.wanted[kHeadPosition]) {
        const int i = 3 * options.head;
        sums[kHeadPosition] += where(one, length(load_vec3(x + i) - load_vec3(y + i)));
      }
      P* swapped = w.before;
      w.before = w.joints;
      w.joints = swapped;
    }
    for (int k = 0; k < options.kind_count; ++k) {
      const int kind = options.kinds[k];
      errors[sequence * options.kind_count + k] =
          error_of(options, kind, sum_lanes(sums[kind]), group.jerk, group.counts);
    }
  }
}

// ---- backward ----

// Adds to the gradient of point `i` of all blocks what successive steps u_t get: frame t gets u_t, frame t - 1 minus it.
template <class T>
MGRPO_HD void spread_first_difference(const Workspace<T>& w, int N, int i) {
  using P = Pack<T>;
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int axis = 0; axis < 3; ++axis) {
      const P now = w.steps[3 * block + axis], after = w.steps[3 * block + 3 + axis];
      w.grad_joints[3 * N * block + i + axis] += now - later<1>(now, after);
    }
}
// The same for third differences: weights 1, -3, 3, -1.
template <class T>
MGRPO_HD void spread_third_difference(const Workspace<T>& w, int N, int i) {
  using P = Pack<T>;
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int axis = 0; axis < 3; ++axis) {
      const P now = w.steps[3 * block + axis], after = w.steps[3 * block + 3 + axis];
      w.grad_joints[3 * N * block + i + axis] +=
          (now - later<3>(now, after)) + P(T(3)) * (later<2>(now, after) - later<1>(now, after));
    }
}

// Strengths of a sequence's errors: dL/d(sum over frames and points), zero where the error is not wanted or scored.
template <class T>
struct Strengths {
  T of[kRewardKinds];
};
template <class T>
Strengths<T> strengths_of(const RewardOptions& options, FrameCounts<T> counts, const T* grad_errors,
                          const T* grad_rewards, const T* rewards) {
  Strengths<T> s;
  for (T& value : s.of) value = T(0);
  for (int k = 0; k < options.kind_count; ++k)
    s.of[options.kinds[k]] = strength_of(options, options.kinds[k], static_cast<T>(options.slopes[k]), grad_errors[k],
                                         grad_rewards[k], rewards[k], counts);
  return s;
}

// dL/d(joints) of a whole sequence, from the joints in w.all_joints.
template <class T>
MGRPO_CALLED void joint_gradients(const RewardOptions& options, const Group<T>& group, Strengths<T> s,
                                               const Workspace<T>& w) {
  using P = Pack<T>;
  const int N = options.joints;
  const P none = P(T(0));
  for (int64_t i = 0; i < w.blocks * 3 * N; ++i) w.grad_joints[i] = none;
  for (int64_t block = 0; block < w.blocks; ++block) {
    const P *x = w.all_joints + 3 * N * block, *y = w.target_joints + 3 * N * block;
    P* grad = w.grad_joints + 3 * N * block;
    const P one = w.one[block];
    if (options.wanted[kPosition])
      for (int i = 0; i < 3 * N; i += 3) add_distance_gradient(x + i, y + i, where(one, P(s.of[kPosition])), grad + i);
    if (options.wanted[kAlignedPosition])
      aligned_block_gradient(options.alignment, N, x, y, where(one, P(s.of[kAlignedPosition])), w.points, grad);
    if (options.wanted[kGroundPenetration])
      add_penetration_gradient(N, x, where(one, P(s.of[kGroundPenetration])), grad);
    if (options.wanted[kHeadPosition]) {
      const int i = 3 * options.head;
      add_distance_gradient(x + i, y + i, where(one, P(s.of[kHeadPosition])), grad + i);
    }
  }
  T jitter = T(0);
  if (options.wanted[kJitter])
    jitter = s.of[kJitter] * sign_of_jitter(sum_of_third_differences(N, w.all_joints, w), group.jerk);
  for (int axis = 0; axis < 3; ++axis) w.steps[3 * w.blocks + axis] = none;
  if (options.wanted[kVelocity])
    for (int i = 0; i < 3 * N; i += 3) {
      for (int64_t block = 0; block < w.blocks; ++block) {
        const P *x = w.all_joints + 3 * N * block + i, *y = w.target_joints + 3 * N * block + i;
        const P *x_before = block > 0 ? x - 3 * N : x, *y_before = block > 0 ? y - 3 * N : y;
        const Vec3<P> d = (load_vec3(x) - load_vec3(y)) - (earlier<1>(x_before, x) - earlier<1>(y_before, y));
        const Vec3<P> u = P(s.of[kVelocity]) * direction(d);
        store_vec3(w.steps + 3 * block, select(w.pair[block] > none, u, zero_vec3<P>()));
      }
      spread_first_difference(w, N, i);
    }
  if (options.wanted[kFootSkate])
    for (int k = 0; k < options.foot_count; ++k) {
      const int i = 3 * options.feet[k];
      const P inverse_height = P(static_cast<T>(1 / options.foot_heights[k]));
      for (int64_t block = 0; block < w.blocks; ++block) {
        const P *x = w.all_joints + 3 * N * block + i, *x_before = block > 0 ? x - 3 * N : x;
        Vec3<P> u = P(s.of[kFootSkate]) * slide_gradient(earlier<1>(x_before, x), load_vec3(x), inverse_height);
        u = select(w.pair[block] > none, u, zero_vec3<P>());
        w.grad_joints[3 * N * block + i + 2] += u.z;
        store_vec3(w.steps + 3 * block, {u.x, u.y, none});
      }
      spread_first_difference(w, N, i);
    }
  if (options.wanted[kJitter])
    for (int i = 0; i < 3 * N; i += 3) {
      for (int64_t block = 0; block < w.blocks; ++block) {
        const P *x = w.all_joints + 3 * N * block + i, *before = block > 0 ? x - 3 * N : x;
        const Vec3<P> u = P(jitter) * direction(third_difference(earlier<3>(before, x), earlier<2>(before, x),
                                                                 earlier<1>(before, x), load_vec3(x)));
        store_vec3(w.steps + 3 * block, select(w.four[block] > none, u, zero_vec3<P>()));
      }
      spread_third_difference(w, N, i);
    }
}

// dL/d(joints), in w.points, to w.grad_turns and w.grad_offsets.
template <class T>
MGRPO_CALLED void tree_block_gradient(const RewardOptions& options, const Pack<T>* rotmats,
                                                   const Pack<T>* cpf, Pack<T>* grads, const Workspace<T>& w) {
  const int J3 = 3 * options.rotations;
  pose_tree(options, rotmats, w.offsets, w.turns, w.points);
  const Vec3<Pack<T>> grad = tree_gradient(options, rotmats, w.offsets, w.turns, w.points, load_vec3(w.offsets + J3),
                                           load_mat3(cpf), grads, w.grad_turns, w.grad_offsets);
  store_vec3(w.grad_offsets + J3, grad);
}
// dL/d(given numbers of the rotations) from w.grad_turns and the rotations' own error.
template <class T>
MGRPO_CALLED void rotation_block_gradient(const RewardOptions& options, const Pack<T>* raw,
                                                       const Pack<T>* rotmats, const Pack<T>* target,
                                                       Pack<T> strength, Pack<T> one, const Workspace<T>& w) {
  const int size = numbers_per_rotation(options.representation), target_size = target_numbers(options.rotation_error);
  const bool posed = options.posed && options.joints > 0;
  for (int j = 0; j < options.rotations; ++j) {
    const Mat3<Pack<T>> R = load_mat3(rotmats + 9 * j);
    Mat3<Pack<T>> grad = posed ? rotation_gradient_of(options, j, w.grad_turns) : zero3<Pack<T>>();
    if (options.wanted[kRotation])
      grad = grad + rotation_difference_gradient(options.rotation_error, R, target + target_size * j, strength);
    encode_gradient(options.representation, options.project, raw + size * j, R, grad, w.grad_numbers + size * j);
  }
  for (int i = 0; i < size * options.rotations; ++i) w.grad_numbers[i] = where(one, w.grad_numbers[i]);
}

// Any output may be null. grad_joints: where joints are given.
template <class T>
void score_sequences_backward(const RewardOptions& options, const RewardRows<T>& rows, void* memory,
                              const T* grad_errors, const T* grad_rewards, const T* rewards, T* grad_rotations,
                              T* grad_betas, T* grad_joints, int64_t begin, int64_t end) {
  using P = Pack<T>;
  Workspace<T> w(options, rows.frames, true, static_cast<P*>(memory));
  const int N3 = 3 * options.joints, J = options.rotations, J9 = 9 * J, S = options.shape_numbers;
  const int count = numbers_per_rotation(options.representation) * J;
  Group<T> group;
  ShapeReader<T> shape;
  for (int64_t sequence = begin; sequence < end; ++sequence) {
    group.enter(options, rows, sequence, w);
    shape.enter(options, rows, sequence, w);
    const int64_t entry = sequence * options.kind_count;
    const Strengths<T> s =
        strengths_of(options, group.counts, grad_errors + entry, grad_rewards + entry, rewards + entry);
    const bool as_is = options.representation == kMatrix && !options.project;
    for (int64_t block = 0; block < w.blocks; ++block)
      read_block(options, rows, shape, sequence * rows.frames + block * P::kLanes, valid_lanes<T>(rows.frames, block),
                 block, w, w.all_raw + J9 * block, w.all_rotmats + J9 * block, w.all_joints + N3 * block);
    if (options.joints > 0) joint_gradients(options, group, s, w);
    for (int64_t block = 0; block < w.blocks; ++block) {
      const int64_t first = sequence * rows.frames + block * P::kLanes;
      const int valid = valid_lanes<T>(rows.frames, block);
      const P one = w.one[block];
      const P* rotmats = w.all_rotmats + J9 * block;
      if (grad_joints) {
        for (int i = 0; i < N3; ++i) w.points[i] = where(one, w.grad_joints[N3 * block + i]);
        store_rows(grad_joints + N3 * first, valid, N3, w.points);
      }
      if (!grad_rotations && !grad_betas) continue;
      if (options.posed && options.joints > 0) {
        shape.block(options, rows, first, valid, w);
        tree_block_gradient(options, rotmats, w.cpf + 12 * block, w.grad_joints + N3 * block, w);
      }
      if (grad_betas) {
        for (int i = 0; i < S; ++i) w.grad_numbers[i] = P(T(0));
        add_shape_gradient(rows.t_parent_joint_shapedirs, 3 * J, S, w.grad_offsets, w.grad_numbers);
        add_shape_gradient(rows.t_head_cpf_shapedirs, 3, S, w.grad_offsets + 3 * J, w.grad_numbers);
        for (int i = 0; i < S; ++i) w.grad_numbers[i] = where(one, w.grad_numbers[i]);
        store_rows(grad_betas + S * first, valid, S, w.grad_numbers);
      }
      if (grad_rotations) {
        const int size = target_numbers(options.rotation_error) * J;
        rotation_block_gradient(options, as_is ? rotmats : w.all_raw + J9 * block, rotmats,
                                w.target_rotations + size * block, P(s.of[kRotation]), one, w);
        store_rows(grad_rotations + count * first, valid, count, w.grad_numbers);
      }
    }
  }
}

}  // namespace MGRPO_NAMESPACE
