// Depthwise kernels on maps with contiguous channels: vectors run along the channels.
//
//   out[x, c] = sum_ij taps[i, j, c] in[i][x + j - side, c]
//   sums[i, j, c] += sum_x g[x, c] in[i][x + j - side, c]
//
// Rows are read where they stand. Four neighbours of a row are computed at a time, and a pixel
// serves all that see it.
#pragma once

#include "cpu/common/vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int kColumnBlock = 4;  // results of a row at a time

// The rows that a kernel sees, at column 0, or null outside the map: pixels `pixel` apart, `width`
// of them.
template <class T>
struct SeenRows {
  const T* const* rows;
  int64_t pixel, width;
};

// A kernel [height, width]; taps of all channels, those of one tap `step` from those of the next,
// negative where the kernel is turned around.
template <class C>
struct ChannelsLastKernel {
  int64_t height, width;
  const C* taps;
  int64_t step;
};

// Results [x, x + kCount) of `lanes` channels from c on.
template <class T, int kSize, int kCount, bool kFull, class Emit>
ATTNOPS_INLINE void convolve_vector(const ChannelsLastKernel<Compute<T>>& kernel,
                                    const SeenRows<T>& in, int64_t x, int64_t c, int64_t lanes,
                                    const Emit& emit) {
  using C = Compute<T>;
  using V = typename Vec<C>::V;
  const auto load_at = [&](const T* p) __attribute__((always_inline)) {
    return kFull ? load(p) : load_partial(p, lanes);
  };
  V sums[kCount] = {};
  if constexpr (kSize > 0) {
    constexpr int kSide = kSize / 2;
#pragma GCC unroll 3
    for (int i = 0; i < kSize; ++i) {
      const T* row = in.rows[i];
      if (row == nullptr) continue;
      row += (x - kSide) * in.pixel + c;
      V right[kCount + kSize - 1];
#pragma GCC unroll 8
      for (int n = 0; n < kCount + kSize - 1; ++n) right[n] = load_at(row + n * in.pixel);
#pragma GCC unroll 3
      for (int j = 0; j < kSize; ++j) {
        const V tap = load(kernel.taps + (i * kSize + j) * kernel.step + c);
#pragma GCC unroll 4
        for (int p = 0; p < kCount; ++p) sums[p] += tap * right[p + j];
      }
    }
  } else {
    // A row of taps at a time: large kernels add up in short chains.
    for (int64_t i = 0; i < kernel.height; ++i) {
      const T* row = in.rows[i];
      if (row == nullptr) continue;
      V part[kCount] = {};
      for (int64_t j = 0; j < kernel.width; ++j) {
        const V tap = load(kernel.taps + (i * kernel.width + j) * kernel.step + c);
        const int64_t first = x + j - kernel.width / 2;
#pragma GCC unroll 4
        for (int p = 0; p < kCount; ++p)
          if (first + p >= 0 && first + p < in.width)
            part[p] += tap * load_at(row + (first + p) * in.pixel + c);
      }
#pragma GCC unroll 4
      for (int p = 0; p < kCount; ++p) sums[p] += part[p];
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < kCount; ++p) emit(x + p, c, lanes, sums[p]);
}

template <class T, int kSize, int kCount, class Emit>
ATTNOPS_INLINE void convolve_channels(const ChannelsLastKernel<Compute<T>>& kernel,
                                      const SeenRows<T>& in, int64_t x, int64_t channels,
                                      const Emit& emit) {
  constexpr int64_t kW = kWidth<Compute<T>>;
  int64_t c = 0;
  for (; c + kW <= channels; c += kW)
    convolve_vector<T, kSize, kCount, true>(kernel, in, x, c, kW, emit);
  if (c < channels) convolve_vector<T, kSize, kCount, false>(kernel, in, x, c, channels - c, emit);
}

// Results [begin, end) of a row: emit(x, c, lanes, vector). taps are padded to whole vectors.
template <class T, class Emit>
static void convolve_channels_last(const ChannelsLastKernel<Compute<T>>& kernel,
                                   const SeenRows<T>& in, int64_t begin, int64_t end,
                                   int64_t channels, const Emit& emit) {
  const bool is_3x3 = kernel.height == 3 && kernel.width == 3;
  const int64_t side = kernel.width / 2;
  int64_t x = begin;
  while (x < end) {
    const bool whole = x + kColumnBlock <= end;
    const bool inner = whole && x >= side && x + kColumnBlock + side <= in.width;
    if (inner && is_3x3)
      convolve_channels<T, 3, kColumnBlock>(kernel, in, x, channels, emit);
    else if (whole && !is_3x3)
      convolve_channels<T, 0, kColumnBlock>(kernel, in, x, channels, emit);
    else
      convolve_channels<T, 0, 1>(kernel, in, x, channels, emit);
    x += (is_3x3 ? inner : whole) ? kColumnBlock : 1;
  }
}

// sums [height * width + 1][stride] += those by the taps, and the sum of g: `channels` channels of
// a row, g in pixels `g_pixel` apart.
template <class T>
static void sum_channels_last(const ChannelsLastKernel<Compute<T>>& kernel, const Compute<T>* g,
                              int64_t g_pixel, const SeenRows<T>& in, int64_t channels,
                              double* sums, int64_t stride) {
  using C = Compute<T>;
  using V = typename Vec<C>::V;
  const int64_t side = kernel.width / 2, width = in.width;
  for (int64_t c = 0; c < channels; c += kWidth<C>) {
    const int64_t lanes = min64(kWidth<C>, channels - c);
    V total = {};
    for (int64_t x = 0; x < width; ++x) total += load(g + x * g_pixel + c);
    add_wide<C>(total, sums + kernel.height * kernel.width * stride + c);
    for (int64_t i = 0; i < kernel.height; ++i) {
      if (in.rows[i] == nullptr) continue;
      const T* row = in.rows[i] + c;
      double* row_sums = sums + i * kernel.width * stride + c;
      if (kernel.width == 3) {
        V part[3] = {}, before = {}, here = load_lanes(row, lanes);
        for (int64_t x = 0; x < width; ++x) {
          const V left = load(g + x * g_pixel + c);
          const V after = x + 1 < width ? load_lanes(row + (x + 1) * in.pixel, lanes) : V{};
          part[0] += left * before;
          part[1] += left * here;
          part[2] += left * after;
          before = here;
          here = after;
        }
        for (int j = 0; j < 3; ++j) add_wide<C>(part[j], row_sums + j * stride);
        continue;
      }
      for (int64_t j = 0; j < kernel.width; ++j) {
        const int64_t shift = j - side;
        V part = {};
        for (int64_t x = max64(0, -shift); x < min64(width, width - shift); ++x)
          part += load(g + x * g_pixel + c) * load_lanes(row + (x + shift) * in.pixel, lanes);
        add_wide<C>(part, row_sums + j * stride);
      }
    }
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
