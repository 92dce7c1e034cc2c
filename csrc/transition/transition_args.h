// From the operators' tensors to the raw memory of state.h, with the checks that protect memory; for every device.
#pragma once

#include <optional>
#include <vector>

#include "../common/rows.h"
#include "../common/philox_keys.h"
#include "transition_math.h"
#include "transition_task.h"

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
  explicit TransitionArguments(const Tensor& first) : is_cpu_(first.is_cpu()), device_index_(first.get_device_index()) {
    STD_TORCH_CHECK(first.dim() == 3, "states must have shape (N, T, D)");
    batch.rows = first.size(0);
    batch.frames = first.size(1);
    batch.channels = first.size(2);
    batch.mask = nullptr;
    batch.weights = nullptr;
    batch.mean = true;
  }

  Weighting batch;
  bool is_double = false;  // what is computed in: double if any state is

  State state(const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == batch.rows && tensor.size(1) == batch.frames &&
                        tensor.size(2) == batch.channels,
                    name, " has the wrong shape");
    check_device(tensor, name);
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
      check_device(*step_member, "step_member");
      check_device(*condition, "condition");
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
      check_device(*mask, "mask");
      batch.mask = static_cast<const bool*>(keep(torch::stable::contiguous(*mask)).const_data_ptr());
    }
    if (weights.has_value()) batch.weights = doubles(*weights, batch.channels, "channel_weights");
  }

  const double* doubles(const Tensor& tensor, int64_t size, const char* name) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.dim() == 1 && tensor.size(0) == size, name,
                    " has the wrong shape or dtype");
    check_device(tensor, name);
    return static_cast<const double*>(keep(torch::stable::contiguous(tensor)).const_data_ptr());
  }

 private:
  void check_device(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.is_cpu() == is_cpu_ && tensor.get_device_index() == device_index_, name,
                    " is on another device than the first argument");
  }

  const Tensor& keep(Tensor tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  bool is_cpu_;
  int32_t device_index_;
  std::vector<Tensor> kept_;
  std::optional<PhiloxKeys> keys_;
};

inline ScalarType compute_dtype(bool is_double) { return is_double ? ScalarType::Double : ScalarType::Float; }

inline Output new_output(Tensor& tensor) { return {tensor.mutable_data_ptr(), state_dtype(tensor, "a result")}; }

inline Tensor new_state(const Tensor& like, ScalarType dtype) {
  return new_result(like, {like.size(0), like.size(1), like.size(2)}, dtype);
}

inline Tensor new_gradient(const Tensor& state, bool needed) {
  return needed ? new_state(state, state.scalar_type()) : torch::stable::new_empty(state, {0}, state.scalar_type());
}

// Calls f with a value of the type that is computed in.
template <class F>
void with_compute_type(bool is_double, F&& f) {
  if (is_double)
    f(double{});
  else
    f(float{});
}

inline StepJob step_job(
    TransitionArguments& arguments, const Tensor& x_t, const Tensor& x0_pred, const OptionalTensor& noise,
    const OptionalTensor& step_member, const OptionalTensor& condition, int64_t seed, int64_t iteration, int64_t stream,
    double A, double B, double s, const OptionalTensor& A_rows, const OptionalTensor& B_rows,
    const OptionalTensor& s_rows) {
  StepJob job{};
  job.x_t = arguments.state(x_t, "x_t");
  job.x0_pred = arguments.state(x0_pred, "x0_pred");
  job.noise = arguments.noise(noise, step_member, condition, seed, iteration, stream);
  job.A = arguments.scalar(A, A_rows, "A");
  job.B = arguments.scalar(B, B_rows, "B");
  job.s = arguments.scalar(s, s_rows, "s");
  job.batch = arguments.batch;
  return job;
}

inline void check_matrices(const Weighting& batch, int64_t first_channel, int64_t matrices) {
  STD_TORCH_CHECK(first_channel >= 0 && matrices >= 1 && matrices <= batch.channels / 9 &&
                      first_channel <= batch.channels - 9 * matrices,
                  "the matrices lie outside the channels");
}

inline ProjectionGradientJob projection_gradient_job(
    TransitionArguments& arguments, const OptionalTensor& grad_x_prev, const OptionalTensor& grad_projected,
    const Tensor& x0_pred, const Tensor& projected, double B, const OptionalTensor& B_rows, int64_t first_channel,
    int64_t matrices, bool fix_det) {
  ProjectionGradientJob job{};
  job.x0_pred = arguments.state(x0_pred, "x0_pred");
  job.projected = arguments.state(projected, "projected");
  job.grad_x_prev = arguments.optional_state(grad_x_prev, "grad_x_prev");
  job.grad_projected = arguments.optional_state(grad_projected, "grad_projected");
  STD_TORCH_CHECK(grad_x_prev.has_value() || grad_projected.has_value(), "a gradient must be given");
  for (const OptionalTensor* grad : {&grad_x_prev, &grad_projected})
    if (grad->has_value()) check_same_dtype(**grad, x0_pred, "a gradient");
  check_same_dtype(projected, x0_pred, "projected");
  job.B = arguments.scalar(B, B_rows, "B");
  check_matrices(arguments.batch, first_channel, matrices);
  job.first_channel = first_channel;
  job.matrices = matrices;
  job.fix_det = fix_det;
  job.batch = arguments.batch;
  return job;
}

inline LogProbJob log_prob_job(
    TransitionArguments& arguments, const Tensor& x_prev, const OptionalTensor& x_t, const OptionalTensor& x0_pred,
    double A, double B, double s, const OptionalTensor& A_rows, const OptionalTensor& B_rows,
    const OptionalTensor& s_rows, const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean) {
  LogProbJob job{};
  job.x_prev = arguments.state(x_prev, "x_prev");
  STD_TORCH_CHECK(x_t.has_value() == x0_pred.has_value(), "x_t and x0_pred must be given together");
  job.x_t = arguments.optional_state(x_t, "x_t");
  job.x0_pred = arguments.optional_state(x0_pred, "x0_pred");
  job.A = arguments.scalar(A, A_rows, "A");
  job.B = arguments.scalar(B, B_rows, "B");
  job.s = arguments.scalar(s, s_rows, "s");
  arguments.weighting(mask, channel_weights, mean);
  job.batch = arguments.batch;
  return job;
}

// What the forward pass keeps for the backward pass: nothing, or one number per element in the type that is computed in.
inline Tensor new_kept(const TransitionArguments& arguments, const Tensor& like, bool keep) {
  const ScalarType dtype = compute_dtype(arguments.is_double);
  return keep ? new_state(like, dtype) : torch::stable::new_empty(like, {0}, dtype);
}

// A gradient with respect to a state, of which, where it was kept instead, only the kept numbers are there.
inline Tensor new_log_prob_gradient(const OptionalTensor& state, const Tensor& kept, bool needed) {
  return new_gradient(state.has_value() ? *state : kept, needed);
}

inline RatioJob ratio_job(TransitionArguments& arguments, const Tensor& x0_pred, const Tensor& other,
                   const OptionalTensor& noise, const OptionalTensor& step_member, const OptionalTensor& condition,
                   int64_t seed, int64_t iteration, int64_t stream, double gain, const OptionalTensor& gain_rows,
                   const OptionalTensor& mask, const OptionalTensor& channel_weights, bool mean, bool drop_quadratic) {
  RatioJob job{};
  job.x0_pred = arguments.state(x0_pred, "x0_pred");
  job.other = arguments.state(other, "other");
  // What is computed in follows from the predictions; noise of a wider type is not what x_prev was drawn with.
  const bool is_double = arguments.is_double;
  job.noise = arguments.noise(noise, step_member, condition, seed, iteration, stream);
  STD_TORCH_CHECK(arguments.is_double == is_double, "noise must not be wider than the predictions");
  job.gain = arguments.scalar(gain, gain_rows, "gain");
  arguments.weighting(mask, channel_weights, mean);
  job.batch = arguments.batch;
  const RatioTerms terms = job.noise.kind == Noise::Kind::kNone ? RatioTerms::kDivergence
                           : drop_quadratic                      ? RatioTerms::kLinear
                                                                 : RatioTerms::kBoth;
  job.terms = static_cast<int>(terms);
  return job;
}

}  // namespace mgrpo

// The operators' arguments, the same on every device.
#define MGRPO_NOISE "Tensor? noise, Tensor? step_member, Tensor? condition, int seed, int iteration, int stream"
#define MGRPO_SCALARS "float A, float B, float s, Tensor? A_rows, Tensor? B_rows, Tensor? s_rows"
#define MGRPO_WEIGHTING "Tensor? mask, Tensor? channel_weights, bool mean"
#define MGRPO_MATRICES "int first_channel, int matrices, bool fix_det"
#define MGRPO_SDE_STEP                                                                              \
  "(Tensor x_t, Tensor x0_pred, " MGRPO_NOISE ", " MGRPO_SCALARS ", " MGRPO_WEIGHTING               \
  ", bool with_log_prob) -> (Tensor, Tensor)"
#define MGRPO_PROJECTED_SDE_STEP \
  "(Tensor x_t, Tensor x0_pred, " MGRPO_NOISE ", " MGRPO_SCALARS ", " MGRPO_MATRICES ") -> (Tensor, Tensor)"
#define MGRPO_PROJECTED_SDE_STEP_BACKWARD                                                                              \
  "(Tensor? grad_x_prev, Tensor? grad_projected, Tensor x0_pred, Tensor projected, float B, Tensor? B_rows, " \
  MGRPO_MATRICES ") -> Tensor"
#define MGRPO_SDE_LOG_PROB                                                                \
  "(Tensor x_prev, Tensor x_t, Tensor x0_pred, " MGRPO_SCALARS ", " MGRPO_WEIGHTING       \
  ", bool keep) -> (Tensor, Tensor)"
#define MGRPO_SDE_LOG_PROB_BACKWARD                                                                       \
  "(Tensor grad, Tensor x_prev_or_kept, Tensor? x_t, Tensor? x0_pred, " MGRPO_SCALARS ", " MGRPO_WEIGHTING \
  ", bool needs_x_prev, bool needs_x_t, bool needs_x0_pred) -> (Tensor, Tensor, Tensor)"
#define MGRPO_SDE_LOG_RATIO                                                                         \
  "(Tensor x0_pred, Tensor other, " MGRPO_NOISE ", float gain, Tensor? gain_rows, " MGRPO_WEIGHTING \
  ", bool drop_quadratic) -> Tensor"
#define MGRPO_SDE_LOG_RATIO_BACKWARD                                                                             \
  "(Tensor grad, Tensor x0_pred, Tensor other, " MGRPO_NOISE ", float gain, Tensor? gain_rows, " MGRPO_WEIGHTING \
  ", bool drop_quadratic) -> Tensor"
