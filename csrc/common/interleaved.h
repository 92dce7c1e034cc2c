// Short rows that follow one another in memory, from and to one Pack per column. A block of kLanes rows of kCount
// numbers is kCount packs of memory; pack.h's load_rows and store_rows take its rows one at a time, each of them a part
// of a vector and mostly in two lines of the cache. Only for_each_isa.h includes this file, once per instruction set.
//
// kCount is odd, so in every column each lane of memory occurs once: lane p of memory's pack v is number n v + p, and
// belongs to column k where n v + p = k modulo kCount, that is v = j - shift(p) modulo kCount with k = n j. So a column
// consists of lanes of packs that are turned round by shift(p), which some blends do for all columns at once, bit by
// bit of the shift; what remains is one permutation per column.
namespace MGRPO_NAMESPACE {

template <class T, int kCount>
struct Interleaved {
  static constexpr int n = Pack<T>::kLanes;
  using Index = typename Lane<T>::Integers;
  using Lanes = std::make_integer_sequence<int, n>;
  static_assert(kCount % 2 == 1, "every lane of memory occurs once in a column");

  static constexpr int inverse(int a, int modulus) {
    int x = 1;
    while (a * x % modulus != 1) ++x;
    return x;
  }
  static constexpr int shift(int p) { return inverse(n, kCount) * p % kCount; }

  // Constant vectors, written as such: the compiler does not see through a loop that fills one.
  template <int kStep, int... kLane>
  MGRPO_HD static Index moved(std::integer_sequence<int, kLane...>) {
    return Index{(kLane + (shift(kLane) & kStep ? n : 0))...};
  }
  template <int kColumn, int... kLane>
  MGRPO_HD static Index places(std::integer_sequence<int, kLane...>) {
    return Index{(kCount * kLane + kColumn) % n...};
  }
  template <int kColumn, int... kLane>
  MGRPO_HD static Index rows(std::integer_sequence<int, kLane...>) {
    return Index{inverse(kCount, n) * (kLane + n * kCount - kColumn) % n...};
  }

  // pack[j] lane p becomes that of pack[j - shift(p)], or of pack[j + shift(p)] backwards.
  template <bool kBackwards, int kStep = 1>
  MGRPO_HD static void turn(Pack<T>* pack) {
    if constexpr (kStep < kCount) {
      const Index lanes = moved<kStep>(Lanes{});
      Pack<T> turned[kCount];
#pragma GCC unroll 16
      for (int j = 0; j < kCount; ++j) {
        const int other = kBackwards ? j + kStep : j - kStep + kCount;
        turned[j] = Pack<T>(__builtin_shuffle(pack[j].v, pack[other % kCount].v, lanes));
      }
#pragma GCC unroll 16
      for (int j = 0; j < kCount; ++j) pack[j] = turned[j];
      turn<kBackwards, 2 * kStep>(pack);
    }
  }

  template <int kPack = 0>
  MGRPO_HD static void gather(const Pack<T>* pack, Pack<T>* columns) {
    if constexpr (kPack < kCount) {
      constexpr int kColumn = n * kPack % kCount;
      columns[kColumn] = Pack<T>(__builtin_shuffle(pack[kPack].v, places<kColumn>(Lanes{})));
      gather<kPack + 1>(pack, columns);
    }
  }
  template <int kPack = 0>
  MGRPO_HD static void scatter(const Pack<T>* columns, Pack<T>* pack) {
    if constexpr (kPack < kCount) {
      constexpr int kColumn = n * kPack % kCount;
      pack[kPack] = Pack<T>(__builtin_shuffle(columns[kColumn].v, rows<kColumn>(Lanes{})));
      scatter<kPack + 1>(columns, pack);
    }
  }

  MGRPO_HD static void load(const T* p, Pack<T>* columns) {
    Pack<T> pack[kCount];
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) pack[v] = load_pack(p + v * n);
    turn<false>(pack);
    gather(pack, columns);
  }

  MGRPO_HD static void store(const Pack<T>* columns, T* p) {
    Pack<T> pack[kCount];
    scatter(columns, pack);
    turn<true>(pack);
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) store_pack(p + v * n, pack[v]);
  }
};

}  // namespace MGRPO_NAMESPACE
