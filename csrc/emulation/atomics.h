// Atomic operations on memory, and fences. Blocks may run in several OS threads, so these are real.
#pragma once

namespace mgrpo::emulation {

template <class T, class Change>
T read_change_write(T* address, Change change) {
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return before;
}

}  // namespace mgrpo::emulation

template <class T, class U>
T atomicAdd(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return T(before + T(value)); });
}
template <class T, class U>
T atomicSub(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return T(before - T(value)); });
}
template <class T, class U>
T atomicMax(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return before > T(value) ? before : T(value); });
}
template <class T, class U>
T atomicMin(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return before < T(value) ? before : T(value); });
}
template <class T, class U>
T atomicOr(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return T(before | T(value)); });
}
template <class T, class U>
T atomicAnd(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return T(before & T(value)); });
}
template <class T, class U>
T atomicExch(T* address, U value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T) { return T(value); });
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  return ::mgrpo::emulation::read_change_write(address, [&](T before) { return before == expected ? value : before; });
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
