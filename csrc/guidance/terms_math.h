// The costs of motion_guidance frame by frame: residuals, and their derivatives by the rotations of coupled joints.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_GUIDANCE_TERMS_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_GUIDANCE_TERMS_MATH_H
#endif
#include "guidance_math.h"

namespace MGRPO_NAMESPACE {

// One row of the batch, with its own pointers.
template <class T>
struct GuidanceRow {
  const GuidanceJob<T>* job;
  int64_t row;
  int length;  // real frames
  int held;    // the first ones, which stay as they are

  MGRPO_HD const T* rotmat(int t, int joint) const {
    return job->rotmats + ((row * job->frames + t) * job->tree.joints + joint) * 9;
  }
  MGRPO_HD Vec3<T> offset(int joint) const { return load_vec3(job->offsets + (row * job->tree.joints + joint) * 3); }
  MGRPO_HD const T* head(int t) const { return job->head + (row * job->frames + t) * 7; }
  // Contact of a foot between frames t and t + 1; 0 beyond the ends.
  MGRPO_HD T contact(int t, int foot) const {
    if (t < 0 || t + 1 >= length) return T(0);
    const T* const here = job->contacts + (row * job->frames + t) * kFeet + foot;
    return T(0.5) * (here[0] + here[kFeet]);
  }
  MGRPO_HD T confidence(const T* all, int t, int hand) const { return all[(row * job->frames + t) * 2 + hand]; }
  MGRPO_HD const T* wrist(int t, int hand) const { return job->wrist_poses + ((row * job->frames + t) * 2 + hand) * 7; }
  MGRPO_HD const T* finger(int t, int joint) const {
    return job->hand_rotmats + ((row * job->frames + t) * (2 * kFingerJoints) + joint - kBodyJoints) * 9;
  }
  MGRPO_HD const T* image_point(int t, int hand, int i) const {
    return job->uv + (((row * job->frames + t) * 2 + hand) * kKeypoints + i) * 2;
  }
  MGRPO_HD const T* camera(int t) const { return job->camera + (row * job->frames + t) * 7; }
  MGRPO_HD T weight(double value) const { return static_cast<T>(value); }
};

// Forward kinematics of one frame, with the head at its place.
template <class T>
MGRPO_CALLED void pose_frame(const GuidanceRow<T>& in, const T* quats, int t, T* poses) {
  const GuidanceTree& tree = in.job->tree;
  const T* const q = quats + int64_t{t} * tree.moved * 4;
  T* const pose = poses + int64_t{t} * tree.posed * kPoseNumbers;
  const auto local = [&](int joint) { return rotation(load_quaternion(q + 4 * joint)); };
  Mat3<T> R = rotation(load_quaternion(in.head(t)));
  Vec3<T> p = load_vec3(in.head(t) + 4);
  for (int joint = kHead; joint >= 0; joint = tree.parents[joint]) {  // up to the root
    store_mat3(pose + kPoseNumbers * joint, R);
    store_vec3(pose + kPoseNumbers * joint + 9, p);
    R = times_transposed(R, local(joint));
    p = p - R * in.offset(joint);
  }
  const Mat3<T> R_root = R;
  const Vec3<T> p_root = p;
  for (int joint = 0; joint < tree.posed; ++joint) {
    if (tree.spine >> joint & 1) continue;
    const int parent = tree.parents[joint];
    Mat3<T> above = R_root;
    Vec3<T> from = p_root;
    if (parent >= 0) {
      above = load_mat3(pose + kPoseNumbers * parent);
      from = load_vec3(pose + kPoseNumbers * parent + 9);
    }
    store_mat3(pose + kPoseNumbers * joint, above * local(joint));
    store_vec3(pose + kPoseNumbers * joint + 9, from + above * in.offset(joint));
  }
}

template <class T>
struct PosedJoints {
  const T* frame;
  MGRPO_HD Mat3<T> R(int joint) const { return load_mat3(frame + kPoseNumbers * joint); }
  MGRPO_HD Vec3<T> p(int joint) const { return load_vec3(frame + kPoseNumbers * joint + 9); }
};
template <class T>
MGRPO_HD PosedJoints<T> posed(const GuidanceRow<T>& in, const T* poses, int t) {
  return {poses + int64_t{t} * in.job->tree.posed * kPoseNumbers};
}

// The residual of a seen wrist, weighted, and its 6 x 6 derivative by place and turn of the wrist (if wanted); zeros where
// it was not seen.
template <class T>
MGRPO_CALLED void measure_wrist(const GuidanceRow<T>& in, const PosedJoints<T>& pose, int t, int hand, bool derivative,
                                T* out) {
  for (int i = 0; i < kWristNumbers; ++i) out[i] = T(0);
  T* const residual = out + 36;
  const T seen = in.confidence(in.job->wrist_confidence, t, hand);
  if (seen == T(0)) return;
  const T place = seen * in.weight(in.job->weights.wrist_position);
  const T turn = seen * in.weight(in.job->weights.wrist_orientation);
  const T* const target = in.wrist(t, hand);
  const Mat3<T> R = pose.R(wrist_joint(hand)), R_seen = rotation(load_quaternion(target));
  const Vec3<T> away = pose.p(wrist_joint(hand)) - load_vec3(target + 4);
  const auto put = [&](int row, int column, T factor, const Mat3<T>& block) {
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) out[6 * (row + i) + column + j] = factor * block.m[i][j];
  };
  if (!in.job->se3) {
    const Logarithm<T> log = logarithm(unit_quaternion(transposed_times(R_seen, R)));
    store_vec3(residual, place * away);
    store_vec3(residual + 3, turn * log.vector);
    if (!derivative) return;
    put(0, 0, place, identity3<T>());
    put(3, 3, turn, times_transposed(right_jacobian_inverse(log), R));
    return;
  }
  const Logarithm<T> log = logarithm(unit_quaternion(transposed_times(R, R_seen)));
  const Mat3<T> left = transposed(right_jacobian_inverse(log));
  const Vec3<T> rho = T(-1) * (left * transposed_times(R, away));
  store_vec3(residual, place * rho);
  store_vec3(residual + 3, turn * log.vector);
  if (!derivative) return;
  const Mat3<T> by_turn = times_transposed(left, R);
  put(0, 0, -place, by_turn);
  put(0, 3, place, left * se3_coupling(rho, log.vector) * by_turn);
  put(3, 3, -turn, by_turn);
}

// The same of an image point, by its place. Nearer than kNearest metres its depth is taken as that: behind the camera an
// image point means nothing.
template <class T>
MGRPO_HD void measure_keypoint(const GuidanceRow<T>& in, const PosedJoints<T>& pose, int t, int hand, int i, T* out) {
  const T kNearest = T(0.05);
  const T weight = in.confidence(in.job->uv_confidence, t, hand) * in.weight(in.job->weights.keypoints);
  for (int k = 0; k < kKeypointNumbers; ++k) out[k] = T(0);
  if (weight == T(0)) return;
  const T *const camera = in.camera(t), *const seen = in.image_point(t, hand, i);
  const Mat3<T> R = rotation(load_quaternion(camera));
  const Vec3<T> p = transposed_times(R, pose.p(keypoint_joint(hand, i)) - load_vec3(camera + 4));
  const bool near = p.z < kNearest;
  const T inverse_z = T(1) / (near ? kNearest : p.z), u = p.x * inverse_z, v = p.y * inverse_z;
  const T by_u = near ? T(0) : u, by_v = near ? T(0) : v, scale = weight * inverse_z;
  store_vec3(out, scale * (column(R, 0) - by_u * column(R, 2)));
  store_vec3(out + 3, scale * (column(R, 1) - by_v * column(R, 2)));
  out[6] = weight * (u - seen[0]);
  out[7] = weight * (v - seen[1]);
}

template <class T>
MGRPO_HD T squared(Vec3<T> a) {
  return dot(a, a);
}

// Weights of the costs of one joint over time.
template <class T>
struct ChainWeights {
  T prior, smooth, delta, velocity, seen;
};
template <class T>
MGRPO_HD ChainWeights<T> chain_weights(const GuidanceRow<T>& in, int t, int joint) {
  const GuidanceWeights& w = in.job->weights;
  if (joint < kBodyJoints)
    return {in.weight(w.rotation_prior), in.weight(w.smoothness), in.weight(w.delta_smoothness),
            in.weight(w.velocity_smoothness), T(0)};
  const T seen = in.job->hand_rotmats == nullptr
                     ? T(0)
                     : in.confidence(in.job->hand_confidence, t, joint >= kBodyJoints + kFingerJoints);
  return {in.weight(w.hand_prior), in.weight(w.hand_smoothness), T(0), T(0), seen * in.weight(w.hand_rotations)};
}

// Quaternions of one joint over time.
template <class T>
struct Chain {
  const T* data;
  int64_t stride;
  MGRPO_HD UnitQuaternion<T> operator[](int t) const { return load_quaternion(data + t * stride); }
};
template <class T>
MGRPO_HD Chain<T> chain_of(const GuidanceRow<T>& in, const T* quats, int joint) {
  return {quats + 4 * joint, int64_t{4} * in.job->tree.moved};
}

// The cost of everything that begins in frame t.
template <class T>
MGRPO_CALLED T frame_cost(const GuidanceRow<T>& in, const GuidanceSpace<T>& space, const T* quats, const T* poses, int t,
                          T* scratch) {
  const GuidanceJob<T>& job = *in.job;
  T cost = T(0);
  for (int joint = 0; joint < job.tree.moved; ++joint) {
    const ChainWeights<T> w = chain_weights(in, t, joint);
    const Chain<T> q = chain_of(in, quats, joint), start = chain_of<T>(in, space.start, joint);
    const UnitQuaternion<T> a = q[t], D_a = inverse(a) * start[t];
    cost += w.prior * w.prior * squared(short_rotation_vector(D_a));
    if (w.seen != T(0)) {
      const UnitQuaternion<T> seen = unit_quaternion(load_mat3(in.finger(t, joint)));
      cost += w.seen * w.seen * squared(short_rotation_vector(inverse(a) * seen));
    }
    if (t + 1 >= in.length) continue;
    const UnitQuaternion<T> b = q[t + 1], u = inverse(a) * b;
    cost += w.smooth * w.smooth * squared(short_rotation_vector(u));
    if (w.delta != T(0))
      cost += w.delta * w.delta * squared(short_rotation_vector(inverse(D_a) * (inverse(b) * start[t + 1])));
    if (t + 2 < in.length && w.velocity != T(0))
      cost += w.velocity * w.velocity * squared(short_rotation_vector(inverse(u) * (inverse(b) * q[t + 2])));
  }
  const PosedJoints<T> pose = posed(in, poses, t);
  const T held = in.weight(job.weights.position_prior), skating = in.weight(job.weights.foot_skating);
  for (int i = 0; i < kTorsoPoints; ++i)
    cost += held * held * squared(pose.p(torso_joint(i)) - load_vec3(space.torso + 3 * (kTorsoPoints * t + i)));
  for (int i = 0; i < kFeet && t + 1 < in.length; ++i) {
    const T c = skating * in.contact(t, i);
    cost += c * c * squared(pose.p(foot_joint(i)) - posed(in, poses, t + 1).p(foot_joint(i)));
  }
  for (int hand = 0; hand < 2; ++hand) {
    if (job.wrist_poses != nullptr) {
      measure_wrist(in, pose, t, hand, false, scratch);
      cost += squared(load_vec3(scratch + 36)) + squared(load_vec3(scratch + 39));
    }
    for (int i = 0; job.uv != nullptr && i < kKeypoints; ++i) {
      measure_keypoint(in, pose, t, hand, i, scratch);
      cost += scratch[6] * scratch[6] + scratch[7] * scratch[7];
    }
  }
  return cost;
}

// Gradient and blocks that the costs of one joint over time make, while they are being summed: of frames t, t + 1, t + 2.
template <class T>
struct ChainSums {
  Vec3<T> gradient[3];
  Mat3<T> diagonal[3], beside[2], second;
};

// Adds what begins in frame t.
template <class T>
MGRPO_CALLED void add_chain_frame(const GuidanceRow<T>& in, const GuidanceSpace<T>& space, int t, int joint,
                                  ChainSums<T>& sums) {
  const ChainWeights<T> w = chain_weights(in, t, joint);
  const Chain<T> q = chain_of<T>(in, space.now, joint), start = chain_of<T>(in, space.start, joint);
  const UnitQuaternion<T> a = q[t], D_a = inverse(a) * start[t];
  const auto draw = [&](const UnitQuaternion<T>& away, T weight) {
    const Logarithm<T> log = logarithm(away);
    const Mat3<T> J = right_jacobian_inverse(log);
    sums.diagonal[0] = sums.diagonal[0] + (weight * weight) * times_transposed(J, J);
    sums.gradient[0] = sums.gradient[0] - (weight * weight) * log.vector;  // J log.vector is log.vector
  };
  draw(D_a, w.prior);
  if (w.seen != T(0)) draw(inverse(a) * unit_quaternion(load_mat3(in.finger(t, joint))), w.seen);
  if (t + 1 >= in.length) return;
  const UnitQuaternion<T> b = q[t + 1], u = inverse(a) * b;
  {
    const T weight = w.smooth * w.smooth;
    const Logarithm<T> log = logarithm(u);
    const Mat3<T> J = right_jacobian_inverse(log), H = weight * times_transposed(J, J);
    sums.diagonal[0] = sums.diagonal[0] + H;
    sums.diagonal[1] = sums.diagonal[1] + H;  // functions of one matrix commute
    sums.beside[0] = sums.beside[0] + (-weight) * (J * J);
    sums.gradient[0] = sums.gradient[0] - weight * log.vector;
    sums.gradient[1] = sums.gradient[1] + weight * log.vector;
  }
  if (w.delta != T(0)) {
    const T weight = w.delta * w.delta;
    const UnitQuaternion<T> D_b = inverse(b) * start[t + 1];
    const Logarithm<T> log = logarithm(inverse(D_a) * D_b);
    const Mat3<T> turned = rotation(D_b), J = times_transposed(right_jacobian_inverse(log), turned);
    const Mat3<T> H = weight * transposed_times(J, J);
    const Vec3<T> g = weight * (turned * log.vector);
    sums.diagonal[0] = sums.diagonal[0] + H;
    sums.diagonal[1] = sums.diagonal[1] + H;
    sums.beside[0] = sums.beside[0] + T(-1) * H;
    sums.gradient[0] = sums.gradient[0] + g;
    sums.gradient[1] = sums.gradient[1] - g;
  }
  if (t + 2 >= in.length || w.velocity == T(0)) return;
  const UnitQuaternion<T> v = inverse(b) * q[t + 2];
  const Logarithm<T> log = logarithm(inverse(u) * v);
  const Mat3<T> J_c = w.velocity * right_jacobian_inverse(log), J_a = times_transposed(J_c, rotation(v));
  const Mat3<T> J_b = T(-1) * (transposed(J_c) + J_a);
  const Vec3<T> r = w.velocity * log.vector;
  sums.diagonal[0] = sums.diagonal[0] + transposed_times(J_a, J_a);
  sums.diagonal[1] = sums.diagonal[1] + transposed_times(J_b, J_b);
  sums.diagonal[2] = sums.diagonal[2] + transposed_times(J_c, J_c);
  sums.beside[0] = sums.beside[0] + transposed_times(J_a, J_b);
  sums.beside[1] = sums.beside[1] + transposed_times(J_b, J_c);
  sums.second = sums.second + transposed_times(J_a, J_c);
  sums.gradient[0] = sums.gradient[0] + transposed_times(J_a, r);
  sums.gradient[1] = sums.gradient[1] + transposed_times(J_b, r);
  sums.gradient[2] = sums.gradient[2] + transposed_times(J_c, r);
}

// The equations of a frame that stays: its step is zero, and no other frame's depends on it.
template <class T>
MGRPO_HD void hold(T* chain) {
  for (int i = 0; i < kChainNumbers; ++i) chain[i] = T(0);
  store_mat3(chain + 3, identity3<T>());
}

// Gradient and blocks of one joint in the frames begin .. end - 1, from all that touches them.
template <class T>
MGRPO_CALLED void sum_chain(const GuidanceRow<T>& in, const GuidanceSpace<T>& space, int joint, int begin, int end) {
  const Mat3<T> zero = zero3<T>();
  const Vec3<T> none = {T(0), T(0), T(0)};
  ChainSums<T> sums = {{none, none, none}, {zero, zero, zero}, {zero, zero}, zero};
  for (int t = begin < 2 ? 0 : begin - 2; t < end; ++t) {
    add_chain_frame(in, space, t, joint, sums);
    if (t >= begin) {
      T* const out = space.chains + (int64_t{t} * in.job->tree.moved + joint) * kChainNumbers;
      store_vec3(out, sums.gradient[0]);
      store_mat3(out + 3, sums.diagonal[0]);
      store_mat3(out + 12, sums.beside[0]);
      store_mat3(out + 21, sums.second);
      if (t < in.held) hold(out);
    }
    for (int i = 0; i < 2; ++i) sums.gradient[i] = sums.gradient[i + 1], sums.diagonal[i] = sums.diagonal[i + 1];
    sums.gradient[2] = none, sums.diagonal[2] = zero;
    sums.beside[0] = sums.beside[1], sums.beside[1] = zero, sums.second = zero;
  }
}

// Rows of the points' derivatives in a frame: three per torso point and foot, six per wrist, two per image point.
struct PointRows {
  static constexpr int kFeetFrom = 3 * kTorsoPoints, kTargetsFrom = kFeetFrom + 3 * kFeet;
  static constexpr int kPoints = kTorsoPoints + kFeet;
};

// d place of `joint` / d rotation of joint k.
template <class T>
MGRPO_HD Mat3<T> by_rotation(const GuidanceTree& tree, const PosedJoints<T>& pose, int k, int joint) {
  const int sign = tree.moves_place(k, joint);
  if (sign == 0) return zero3<T>();
  return T(sign) * (cross_matrix(pose.p(k) - pose.p(joint)) * pose.R(k));
}

// The columns of coupled joint number `slot` in the rows of point number `point`: torso, feet, wrists, image points.
template <class T>
MGRPO_CALLED void fill_point(const GuidanceRow<T>& in, const PosedJoints<T>& pose, const T* measured, int point, int slot,
                             T* rows, int stride) {
  const GuidanceJob<T>& job = *in.job;
  const GuidanceTree& tree = job.tree;
  const int k = tree.coupled[slot];
  const auto put = [&](int row, const Mat3<T>& block) {
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) rows[(row + i) * stride + 3 * slot + j] = block.m[i][j];
  };
  if (point < PointRows::kPoints) {
    put(3 * point, by_rotation(tree, pose, k, point < kTorsoPoints ? torso_joint(point) : foot_joint(point - kTorsoPoints)));
    return;
  }
  point -= PointRows::kPoints;
  int row = PointRows::kTargetsFrom;
  if (job.wrist_poses != nullptr) {
    if (point < 2) {
      const T* const A = measured + kWristNumbers * point;
      const Mat3<T> place = by_rotation(tree, pose, k, wrist_joint(point));
      const Mat3<T> turn = T(tree.turns(k, wrist_joint(point))) * pose.R(k);
      for (int half = 0; half < 2; ++half) {
        Mat3<T> by_place, by_turn;
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j) {
            by_place.m[i][j] = A[6 * (3 * half + i) + j];
            by_turn.m[i][j] = A[6 * (3 * half + i) + 3 + j];
          }
        put(row + 6 * point + 3 * half, by_place * place + by_turn * turn);
      }
      return;
    }
    point -= 2;
    row += 12;
  }
  const T* const M = measured + 2 * kWristNumbers + kKeypointNumbers * point;
  const Mat3<T> place = by_rotation(tree, pose, k, keypoint_joint(point / kKeypoints, point % kKeypoints));
  for (int i = 0; i < 2; ++i)
    store_vec3(rows + (row + 2 * point + i) * stride + 3 * slot, transposed_times(place, load_vec3(M + 3 * i)));
}

// The right side of a row (what the place should change by), and the factor of its products.
template <class T>
MGRPO_HD void fill_right_side(const GuidanceRow<T>& in, const GuidanceSpace<T>& space, const T* measured, int t, int row,
                              T& right, T& factor) {
  const GuidanceJob<T>& job = *in.job;
  const auto place = [&](int frame, int joint, int axis) {
    return space.pose_now[(int64_t{frame} * job.tree.posed + joint) * kPoseNumbers + 9 + axis];
  };
  factor = T(1);
  if (row < PointRows::kFeetFrom) {
    const T weight = in.weight(job.weights.position_prior);
    factor = weight * weight;
    right = space.torso[3 * kTorsoPoints * t + row] - place(t, torso_joint(row / 3), row % 3);
  } else if (row < PointRows::kTargetsFrom) {
    const int foot = (row - PointRows::kFeetFrom) / 3, joint = foot_joint(foot), axis = row % 3;
    const T weight = in.weight(job.weights.foot_skating), before = in.contact(t - 1, foot), after = in.contact(t, foot);
    const T here = place(t, joint, axis), total = before * before + after * after;
    factor = weight * weight * total;
    right = T(0);
    if (before != T(0)) right += before * before * (place(t - 1, joint, axis) - here);
    if (after != T(0)) right += after * after * (place(t + 1, joint, axis) - here);
    right = total > T(0) ? right / total : T(0);
  } else {
    row -= PointRows::kTargetsFrom;
    const int wrist_rows = job.wrist_poses != nullptr ? 12 : 0;
    right = row < wrist_rows ? -measured[kWristNumbers * (row / 6) + 36 + row % 6]
                             : -measured[2 * kWristNumbers + kKeypointNumbers * ((row - wrist_rows) / 2) + 6 + row % 2];
  }
}

}  // namespace MGRPO_NAMESPACE
#endif
