#include "scheduler.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <thread>

#include "host_api.h"

namespace mgrpo::emulation {

__thread Block* current_block = nullptr;

Options& options() {
  static Options the_options;
  return the_options;
}

namespace {

thread_local std::string the_last_failure;

std::string describe(const Place& place) {
  std::ostringstream text;
  text << place.operation << " (" << place.file << ":" << place.line << ")";
  return text.str();
}

bool same(const Place& a, const Place& b) { return a.line == b.line && std::string(a.file) == b.file; }

void release(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
}

// Lets other fibers run until all `expected` threads have come.
void wait(Barrier& barrier, int expected) {
  Block& block = *current_block;
  Thread& thread = *block.running;
  if (++barrier.arrived >= expected) {
    release(barrier);
    return;
  }
  thread.waits_at = &barrier;
  thread.generation = barrier.generation;
  switch_fiber(thread.fiber, block.scheduler);
}

// Threads that wait together must wait at one place.
void join(Barrier& barrier, const Place& place) {
  if (barrier.arrived > 0 && !same(barrier.place, place))
    fail("some threads are at " + describe(barrier.place) + ", others at " + describe(place));
  barrier.place = place;
}

void run_thread() {
  Block& block = *current_block;
  fiber_started(block.scheduler);
  (*block.kernel)();
  Thread& thread = *block.running;
  thread.finished = true;
  --block.alive;
  Warp& warp = block.warps[thread.linear_index / 32];
  warp.alive &= ~(1u << thread.linear_index % 32);
  // Nobody waits for threads that have left the kernel.
  if (block.barrier.arrived > 0 && block.barrier.arrived >= block.alive) release(block.barrier);
  for (Barrier& barrier : warp.barriers)
    if (barrier.arrived > 0 && barrier.arrived >= __builtin_popcount(barrier.mask & warp.alive)) release(barrier);
  switch_fiber(thread.fiber, block.scheduler);
  std::abort();
}

std::string describe_deadlock(const Block& block) {
  std::vector<std::pair<std::string, int>> places;
  for (const Thread& thread : block.threads) {
    if (thread.finished) continue;
    std::string place = describe(thread.waits_at->place);
    if (thread.waits_at != &block.barrier) {
      char mask[40];
      std::snprintf(mask, sizeof mask, " for all lanes of mask 0x%08x", thread.waits_at->mask);
      place += mask;
    }
    auto found = std::find_if(places.begin(), places.end(), [&](const auto& entry) { return entry.first == place; });
    if (found == places.end()) {
      places.emplace_back(place, 1);
    } else {
      ++found->second;
    }
  }
  std::ostringstream text;
  text << "deadlock: of " << block.threads.size() << " threads";
  for (const auto& [place, count] : places) text << ", " << count << " wait at " << place;
  if (block.alive < int(block.threads.size())) text << ", the others have finished";
  return text.str();
}

class Turns {
 public:
  Turns(size_t count, unsigned order, unsigned salt) : turns_(count), order_(order), random_(order * 2654435761u + salt) {
    std::iota(turns_.begin(), turns_.end(), size_t{0});
    if (order_ == 1) std::reverse(turns_.begin(), turns_.end());
  }
  const std::vector<size_t>& next() {
    if (order_ > 1) std::shuffle(turns_.begin(), turns_.end(), random_);
    return turns_;
  }

 private:
  std::vector<size_t> turns_;
  unsigned order_;
  std::mt19937 random_;
};

void prepare_block(Block& block, const Stacks& stacks) {
  const unsigned count = block.size.x * block.size.y * block.size.z;
  block.threads.resize(count);
  block.warps.assign((count + 31) / 32, Warp());
  block.barrier = Barrier();
  block.alive = int(count);
  block.votes = 0;
  // Not a number in every floating-point type: what a kernel reads without having written it shows.
  std::fill_n(block.shared.get(), block.shared_bytes, char(0xff));
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.linear_index = int(i);
    thread.index = {i % block.size.x, i / block.size.x % block.size.y, i / (block.size.x * block.size.y)};
    thread.finished = false;
    thread.waits_at = nullptr;
    block.warps[i / 32].alive |= 1u << i % 32;
    prepare(thread.fiber, stacks.stack(i), Stacks::stack_size(i), run_thread);
  }
}

void run_block(Block& block, unsigned salt) {
  current_block = &block;
  Turns turns(block.threads.size(), options().order, salt);
  while (block.alive > 0 && block.failure.empty()) {
    bool anyone_ran = false;
    for (const size_t i : turns.next()) {
      Thread& thread = block.threads[i];
      if (thread.finished) continue;
      if (thread.waits_at != nullptr && thread.waits_at->generation == thread.generation) continue;
      thread.waits_at = nullptr;
      anyone_ran = true;
      block.running = &thread;
      switch_fiber(block.scheduler, thread.fiber);
      if (!block.failure.empty()) break;
    }
    if (!anyone_ran) block.failure = describe_deadlock(block);
  }
  current_block = nullptr;
}

#if defined(MGRPO_EMULATION_SANITIZE)
int os_threads() { return 1; }
#else
int default_os_threads() {
  const char* wanted = std::getenv("OMP_NUM_THREADS");
  const int number = wanted == nullptr ? 0 : std::atoi(wanted);
  return number > 0 ? number : int(std::max(1u, std::thread::hardware_concurrency()));
}

int os_threads() {
  static const int by_default = default_os_threads();
  return options().os_threads > 0 ? options().os_threads : by_default;
}
#endif

}  // namespace

const std::string& last_failure() { return the_last_failure; }

void fail(const std::string& what) {
  Block& block = *current_block;
  block.failure = what;
  switch_fiber(block.running->fiber, block.scheduler);
  std::abort();
}

void wait_for_block(const Place& place) {
  Block& block = *current_block;
  join(block.barrier, place);
  wait(block.barrier, block.alive);
}

int count_in_block(bool vote, const Place& place) {
  Block& block = *current_block;
  if (vote) ++block.votes;
  wait_for_block(place);
  const int votes = block.votes;
  wait_for_block(place);
  block.votes = 0;
  wait_for_block(place);
  return votes;
}

// The lanes of a warp may be in several operations at a time, each with its own mask.
static Barrier& barrier_of_mask(Warp& warp, unsigned mask) {
  Barrier* free_one = nullptr;
  for (Barrier& barrier : warp.barriers) {
    if (barrier.arrived > 0 && barrier.mask == mask) return barrier;
    if (barrier.arrived == 0) free_one = &barrier;
  }
  free_one->mask = mask;  // each waiting lane takes up one of 32 at most
  return *free_one;
}

void wait_for_warp(unsigned mask, const Place& place) {
  if (!(mask >> lane_index() & 1)) fail("a lane is not in the mask that it gives to " + describe(place));
  Warp& warp = current_warp();
  Barrier& barrier = barrier_of_mask(warp, mask);
  join(barrier, place);
  wait(barrier, __builtin_popcount(mask & warp.alive));
}

int launch(dim3 grid, dim3 block, size_t shared_bytes, size_t shared_limit, const std::function<void()>& kernel) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (shared_bytes > shared_limit) return cudaErrorInvalidValue;

  std::vector<int64_t> block_order(static_cast<size_t>(blocks));
  std::iota(block_order.begin(), block_order.end(), int64_t{0});
  if (options().order == 1) std::reverse(block_order.begin(), block_order.end());
  if (options().order > 1) std::shuffle(block_order.begin(), block_order.end(), std::mt19937(options().order));

  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex failure_mutex;
  std::string failure;
  const auto work = [&] {
    const Stacks stacks(threads);
    Block state;
    state.size = block;
    state.grid_size = grid;
    state.kernel = &kernel;
    state.shared_bytes = shared_bytes;
    state.shared.reset(new char[shared_bytes]);
    for (int64_t turn; !failed && (turn = next++) < blocks;) {
      const int64_t i = block_order[static_cast<size_t>(turn)];
      state.index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
      prepare_block(state, stacks);
      run_block(state, unsigned(i));
      if (state.failure.empty()) continue;
      failed = true;
      std::ostringstream text;
      text << "block (" << state.index.x << ", " << state.index.y << ", " << state.index.z << "): " << state.failure;
      const std::lock_guard<std::mutex> lock(failure_mutex);
      failure = text.str();
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min<int64_t>(os_threads(), blocks); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (!failed) return cudaSuccess;
  the_last_failure = failure;
  return cudaErrorLaunchFailure;
}

}  // namespace mgrpo::emulation
