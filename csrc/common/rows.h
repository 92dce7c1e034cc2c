// Access to the rows (batch elements) of tensors from the CPU operators: shape checks that protect memory, dtype
// dispatch, and row offsets of expanded or strided tensors, so that a broadcast argument is never copied.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace mgrpo {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor seen as rows: the last `inner` axes of one row lie contiguously; the axes before are the batch.
class Rows {
 public:
  Rows(const Tensor& tensor, int64_t inner) : tensor_(with_contiguous_rows(tensor, inner)) {
    const int64_t batch_axes = tensor_.dim() - inner;
    row_size_ = 1;
    for (int64_t axis = batch_axes; axis < tensor_.dim(); ++axis) row_size_ *= tensor_.size(axis);
    // Neighbouring axes that one stride describes become one: a contiguous batch needs no division below.
    for (int64_t axis = 0; axis < batch_axes; ++axis) {
      const int64_t size = tensor_.size(axis), stride = tensor_.stride(axis);
      count_ *= size;
      if (size == 1) continue;
      if (!sizes_.empty() && strides_.back() == stride * size) {
        sizes_.back() *= size;
        strides_.back() = stride;
      } else {
        sizes_.push_back(size);
        strides_.push_back(stride);
      }
    }
  }

  int64_t count() const { return count_; }
  int64_t row_size() const { return row_size_; }

  template <class T>
  const T* at(int64_t row) const {
    int64_t offset = 0;
    for (size_t axis = sizes_.size(); axis-- > 1;) {
      offset += row % sizes_[axis] * strides_[axis];
      row /= sizes_[axis];
    }
    if (!sizes_.empty()) offset += row * strides_[0];
    return static_cast<const T*>(tensor_.const_data_ptr()) + offset;
  }

 private:
  static Tensor with_contiguous_rows(const Tensor& tensor, int64_t inner) {
    int64_t expected = 1;
    for (int64_t axis = tensor.dim() - 1; axis >= tensor.dim() - inner; --axis) {
      if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return torch::stable::contiguous(tensor);
      expected *= tensor.size(axis);
    }
    return tensor;
  }

  Tensor tensor_;
  std::vector<int64_t> sizes_, strides_;
  int64_t count_ = 1, row_size_ = 1;
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
  return torch::stable::new_empty(like, shape);
}

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
