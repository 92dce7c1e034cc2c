// One thread per number: it draws the phase and the two gradients that it needs (three Philox blocks per octave), so
// nothing but the result touches memory and nothing depends on another thread.
#include "perlin_cuda.h"
#include "perlin_math.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 256;

// A double whose every operation is rounded on its own: nvcc fuses plain ones, and the bits are the contract.
struct Rounded {
  double v;
  __device__ __forceinline__ explicit Rounded(double value) : v(value) {}
  friend __device__ __forceinline__ Rounded operator+(Rounded a, Rounded b) { return Rounded(__dadd_rn(a.v, b.v)); }
  friend __device__ __forceinline__ Rounded operator-(Rounded a, Rounded b) { return Rounded(__dsub_rn(a.v, b.v)); }
  friend __device__ __forceinline__ Rounded operator*(Rounded a, Rounded b) { return Rounded(__dmul_rn(a.v, b.v)); }
  friend __device__ __forceinline__ Rounded operator/(Rounded a, Rounded b) { return Rounded(__ddiv_rn(a.v, b.v)); }
};

// Number `index` of a row's step.
__device__ __forceinline__ double draw(const PerlinJob& job, uint32_t condition, uint32_t member, int step,
                                       int64_t index) {
  const PerlinWords words = perlin_words(job.k0, job.k1, job.stream_bits | static_cast<uint32_t>(index / 4),
                                         member << 16 | static_cast<uint32_t>(step), condition, job.iteration);
  const int at = static_cast<int>(index % 4);
  return perlin_uniform(at == 0 ? words.word[0] : at == 1 ? words.word[1] : at == 2 ? words.word[2] : words.word[3]);
}

__global__ void __launch_bounds__(kThreads) perlin_noise_kernel(const __grid_constant__ PerlinJob job) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= job.rows * job.frames * job.channels) return;
  const int64_t channel = number % job.channels, frame = number / job.channels % job.frames;
  const int64_t row = number / (job.channels * job.frames);
  const uint32_t condition = static_cast<uint32_t>(job.condition[row]), member = static_cast<uint32_t>(job.member[row]);
  Rounded total(0.0);
  double gain = 1.0;
  for (int octave = 0; octave < job.octaves; ++octave) {
    const Rounded cell(job.lattice * gain);  // halves and gains are powers of two: exact
    const Rounded phase(draw(job, condition, member, 2 * octave + 1, channel));
    const Rounded u = Rounded(static_cast<double>(frame)) / cell + phase;
    const int64_t index = static_cast<int64_t>(u.v);  // u >= 0: truncation is floor
    const Rounded f = u - Rounded(static_cast<double>(index));
    const int64_t at = index * job.channels + channel;
    // 2 u - 1 is exact for 24 bits.
    const Rounded left(draw(job, condition, member, 2 * octave, at) * 2.0 - 1.0);
    const Rounded right(draw(job, condition, member, 2 * octave, at + job.channels) * 2.0 - 1.0);
    total = blend_gradients(left, right, f) * Rounded(gain) + total;
    gain *= 0.5;
  }
  job.out[number] = static_cast<float>((total * Rounded(job.scale)).v);
}

}  // namespace

cudaError_t launch_perlin_noise(const PerlinJob& job, cudaStream_t stream) {
  const int64_t numbers = job.rows * job.frames * job.channels;
  MGRPO_LAUNCH(perlin_noise_kernel, static_cast<unsigned>((numbers + kThreads - 1) / kThreads), kThreads, 0, stream)(job);
  return cudaGetLastError();
}

}  // namespace mgrpo
