// Rows (batch elements) of a tensor as plain data, which a kernel can take by value. Torch-free.
//
// The batch may be strided or expanded: a row is found from its number, so a broadcast argument is never copied.
#pragma once

#include <cstdint>

#include "macros.h"

namespace mgrpo {

// Where row number i of a batch lies. Neighbouring axes that one stride describes are one axis here; a batch that no
// kMaxAxes axes describe must be copied first.
struct RowLayout {
  static constexpr int kMaxAxes = 4;
  int64_t count = 1;     // of rows
  int64_t row_size = 1;  // numbers in a row, which lie side by side
  int axes = 0;
  int64_t sizes[kMaxAxes] = {1, 1, 1, 1};
  int64_t strides[kMaxAxes] = {0, 0, 0, 0};

  // Adds the next inner axis of the batch; false if there is no room for it.
  bool add_axis(int64_t size, int64_t stride) {
    count *= size;
    if (size == 1) return true;
    if (axes > 0 && strides[axes - 1] == stride * size) {
      sizes[axes - 1] *= size;
      strides[axes - 1] = stride;
      return true;
    }
    if (axes == kMaxAxes) return false;
    sizes[axes] = size;
    strides[axes] = stride;
    ++axes;
    return true;
  }

  // All rows lie one after the other.
  MGRPO_HD bool contiguous() const { return count <= 1 || (axes == 1 && strides[0] == row_size); }

  MGRPO_HD int64_t offset(int64_t row) const {
    if (axes <= 1) return row * strides[0];
    int64_t sum = 0;
    // A loop over all axes, unrolled, keeps the arrays out of a GPU thread's local memory.
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (int axis = kMaxAxes - 1; axis > 0; --axis) {
      if (axis >= axes) continue;
      sum += row % sizes[axis] * strides[axis];
      row /= sizes[axis];
    }
    return sum + row * strides[0];
  }
};

template <class T>
struct RowView {
  const T* data;
  RowLayout layout;

  MGRPO_HD int64_t count() const { return layout.count; }
  MGRPO_HD int64_t row_size() const { return layout.row_size; }
  MGRPO_HD bool contiguous() const { return layout.contiguous(); }
  MGRPO_HD const T* at(int64_t row) const { return data + layout.offset(row); }
};

}  // namespace mgrpo
