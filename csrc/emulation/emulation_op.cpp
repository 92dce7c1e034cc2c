// mgrpo_emulation::configure: how the emulated kernels of this process run.
#include <torch/csrc/stable/library.h>

#include "scheduler.h"

namespace {

void configure(int64_t order, int64_t os_threads) {
  mgrpo::emulation::options().order = static_cast<unsigned>(order);
  mgrpo::emulation::options().os_threads = static_cast<int>(os_threads);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mgrpo_emulation, m) { m.def("configure(int order, int os_threads) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(mgrpo_emulation, CompositeExplicitAutograd, m) { m.impl("configure", TORCH_BOX(&configure)); }
