// The loops of the clipped loss, in tiles of plain arrays that the compiler vectorises for each instruction set.
#include "loss_math.h"

namespace MGRPO_NAMESPACE {

constexpr int kLossTile = 256;
constexpr int kLossLanes = 8;

template <class T>
struct LossTile {
  T log_ratio[kLossTile], advantages[kLossTile], weights[kLossTile], kl[kLossTile];
  int32_t valid[kLossTile];
};

// Values of a tile, 0 where `valid` is 0 whatever memory holds there.
template <class T>
const T* where_valid(const T* values, const int32_t* valid, int size, T* tile) {
  if (size < kLossTile) {
    memcpy(tile, values, static_cast<size_t>(size) * sizeof(T));
    memset(tile + size, 0, static_cast<size_t>(kLossTile - size) * sizeof(T));
    values = tile;
  }
  for (int i = 0; i < kLossTile; ++i) {
    const T value = values[i];  // read in any case: a select vectorises, a branch does not
    tile[i] = valid[i] != 0 ? value : T(0);
  }
  return tile;
}

// A tile's inputs, in which every element counts: those of `in` themselves where they can be read as they are, else
// their copy in `copy`, in which zeros, which add nothing to any sum, stand for the elements that are not there or not
// valid. `count` is the number of those that are.
template <class T>
LossInputs<T> tile_of(const LossInputs<T>& in, int64_t first, int size, LossTile<T>& copy) {
  LossInputs<T> tile = in;
  tile.count = size;
  tile.log_ratio = in.log_ratio + first;
  tile.advantages = in.advantages + first;
  if (in.weights != nullptr) tile.weights = in.weights + first;
  if (in.kl != nullptr) tile.kl = in.kl + first;
  if (size == kLossTile && in.valid == nullptr) return tile;

  bool valid[kLossTile] = {};
  if (in.valid != nullptr)
    memcpy(valid, in.valid + first, static_cast<size_t>(size));
  else
    memset(valid, 1, static_cast<size_t>(size));
  int32_t count = 0;
  for (int i = 0; i < kLossTile; ++i) {
    copy.valid[i] = valid[i] ? 1 : 0;
    count += copy.valid[i];
  }
  tile.count = count;
  tile.log_ratio = where_valid(tile.log_ratio, copy.valid, size, copy.log_ratio);
  tile.advantages = where_valid(tile.advantages, copy.valid, size, copy.advantages);
  if (in.weights != nullptr) tile.weights = where_valid(tile.weights, copy.valid, size, copy.weights);
  if (in.kl != nullptr) tile.kl = where_valid(tile.kl, copy.valid, size, copy.kl);
  return tile;
}

// The sum of a tile in a fixed order, in a vector's lanes first.
template <class T>
double sum_tile(const T* values) {
  double part[kLossLanes] = {};
  for (int i = 0; i < kLossTile; i += kLossLanes)
    for (int lane = 0; lane < kLossLanes; ++lane) part[lane] += static_cast<double>(values[i + lane]);
  double sum = 0;
  for (int lane = 0; lane < kLossLanes; ++lane) sum += part[lane];
  return sum;
}

template <bool kWeighted, class T>
LossSums sum_tile_losses(const LossInputs<T>& tile, T* __restrict ratio) {
  const T* __restrict log_ratio = tile.log_ratio;
  const T* __restrict advantages = tile.advantages;
  const T* __restrict weights = tile.weights;
  double loss[kLossTile], k3[kLossTile];
  int64_t low = 0, high = 0;
  for (int i = 0; i < kLossTile; ++i) {
    const SurrogateElement e = surrogate_element(
        static_cast<double>(log_ratio[i]), static_cast<double>(advantages[i]), tile.clip_low, tile.clip_high);
    loss[i] = kWeighted ? static_cast<double>(weights[i]) * e.loss : e.loss;
    k3[i] = e.k3;
    ratio[i] = static_cast<T>(e.ratio);
    low += e.low ? 1 : 0;
    high += e.high ? 1 : 0;
  }
  return {sum_tile(loss), tile.kl != nullptr ? sum_tile(tile.kl) : 0.0, sum_tile(k3), static_cast<double>(tile.count),
          static_cast<double>(low), static_cast<double>(high)};
}

template <class T>
LossSums sum_losses(const LossInputs<T>& in, int64_t begin, int64_t end, T* ratio) {
  LossSums sums = {0, 0, 0, 0, 0, 0};
  LossTile<T> copy;
  T last[kLossTile];
  for (int64_t first = begin; first < end; first += kLossTile) {
    const int size = static_cast<int>(end - first < kLossTile ? end - first : kLossTile);
    const LossInputs<T> tile = tile_of(in, first, size, copy);
    T* written = size == kLossTile ? ratio + first : last;
    sums = sums + (in.weights != nullptr ? sum_tile_losses<true>(tile, written) : sum_tile_losses<false>(tile, written));
    if (size < kLossTile)
      for (int i = 0; i < size; ++i) ratio[first + i] = last[i];
  }
  return sums;
}

template <bool kWeighted, class T>
void differentiate_tile(const LossInputs<T>& tile, double scale, T* __restrict grad_log_ratio) {
  const T* __restrict log_ratio = tile.log_ratio;
  const T* __restrict advantages = tile.advantages;
  const T* __restrict weights = tile.weights;
  for (int i = 0; i < kLossTile; ++i) {
    const SurrogateElement e = surrogate_element(
        static_cast<double>(log_ratio[i]), static_cast<double>(advantages[i]), tile.clip_low, tile.clip_high);
    const double weight = kWeighted ? static_cast<double>(weights[i]) : 1.0;
    // A cut element has slope 0 and keeps it, also times an infinite weight or scale.
    grad_log_ratio[i] = static_cast<T>(e.slope == 0.0 ? 0.0 : scale * weight * e.slope);
  }
}

// grad_kl may be null. `scale` is the loss's gradient over the divisor.
template <class T>
void differentiate_losses(const LossInputs<T>& in, int64_t begin, int64_t end, double scale, double kl_coef,
                          T* grad_log_ratio, T* grad_kl) {
  LossTile<T> copy;
  T last[kLossTile];
  for (int64_t first = begin; first < end; first += kLossTile) {
    const int size = static_cast<int>(end - first < kLossTile ? end - first : kLossTile);
    const LossInputs<T> tile = tile_of(in, first, size, copy);
    T* written = size == kLossTile ? grad_log_ratio + first : last;
    if (in.weights != nullptr)
      differentiate_tile<true>(tile, scale, written);
    else
      differentiate_tile<false>(tile, scale, written);
    if (size < kLossTile)
      for (int i = 0; i < size; ++i) grad_log_ratio[first + i] = last[i];
  }
  if (grad_kl == nullptr) return;
  const T slope = static_cast<T>(scale * kl_coef);
  for (int64_t i = begin; i < end; ++i) grad_kl[i] = in.valid == nullptr || in.valid[i] ? slope : T(0);
}

}  // namespace MGRPO_NAMESPACE
