// The search of motion_guidance for one row: Levenberg-Marquardt with block-pentadiagonal normal equations.
//
// The same code runs in one CPU thread and in a block of GPU threads. A Team says which: its threads share the items of
// every loop (rank, size), wait for each other (sync), and do the dense steps together: `products`, `eliminate`, `copy`,
// `clear`. `dot` is one thread's.
// All threads follow the same path: what decides it is written by one and read by all.
#if defined(MGRPO_ISA_SECTION) || !defined(MGRPO_GUIDANCE_SEARCH_MATH_H)
#if !defined(MGRPO_ISA_SECTION)
#define MGRPO_GUIDANCE_SEARCH_MATH_H
#endif
#include "terms_math.h"

namespace MGRPO_NAMESPACE {

// C[i][j] += sum over k of factor[k] A[k][i] B[k][j], for i < rows and j < columns, of a symmetric C for j >= i alone.
// A and B have `depth` rows; where `sparse` >= 0, column j >= sparse of B begins at row 3 ((j - sparse) / 3).
template <class T>
struct Products {
  T* C;
  int stride_c, rows, columns;
  bool symmetric;
  const T *A, *B, *factor;
  int stride_a, stride_b, depth, sparse;
  MGRPO_HD int first(int j) const { return sparse >= 0 && j >= sparse ? (j - sparse) / 3 * 3 : 0; }
};

template <class T>
struct Panel {
  T* numbers;
  int stride, n;
  // Columns: this frame 0 .. n - 1, right side n, next frame n + 1 .. 2 n, the frame after 2 n + 1 .. 3 n. The last part is
  // diagonal by blocks before elimination and lower triangular after it.
  MGRPO_HD T* row(int i) const { return numbers + i * stride; }
  MGRPO_HD int end(int block) const { return 2 * n + 1 + 3 * (block + 1); }
};

constexpr double kDampingStart = 0.1, kDampingMost = 1e10, kQualityLeast = 1e-3, kCostTolerance = 1e-5;
constexpr double kStepTolerance = 1e-6;

template <class T, class Team>
struct GuidanceSearch {
  const GuidanceRow<T>& in;
  GuidanceSpace<T> space;
  Team& team;

  MGRPO_HD const GuidanceJob<T>& job() const { return *in.job; }

  // Calls f(item) for the items of this thread.
  template <class F>
  MGRPO_HD void each(int count, F&& f) const {
    for (int item = team.rank(); item < count; item += team.size()) f(item);
  }

  // Calls f(i, j) for the items of this thread.
  template <class F>
  MGRPO_HD void each(int rows, int columns, F&& f) const {
    if (Team::kAlone) {  // no divisions
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) f(i, j);
    } else {
      for (int item = team.rank(); item < rows * columns; item += team.size()) f(item / columns, item % columns);
    }
  }

  // The sums over all threads, known to all; always in the same order.
  MGRPO_HD void add_up(T (&own)[kSums]) const {
    for (int k = 0; k < kSums; ++k) space.sums[team.rank() * kSums + k] = own[k];
    team.sync();
    for (int k = 0; k < kSums; ++k) own[k] = T(0);
    for (int thread = 0; thread < team.size(); ++thread)
      for (int k = 0; k < kSums; ++k) own[k] += space.sums[thread * kSums + k];
    team.sync();
  }

  MGRPO_HD void start() const {
    const int moved = job().tree.moved;
    each(in.length, moved, [&](int t, int joint) {
      const UnitQuaternion<T> q = unit_quaternion(load_mat3(in.rotmat(t, joint)));
      store_quaternion(space.start + 4 * (t * moved + joint), q);
      store_quaternion(space.now + 4 * (t * moved + joint), q);
    });
    team.sync();
    each(in.length, [&](int t) {
      pose_frame<T>(in, space.now, t, space.pose_now);
      const PosedJoints<T> pose = posed<T>(in, space.pose_now, t);
      for (int i = 0; i < kTorsoPoints; ++i)
        store_vec3(space.torso + 3 * (kTorsoPoints * t + i), pose.p(torso_joint(i)));
    });
    team.sync();
  }

  MGRPO_HD double cost(const T* quats, const T* poses) const {
    each(in.length, [&](int t) {
      T scratch[kWristNumbers];
      space.frame_costs[t] = frame_cost<T>(in, space, quats, poses, t, scratch);
    });
    team.sync();
    double sum = 0;
    for (int t = 0; t < in.length; ++t) sum += static_cast<double>(space.frame_costs[t]);
    team.sync();
    return sum;
  }

  // The rows of the points' derivatives of frame t, and behind them the factors of their products.
  MGRPO_HD T* point_rows(int t) const { return space.points + (t & 1) * job().point_rows() * (job().point_stride() + 1); }
  MGRPO_HD void fill_points(int t) const {
    const int hands = job().uv != nullptr ? 2 * kKeypoints : 0, wrists = job().wrist_poses != nullptr ? 2 : 0;
    const PosedJoints<T> pose = posed<T>(in, space.pose_now, t);
    if (wrists + hands > 0) {
      each(wrists + hands, [&](int item) {
        if (item < wrists)
          measure_wrist(in, pose, t, item, true, space.measured + kWristNumbers * item);
        else
          measure_keypoint(in, pose, t, (item - wrists) / kKeypoints, (item - wrists) % kKeypoints,
                           space.measured + 2 * kWristNumbers + kKeypointNumbers * (item - wrists));
      });
      team.sync();
    }
    T* const rows = point_rows(t);
    const int slots = job().tree.coupled_count, stride = job().point_stride(), count = job().point_rows();
    if (t < in.held)  // no rotation of it moves a point
      team.clear(rows, stride, count, 3 * slots);
    else
      each(PointRows::kPoints + wrists + hands, slots,
           [&](int point, int slot) { fill_point<T>(in, pose, space.measured, point, slot, rows, stride); });
    each(count, [&](int row) {
      fill_right_side<T>(in, space, space.measured, t, row, rows[row * stride + 3 * slots], rows[count * stride + row]);
    });
    team.sync();
  }

  // The equations of frame t, less what eliminated frames took from them.
  MGRPO_HD void fill_panel(const Panel<T>& panel, int t, T damping) const {
    const int n = panel.n, stride = panel.stride, rest = job().rest_stride();
    const T* const taken = space.rest + rest + 1;
    team.copy(panel.numbers, stride, taken, rest, n, n);
    team.copy(panel.numbers + n + 1, stride, taken + n, rest, n, n);
    team.clear(panel.numbers + 2 * n + 1, stride, n, stride - 2 * n - 1);
    each(n, [&](int i) { panel.row(i)[n] = space.rest[1 + i]; });
    team.sync();
    each(job().tree.coupled_count, [&](int slot) {
      const T* const chain = space.chains + (int64_t{t} * job().tree.moved + job().tree.coupled[slot]) * kChainNumbers;
      for (int i = 0; i < 3; ++i) {
        T* const row = panel.row(3 * slot + i);
        row[n] -= chain[i];
        for (int j = 0; j < 3; ++j) {
          if (j >= i) row[3 * slot + j] += chain[3 + 3 * i + j];
          row[n + 1 + 3 * slot + j] += chain[12 + 3 * i + j];
          row[2 * n + 1 + 3 * slot + j] = chain[21 + 3 * i + j];
        }
        row[3 * slot + i] += damping;
      }
    });
    team.sync();
    const T* const here = point_rows(t);
    const int points = job().point_stride(), count = job().point_rows();
    team.products(Products<T>{panel.numbers, stride, n, n + 1, true, here, here, here + count * points, points, points,
                              count, -1});
    if (t + 1 < in.length) {
      const int foot = PointRows::kFeetFrom * points;
      const T* const next = point_rows(t + 1);
      T* const factors = space.measured;  // free until the next frame's points
      each(3 * kFeet, [&](int row) {
        const T weight = in.weight(job().weights.foot_skating) * in.contact(t, row / 3);
        factors[row] = -weight * weight;
      });
      team.sync();
      team.products(Products<T>{panel.numbers + n + 1, stride, n, n, false, here + foot, next + foot, factors, points,
                                points, 3 * kFeet, -1});
    }
    team.sync();
  }

  // Rows of the panel become those of the transposed Cholesky factor, with the inverses of its diagonal blocks in the place
  // of these. False where the matrix is not positive.
  MGRPO_HD bool factorise(const Panel<T>& panel) const {
    for (int block = 0; block < job().tree.coupled_count; ++block) {
      const int first = 3 * block, end = panel.end(block);
      T *const r0 = panel.row(first), *const r1 = panel.row(first + 1), *const r2 = panel.row(first + 2);
      LowerInverse<T> L;
      if (!invert_cholesky(r0[first], r0[first + 1], r0[first + 2], r1[first + 1], r1[first + 2], r2[first + 2], L))
        return false;
      each(end - first - 3, [&](int item) {
        const int j = first + 3 + item;
        const Vec3<T> scaled = apply(L, Vec3<T>{r0[j], r1[j], r2[j]});
        r0[j] = scaled.x, r1[j] = scaled.y, r2[j] = scaled.z;
      });
      team.sync();
      if (team.rank() == 0) {
        r0[first] = L.m00, r0[first + 1] = L.m10, r0[first + 2] = L.m20;
        r1[first + 1] = L.m11, r1[first + 2] = L.m21, r2[first + 2] = L.m22;
      }
      team.eliminate(panel, block);
      team.sync();
    }
    return true;
  }

  // What the eliminated frame takes from the equations of the two next ones. `rest` holds, above its diagonal, row 0 for
  // right sides, rows 1 .. n for the frame to come, rows n + 1 .. 2 n for the one after it.
  MGRPO_HD void reduce(const Panel<T>& panel) const {
    const int n = panel.n, size = 2 * n + 1, stride = job().rest_stride();
    T* const rest = space.rest;
    team.copy(rest + 1, stride, rest + n + 1, stride, 1, n);  // what lies below the diagonal is copied too, and never read
    team.copy(rest + stride + 1, stride, rest + (n + 1) * stride + n + 1, stride, n, n);
    team.sync();
    team.clear(rest + n + 1, stride, size, n);
    team.sync();
    team.products(Products<T>{rest, stride, size, size, true, panel.numbers + n, panel.numbers + n, space.solution,
                              panel.stride, panel.stride, n, n + 1});
    team.sync();
  }

  MGRPO_HD T* stored_panel(int t) const { return space.panels + int64_t{t} * job().block() * job().panel_stride(); }
  // The place where frame t's panel is worked on.
  MGRPO_HD Panel<T> panel_of(int t) const {
    return {space.panel != nullptr ? space.panel : stored_panel(t), job().panel_stride(), job().block()};
  }
  MGRPO_HD void copy_panel(T* to, const T* from) const {
    if (space.panel == nullptr) return;
    each(job().block() * job().panel_stride(), [&](int item) { to[item] = from[item]; });
    team.sync();
  }

  // The free joint's own equations; sums of squares of right side and step are added to `own`, failures counted.
  MGRPO_HD void solve_chain(int joint, T damping, T (&own)[kSums]) const {
    const int64_t stride = int64_t{kChainNumbers} * job().tree.moved;
    T* const chain = space.chains + kChainNumbers * joint;
    Mat3<T> taken = zero3<T>(), taken_next = taken, taken_beside = taken;
    Vec3<T> right = {T(0), T(0), T(0)}, right_next = right;
    for (int t = 0; t < in.length; ++t) {
      T* const at = chain + t * stride;
      const Mat3<T> A = load_mat3(at + 3) + taken;
      LowerInverse<T> L;
      if (!invert_cholesky(A.m[0][0] + damping, A.m[0][1], A.m[0][2], A.m[1][1] + damping, A.m[1][2],
                           A.m[2][2] + damping, L)) {
        own[2] += T(1);
        return;
      }
      const Mat3<T> U1 = apply(L, load_mat3(at + 12) + taken_beside), U2 = apply(L, load_mat3(at + 21));
      const Vec3<T> y = apply(L, right - load_vec3(at));
      own[0] += squared(y);
      store_vec3(at, y);
      at[3] = L.m00, at[4] = L.m10, at[5] = L.m11, at[6] = L.m20, at[7] = L.m21, at[8] = L.m22;
      store_mat3(at + 12, U1);
      store_mat3(at + 21, U2);
      taken = taken_next + T(-1) * transposed_times(U1, U1);
      taken_next = T(-1) * transposed_times(U2, U2);
      taken_beside = T(-1) * transposed_times(U1, U2);
      right = right_next - transposed_times(U1, y);
      right_next = T(-1) * transposed_times(U2, y);
    }
    Vec3<T> x1 = {T(0), T(0), T(0)}, x2 = x1;
    for (int t = in.length - 1; t >= 0; --t) {
      const T* const at = chain + t * stride;
      const Vec3<T> y = load_vec3(at) - load_mat3(at + 12) * x1 - load_mat3(at + 21) * x2;
      const Vec3<T> x = apply_transposed(LowerInverse<T>{at[3], at[4], at[5], at[6], at[7], at[8]}, y);
      own[1] += squared(x);
      store_vec3(space.step + (int64_t{t} * job().tree.moved + joint) * 3, x);
      x2 = x1, x1 = x;
    }
  }

  // The coupled joints' step from the stored panels.
  MGRPO_HD void substitute_back(T (&own)[kSums]) const {
    const int n = job().block();
    T* const right = space.solution + 3 * n;
    for (int t = in.length - 1; t >= 0; --t) {
      const Panel<T> panel = panel_of(t);
      copy_panel(panel.numbers, stored_panel(t));
      const T *const x1 = space.solution + (t + 1) % 3 * n, *const x2 = space.solution + (t + 2) % 3 * n;
      T* const x = space.solution + t % 3 * n;
      each(n, [&](int i) {
        const T* const row = panel.row(i);
        T sum = row[n];
        own[0] += sum * sum;
        if (t + 1 < in.length) sum -= team.dot(row + n + 1, x1, n);
        if (t + 2 < in.length) sum -= team.dot(row + 2 * n + 1, x2, i / 3 * 3 + 3);
        right[i] = sum;
      });
      team.sync();
      for (int block = job().tree.coupled_count - 1; block >= 0; --block) {
        const int first = 3 * block;
        const T *const r0 = panel.row(first), *const r1 = panel.row(first + 1), *const r2 = panel.row(first + 2);
        const LowerInverse<T> L = {r0[first], r0[first + 1], r1[first + 1], r0[first + 2], r1[first + 2], r2[first + 2]};
        const Vec3<T> part = apply_transposed(L, load_vec3(right + first));
        each(first, [&](int i) { right[i] -= dot(load_vec3(panel.row(i) + first), part); });
        if (team.rank() == 0) {
          own[1] += squared(part);
          store_vec3(x + first, part);
          store_vec3(space.step + (int64_t{t} * job().tree.moved + job().tree.coupled[block]) * 3, part);
        }
        team.sync();
      }
    }
  }

  // The step, -gradient . step and |step|^2; false where the equations are not positive.
  MGRPO_HD bool solve(double damping, double& fall, double& square) const {
    const int n = job().block(), segments = (in.length + team.segment() - 1) / team.segment();
    each(job().tree.moved, segments, [&](int joint, int part) {
      const int begin = part * team.segment(), end = begin + team.segment();
      sum_chain<T>(in, space, joint, begin, end < in.length ? end : in.length);
    });
    each((2 * n + 1) * job().rest_stride(), [&](int item) { space.rest[item] = T(0); });
    each(n, [&](int i) { space.solution[i] = T(-1); });  // factors of the products that `reduce` subtracts
    team.sync();
    T own[kSums] = {T(0), T(0), T(0), T(0)};
    each(job().tree.free_count,
         [&](int item) { solve_chain(job().tree.free_joints[item], static_cast<T>(damping), own); });
    fill_points(0);
    for (int t = 0; t < in.length; ++t) {
      if (t + 1 < in.length) fill_points(t + 1);
      const Panel<T> panel = panel_of(t);
      fill_panel(panel, t, static_cast<T>(damping));
      if (!factorise(panel)) return false;
      if (t + 1 < in.length) reduce(panel);
      copy_panel(stored_panel(t), panel.numbers);
    }
    substitute_back(own);
    add_up(own);
    fall = static_cast<double>(own[0]);
    square = static_cast<double>(own[1]);
    return own[2] == T(0);
  }

  // From `now` by the step to `next`; the cost there.
  MGRPO_HD double move() const {
    each(in.length * job().tree.moved, [&](int item) {
      const UnitQuaternion<T> q = load_quaternion<T>(space.now + 4 * item);
      store_quaternion(space.next + 4 * item, retract(q, load_vec3<T>(space.step + 3 * item)));
    });
    team.sync();
    each(in.length, [&](int t) { pose_frame<T>(in, space.next, t, space.pose_next); });
    team.sync();
    return cost(space.next, space.pose_next);
  }

  MGRPO_HD void take_step() {
    T* const quats = space.now;
    T* const poses = space.pose_now;
    space.now = space.next, space.pose_now = space.pose_next;
    space.next = quats, space.pose_next = poses;
  }

  MGRPO_HD void run() {
    const DampingRule& rule = job().rule;
    start();
    const double first = cost(space.now, space.pose_now);
    double best = first, damping = kDampingStart;
    int made = 0;
    bool active = in.length > 0 && first - first == 0.0;
    T* const costs = job().costs + in.row * (job().iterations + 1);
    if (team.rank() == 0) costs[0] = static_cast<T>(first);
    for (int iteration = 0; iteration < job().iterations; ++iteration) {
      if (active) {
        ++made;
        double fall = 0, square = 0, reached = 0, quality = -1;
        const bool fine = solve(damping, fall, square);
        if (fine) {
          reached = move();
          quality = (best - reached) / (fall + damping * square);
        }
        const bool taken = quality >= kQualityLeast && reached < best;
        const double frames = static_cast<double>(in.length) * job().tree.joints;
        if (fine && square < kStepTolerance * kStepTolerance * frames) active = false;
        if (taken) {
          if (best - reached < kCostTolerance * best) active = false;
          best = reached;
          take_step();
        }
        damping *= !taken || quality < rule.poor ? rule.more : quality > rule.good ? rule.less : 1.0;
        if (damping > kDampingMost) damping = kDampingMost;
        team.sync();
      }
      if (team.rank() == 0) costs[iteration + 1] = static_cast<T>(best);
    }
    if (team.rank() == 0) job().done[in.row] = made;
    const int joints = job().tree.joints, moved = job().tree.moved;
    T* const out = job().out + in.row * job().frames * joints * 9;
    each(job().frames, joints, [&](int t, int joint) {
      T* const at = out + 9 * (t * joints + joint);
      if (best < first && t >= in.held && t < in.length && joint < moved)
        store_mat3(at, rotation(load_quaternion<T>(space.now + 4 * (t * moved + joint))));
      else
        store_mat3(at, load_mat3(in.rotmat(t, joint)));
    });
    team.sync();
  }
};

// Searches one row.
template <class T, class Team>
MGRPO_CALLED void guide_row(const GuidanceJob<T>& job, int64_t row, const GuidanceSpace<T>& space, Team& team) {
  const auto frames = [&](int64_t n) { return static_cast<int>(n < 0 ? 0 : n > job.frames ? job.frames : n); };
  const GuidanceRow<T> in = {&job, row, frames(job.lengths[row]), frames(job.held[row])};
  GuidanceSearch<T, Team> search = {in, space, team};
  search.run();
}

}  // namespace MGRPO_NAMESPACE
#endif
