// Runs the blocks of a launch: every CUDA thread is a fiber, and the fibers of a block take turns in one OS thread.
//
// A fiber runs until it waits at a barrier or in a warp operation; then the next one does. The order of turns is an
// option: a kernel that forgets a barrier gives other numbers in another order.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "language.h"

namespace mgrpo::emulation {

struct Options {
  // The order of the threads of a block, and of the blocks: 0 ascending, 1 descending, more: shuffled anew at every
  // turn. Of two accesses that no barrier separates, 0 and 1 never agree on which is first.
  unsigned order = 0;
  int os_threads = 0;  // that blocks are spread over; 0: as many as OMP_NUM_THREADS says, else as many as there are
};
Options& options();

// Where in the source a thread waits.
struct Place {
  const char* operation = nullptr;
  const char* file = nullptr;
  int line = 0;
};

// What a set of threads waits at until all have come.
struct Barrier {
  Place place;
  unsigned mask = 0;  // of the lanes that take part, for warp operations
  int arrived = 0;
  unsigned generation = 0;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  int linear_index;
  bool finished;
  const Barrier* waits_at;
  unsigned generation;  // of the barrier when the thread came to it
};

struct Warp {
  unsigned alive = 0;  // bit per lane that has not finished
  Barrier barriers[32];  // of the warp operations that lanes are in, by mask
  uint64_t slots[32];  // what each lane brings to it
};

struct Block {
  uint3 index;
  dim3 size, grid_size;
  Thread* running = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  int alive = 0;
  int votes = 0;  // of __syncthreads_count and its kin
  std::unique_ptr<char[]> shared;  // dynamic shared memory
  size_t shared_bytes = 0;
  Fiber scheduler;
  const std::function<void()>* kernel = nullptr;
  std::string failure;
};

// The block that this OS thread runs; __thread is thread_local without a check at every access.
extern __thread Block* current_block;

// Runs `kernel` once per thread of the grid. The result is a cudaError_t.
int launch(dim3 grid, dim3 block, size_t shared_bytes, size_t shared_limit, const std::function<void()>& kernel);

// What the last failed launch of this OS thread found, e.g. who waits where in a deadlock.
const std::string& last_failure();

void wait_for_block(const Place& place);
int count_in_block(bool vote, const Place& place);
void wait_for_warp(unsigned mask, const Place& place);

// Ends the block with an error; does not return.
[[noreturn]] void fail(const std::string& what);

inline int lane_index() { return current_block->running->linear_index % 32; }
inline Warp& current_warp() { return current_block->warps[current_block->running->linear_index / 32]; }

}  // namespace mgrpo::emulation

#define threadIdx (::mgrpo::emulation::current_block->running->index)
#define blockIdx (::mgrpo::emulation::current_block->index)
#define blockDim (::mgrpo::emulation::current_block->size)
#define gridDim (::mgrpo::emulation::current_block->grid_size)
#define warpSize 32

#define MGRPO_EMULATION_HERE(operation) \
  ::mgrpo::emulation::Place { operation, file, line }
#define MGRPO_EMULATION_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(MGRPO_EMULATION_CALLER) {
  ::mgrpo::emulation::wait_for_block(MGRPO_EMULATION_HERE("__syncthreads"));
}
inline int __syncthreads_count(int vote, MGRPO_EMULATION_CALLER) {
  return ::mgrpo::emulation::count_in_block(vote != 0, MGRPO_EMULATION_HERE("__syncthreads_count"));
}
inline int __syncthreads_or(int vote, MGRPO_EMULATION_CALLER) {
  return ::mgrpo::emulation::count_in_block(vote != 0, MGRPO_EMULATION_HERE("__syncthreads_or")) != 0;
}
inline int __syncthreads_and(int vote, MGRPO_EMULATION_CALLER) {
  return ::mgrpo::emulation::count_in_block(vote == 0, MGRPO_EMULATION_HERE("__syncthreads_and")) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, MGRPO_EMULATION_CALLER) {
  ::mgrpo::emulation::wait_for_warp(mask, MGRPO_EMULATION_HERE("__syncwarp"));
}
