// Whole ranges of a row's numbers; compiled once per instruction set (common/for_each_isa.h).
#include "../common/philox_lanes.h"

namespace MGRPO_NAMESPACE {

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

inline void fill_normal(const PhiloxRow& row, int64_t begin, int64_t count, float* out) {
  fill_numbers<NormalNumbers>(row, begin, count, out);
}
inline void fill_uniform(const PhiloxRow& row, int64_t begin, int64_t count, float* out) {
  fill_numbers<UniformNumbers>(row, begin, count, out);
}

}  // namespace MGRPO_NAMESPACE
