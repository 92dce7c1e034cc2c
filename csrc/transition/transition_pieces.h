// How the loops over one task's elements read, weigh and write them; step_lanes.h and likelihood_lanes.h hold the loops.
//
// A row's sum has the same bits on every instruction set: element i of a piece always goes to running sum i modulo
// kSumLanes, and multiplications and additions are not fused.
#include "../common/philox_lanes.h"
#include "transition_math.h"

namespace MGRPO_NAMESPACE {

template <class T>
constexpr int kSumLanes = 128 / sizeof(T);  // two of the widest vectors
constexpr int64_t kPiece = 512;  // elements between two transfers of the running sums into double precision

template <class T>
constexpr int kSumPacks = kSumLanes<T> / Pack<T>::kLanes;

// ---- Access to memory: whole vectors, and the last one of a piece ----

template <bool kPastCaches>
struct Whole {
  template <class T>
  MGRPO_HD Pack<T> load(const T* p) const {
    return load_pack(p);
  }
  template <class T>
  MGRPO_HD void store(T* p, Pack<T> a) const {
    if constexpr (kPastCaches)
      store_past_caches(p, a);
    else
      store_pack(p, a);
  }
};

struct Part {
  int count;

  template <class T>
  MGRPO_HD Pack<T> load(const T* p) const {
    return load_some(p, count);
  }
  template <class T>
  MGRPO_HD void store(T* p, Pack<T> a) const {
    store_some(p, a, count);
  }
};

// Calls body(access, offset, pack) for `count` elements; pack counts vectors modulo kSumPacks.
template <class T, bool kPastCaches = false, class Body>
MGRPO_HD void sweep(int64_t count, Body& body) {
  constexpr int n = Pack<T>::kLanes;
  int64_t i = 0;
  for (; i + kSumLanes<T> <= count; i += kSumLanes<T>) {
#pragma GCC unroll 8
    for (int pack = 0; pack < kSumPacks<T>; ++pack) body(Whole<kPastCaches>{}, i + pack * n, pack);
  }
#if MGRPO_ISA_BYTES > 16  // the baseline has many such vectors, and what only old processors take is kept short
#pragma GCC unroll 8
#endif
  for (int pack = 0; pack < kSumPacks<T>; ++pack) {
    const int64_t left = count - i - pack * n;
    if (left > 0) body(Part{static_cast<int>(left < n ? left : n)}, i + pack * n, pack);
  }
}

// The same for a body that writes results, past the caches if `past_caches`. The baseline never does, which keeps builds
// short, and with weights pieces are single frames, too short to gain by it.
template <class T, bool kWeights, class Body>
MGRPO_HD void sweep_to_results(bool past_caches, int64_t count, Body& body) {
  if constexpr (!kWeights && MGRPO_ISA_BYTES > 16) {
    if (past_caches) return sweep<T, true>(count, body);
  }
  sweep<T>(count, body);
}

// The running sums over one piece, in T. A loop's body holds them by value, which keeps them in registers.
template <class T>
struct Run {
  Pack<T> lanes[kSumPacks<T>];

  MGRPO_HD Run() {
#pragma GCC unroll 8
    for (int pack = 0; pack < kSumPacks<T>; ++pack) lanes[pack] = Pack<T>(T(0));
  }
};

// One sum over a task: the runs' totals in double.
template <class T>
struct Total {
  double lanes[kSumLanes<T>] = {};

  MGRPO_HD void add(const Run<T>& run) {
    T values[kSumLanes<T>];
    memcpy(values, run.lanes, sizeof values);
    for (int lane = 0; lane < kSumLanes<T>; ++lane) lanes[lane] += static_cast<double>(values[lane]);
  }
  MGRPO_HD double sum() const {
    double part[kSumLanes<T>];
    memcpy(part, lanes, sizeof part);
    for (int width = kSumLanes<T> / 2; width > 0; width /= 2)
      for (int lane = 0; lane < width; ++lane) part[lane] += part[lane + width];
    return part[0];
  }
};

// weight * value, 0 where the weight is 0 whatever the value is.
template <bool kWeights, class T, class Access>
MGRPO_HD Pack<T> weighted(Pack<T> value, const T* weights, int64_t i, Access access) {
  if constexpr (kWeights) {
    const Pack<T> w = access.load(weights + i);
    return select(w != Pack<T>(T(0)), value * w, Pack<T>(T(0)));
  } else {
    return value;
  }
}
template <bool kWeights, class T>
MGRPO_HD const T* weights_from(const T* weights, int64_t channel) {
  return kWeights ? weights + channel : nullptr;
}

// ---- Rows as numbers of type T, whatever they are stored as ----

// Room for one piece's numbers. Without a constructor it would be filled with zeros for every task, as a member of what
// is made from a list of values; float32 states never need it.
template <class T>
struct PieceBuffer {
  T numbers[kPiece];

  MGRPO_HD PieceBuffer() {}
};

// Another type's numbers as T; of the wider ones T is the widest of a call, so double never becomes float here.
template <class T>
__attribute__((noinline)) void convert_from(const State& state, int64_t first, int64_t count, T* numbers) {
  if (state.dtype == StateDtype::kBFloat16) {
    const uint16_t* stored = static_cast<const uint16_t*>(state.data) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(bfloat16_to_float(stored[i]));
  } else if (state.dtype == StateDtype::kHalf) {
    const uint16_t* stored = static_cast<const uint16_t*>(state.data) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(half_to_float(stored[i]));
  } else {
    const float* stored = static_cast<const float*>(state.data) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<T>(stored[i]);
  }
}
template <class T>
MGRPO_HD const T* read(const State& state, int64_t row, int64_t offset, int64_t count, T* buffer) {
  const int64_t first = row * state.row_stride + offset;
  if (state.dtype == kDtypeOf<T>) return static_cast<const T*>(state.data) + first;
  convert_from(state, first, count, buffer);
  return buffer;
}

template <class T>
MGRPO_HD const T* read_if_there(const State& state, int64_t row, int64_t offset, int64_t count, T* buffer) {
  return state.data == nullptr ? nullptr : read(state, row, offset, count, buffer);
}

// Where to put `count` numbers of a result: in their place, or in a buffer that `finish` converts.
template <class T>
MGRPO_HD T* write_to(const Output& out, int64_t first, T* buffer) {
  return out.dtype == kDtypeOf<T> ? static_cast<T*>(out.data) + first : buffer;
}
template <class T>
__attribute__((noinline)) void convert_to(const Output& out, int64_t first, int64_t count, const T* numbers) {
  if (out.dtype == StateDtype::kBFloat16) {
    uint16_t* stored = static_cast<uint16_t*>(out.data) + first;
    for (int64_t i = 0; i < count; ++i) stored[i] = float_to_bfloat16(static_cast<float>(numbers[i]));
  } else if (out.dtype == StateDtype::kHalf) {
    uint16_t* stored = static_cast<uint16_t*>(out.data) + first;
    for (int64_t i = 0; i < count; ++i) stored[i] = float_to_half(static_cast<float>(numbers[i]));
  } else {
    float* stored = static_cast<float*>(out.data) + first;
    for (int64_t i = 0; i < count; ++i) stored[i] = static_cast<float>(numbers[i]);
  }
}
template <class T>
MGRPO_HD void finish(const Output& out, int64_t first, int64_t count, const T* buffer) {
  if (out.dtype != kDtypeOf<T>) convert_to(out, first, count, buffer);
}

MGRPO_HD void write_zeros(const Output& out, int64_t first, int64_t count) {
  const int64_t size = out.dtype == StateDtype::kDouble ? 8 : out.dtype == StateDtype::kFloat ? 4 : 2;
  memset(static_cast<char*>(out.data) + first * size, 0, static_cast<size_t>(count * size));
}

template <class T>
struct NoiseBuffer {
  float drawn[kPiece + 2 * kPhiloxTile];
  T wide[kPiece];

  MGRPO_HD NoiseBuffer() {}
};
// While numbers are drawn nothing asks for memory, so the other operands of the piece are called for then.
template <class T>
struct FetchBeside {
  const T* streams[3];

  MGRPO_HD void operator()(int64_t first) const {
    for (const T* stream : streams)
      for (int i = 0; i < kPhiloxTile; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(stream + first + i);
  }
};
template <class T>
MGRPO_CALLED const T* read_noise(const Noise& noise, int64_t row, int64_t offset, int64_t count, NoiseBuffer<T>& buffer,
                             const FetchBeside<T>& beside) {
  if (noise.kind == Noise::Kind::kGiven) return read(noise.given, row, offset, count, buffer.wide);
  const int64_t before = offset % 4;
  philox_tiles<NormalNumbers>(noise.key(row), static_cast<uint32_t>(offset / 4),
                              (before + count + kPhiloxTile - 1) / kPhiloxTile, buffer.drawn, beside);
  if constexpr (sizeof(T) == 4) {
    return buffer.drawn + before;
  } else {
    for (int64_t i = 0; i < count; ++i) buffer.wide[i] = buffer.drawn[before + i];
    return buffer.wide;
  }
}

// ---- Which elements count ----

// Calls visit(offset, count, counted, channel) for the pieces of a task's elements, in order: runs of frames that the
// mask keeps or leaves out, or with weights single frames, cut into at most kPiece elements. `channel` is the first
// element's.
template <class Visit>
MGRPO_HD void for_pieces(const Weighting& batch, const Task& task, Visit& visit) {
  const bool* mask = batch.mask == nullptr ? nullptr : batch.mask + task.row * batch.frames;
  for (int64_t frame = task.begin; frame < task.end;) {
    const bool counted = mask == nullptr || mask[frame];
    int64_t next = frame + 1;
    if (batch.weights == nullptr || !counted)
      while (next < task.end && (mask == nullptr || mask[next] == counted)) ++next;
    const int64_t end = next * batch.channels;
    for (int64_t offset = frame * batch.channels; offset < end; offset += kPiece)
      visit(offset, end - offset < kPiece ? end - offset : kPiece, counted, offset - frame * batch.channels);
    frame = next;
  }
}

}  // namespace MGRPO_NAMESPACE
