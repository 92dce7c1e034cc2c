// Pack<T>: as many numbers as one vector register holds; lane i belongs to row (frame, matrix, cloud) i of a block.
// Arithmetic is elementwise, comparisons give a Mask, and load_rows turns rows of memory into one Pack per column
// (stores.h: and back). Only for_each_isa.h includes this file, once per instruction set.
namespace MGRPO_NAMESPACE {

template <class T>
struct Lane;  // of an element type: the register of it, and the integers of its size
template <>
struct Lane<float> {
  typedef float Vector __attribute__((vector_size(MGRPO_ISA_BYTES)));
  typedef int32_t Integer;
  typedef int32_t Integers __attribute__((vector_size(MGRPO_ISA_BYTES)));
};
template <>
struct Lane<double> {
  // Never fewer than four, in two registers if need be: formulas over time look three rows back, into one block before.
  static constexpr int kBytes = MGRPO_ISA_BYTES < 32 ? 32 : MGRPO_ISA_BYTES;
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef int64_t Integer;
  typedef int64_t Integers __attribute__((vector_size(kBytes)));
};

// One truth value per lane: all bits set or none.
template <class T>
struct Mask {
  using Vector = typename Lane<T>::Integers;
  Vector v;

  Mask() = default;
  MGRPO_HD explicit Mask(Vector bits) : v(bits) {}
  MGRPO_HD Mask(bool everywhere) : v((everywhere ? -1 : 0) - Vector{}) {}

  friend MGRPO_HD Mask operator&(Mask a, Mask b) { return Mask(a.v & b.v); }
  friend MGRPO_HD Mask operator|(Mask a, Mask b) { return Mask(a.v | b.v); }
  friend MGRPO_HD Mask operator!(Mask a) { return Mask(~a.v); }
};

template <class T>
struct Pack {
  using Vector = typename Lane<T>::Vector;
  static constexpr int kLanes = sizeof(Vector) / sizeof(T);
  Vector v;

  Pack() = default;
  MGRPO_HD explicit Pack(Vector lanes) : v(lanes) {}
  MGRPO_HD Pack(T everywhere) : v(everywhere - Vector{}) {}

  friend MGRPO_HD Pack operator+(Pack a, Pack b) { return Pack(a.v + b.v); }
  friend MGRPO_HD Pack operator-(Pack a, Pack b) { return Pack(a.v - b.v); }
  friend MGRPO_HD Pack operator*(Pack a, Pack b) { return Pack(a.v * b.v); }
  friend MGRPO_HD Pack operator/(Pack a, Pack b) { return Pack(a.v / b.v); }
  friend MGRPO_HD Pack operator-(Pack a) { return Pack(-a.v); }
  MGRPO_HD Pack& operator+=(Pack b) { return *this = *this + b; }
  MGRPO_HD Pack& operator-=(Pack b) { return *this = *this - b; }
  MGRPO_HD Pack& operator*=(Pack b) { return *this = *this * b; }

  friend MGRPO_HD Mask<T> operator<(Pack a, Pack b) { return Mask<T>(a.v < b.v); }
  friend MGRPO_HD Mask<T> operator<=(Pack a, Pack b) { return Mask<T>(a.v <= b.v); }
  friend MGRPO_HD Mask<T> operator>(Pack a, Pack b) { return Mask<T>(a.v > b.v); }
  friend MGRPO_HD Mask<T> operator>=(Pack a, Pack b) { return Mask<T>(a.v >= b.v); }
  friend MGRPO_HD Mask<T> operator==(Pack a, Pack b) { return Mask<T>(a.v == b.v); }
  friend MGRPO_HD Mask<T> operator!=(Pack a, Pack b) { return Mask<T>(a.v != b.v); }

  friend MGRPO_HD Pack select(Mask<T> condition, Pack yes, Pack no) { return Pack(condition.v ? yes.v : no.v); }
  friend MGRPO_HD Pack max(Pack a, Pack b) { return Pack(a.v > b.v ? a.v : b.v); }
  friend MGRPO_HD Pack min(Pack a, Pack b) { return Pack(a.v < b.v ? a.v : b.v); }
  friend MGRPO_HD Pack abs(Pack a) {
    using Integers = typename Lane<T>::Integers;
    constexpr auto kAllButSign = static_cast<typename Lane<T>::Integer>(~uint64_t{0} >> (65 - 8 * sizeof(T)));
    return Pack((Vector)((Integers)a.v & (kAllButSign - Integers{})));
  }
};

template <class T>
struct Number<Pack<T>> {
  using Element = T;
  using Condition = Mask<T>;
};

#if defined(__x86_64__) && MGRPO_ISA_BYTES == 64
MGRPO_HD Pack<float> sqrt(Pack<float> a) { return Pack<float>((Pack<float>::Vector)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)a.v)); }
MGRPO_HD Pack<double> sqrt(Pack<double> a) { return Pack<double>((Pack<double>::Vector)_mm512_maskz_sqrt_pd(0xFF, (__m512d)a.v)); }
MGRPO_HD bool any(Mask<float> m) { return _mm512_movepi32_mask((__m512i)m.v) != 0; }
MGRPO_HD bool any(Mask<double> m) { return _mm512_movepi64_mask((__m512i)m.v) != 0; }
MGRPO_HD Pack<float> load_some(const float* p, int count) {
  return Pack<float>((Pack<float>::Vector)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
}
MGRPO_HD Pack<double> load_some(const double* p, int count) {
  return Pack<double>((Pack<double>::Vector)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p));
}
MGRPO_HD void store_some(float* p, Pack<float> a, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)a.v);
}
MGRPO_HD void store_some(double* p, Pack<double> a, int count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), (__m512d)a.v);
}
#else
#if defined(__x86_64__) && MGRPO_ISA_BYTES == 32
MGRPO_HD Pack<float> sqrt(Pack<float> a) { return Pack<float>((Pack<float>::Vector)_mm256_sqrt_ps((__m256)a.v)); }
MGRPO_HD Pack<double> sqrt(Pack<double> a) { return Pack<double>((Pack<double>::Vector)_mm256_sqrt_pd((__m256d)a.v)); }
MGRPO_HD bool any(Mask<float> m) { return _mm256_movemask_ps((__m256)m.v) != 0; }
MGRPO_HD bool any(Mask<double> m) { return _mm256_movemask_pd((__m256d)m.v) != 0; }
#elif defined(__x86_64__)
MGRPO_HD Pack<float> sqrt(Pack<float> a) { return Pack<float>((Pack<float>::Vector)_mm_sqrt_ps((__m128)a.v)); }
MGRPO_HD Pack<double> sqrt(Pack<double> a) {
  __m128d half[2];
  memcpy(half, &a.v, sizeof half);
  for (__m128d& part : half) part = _mm_sqrt_pd(part);
  memcpy(&a.v, half, sizeof half);
  return a;
}
MGRPO_HD bool any(Mask<float> m) { return _mm_movemask_ps((__m128)m.v) != 0; }
MGRPO_HD bool any(Mask<double> m) {
  __m128d half[2];
  memcpy(half, &m.v, sizeof half);
  return (_mm_movemask_pd(half[0]) | _mm_movemask_pd(half[1])) != 0;
}
#else
template <class T>
MGRPO_HD Pack<T> sqrt(Pack<T> a) {
  for (int lane = 0; lane < Pack<T>::kLanes; ++lane) a.v[lane] = sqrt(static_cast<T>(a.v[lane]));
  return a;
}
template <class T>
MGRPO_HD bool any(Mask<T> m) {
  bool found = false;
  for (int lane = 0; lane < Pack<T>::kLanes; ++lane) found |= m.v[lane] != 0;
  return found;
}
#endif
// The first `count` numbers at p; the other lanes are zero.
template <class T>
MGRPO_HD Pack<T> load_some(const T* p, int count) {
  Pack<T> a(T(0));
  memcpy(&a.v, p, static_cast<size_t>(count) * sizeof(T));
  return a;
}
template <class T>
MGRPO_HD void store_some(T* p, Pack<T> a, int count) {
  memcpy(p, &a.v, static_cast<size_t>(count) * sizeof(T));
}
#endif

template <class T>
MGRPO_HD bool all(Mask<T> m) {
  return !any(!m);
}
template <class T>
MGRPO_HD Pack<T> load_pack(const T* p) {
  Pack<T> a;
  memcpy(&a.v, p, sizeof a.v);
  return a;
}
template <class T>
MGRPO_HD void store_pack(T* p, Pack<T> a) {
  memcpy(p, &a.v, sizeof a.v);
}
// 0, 1, 2, ... per lane: with it the lanes that hold a row are `lane_index<T>() < T(rows)`.
template <class T>
MGRPO_HD Pack<T> lane_index() {
  Pack<T> a;
  for (int lane = 0; lane < Pack<T>::kLanes; ++lane) a.v[lane] = static_cast<T>(lane);
  return a;
}
// The sum over lanes, always in the same order.
template <class T>
MGRPO_HD T sum_lanes(Pack<T> a) {
  T part[Pack<T>::kLanes];
  memcpy(part, &a.v, sizeof part);
  for (int width = Pack<T>::kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
  return part[0];
}

// In-place transposition of kLanes x kLanes numbers: r[i] lane j becomes r[j] lane i. Each round interleaves r[i] with
// r[i + kLanes / 2], which rotates the bits of the pair (i, j) by one place.
template <class T>
MGRPO_HD void transpose(Pack<T>* r) {
  constexpr int n = Pack<T>::kLanes;
  using Index = typename Lane<T>::Integers;
  Index low, high;
  for (int lane = 0; lane < n; ++lane) {
    low[lane] = lane / 2 + (lane % 2) * n;
    high[lane] = low[lane] + n / 2;
  }
  for (int round = 1; round < n; round *= 2) {
    Pack<T> t[n];
    for (int i = 0; i < n / 2; ++i) {
      t[2 * i] = Pack<T>(__builtin_shuffle(r[i].v, r[i + n / 2].v, low));
      t[2 * i + 1] = Pack<T>(__builtin_shuffle(r[i].v, r[i + n / 2].v, high));
    }
    for (int i = 0; i < n; ++i) r[i] = t[i];
  }
}

// The rows of one block of lanes: lane i reads row i, or the last valid row beyond `valid`.
template <class T>
struct BlockRows {
  const T* at[Pack<T>::kLanes];
};
template <class T, class Source>
MGRPO_HD BlockRows<T> block_rows(const Source& rows, int64_t first, int valid) {
  BlockRows<T> block;
  for (int lane = 0; lane < Pack<T>::kLanes; ++lane)
    block.at[lane] = rows.template at<T>(first + (lane < valid ? lane : valid - 1));
  return block;
}

// columns[k] gets number k (0 <= k < count) of every row. Rows mostly follow one another, so that the next block is where
// it is asked for here; that it may not be there, or not exist, costs nothing.
template <class T>
MGRPO_CALLED void load_rows(const BlockRows<T>& rows, int count, Pack<T>* columns) {
  constexpr int n = Pack<T>::kLanes;
  Pack<T> r[n];
  int k = 0;
  for (; k + n <= count; k += n) {
    for (int i = 0; i < n; ++i) {
      r[i] = load_pack(rows.at[i] + k);
      __builtin_prefetch(rows.at[i] + k + n * count, 0, 2);  // not into the first cache, which the tables fill
    }
    transpose(r);
    for (int i = 0; i < n; ++i) columns[k + i] = r[i];
  }
  if (k < count) {
    for (int i = 0; i < n; ++i) r[i] = load_some(rows.at[i] + k, count - k);
    transpose(r);
    for (int i = 0; i < count - k; ++i) columns[k + i] = r[i];
  }
}

}  // namespace MGRPO_NAMESPACE
