// What the CPU loops and the CUDA kernels of the clipped loss hand to each other. Torch-free.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace mgrpo {

template <class T>
struct LossInputs {
  int64_t count;
  const T* log_ratio;
  const T* advantages;
  const bool* valid;  // null: all
  const T* weights;   // null: all 1
  const T* kl;        // null: all 0
  double clip_low, clip_high;
};

// Sums over elements, of which a fixed order of additions makes the same bits every time.
struct LossSums {
  double loss, kl, k3, count, low, high;
};

MGRPO_HD LossSums operator+(const LossSums& a, const LossSums& b) {
  return {a.loss + b.loss, a.kl + b.kl, a.k3 + b.k3, a.count + b.count, a.low + b.low, a.high + b.high};
}

// What divides the sums: a given positive number, else a count from elsewhere (1 if it is not positive: the sum is 0
// then as well), else the number of valid elements, at least 1.
MGRPO_HD double loss_divisor(double fixed, const double* counted, double valid) {
  if (fixed > 0) return fixed;
  if (counted != nullptr) return *counted > 0 ? *counted : 1.0;
  return valid > 1 ? valid : 1.0;
}

// Where the scalars of the result go.
template <class T>
struct LossResults {
  T *loss, *clip_low, *clip_high, *approx_kl;
  double* divisor;  // for the backward pass
};

template <class T>
MGRPO_HD void store_loss(const LossResults<T>& out, const LossSums& sums, double divisor, double kl_coef) {
  const double count = sums.count > 1 ? sums.count : 1.0;
  const double kl = kl_coef > 0 ? kl_coef * sums.kl : 0.0;
  *out.loss = static_cast<T>((sums.loss + kl) / divisor);
  *out.clip_low = static_cast<T>(sums.low / count);
  *out.clip_high = static_cast<T>(sums.high / count);
  *out.approx_kl = static_cast<T>(sums.k3 / count);
  *out.divisor = divisor;
}

}  // namespace mgrpo
