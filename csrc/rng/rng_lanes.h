// Whole ranges of a row's numbers; compiled once per instruction set (common/for_each_isa.h).
#include "../common/philox_lanes.h"

namespace MGRPO_NAMESPACE {

inline void fill_normal(const PhiloxRow& row, int64_t begin, int64_t count, float* out) {
  fill_numbers<NormalNumbers>(row, begin, count, out);
}
inline void fill_uniform(const PhiloxRow& row, int64_t begin, int64_t count, float* out) {
  fill_numbers<UniformNumbers>(row, begin, count, out);
}

}  // namespace MGRPO_NAMESPACE
