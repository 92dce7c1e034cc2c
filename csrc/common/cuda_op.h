// The glue between torch and the launchers of a *_cuda.cu: device, stream, errors, registration.
//
// The same glue serves the real kernels and their emulation: in a real build the operators are mgrpo_cuda::<name> for
// CUDA tensors, in the emulation mgrpo_emulation::<name> for CPU tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>  // STD_CUDA_CHECK; torch 2.11 does not include it by itself

#include "cuda_compat.h"
#include "rows.h"

#if !defined(MGRPO_EMULATION)
// Exported by every CUDA build of torch since 2.11; a header declares it under USE_CUDA only.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace mgrpo {

#if defined(MGRPO_EMULATION)

// Where an operator's kernels run.
class CudaCall {
 public:
  explicit CudaCall(const Tensor& first) { STD_TORCH_CHECK(first.is_cpu(), "emulated kernels need tensors on the CPU"); }
  cudaStream_t stream() const { return nullptr; }
};

inline void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "emulated CUDA kernel: ", cudaGetErrorString(error));
}

#define MGRPO_CUDA_LIBRARY mgrpo_emulation
#define MGRPO_CUDA_DISPATCH_KEY CPU

#else

// Makes the device of `first` the current one while it lives, and knows torch's current stream there.
class CudaCall {
 public:
  explicit CudaCall(const Tensor& first) : guard_(first.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(first.get_device_index(), &stream_));
  }
  cudaStream_t stream() const { return static_cast<cudaStream_t>(stream_); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline void check_launch(cudaError_t error) { STD_CUDA_CHECK(error); }

#define MGRPO_CUDA_LIBRARY mgrpo_cuda
#define MGRPO_CUDA_DISPATCH_KEY CUDA

#endif

// A kernel that got an address of another device would end the process's use of the GPU.
inline void check_same_device(const Tensor& tensor, const Tensor& first, const char* name) {
  STD_TORCH_CHECK(
      tensor.is_cuda() == first.is_cuda() && tensor.get_device_index() == first.get_device_index(),
      name, " is on another device than the first argument");
}
inline void check_same_kind(const Tensor& tensor, const Tensor& first, const char* name) {
  check_same_dtype(tensor, first, name);
  check_same_device(tensor, first, name);
}

// Blocks of `per_block` rows that hold `count` rows.
inline unsigned block_count(int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  STD_TORCH_CHECK(blocks <= 0x7fffffff, "the batch is too large for one launch");
  return static_cast<unsigned>(blocks);
}

}  // namespace mgrpo

// MGRPO_CUDA_OPERATOR("<op>_fwd", "(Tensor matrices, bool fix_det) -> Tensor", mgrpo::function), outside any namespace.
#define MGRPO_CUDA_OPERATOR(name, signature, function)                                    \
  STABLE_TORCH_LIBRARY_FRAGMENT(MGRPO_CUDA_LIBRARY, m) { m.def(name signature); }         \
  STABLE_TORCH_LIBRARY_IMPL(MGRPO_CUDA_LIBRARY, MGRPO_CUDA_DISPATCH_KEY, m) {             \
    m.impl(name, TORCH_BOX(&function));                                                   \
  }                                                                                       \
  static_assert(true, "takes the semicolon")
