// One thread per number: it draws the phase and the two gradients that it needs (three Philox blocks per octave), so
// nothing but the result touches memory and nothing depends on another thread.
#include "../common/philox_thread.h"
#include "perlin_cuda.h"
#include "perlin_math.h"

namespace mgrpo {
namespace {

constexpr int kThreads = 256;

using Number = Rounded<double>;  // nvcc fuses plain ones, and the bits are the contract

// Number `index` of a row's step.
__device__ __forceinline__ Number draw(const PhiloxRow& key, int64_t index) {
  const PhiloxWords words = philox_words(key, static_cast<uint32_t>(index / 4));
  const int at = static_cast<int>(index % 4);
  const uint32_t word = at == 0 ? words.w[0] : at == 1 ? words.w[1] : at == 2 ? words.w[2] : words.w[3];
  return static_cast<double>(word_to_uniform<PhiloxThread>(word).value);
}

__global__ void __launch_bounds__(kThreads) perlin_noise_kernel(const __grid_constant__ PerlinJob job) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= job.rows * job.frames * job.channels) return;
  const int64_t channel = number % job.channels, frame = number / job.channels % job.frames;
  const int64_t row = number / (job.channels * job.frames);
  Number total = 0.0;
  double gain = 1.0;
  for (int octave = 0; octave < job.octaves; ++octave) {
    const PhiloxRow gradients = perlin_key(job, row, 2 * octave), phases = perlin_key(job, row, 2 * octave + 1);
    const Number cell = job.lattice * gain;  // halves and gains are powers of two: exact
    const Number u = Number(static_cast<double>(frame)) / cell + draw(phases, channel);
    const int64_t index = static_cast<int64_t>(u.value);  // u >= 0: truncation is floor
    const Number f = u - static_cast<double>(index);
    const int64_t at = index * job.channels + channel;
    // 2 u - 1 is exact for 24 bits.
    const Number left = draw(gradients, at) * 2.0 - 1.0, right = draw(gradients, at + job.channels) * 2.0 - 1.0;
    total = blend_gradients(left, right, f) * gain + total;
    gain *= 0.5;
  }
  job.out[number] = static_cast<float>((total * job.scale).value);
}

}  // namespace

cudaError_t launch_perlin_noise(const PerlinJob& job, cudaStream_t stream) {
  const int64_t numbers = job.rows * job.frames * job.channels;
  MGRPO_LAUNCH(perlin_noise_kernel, static_cast<unsigned>((numbers + kThreads - 1) / kThreads), kThreads, 0, stream)(job);
  return cudaGetLastError();
}

}  // namespace mgrpo
