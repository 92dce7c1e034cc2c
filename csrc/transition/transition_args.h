// From the operators' tensors to the raw memory of state.h, with the checks that protect memory; for every device.
#pragma once

#include <optional>
#include <vector>

#include "../common/rows.h"
#include "../rng/philox_keys.h"
#include "state.h"

namespace mgrpo {

using OptionalTensor = std::optional<Tensor>;

inline StateDtype state_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return StateDtype::kFloat;
    case ScalarType::Double:
      return StateDtype::kDouble;
    case ScalarType::BFloat16:
      return StateDtype::kBFloat16;
    default:
      STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Half, name, " has a dtype that states cannot have");
      return StateDtype::kHalf;
  }
}

// The arguments of one call. Keeps the contiguous copies that it had to make.
class TransitionArguments {
 public:
  // The first state (N, T, D) fixes the sizes.
  explicit TransitionArguments(const Tensor& first) {
    STD_TORCH_CHECK(first.dim() == 3, "states must have shape (N, T, D)");
    batch.rows = first.size(0);
    batch.frames = first.size(1);
    batch.channels = first.size(2);
    batch.mask = nullptr;
    batch.weights = nullptr;
    batch.mean = true;
  }

  Weighting batch;
  double weight_sum = 0;   // over the channels of one frame
  bool is_double = false;  // what is computed in: double if any state is

  State state(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == batch.rows && tensor.size(1) == batch.frames &&
                        tensor.size(2) == batch.channels,
                    name, " has the wrong shape");
    const StateDtype dtype = state_dtype(tensor, name);
    is_double |= dtype == StateDtype::kDouble;
    const bool side_by_side = (batch.channels == 1 || tensor.stride(2) == 1) &&
                              (batch.frames == 1 || tensor.stride(1) == batch.channels);
    const Tensor& kept = keep(side_by_side ? tensor : torch::stable::contiguous(tensor));
    return {kept.const_data_ptr(), kept.stride(0), dtype};
  }

  State absent() const { return {nullptr, 0, StateDtype::kFloat}; }

  State optional_state(const OptionalTensor& tensor, const char* name) {
    return tensor.has_value() ? state(*tensor, name) : absent();
  }

  Noise noise(const OptionalTensor& given, const OptionalTensor& step_member, const OptionalTensor& condition,
              int64_t seed, int64_t iteration, int64_t stream) {
    Noise noise{Noise::Kind::kNone, absent(), {}, nullptr, nullptr};
    if (given.has_value()) {
      noise.kind = Noise::Kind::kGiven;
      noise.given = state(*given, "noise");
    } else if (step_member.has_value()) {
      STD_TORCH_CHECK(condition.has_value(), "noise keys need both step_member and condition");
      keys_.emplace(*step_member, *condition, seed, iteration, stream);
      STD_TORCH_CHECK(keys_->rows() == batch.rows, "noise keys have the wrong number of rows");
      STD_TORCH_CHECK(batch.row_size() <= kPhiloxMaxCount, "a row has more numbers than a key can give");
      noise.kind = Noise::Kind::kDrawn;
      noise.seed = keys_->shared();
      noise.step_member = keys_->step_member();
      noise.condition = keys_->condition();
    }
    return noise;
  }

  Scalar scalar(double number, const OptionalTensor& rows, const char* name) {
    return {number, rows.has_value() ? doubles(*rows, batch.rows, name) : nullptr};
  }

  void weighting(const OptionalTensor& mask, const OptionalTensor& weights, bool mean) {
    batch.mean = mean;
    if (mask.has_value()) {
      STD_TORCH_CHECK(mask->scalar_type() == ScalarType::Bool && mask->dim() == 2 && mask->size(0) == batch.rows &&
                          mask->size(1) == batch.frames,
                      "mask must have shape (N, T), bool");
      batch.mask = static_cast<const bool*>(keep(torch::stable::contiguous(*mask)).const_data_ptr());
    }
    if (weights.has_value()) batch.weights = doubles(*weights, batch.channels, "channel_weights");
  }

  const double* doubles(const Tensor& tensor, int64_t size, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.dim() == 1 && tensor.size(0) == size, name,
                    " has the wrong shape or dtype");
    return static_cast<const double*>(keep(torch::stable::contiguous(tensor)).const_data_ptr());
  }

 private:
  const Tensor& keep(Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  std::vector<Tensor> kept_;
  std::optional<PhiloxKeys> keys_;
};

}  // namespace mgrpo
