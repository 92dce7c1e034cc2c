// Memory of one thread of a CPU operator while it works.
#pragma once

#include <cstdint>
#include <memory>

namespace mgrpo {

// Uninitialised, and aligned for the registers of every instruction set.
class Scratch {
 public:
  static constexpr int64_t kRegisterBytes = 64;

  explicit Scratch(int64_t bytes) : memory_(new unsigned char[static_cast<size_t>(bytes + kRegisterBytes)]) {}
  unsigned char* get() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (kRegisterBytes - address % kRegisterBytes) % kRegisterBytes;
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
};

}  // namespace mgrpo
