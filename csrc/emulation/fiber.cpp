#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#if defined(MGRPO_EMULATION_SANITIZE)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace mgrpo::emulation {

#if defined(MGRPO_EMULATION_PORTABLE_SWITCH)

static void change_stacks(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

static void lay_out(Fiber& fiber, char* stack, size_t stack_size, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = stack_size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

#else

// swapcontext makes two system calls, about a hundred times the cost of this. The System V convention leaves six
// registers and the stack pointer to the callee; rounding modes are the same in all fibers.
extern "C" void mgrpo_emulation_change_stacks(void** save_stack_pointer, void* stack_pointer);
asm(R"(
.text
.hidden mgrpo_emulation_change_stacks
.globl mgrpo_emulation_change_stacks
.type mgrpo_emulation_change_stacks, @function
mgrpo_emulation_change_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mgrpo_emulation_change_stacks, . - mgrpo_emulation_change_stacks
)");

static void change_stacks(Fiber& from, Fiber& to) { mgrpo_emulation_change_stacks(&from.stack_pointer, to.stack_pointer); }

static void lay_out(Fiber& fiber, char* stack, size_t stack_size, void (*entry)()) {
  // Two words of room below the top give `entry` the alignment that a call would: 8 beside a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + stack_size) - 2;
  *top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

#endif

void prepare(Fiber& fiber, char* stack, size_t stack_size, void (*entry)()) {
#if defined(MGRPO_EMULATION_SANITIZE)
  // The code that used this stack before may have been abandoned in the middle of its functions.
  __asan_unpoison_memory_region(stack, stack_size);
#endif
  fiber.stack_bottom = stack;
  fiber.stack_size = stack_size;
  fiber.fake_stack = nullptr;
  lay_out(fiber, stack, stack_size, entry);
}

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(MGRPO_EMULATION_SANITIZE)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
#endif
  change_stacks(from, to);
#if defined(MGRPO_EMULATION_SANITIZE)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void fiber_started(Fiber& origin) {
#if defined(MGRPO_EMULATION_SANITIZE)
  __sanitizer_finish_switch_fiber(nullptr, &origin.stack_bottom, &origin.stack_size);
#else
  (void)origin;
#endif
}

namespace {

constexpr size_t kGuard = 4096;
#if defined(MGRPO_EMULATION_SANITIZE)
constexpr size_t kStack = 256 << 10;  // the sanitizer's frames are several times as large
#else
constexpr size_t kStack = 64 << 10;
#endif

std::mutex free_mutex;
std::vector<std::pair<char*, size_t>> free_stacks;  // memory, number of stacks

}  // namespace

Stacks::Stacks(size_t count) {
  {
    const std::lock_guard<std::mutex> lock(free_mutex);
    if (!free_stacks.empty()) {
      std::tie(memory_, count_) = free_stacks.back();
      free_stacks.pop_back();
    }
  }
  if (count_ >= count) return;
  if (memory_ != nullptr) munmap(memory_, count_ * (kGuard + kStack));
  count_ = count;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, count * (kGuard + kStack), PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("CUDA emulation: no memory for stacks");
    std::abort();
  }
  memory_ = static_cast<char*>(memory);
  for (size_t i = 0; i < count; ++i) mprotect(memory_ + i * (kGuard + kStack), kGuard, PROT_NONE);
}

Stacks::~Stacks() {
  const std::lock_guard<std::mutex> lock(free_mutex);
  free_stacks.emplace_back(memory_, count_);
}

char* Stacks::stack(size_t index) const { return memory_ + index * (kGuard + kStack) + kGuard; }

// Tops that all lay a multiple of 4096 bytes apart would fight for one set of the cache.
size_t Stacks::stack_size(size_t index) { return kStack - index * 448 % 4096; }

}  // namespace mgrpo::emulation
