// What lets one header serve the CPU loops and the CUDA kernels.
#pragma once

#if defined(__CUDACC__)
#define MGRPO_HD __host__ __device__ __forceinline__
#else
#define MGRPO_HD inline
#endif
