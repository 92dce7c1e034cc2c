// Philox with one counter per vector lane, and its numbers in their order; compiled once per instruction set
// (common/for_each_isa.h), with the same bits in each.
#include "philox_math.h"

namespace MGRPO_NAMESPACE {

// What philox_math.h calls `L`.
struct PhiloxLanes {
  typedef float Float __attribute__((vector_size(MGRPO_ISA_BYTES)));
  typedef int32_t Int __attribute__((vector_size(MGRPO_ISA_BYTES)));
  typedef uint32_t Word __attribute__((vector_size(MGRPO_ISA_BYTES)));

  static MGRPO_HD Float to_float(Int a) { return __builtin_convertvector(a, Float); }
  static MGRPO_HD Int bits(Float a) { return (Int)a; }
  static MGRPO_HD Float from_bits(Int a) { return (Float)a; }
  static MGRPO_HD Int as_int(Word a) { return (Int)a; }
  static MGRPO_HD Float square_root(Float a) { return sqrt(Pack<float>(a)).v; }
};

constexpr int kPhiloxLanes = MGRPO_ISA_BYTES / 4;
constexpr int kPhiloxTile = 64;  // numbers that the functions below write at a time, whatever the vectors' width

// Words sit in lanes of 64 bits of which the multiplication reads the lower half, so a product's upper word is one shift
// away and its lower word is there already; the upper halves hold rubbish until the end.
typedef uint64_t WideWords __attribute__((vector_size(MGRPO_ISA_BYTES)));

MGRPO_HD WideWords multiply_low_halves(WideWords a, WideWords b) {
#if defined(__x86_64__) && MGRPO_ISA_BYTES == 64
  // All lanes under a mask: the plain intrinsic makes g++ warn of an uninitialised value of its own.
  return (WideWords)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
#elif defined(__x86_64__) && MGRPO_ISA_BYTES == 32
  return (WideWords)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (WideWords)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

struct WideCounter {
  WideWords w0, w1, w2, w3;
};

// The keys of all rounds, once per range of numbers.
struct RoundKeys {
  uint64_t k0[kPhiloxRounds], k1[kPhiloxRounds];
};
MGRPO_HD RoundKeys round_keys(const PhiloxRow& row) {
  RoundKeys keys;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    keys.k0[round] = row.k0 + static_cast<uint32_t>(round) * kPhiloxWeyl0;
    keys.k1[round] = row.k1 + static_cast<uint32_t>(round) * kPhiloxWeyl1;
  }
  return keys;
}

// Ten rounds for the counters whose first words are in `first`.
MGRPO_HD WideCounter philox_rounds(WideWords first, const PhiloxRow& row, const RoundKeys& keys) {
  const WideWords zero = {};
  const WideWords multiplier0 = zero + kPhiloxMultiplier0, multiplier1 = zero + kPhiloxMultiplier1;
  WideCounter c = {first, zero + row.step_member, zero + row.condition, zero + row.iteration};
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const WideWords p0 = multiply_low_halves(c.w0, multiplier0), p1 = multiply_low_halves(c.w2, multiplier1);
    c = {(p1 >> 32) ^ c.w1 ^ keys.k0[round], p1, (p0 >> 32) ^ c.w3 ^ keys.k1[round], p0};
  }
  return c;
}

// Lane 2i from the lower half of even[i], lane 2i + 1 from that of odd[i].
MGRPO_HD PhiloxLanes::Word merge(WideWords even, WideWords odd) {
  return (PhiloxLanes::Word)((even & 0xFFFFFFFFu) | (odd << 32));
}

// a0 b0 a1 b1 ... : the first and the second half of it.
MGRPO_HD void interleave(PhiloxLanes::Float a, PhiloxLanes::Float b, PhiloxLanes::Float& low, PhiloxLanes::Float& high) {
  PhiloxLanes::Int take;
  for (int lane = 0; lane < kPhiloxLanes; ++lane) take[lane] = lane / 2 + (lane % 2) * kPhiloxLanes;
  low = __builtin_shuffle(a, b, take);
  high = __builtin_shuffle(a, b, take + kPhiloxLanes / 2);
}

struct NormalNumbers {
  static MGRPO_HD void convert(const PhiloxLanes::Word* words, PhiloxLanes::Float* numbers) {
    box_muller<PhiloxLanes>(words[0], words[1], numbers[0], numbers[1]);
    box_muller<PhiloxLanes>(words[2], words[3], numbers[2], numbers[3]);
  }
};
struct UniformNumbers {
  static MGRPO_HD void convert(const PhiloxLanes::Word* words, PhiloxLanes::Float* numbers) {
    for (int i = 0; i < 4; ++i) numbers[i] = word_to_uniform<PhiloxLanes>(words[i]);
  }
};

// The numbers of blocks block, block + 1, ... of a row, kPhiloxTile for each of `tiles`, in order, to out. `beside` is
// called with each tile's first number before it is drawn: the place to ask for memory that is needed afterwards.
//
// First words, then numbers: in either loop the steps of one vector wait for each other, and the shorter the loop's body
// the more vectors a processor has under way at once.
template <class Numbers, class Beside>
MGRPO_CALLED void philox_tiles(const PhiloxRow& row, uint32_t block, int64_t tiles, float* out, Beside beside) {
  constexpr int kTilesAtOnce = 8, kGroups = kPhiloxTile / (4 * kPhiloxLanes);
  const RoundKeys keys = round_keys(row);
  const PhiloxRow own = row;
  WideWords even;
  for (int lane = 0; lane < kPhiloxLanes / 2; ++lane) even[lane] = static_cast<uint64_t>(2 * lane);
  PhiloxLanes::Word words[kTilesAtOnce * kGroups][4];
  for (int64_t tile = 0; tile < tiles; tile += kTilesAtOnce) {
    const int groups = static_cast<int>(tiles - tile < kTilesAtOnce ? tiles - tile : kTilesAtOnce) * kGroups;
    const uint32_t start = block + static_cast<uint32_t>(tile * (kPhiloxTile / 4));
    for (int group = 0; group < groups; ++group) {
      if (group % kGroups == 0) beside((tile + group / kGroups) * kPhiloxTile);
      const WideWords first = even + (own.first_word | (start + static_cast<uint32_t>(group * kPhiloxLanes)));
      const WideCounter a = philox_rounds(first, own, keys), b = philox_rounds(first + 1, own, keys);
      words[group][0] = merge(a.w0, b.w0);
      words[group][1] = merge(a.w1, b.w1);
      words[group][2] = merge(a.w2, b.w2);
      words[group][3] = merge(a.w3, b.w3);
    }
    for (int group = 0; group < groups; ++group) {
      PhiloxLanes::Float n[4], low[2], high[2], ordered[4];
      Numbers::convert(words[group], n);
      interleave(n[0], n[2], low[0], high[0]);
      interleave(n[1], n[3], low[1], high[1]);
      interleave(low[0], low[1], ordered[0], ordered[1]);
      interleave(high[0], high[1], ordered[2], ordered[3]);
      memcpy(out + tile * kPhiloxTile + group * 4 * kPhiloxLanes, ordered, sizeof ordered);
    }
  }
}

struct NothingBeside {
  MGRPO_HD void operator()(int64_t) const {}
};

// Numbers begin, ..., begin + count - 1 of a row; begin is a multiple of four.
template <class Numbers>
MGRPO_HD void fill_numbers(const PhiloxRow& row, int64_t begin, int64_t count, float* out) {
  const uint32_t block = static_cast<uint32_t>(begin / 4);
  const int64_t whole = count / kPhiloxTile, rest = count - whole * kPhiloxTile;
  philox_tiles<Numbers>(row, block, whole, out, NothingBeside{});
  if (rest > 0) {
    float tail[kPhiloxTile];
    philox_tiles<Numbers>(row, block + static_cast<uint32_t>(whole * (kPhiloxTile / 4)), 1, tail, NothingBeside{});
    memcpy(out + whole * kPhiloxTile, tail, static_cast<size_t>(rest) * sizeof(float));
  }
}

}  // namespace MGRPO_NAMESPACE
