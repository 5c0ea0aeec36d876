// Depthwise 3x3 convolutions of the hidden map.
#pragma once

#include "cpu/common/vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Results of a row at a time: as many chains as hide the time that an addition takes.
#if defined(__AVX512F__)
constexpr int kNeighbours = 8;
#else
constexpr int kNeighbours = 4;
#endif

// Loaded once: compilers put a load into each of the instructions that use it.
template <class V>
ATTNOPS_INLINE void keep_in_register(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#else
  (void)v;
#endif
}

// Rows of taps of all channels, one `step` from the next, and a bias or null.
template <class C>
struct DepthwiseTaps {
  const C* taps;
  int64_t step;
  const C* bias;
};

// Results [x, x + kCount) of a vector of channels. rows: at the column before the first result, or
// null outside the map.
template <int kCount, class C, class Emit>
ATTNOPS_INLINE void convolve_neighbours(const C* const (&rows)[3], int64_t pixel,
                                        const DepthwiseTaps<C>& kernel, int64_t x, int64_t c,
                                        const Emit& emit) {
  using V = typename Vec<C>::V;
  V sums[kCount];
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) sums[p] = kernel.bias == nullptr ? V{} : load(kernel.bias + c);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    if (rows[i] == nullptr) continue;
    const C* row = rows[i] + x * pixel + c;
    V seen[kCount + 2];
#pragma GCC unroll 10
    for (int n = 0; n < kCount + 2; ++n) {
      seen[n] = load(row + n * pixel);
      keep_in_register(seen[n]);
    }
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      const V tap = load(kernel.taps + (3 * i + j) * kernel.step + c);
#pragma GCC unroll 8
      for (int p = 0; p < kCount; ++p) sums[p] += tap * seen[p + j];
    }
  }
  emit(x, c, sums);
}

// emit(x, c, vectors) for `width` results of a row, some neighbours in a call. Pixels are `pixel`
// elements apart.
template <class C, class Emit>
static void convolve_hidden(const C* const (&rows)[3], int64_t pixel,
                            const DepthwiseTaps<C>& kernel, int64_t width, int64_t channels,
                            const Emit& emit) {
  constexpr int64_t kW = kWidth<C>;
  int64_t x = 0;
  for (; x + kNeighbours <= width; x += kNeighbours)
    for (int64_t c = 0; c < channels; c += kW)
      convolve_neighbours<kNeighbours>(rows, pixel, kernel, x, c, emit);
  for (; x + kNeighbours / 2 <= width; x += kNeighbours / 2)
    for (int64_t c = 0; c < channels; c += kW)
      convolve_neighbours<kNeighbours / 2>(rows, pixel, kernel, x, c, emit);
  for (; x < width; ++x)
    for (int64_t c = 0; c < channels; c += kW)
      convolve_neighbours<1>(rows, pixel, kernel, x, c, emit);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
