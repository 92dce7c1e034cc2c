// Memory of large results, kept when they are freed and given to later ones of the same size.
//
// The C library returns large blocks to the system, so each new one costs a page fault per 4 kB, which the system fills
// with zeros first: for operators that are bound by memory that is half of their time.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mgrpo {

class ResultMemory {
 public:
  static constexpr int64_t kLeast = int64_t{1} << 20;  // bytes; smaller results come from torch
  static constexpr int64_t kMost = int64_t{1} << 47;   // bytes; more than a process can address

  // One for the process, never destroyed: tensors may outlive everything else.
  static ResultMemory& shared() {
    static ResultMemory* const memory = new ResultMemory;
    return *memory;
  }

  // Uninitialised, aligned to 64 bytes; null where there is none left.
  void* take(int64_t bytes) {
    if (bytes > kMost) return nullptr;
    const int64_t size = rounded(bytes);
    {
      // Waiting could last forever in a process that was forked while another thread was here.
      std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock()) {
        for (size_t i = kept_.size(); i-- > 0;) {
          if (kept_[i]->size != size) continue;
          Head* const head = kept_[i];
          kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
          held_ -= size;
          return head + 1;
        }
      }
    }
    Head* const head = allocate(sizeof(Head) + static_cast<size_t>(size));
    if (head == nullptr) return nullptr;
    head->size = size;
    return head + 1;
  }

  void give_back(void* data) {
    Head* const head = static_cast<Head*>(data) - 1;
    {
      std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock() && head->size <= limit_) {
        // The oldest make room: sizes that nobody asks for any more go first.
        size_t leaving = 0;
        for (; held_ + head->size > limit_; ++leaving) {
          held_ -= kept_[leaving]->size;
          std::free(kept_[leaving]);
        }
        kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(leaving));
        kept_.push_back(head);
        held_ += head->size;
        return;
      }
    }
    std::free(head);
  }

 private:
  struct alignas(64) Head {
    int64_t size;
  };

  ResultMemory() {
    const char* wanted = std::getenv("MGRPO_RESULT_MEMORY_MB");
    const long long megabytes = wanted == nullptr ? 256 : std::atoll(wanted);
    limit_ = megabytes <= 0 ? 0 : static_cast<int64_t>(megabytes) << 20;
  }

  // Where the system only gives huge pages to who asks for them (transparent_hugepage = madvise, the usual setting), blocks
  // that hold some ask: with pages of 4 kB, looking up where they lie takes a tenth of a pass over memory. What does not
  // fill a huge page stays in small ones, so that no more memory is held than was asked for.
  static Head* allocate(size_t bytes) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t huge = bytes / kHugePage * kHugePage;
    void* memory = nullptr;
    if (posix_memalign(&memory, huge > 0 ? kHugePage : alignof(Head), bytes) != 0) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge > 0) madvise(memory, huge, MADV_HUGEPAGE);  // advice: where it is not taken nothing else changes
#endif
    return static_cast<Head*>(memory);
  }

  // Up to an eighth more than asked for, so that batches of nearly the same size use the same blocks.
  static int64_t rounded(int64_t bytes) {
    int64_t step = kLeast / 8;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
  }

  std::mutex mutex_;
  std::vector<Head*> kept_;  // the oldest first
  int64_t held_ = 0, limit_ = 0;
};

// An uninitialised contiguous tensor of this shape and type on the device of `like`: what operators return.
inline torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& shape,
                                        torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  const int64_t number = dtype == ScalarType::Float ? 4 : dtype == ScalarType::Double ? 8 : half ? 2 : 0;
  int64_t bytes = number;
  bool fits = true;  // an expanded input has as many numbers as it likes, and its result must hold them
  for (const int64_t size : shape) fits &= !__builtin_mul_overflow(bytes, size, &bytes);
  STD_TORCH_CHECK(fits, "the result has more numbers than memory can hold");
  if (!like.is_cpu() || bytes < ResultMemory::kLeast) return torch::stable::new_empty(like, shape, dtype);
  void* const data = ResultMemory::shared().take(bytes);
  STD_TORCH_CHECK(data != nullptr, "there is not enough memory for a result of ", bytes, " bytes");
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) strides[axis] = stride;
  void (*const give_back)(void*) = [](void* given) { ResultMemory::shared().give_back(given); };
  return torch::stable::from_blob(data, shape, strides, like.device(), dtype, give_back);
}

inline torch::stable::Tensor new_result(const torch::stable::Tensor& like, const std::vector<int64_t>& shape) {
  return new_result(like, shape, like.scalar_type());
}

}  // namespace mgrpo
