// Fibers: several stacks in one OS thread, of which one runs at a time until it hands over. One fiber is one CUDA thread.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(MGRPO_EMULATION_UCONTEXT)
#define MGRPO_EMULATION_PORTABLE_SWITCH 1
#include <ucontext.h>
#endif

namespace mgrpo::emulation {

struct Fiber {
#if defined(MGRPO_EMULATION_PORTABLE_SWITCH)
  ucontext_t context;
#else
  void* stack_pointer = nullptr;  // where the registers lie while the fiber does not run
#endif
  // What AddressSanitizer wants to know about the stack that runs.
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;
};

// Makes `fiber` start in `entry` on the given stack when it is switched to for the first time. `entry` must begin with
// fiber_started() and must never return.
void prepare(Fiber& fiber, char* stack, size_t stack_size, void (*entry)());

// Stores the running code in `from` and continues `to`; returns when someone switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

// `origin` is the fiber that switched here.
void fiber_started(Fiber& origin);

// Memory for stacks with a guard page below each, kept for the next launch when the holder goes.
class Stacks {
 public:
  explicit Stacks(size_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  char* stack(size_t index) const;
  static size_t stack_size(size_t index);

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace mgrpo::emulation
