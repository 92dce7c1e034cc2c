// Results on their way to memory: one Pack per column becomes rows again, around the caches where that is worth while.
// Only for_each_isa.h includes this file, once per instruction set.
namespace MGRPO_NAMESPACE {

// Past the caches, to an aligned place: a store would first read from memory what it is about to overwrite.
MGRPO_HD void store_past_caches(float* p, Pack<float> a) {
#if defined(__x86_64__) && MGRPO_ISA_BYTES == 64
  _mm512_stream_ps(p, (__m512)a.v);
#elif defined(__x86_64__) && MGRPO_ISA_BYTES == 32
  _mm256_stream_ps(p, (__m256)a.v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, (__m128)a.v);
#else
  store_pack(p, a);
#endif
}
MGRPO_HD void store_past_caches(double* p, Pack<double> a) {
#if defined(__x86_64__) && MGRPO_ISA_BYTES == 64
  _mm512_stream_pd(p, (__m512d)a.v);
#elif defined(__x86_64__) && MGRPO_ISA_BYTES == 32
  _mm256_stream_pd(p, (__m256d)a.v);
#elif defined(__x86_64__)
  __m128d half[2];
  memcpy(half, &a.v, sizeof half);
  _mm_stream_pd(p, half[0]);
  _mm_stream_pd(p + 2, half[1]);
#else
  store_pack(p, a);
#endif
}
// At the end of a task that stored past the caches: other threads see its stores before they see it finished.
MGRPO_HD void finish_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
template <class T>
MGRPO_HD bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % MGRPO_ISA_BYTES == 0;
}

// Writes the first `valid` rows of `count` numbers each, one after the other.
template <class T>
MGRPO_CALLED void store_rows(T* out, int valid, int count, const Pack<T>* columns) {
  constexpr int n = Pack<T>::kLanes;
  Pack<T> r[n];
  int k = 0;
  for (; k + n <= count; k += n) {
    for (int i = 0; i < n; ++i) r[i] = columns[k + i];
    transpose(r);
    for (int i = 0; i < valid; ++i) store_pack(out + i * count + k, r[i]);
  }
  if (k < count) {
    for (int i = 0; i < n; ++i) r[i] = i < count - k ? columns[k + i] : Pack<T>(T(0));
    transpose(r);
    for (int i = 0; i < valid; ++i) store_some(out + i * count + k, r[i], count - k);
  }
}

// The same by way of `lines`, which has room for `count` packs: a row seldom begins where a line of the cache does, and
// a line that is written in two parts is fetched first. With `past_caches` the lines go straight to memory; the task
// then ends with finish_stores().
template <class T>
MGRPO_CALLED void store_block(T* out, int valid, int count, const Pack<T>* columns, Pack<T>* lines, bool past_caches) {
  constexpr int n = Pack<T>::kLanes;
  T* const numbers = reinterpret_cast<T*>(lines);
  store_rows(numbers, n, count, columns);
  const int64_t left = int64_t{valid} * count, whole = left / n;
  if (past_caches && is_aligned(out))
    for (int64_t i = 0; i < whole; ++i) store_past_caches(out + i * n, lines[i]);
  else
    for (int64_t i = 0; i < whole; ++i) store_pack(out + i * n, lines[i]);
  if (whole * n < left) store_some(out + whole * n, lines[whole], static_cast<int>(left - whole * n));
}

}  // namespace MGRPO_NAMESPACE
