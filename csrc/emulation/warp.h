// Shuffles, votes and reductions of a warp. A lane that reads one which takes no part gets ones in all bits, NaN for
// floating-point numbers, where the device gives anything.
#pragma once

#include <type_traits>

#include "scheduler.h"

namespace mgrpo::emulation {

// All lanes of `mask` bring a value; then each calls `read` with all of them, and none goes on before all have read.
template <class T, class Read>
auto exchange(unsigned mask, T value, const Place& place, Read read) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a lane hands over at most 8 bytes");
  Warp& warp = current_warp();
  memcpy(&warp.slots[lane_index()], &value, sizeof value);
  wait_for_warp(mask, place);
  const auto result = read(warp);
  wait_for_warp(mask, place);
  return result;
}

template <class T>
T shuffle(unsigned mask, T value, int source, const Place& place) {
  return exchange(mask, value, place, [&](const Warp& warp) {
    T result;
    memset(&result, 0xff, sizeof result);
    if ((mask & warp.alive) >> source & 1) memcpy(&result, &warp.slots[source], sizeof result);
    return result;
  });
}

// Combines the lanes' values in ascending order.
template <class T, class Combine>
T reduce(unsigned mask, T value, const Place& place, Combine combine) {
  return exchange(mask, value, place, [&](const Warp& warp) {
    T result{};
    bool first = true;
    for (int lane = 0; lane < 32; ++lane) {
      if (!((mask & warp.alive) >> lane & 1)) continue;
      T other;
      memcpy(&other, &warp.slots[lane], sizeof other);
      result = first ? other : combine(result, other);
      first = false;
    }
    return result;
  });
}

}  // namespace mgrpo::emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, MGRPO_EMULATION_CALLER) {
  const int lane = ::mgrpo::emulation::lane_index();
  return ::mgrpo::emulation::shuffle(
      mask, value, (lane & ~(width - 1)) + (source & (width - 1)), MGRPO_EMULATION_HERE("__shfl_sync"));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, MGRPO_EMULATION_CALLER) {
  const int lane = ::mgrpo::emulation::lane_index(), source = lane ^ bits;
  return ::mgrpo::emulation::shuffle(
      mask, value, source / width <= lane / width ? source : lane, MGRPO_EMULATION_HERE("__shfl_xor_sync"));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, MGRPO_EMULATION_CALLER) {
  const int lane = ::mgrpo::emulation::lane_index(), source = lane + int(distance);
  return ::mgrpo::emulation::shuffle(
      mask, value, source / width == lane / width ? source : lane, MGRPO_EMULATION_HERE("__shfl_down_sync"));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, MGRPO_EMULATION_CALLER) {
  const int lane = ::mgrpo::emulation::lane_index(), source = lane - int(distance);
  return ::mgrpo::emulation::shuffle(
      mask, value, source >= 0 && source / width == lane / width ? source : lane,
      MGRPO_EMULATION_HERE("__shfl_up_sync"));
}

inline unsigned __ballot_sync(unsigned mask, int vote, MGRPO_EMULATION_CALLER) {
  const unsigned bit = vote ? 1u << ::mgrpo::emulation::lane_index() : 0u;
  return ::mgrpo::emulation::reduce(
      mask, bit, MGRPO_EMULATION_HERE("__ballot_sync"), [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int vote, MGRPO_EMULATION_CALLER) {
  return ::mgrpo::emulation::reduce(
      mask, int(vote != 0), MGRPO_EMULATION_HERE("__any_sync"), [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int vote, MGRPO_EMULATION_CALLER) {
  return ::mgrpo::emulation::reduce(
      mask, int(vote != 0), MGRPO_EMULATION_HERE("__all_sync"), [](int a, int b) { return a & b; });
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, MGRPO_EMULATION_CALLER) {
  static_assert(std::is_integral_v<T>, "the device reduces integers only");
  return ::mgrpo::emulation::reduce(
      mask, value, MGRPO_EMULATION_HERE("__reduce_add_sync"), [](T a, T b) { return T(a + b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, MGRPO_EMULATION_CALLER) {
  static_assert(std::is_integral_v<T>, "the device reduces integers only");
  return ::mgrpo::emulation::reduce(
      mask, value, MGRPO_EMULATION_HERE("__reduce_max_sync"), [](T a, T b) { return a > b ? a : b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, MGRPO_EMULATION_CALLER) {
  static_assert(std::is_integral_v<T>, "the device reduces integers only");
  return ::mgrpo::emulation::reduce(
      mask, value, MGRPO_EMULATION_HERE("__reduce_min_sync"), [](T a, T b) { return a < b ? a : b; });
}
