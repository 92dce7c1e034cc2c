// Advantages of groups, as phases of independent items: the CPU loops over the items of a phase, the CUDA kernel strides
// over them and synchronises between phases. Torch-free; everything is computed in double. Maths: kernels/policy/README.md.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

namespace mgrpo {

// In the order of mgrpo.kernels.ADVANTAGE_SCHEMES.
enum class Scheme : int { kNormalizeThenSum, kSumThenNormalize, kGdpo, kCenterOnly, kBatchStd, kWinRate };

constexpr double kGdpoEps = 1e-4;

struct AdvantageOptions {
  Scheme scheme;
  int ddof;
  double eps, std_floor_ratio, dead_ratio, dead_abs, trim;
  double clamp;  // infinity for none
};

// Count, mean and sum of squared deviations from it.
struct Moments {
  double count, mean, squares;
};

// What a column (one reward of one group, or the group's weighted sum) passes from phase to phase.
struct Column {
  Moments all;     // every counted member: what the batch's spread is made of
  Moments kept;    // without the trimmed members
  double divisor;  // NaN for a dead column
  double centre;
};

template <class T>
struct AdvantageJob {
  AdvantageOptions options;
  int64_t B, G, K;
  const T* rewards;       // (B, G, K)
  const bool* valid;      // (B, G), or null
  const double* weights;  // (K)
  T* advantages;          // (B, G)
  T* per_reward;          // (B, G, K)
  T* std;                 // (B, K)
  bool* dead;             // (B, K)
  bool* alive;            // (B)
  Column* columns;        // (B, C)
  Moments* groups;        // (B), of the advantages before whitening
  double* rates;          // (B, G, K) win rates; null where the scheme has none
  double* totals;         // (B, G) weighted sum of the rewards, NaN for a member that cannot be scored
  double* raw;            // (B, G) advantages before whitening and clamp
  double* batch_std;      // (C)
  Moments* whole;         // (1), of the living groups' advantages

  // Columns of a group: its rewards, then their sum where the scheme normalises it; or its win rates, then its rewards.
  MGRPO_HD bool sums_first() const { return options.scheme == Scheme::kSumThenNormalize; }
  MGRPO_HD bool ranks() const { return options.scheme == Scheme::kWinRate; }
  MGRPO_HD int64_t C() const { return ranks() ? 2 * K : K + (sums_first() ? 1 : 0); }
  // NaN where the member is not counted in the column.
  MGRPO_HD double value(int64_t b, int64_t g, int64_t c) const {
    const double total = totals[b * G + g];
    if ((c == K && !ranks()) || total != total) return total;
    if (ranks() && c < K) return rates[(b * G + g) * K + c];
    return reward(b, g, ranks() ? c - K : c);
  }
  // NaN where it is not finite.
  MGRPO_HD double reward(int64_t b, int64_t g, int64_t k) const {
    const double r = static_cast<double>(rewards[(b * G + g) * K + k]);
    return r - r == 0 ? r : NAN;
  }
};

template <class T>
inline int64_t workspace_doubles(const AdvantageJob<T>& job) {
  const int64_t rates = job.ranks() ? job.B * job.G * job.K : 0;
  return job.B * job.C() * 8 + job.B * 3 + 2 * job.B * job.G + job.C() + 3 + rates;
}
static_assert(sizeof(Column) == 8 * sizeof(double) && sizeof(Moments) == 3 * sizeof(double), "workspace layout");

// Lays the intermediate arrays of `job`, whose sizes and options are set, into workspace_doubles(job) numbers.
template <class T>
inline void place_workspace(AdvantageJob<T>& job, double* workspace) {
  const int64_t C = job.C();
  job.columns = reinterpret_cast<Column*>(workspace);
  job.groups = reinterpret_cast<Moments*>(workspace + 8 * job.B * C);
  job.whole = job.groups + job.B;
  job.totals = reinterpret_cast<double*>(job.whole + 1);
  job.raw = job.totals + job.B * job.G;
  job.batch_std = job.raw + job.B * job.G;
  job.rates = job.ranks() ? job.batch_std + C : nullptr;
}

MGRPO_HD bool is_finite(double x) { return x - x == 0; }

MGRPO_HD double standard_deviation(const Moments& m, int ddof) {
  return m.count > ddof ? std::sqrt(m.squares / (m.count - ddof)) : 0.0;
}

// Moments of values(g) over the g in [0, G) with counted(g), in the order of g. The mean is sought from the first value:
// equal values then have exactly no spread, whatever a sum of them would be rounded to.
template <class Values, class Counted>
MGRPO_HD Moments moments_of(int64_t G, const Values& values, const Counted& counted) {
  Moments m = {0, 0, 0};
  double first = 0, above = 0;
  for (int64_t g = 0; g < G; ++g) {
    if (!counted(g)) continue;
    if (m.count == 0) first = values(g);
    m.count += 1;
    above += values(g) - first;
  }
  m.mean = m.count > 0 ? first + above / m.count : 0.0;
  for (int64_t g = 0; g < G; ++g) {
    if (!counted(g)) continue;
    const double d = values(g) - m.mean;
    m.squares += d * d;
  }
  return m;
}

// Moments of two sets together (Chan et al. 1983); what is merged in a fixed order gives the same bits every time.
MGRPO_HD Moments merged(const Moments& a, const Moments& b) {
  const double count = a.count + b.count;
  if (count == 0) return a;
  const double shift = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + shift * share, a.squares + b.squares + shift * shift * a.count * share};
}

// Whether member g stays in the statistics of column c when floor(trim n) of its n counted members are cut at each end.
// Members of equal value are ranked by their index.
template <class T>
MGRPO_HD bool is_kept(const AdvantageJob<T>& job, int64_t b, int64_t g, int64_t c) {
  const double own = job.value(b, g, c);
  if (own != own) return false;
  if (job.options.trim == 0) return true;
  int64_t count = 0, rank = 0;
  for (int64_t other = 0; other < job.G; ++other) {
    const double v = job.value(b, other, c);
    if (v != v) continue;
    ++count;
    if (v < own || (v == own && other < g)) ++rank;
  }
  const int64_t cut = static_cast<int64_t>(static_cast<double>(count) * job.options.trim);
  return rank >= cut && rank < count - cut;
}

// Phase 1, per member (b, g): its total; NaN if it lacks a reward that has a weight, or is not valid.
template <class T>
MGRPO_HD void score_member(const AdvantageJob<T>& job, int64_t item) {
  bool scorable = job.valid == nullptr || job.valid[item];
  double total = 0;
  for (int64_t k = 0; k < job.K; ++k) {
    const double r = static_cast<double>(job.rewards[item * job.K + k]);
    const bool finite = is_finite(r);
    scorable = scorable && (finite || job.weights[k] == 0);
    if (finite) total += r * job.weights[k];
  }
  job.totals[item] = scorable ? total : NAN;
}

// Phase 2 of win_rate, per reward of a member (b, g, k): the share of the other counted members that it beats. NaN where
// the member is not counted; 0 where there is no other.
template <class T>
MGRPO_HD void rate_member(const AdvantageJob<T>& job, int64_t item) {
  const int64_t b = item / (job.G * job.K), g = item / job.K % job.G, k = item % job.K;
  const auto value = [&](int64_t other) {
    const double total = job.totals[b * job.G + other];
    return total == total ? job.reward(b, other, k) : NAN;
  };
  const double own = value(g);
  double points = 0, others = 0;
  for (int64_t other = 0; other < job.G; ++other) {
    const double v = value(other);
    if (v != v || other == g) continue;
    others += 1;
    points += own > v ? 1.0 : own == v ? 0.5 : 0.0;
  }
  job.rates[item] = own != own ? NAN : others > 0 ? points / others : 0.0;
}

// Phase 3, per column (b, c): its moments.
template <class T>
MGRPO_HD void measure_column(const AdvantageJob<T>& job, int64_t item) {
  const int64_t b = item / job.C(), c = item % job.C();
  Column& column = job.columns[item];
  const auto values = [&](int64_t g) { return job.value(b, g, c); };
  column.all = moments_of(job.G, values, [&](int64_t g) { const double v = values(g); return v == v; });
  column.kept = column.all;
  if (job.options.trim > 0) column.kept = moments_of(job.G, values, [&](int64_t g) { return is_kept(job, b, g, c); });
}

// Phase 4, per column: dead or alive, and what centres and divides it; needs batch_std.
template <class T>
MGRPO_HD void judge_column(const AdvantageJob<T>& job, int64_t item) {
  const AdvantageOptions& o = job.options;
  const int64_t b = item / job.C(), c = item % job.C();
  Column& column = job.columns[item];
  const double std = standard_deviation(column.kept, o.ddof), batch = job.batch_std[c];
  // Win rates have their full spread however small that of the rewards is: those say whether the group is dead.
  const int64_t judged = job.ranks() && c < job.K ? job.K : 0;
  const Moments& kept = job.columns[item + judged].kept;
  const double spread = standard_deviation(kept, o.ddof), relative = job.batch_std[c + judged] * o.dead_ratio;
  const double threshold = relative > o.dead_abs ? relative : o.dead_abs;
  const bool dead = !(kept.count > o.ddof) || spread < threshold || spread == 0 || std == 0;
  double divisor = 1;
  if (o.scheme == Scheme::kBatchStd) {
    divisor = batch + o.eps;
  } else if (o.scheme != Scheme::kCenterOnly) {
    const double floor = o.std_floor_ratio * batch;
    divisor = std::sqrt(std * std + floor * floor) + o.eps;
  }
  column.divisor = dead ? NAN : divisor;
  column.centre = column.kept.mean;
  if (c >= job.K) return;
  job.std[b * job.K + c] = static_cast<T>(spread);
  job.dead[b * job.K + c] = dead;
  if (job.sums_first() && o.trim > 0) {
    // Centred by the members that the total's mean counts, so that the contributions add up to the advantage.
    const auto values = [&](int64_t g) { return job.value(b, g, c); };
    column.centre =
        moments_of(job.G, values, [&](int64_t g) { const double v = values(g); return v == v && is_kept(job, b, g, job.K); })
            .mean;
  }
}

// Phase 5, per member (b, g): its part of every reward and their weighted sum; g = 0 also says whether the group lives.
template <class T>
MGRPO_HD void advantage_of_member(const AdvantageJob<T>& job, int64_t item) {
  const int64_t b = item / job.G, g = item % job.G, K = job.K;
  const Column* columns = job.columns + b * job.C();
  const bool scorable = job.totals[item] == job.totals[item];
  bool alive = false;
  double sum = 0;
  for (int64_t k = 0; k < K; ++k) {
    const double divisor = columns[job.sums_first() ? K : k].divisor;
    const bool living = divisor == divisor;
    const double v = job.value(b, g, k);
    const double part = living && v == v ? (v - columns[k].centre) / divisor : 0.0;
    job.per_reward[item * K + k] = static_cast<T>(part);
    sum += part * job.weights[k];
    alive = alive || (living && job.weights[k] != 0);
  }
  if (job.sums_first()) {
    alive = columns[K].divisor == columns[K].divisor;
    sum = alive && scorable ? (job.totals[item] - columns[K].centre) / columns[K].divisor : 0.0;
  }
  job.raw[item] = sum;
  if (g == 0) job.alive[b] = alive;
}

// Phase 6 of gdpo, per group: moments of its advantages, of none if it is dead.
template <class T>
MGRPO_HD void measure_group(const AdvantageJob<T>& job, int64_t b) {
  const double* totals = job.totals + b * job.G;
  const double* raw = job.raw + b * job.G;
  const bool alive = job.alive[b];
  job.groups[b] = moments_of(
      job.G, [&](int64_t g) { return raw[g]; }, [&](int64_t g) { return alive && totals[g] == totals[g]; });
}

// Phase 7, per member: whitening over the batch (gdpo) and clamp.
template <class T>
MGRPO_HD void finish_member(const AdvantageJob<T>& job, int64_t item) {
  double a = job.raw[item];
  if (job.options.scheme == Scheme::kGdpo) {
    const bool live = job.alive[item / job.G] && job.totals[item] == job.totals[item];
    a = live ? (a - job.whole->mean) / (standard_deviation(*job.whole, job.options.ddof) + kGdpoEps) : 0.0;
  }
  const double bound = job.options.clamp;
  a = a > bound ? bound : a < -bound ? -bound : a;
  job.advantages[item] = static_cast<T>(a);
}

}  // namespace mgrpo
