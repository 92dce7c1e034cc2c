// The loops of the clipped loss, in tiles of plain arrays that the compiler vectorises for each instruction set.
#include "loss_math.h"

namespace MGRPO_NAMESPACE {

constexpr int kLossTile = 256;
constexpr int kLossLanes = 8;

struct LossTile {
  double log_ratio[kLossTile], advantage[kLossTile], weight[kLossTile], kl[kLossTile], valid[kLossTile];
};

// Elements that are not valid, and those beyond `size`, are all zero: they add nothing whatever memory holds there.
template <class T>
void load_tile(const LossInputs<T>& in, int64_t first, int size, LossTile& tile) {
  for (int i = 0; i < kLossTile; ++i) tile.valid[i] = i < size ? 1.0 : 0.0;
  if (in.valid != nullptr)
    for (int i = 0; i < size; ++i) tile.valid[i] = in.valid[first + i] ? 1.0 : 0.0;
  for (int i = 0; i < size; ++i) {
    tile.log_ratio[i] = static_cast<double>(in.log_ratio[first + i]);
    tile.advantage[i] = static_cast<double>(in.advantages[first + i]);
    tile.weight[i] = in.weights != nullptr ? static_cast<double>(in.weights[first + i]) : 1.0;
    tile.kl[i] = in.kl != nullptr ? static_cast<double>(in.kl[first + i]) : 0.0;
  }
  for (int i = 0; i < kLossTile; ++i) {
    const bool valid = tile.valid[i] != 0.0;
    tile.log_ratio[i] = valid ? tile.log_ratio[i] : 0.0;
    tile.advantage[i] = valid ? tile.advantage[i] : 0.0;
    tile.weight[i] = valid ? tile.weight[i] : 0.0;
    tile.kl[i] = valid ? tile.kl[i] : 0.0;
  }
}

// The sum of a tile in a fixed order, in a vector's lanes first.
MGRPO_HD double sum_tile(const double* values) {
  double part[kLossLanes] = {};
  for (int i = 0; i < kLossTile; i += kLossLanes)
    for (int lane = 0; lane < kLossLanes; ++lane) part[lane] += values[i + lane];
  double sum = 0;
  for (int lane = 0; lane < kLossLanes; ++lane) sum += part[lane];
  return sum;
}

template <class T>
LossSums sum_losses(const LossInputs<T>& in, int64_t begin, int64_t end, T* ratio) {
  LossSums sums = {0, 0, 0, 0, 0, 0};
  LossTile tile;
  double loss[kLossTile], ratios[kLossTile], k3[kLossTile], low[kLossTile], high[kLossTile];
  for (int64_t first = begin; first < end; first += kLossTile) {
    const int size = static_cast<int>(end - first < kLossTile ? end - first : kLossTile);
    load_tile(in, first, size, tile);
    for (int i = 0; i < kLossTile; ++i) {
      const SurrogateElement e = surrogate_element(tile.log_ratio[i], tile.advantage[i], in.clip_low, in.clip_high);
      loss[i] = tile.weight[i] * e.loss;
      ratios[i] = e.ratio;
      k3[i] = e.k3;
      low[i] = e.low ? 1.0 : 0.0;
      high[i] = e.high ? 1.0 : 0.0;
    }
    for (int i = 0; i < size; ++i) ratio[first + i] = static_cast<T>(ratios[i]);
    sums = sums + LossSums{sum_tile(loss), sum_tile(tile.kl), sum_tile(k3), sum_tile(tile.valid), sum_tile(low), sum_tile(high)};
  }
  return sums;
}

// grad_kl may be null. `scale` is the loss's gradient over the divisor.
template <class T>
void differentiate_losses(const LossInputs<T>& in, int64_t begin, int64_t end, double scale, double kl_coef,
                          T* grad_log_ratio, T* grad_kl) {
  LossTile tile;
  double slope[kLossTile];
  for (int64_t first = begin; first < end; first += kLossTile) {
    const int size = static_cast<int>(end - first < kLossTile ? end - first : kLossTile);
    load_tile(in, first, size, tile);
    for (int i = 0; i < kLossTile; ++i) {
      const SurrogateElement e = surrogate_element(tile.log_ratio[i], tile.advantage[i], in.clip_low, in.clip_high);
      // A cut element has slope 0 and keeps it, also times an infinite weight or scale.
      slope[i] = e.slope == 0.0 ? 0.0 : scale * tile.weight[i] * e.slope;
    }
    for (int i = 0; i < size; ++i) grad_log_ratio[first + i] = static_cast<T>(slope[i]);
    if (grad_kl != nullptr)
      for (int i = 0; i < size; ++i) grad_kl[first + i] = static_cast<T>(tile.valid[i] != 0.0 ? scale * kl_coef : 0.0);
  }
}

}  // namespace MGRPO_NAMESPACE
