// Access to the rows (batch elements) of tensors from the CPU operators: shape checks that protect memory, dtype
// dispatch, and row offsets of expanded or strided tensors, so that a broadcast argument is never copied.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "result_memory.h"
#include "row_view.h"

namespace mgrpo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor seen as rows: the last `inner` axes of one row lie contiguously; the axes before are the batch.
class Rows {
 public:
  Rows(const Tensor& tensor, int64_t inner) : tensor_(tensor) {
    if (rows_are_contiguous(tensor, inner) && describe(inner)) return;
    tensor_ = torch::stable::contiguous(tensor);
    describe(inner);
  }

  // The same with the batch axes broadcast to `batch`, of which nothing is copied.
  Rows(const Tensor& tensor, int64_t inner, const std::vector<int64_t>& batch) : tensor_(tensor) {
    STD_TORCH_CHECK(tensor.dim() >= inner, "an argument has too few axes");
    if (rows_are_contiguous(tensor, inner) && describe(inner, batch)) return;
    tensor_ = torch::stable::contiguous(tensor);
    if (describe(inner, batch)) return;
    std::vector<int64_t> shape = batch;
    for (int64_t axis = tensor.dim() - inner; axis < tensor.dim(); ++axis) shape.push_back(tensor.size(axis));
    tensor_ = torch::stable::new_empty(tensor, shape);
    torch::stable::copy_(tensor_, tensor);
    describe(inner, batch);
  }

  int64_t count() const { return layout_.count; }
  int64_t row_size() const { return layout_.row_size; }
  bool contiguous() const { return layout_.contiguous(); }

  template <class T>
  const T* at(int64_t row) const {
    return static_cast<const T*>(tensor_.const_data_ptr()) + layout_.offset(row);
  }

  // at(first), at(first + 1), ...: cheaper than one at a time.
  template <class T>
  void pointers(int64_t first, int count, const T** out) const {
    const int last = layout_.axes - 1;
    const int64_t run = last < 0 ? layout_.count : layout_.sizes[last], step = last < 0 ? 0 : layout_.strides[last];
    int64_t left = 0;
    const T* row = nullptr;
    for (int i = 0; i < count; ++i, --left, row += step) {
      if (left == 0) {
        row = at<T>(first + i);
        left = run - (first + i) % run;
      }
      out[i] = row;
    }
  }

  // For kernels; valid while this object lives.
  template <class T>
  RowView<T> view() const {
    return {static_cast<const T*>(tensor_.const_data_ptr()), layout_};
  }

 private:
  static bool rows_are_contiguous(const Tensor& tensor, int64_t inner) {
    int64_t expected = 1;
    for (int64_t axis = tensor.dim() - 1; axis >= tensor.dim() - inner; --axis) {
      if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return false;
      expected *= tensor.size(axis);
    }
    return true;
  }

  bool describe(int64_t inner) {
    std::vector<int64_t> batch;
    for (int64_t axis = 0; axis < tensor_.dim() - inner; ++axis) batch.push_back(tensor_.size(axis));
    return describe(inner, batch);
  }

  bool describe(int64_t inner, const std::vector<int64_t>& batch) {
    layout_ = RowLayout();
    const int64_t own_axes = tensor_.dim() - inner, axes = static_cast<int64_t>(batch.size()), missing = axes - own_axes;
    STD_TORCH_CHECK(missing >= 0, "an argument has too many batch axes");
    for (int64_t axis = own_axes; axis < tensor_.dim(); ++axis) layout_.row_size *= tensor_.size(axis);
    for (int64_t axis = 0; axis < axes; ++axis) {
      const int64_t own = axis < missing ? 1 : tensor_.size(axis - missing);
      STD_TORCH_CHECK(own == 1 || own == batch[axis], "batch axes do not broadcast");
      const int64_t stride = own == 1 ? 0 : tensor_.stride(axis - missing);
      if (!layout_.add_axis(batch[axis], stride)) return false;
    }
    return true;
  }

  Tensor tensor_;
  RowLayout layout_;
};

template <class T>
T* output(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// An uninitialised contiguous tensor like `like`, whose shape is the batch of `like` (all but its last `inner` axes)
// followed by `tail`.
inline Tensor new_rows(const Tensor& like, int64_t inner, const std::vector<int64_t>& tail) {
  std::vector<int64_t> shape;
  for (int64_t axis = 0; axis < like.dim() - inner; ++axis) shape.push_back(like.size(axis));
  shape.insert(shape.end(), tail.begin(), tail.end());
  return new_result(like, shape);
}

// Whether a result of this many numbers is worth storing past the caches: where it is larger than a core's own cache,
// whoever reads it next would not find it there anyway.
inline bool is_large(int64_t numbers) { return numbers >= int64_t{1} << 19; }

// Checks that `rows` has what the operator will read: the callers' Python checks say it in better words.
inline void check_rows(const Rows& rows, int64_t count, int64_t row_size, const char* name) {
  STD_TORCH_CHECK(rows.count() == count && rows.row_size() == row_size, name, " has the wrong shape");
}
inline void check_same_dtype(const Tensor& tensor, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), name, " has another dtype than the first argument");
}

// Calls f with a value of the tensor's element type.
template <class F>
void dispatch_float_double(const Tensor& tensor, F&& f) {
  if (tensor.scalar_type() == ScalarType::Float) {
    f(float{});
  } else {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, "dtype must be float32 or float64");
    f(double{});
  }
}

}  // namespace mgrpo
