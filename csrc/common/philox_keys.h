// The rows' keys as they come from Python: two int64 tensors and three numbers.
#pragma once

#include "rows.h"
#include "philox_row.h"

namespace mgrpo {

class PhiloxKeys {
 public:
  // step_member: (N,), the step in the low 16 bits, the member in the 16 above; condition: (N,).
  PhiloxKeys(const Tensor& step_member, const Tensor& condition, int64_t seed, int64_t iteration, int64_t stream)
      : step_member_(checked(step_member, "step_member")),
        condition_(checked(condition, "condition")),
        shared_(philox_seed(seed, iteration, stream)) {
    STD_TORCH_CHECK(step_member.size(0) == condition.size(0), "step_member and condition must have the same length");
  }

  int64_t rows() const { return condition_.size(0); }
  const PhiloxSeed& shared() const { return shared_; }
  const int64_t* step_member() const { return static_cast<const int64_t*>(step_member_.const_data_ptr()); }
  const int64_t* condition() const { return static_cast<const int64_t*>(condition_.const_data_ptr()); }

  // For tensors on the CPU.
  PhiloxRow row(int64_t index) const {
    return {shared_.k0, shared_.k1, shared_.first_word, static_cast<uint32_t>(step_member()[index]),
            static_cast<uint32_t>(condition()[index]), shared_.iteration};
  }

 private:
  static Tensor checked(const Tensor& words, const char* name) {
    STD_TORCH_CHECK(words.dim() == 1 && words.scalar_type() == ScalarType::Long, name, " must have shape (N,), int64");
    return torch::stable::contiguous(words);
  }

  Tensor step_member_, condition_;
  PhiloxSeed shared_;
};

}  // namespace mgrpo
