// Rows of a few numbers between device memory and shared memory. A thread that works on one row would read memory with
// gaps; so the block's threads copy side by side, and each then takes its own row from shared memory.
#pragma once

#include "cuda_compat.h"
#include "row_view.h"

namespace mgrpo {

// Distance between rows of a tile: odd, so that the threads of a warp, one row each, meet no bank conflicts.
MGRPO_HD constexpr int tile_stride(int row_size) { return row_size | 1; }

// Rows first .. first + rows - 1 to `tile`, by all threads of the block. A barrier must follow.
template <int kRowSize, class T>
__device__ __forceinline__ void load_tile(T* tile, const RowView<T>& from, int64_t first, int rows) {
  constexpr int kStride = tile_stride(kRowSize);
  if (from.contiguous()) {
    const T* source = from.data + first * kRowSize;
    for (int i = threadIdx.x; i < rows * kRowSize; i += blockDim.x)
      tile[i / kRowSize * kStride + i % kRowSize] = source[i];
  } else {
    for (int i = threadIdx.x; i < rows * kRowSize; i += blockDim.x)
      tile[i / kRowSize * kStride + i % kRowSize] = from.at(first + i / kRowSize)[i % kRowSize];
  }
}

// The reverse, to rows that lie one after the other. A barrier must come before.
template <int kRowSize, class T>
__device__ __forceinline__ void store_tile(T* to, const T* tile, int64_t first, int rows) {
  constexpr int kStride = tile_stride(kRowSize);
  T* target = to + first * kRowSize;
  for (int i = threadIdx.x; i < rows * kRowSize; i += blockDim.x)
    target[i] = tile[i / kRowSize * kStride + i % kRowSize];
}

}  // namespace mgrpo
