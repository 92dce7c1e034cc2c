// Loops over matrices, one matrix per lane; compiled once per instruction set (common/for_each_isa.h).
#include "../common/interleaved.h"

namespace MGRPO_NAMESPACE {

// How far ahead of a stream's reads it is asked for. Some processors learn streams by the instruction that reads, and
// lose those of the backward pass, which load_rows would read by the same few instructions for three arrays in turn.
constexpr int kBlocksAhead = 4;

// Matrices that follow one another, the usual case, are read as a stream of whole vectors. Not by the baseline, which
// has no blends.
template <class T>
MGRPO_HD Mat3<Pack<T>> load_matrices(const Rows& rows, int64_t first, int valid) {
  constexpr int n = Pack<T>::kLanes;
  Mat3<Pack<T>> a;
  if constexpr (MGRPO_ISA_BYTES > 16) {
    if (valid == n && rows.contiguous()) {
      const T* const numbers = rows.at<T>(first);
      for (int i = 0; i < 9; ++i) __builtin_prefetch(numbers + (9 * kBlocksAhead + i) * n);
      Interleaved<T, 9>::load(numbers, &a.m[0][0]);
      return a;
    }
  }
  load_rows(block_rows<T>(rows, first, valid), 9, &a.m[0][0]);
  return a;
}

template <class T>
MGRPO_HD void store_matrices(T* out, int valid, const Mat3<Pack<T>>& a) {
  constexpr int n = Pack<T>::kLanes;
  if constexpr (MGRPO_ISA_BYTES > 16) {
    if (valid == n) {
      Interleaved<T, 9>::store(&a.m[0][0], out);
      return;
    }
  }
  store_rows(out, valid, 9, &a.m[0][0]);
}

template <class T>
void project_rows(const Rows& matrices, bool fix_det, T* out, int64_t begin, int64_t end) {
  constexpr int n = Pack<T>::kLanes;
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    store_matrices(out + 9 * first, valid, nearest_rotation(load_matrices<T>(matrices, first, valid), fix_det));
  }
}

template <class T>
void project_rows_backward(const Rows& grad_R, const Rows& matrices, const Rows& R, bool fix_det, T* out, int64_t begin,
                           int64_t end) {
  constexpr int n = Pack<T>::kLanes;
  for (int64_t first = begin; first < end; first += n) {
    const int valid = static_cast<int>(first + n <= end ? n : end - first);
    store_matrices(out + 9 * first, valid,
                   polar_gradient(load_matrices<T>(grad_R, first, valid), load_matrices<T>(matrices, first, valid),
                                  load_matrices<T>(R, first, valid), fix_det));
  }
}

}  // namespace MGRPO_NAMESPACE
