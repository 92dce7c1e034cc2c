// One thread searches for a row; its dense steps go through vector registers. Compiled once per instruction set.
#include "search_math.h"

namespace MGRPO_NAMESPACE {

// A team of one.
struct Solo {
  static constexpr bool kAlone = true;
  MGRPO_HD int rank() const { return 0; }
  MGRPO_HD int size() const { return 1; }
  MGRPO_HD void sync() const {}
  MGRPO_HD int segment() const { return 1 << 20; }  // of a chain: all of it

  template <class T>
  MGRPO_HD void copy(T* to, int stride_to, const T* from, int stride_from, int rows, int columns) const {
    for (int i = 0; i < rows; ++i)
      memcpy(to + i * stride_to, from + i * stride_from, static_cast<size_t>(columns) * sizeof(T));
  }
  template <class T>
  MGRPO_HD void clear(T* to, int stride, int rows, int columns) const {
    for (int i = 0; i < rows; ++i) memset(to + i * stride, 0, static_cast<size_t>(columns) * sizeof(T));
  }
  template <class T>
  MGRPO_HD T dot(const T* a, const T* b, int count) const {
    constexpr int kLanes = Pack<T>::kLanes;
    Pack<T> sum(T(0));
    int k = 0;
    for (; k + kLanes <= count; k += kLanes) sum += load_pack(a + k) * load_pack(b + k);
    if (k < count) sum += load_some(a + k, count - k) * load_some(b + k, count - k);
    return sum_lanes(sum);
  }

  // kRows rows of C from row i on, in the columns from j to the end.
  template <int kRows, class T>
  static MGRPO_HD void product_rows(const Products<T>& p, int i, int j) {
    constexpr int kLanes = Pack<T>::kLanes, kPacks = 2;
    for (; j < p.columns; j += kPacks * kLanes) {
      Pack<T> sum[kRows][kPacks];
      for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kPacks; ++c) sum[r][c] = Pack<T>(T(0));
      const T* a = p.A + i + p.first(j) * p.stride_a;
      const T* b = p.B + j + p.first(j) * p.stride_b;
      // Beyond the last column lies the next row, or room left for this: what is read there goes nowhere.
      const int packs = j + kLanes < p.columns ? kPacks : 1;
      for (int k = p.first(j); k < p.depth; ++k, a += p.stride_a, b += p.stride_b) {
        const Pack<T> b0 = Pack<T>(p.factor[k]) * load_pack(b);
        const Pack<T> b1 = Pack<T>(p.factor[k]) * load_pack(packs > 1 ? b + kLanes : b);
        for (int r = 0; r < kRows; ++r) {
          const Pack<T> scale(a[r]);
          sum[r][0] += scale * b0;
          sum[r][1] += scale * b1;
        }
      }
      for (int c = 0; c < packs; ++c) {
        const int at = j + c * kLanes, left = p.columns - at;
        for (int r = 0; r < kRows; ++r) {
          T* const out = p.C + (i + r) * p.stride_c + at;
          if (left >= kLanes)
            store_pack(out, load_pack(out) + sum[r][c]);
          else
            store_some(out, load_some(out, left) + sum[r][c], left);
        }
      }
    }
  }
  template <class T>
  MGRPO_CALLED void products(const Products<T>& p) const {
    int i = 0;
    for (; i + 4 <= p.rows; i += 4) product_rows<4>(p, i, p.symmetric ? i : 0);
    for (; i < p.rows; ++i) product_rows<1>(p, i, p.symmetric ? i : 0);
  }

  // Rows below the block lose their multiples of its three rows; three rows at a time share what is read.
  template <class T>
  MGRPO_CALLED void eliminate(const Panel<T>& panel, int block) const {
    constexpr int kLanes = Pack<T>::kLanes;
    const int first = 3 * block, end = panel.end(block);
    const T *const r0 = panel.row(first), *const r1 = panel.row(first + 1), *const r2 = panel.row(first + 2);
    for (int i = first + 3; i < panel.n; i += 3) {
      Pack<T> factor[3][3];
      for (int r = 0; r < 3; ++r)
        for (int k = 0; k < 3; ++k) factor[r][k] = Pack<T>(panel.row(first + k)[i + r]);
      for (int j = i; j < end; j += kLanes) {
        const int left = end - j;
        const Pack<T> b0 = load_pack(r0 + j), b1 = load_pack(r1 + j), b2 = load_pack(r2 + j);
        for (int r = 0; r < 3; ++r) {
          T* const out = panel.row(i + r) + j;
          const Pack<T> change = factor[r][0] * b0 + factor[r][1] * b1 + factor[r][2] * b2;
          if (left >= kLanes)
            store_pack(out, load_pack(out) - change);
          else
            store_some(out, load_some(out, left) - change, left);
        }
      }
    }
  }
};

template <class T>
void guide_rows(const GuidanceJob<T>& job, int64_t begin, int64_t end, T* memory) {
  Solo team;
  GuidanceSpace<T> space = {};
  space.place(job, memory, 1, false);
  for (int64_t row = begin; row < end; ++row) guide_row<T>(job, row, space, team);
}

}  // namespace MGRPO_NAMESPACE
