// Weighted sums over the window of every position, straight from maps with contiguous channels:
//
//   out[r, x, c] = factor sum_n weights[r, n, x] source[r + i, x + j step, c]     n = (i, j)
//
// Vectors run along the channels, so nothing is transposed. A column j of the window is done at a
// time for a few rows of one phase: their weights stay in registers, one in all lanes each, while
// the sums of a position go through the first-level cache.
#pragma once

#include "pack.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Fewer channels do not pay for the weights.
template <class C>
constexpr int64_t kFewestPixelChannels = 4 * kWidth<C>;

// sums [kRows][stride] of a position: += (`fresh`: =) the terms of column j. `weights`: those of
// its first row and tap.
template <class S, int kRows, int kTaps>
static void weigh_pixel(Taps<const Compute<S>> weights, const S* const* pixels, int64_t channels,
                        Compute<S>* sums, int64_t stride, bool fresh) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  V left[kRows][kTaps];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 5
    for (int i = 0; i < kTaps; ++i)
      left[r][i] = broadcast<C>(weights.data[r * weights.row + i * weights.tap_row]);
  const auto add = [&](int64_t c, const auto& load_source) __attribute__((always_inline)) {
    V total[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) total[r] = fresh ? V{} : load(sums + r * stride + c);
#pragma GCC unroll 8
    for (int n = 0; n < kRows + kTaps - 1; ++n) {
      const V right = load_source(pixels[n] + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        if (n - r >= 0 && n - r < kTaps) total[r] += left[r][n - r] * right;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) store(sums + r * stride + c, total[r]);
  };
  int64_t c = 0;
  for (; c + kWidth<C> <= channels; c += kWidth<C>) add(c, [](const S* p) { return load(p); });
  if (c < channels) add(c, [&](const S* p) { return load_partial(p, channels - c); });
}

// Rows and columns of `part` (all channels) of a map; rows of the window are `window.rows`, and its
// first column is `shift` columns to the left. zeros [channels]; sums [kWindowRows][stride].
template <class S>
static void weigh_pixels(const LocalShape& s, Taps<const Compute<S>> weights, const S* source,
                         const Part& part, const Window& window, int64_t shift, Compute<S> factor,
                         const S* zeros, Compute<S>* sums, int64_t stride, S* out) {
  using C = Compute<S>;
  const int64_t channels = part.depth, reach = window.rows / 2;
  const MapStrides at(s, channels);
  const int64_t columns = min64(part.columns, s.width - part.column);
  const auto weigh_rows = [&](auto block, int64_t row) {
    constexpr int kRows = decltype(block)::value;
    for (int64_t x = 0; x < columns; ++x) {
      bool fresh = true;
      for_each_tap_block<kRows>(row, window.rows, [&](auto, auto taps, int64_t, int64_t tap) {
        constexpr int kTaps = decltype(taps)::value, kCount = kRows + kTaps - 1;
        for (int64_t j = 0; j < window.columns; ++j) {
          const int64_t column = part.column + x + j * window.step - shift;
          if (column < 0 || column >= s.width) continue;
          const S* pixels[kCount];
          for (int n = 0; n < kCount; ++n) {
            const int64_t y = part.phase + (part.row + row + tap + n - reach) * s.row_step;
            pixels[n] = y < 0 || y >= s.height ? zeros : source + y * at.row + column * at.column;
          }
          weigh_pixel<S, kRows, kTaps>({weights.data + row * weights.row + tap * weights.tap_row +
                                            j * weights.tap_column + x,
                                        weights.row, weights.tap_row, weights.tap_column},
                                       pixels, channels, sums, stride, fresh);
          fresh = false;
        }
      });
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t y = part.phase + (part.row + row + r) * s.row_step;
        S* target = out + y * at.row + (part.column + x) * at.column;
        for (int64_t c = 0; c < channels; c += kWidth<C>)
          store_lanes(target + c, load(sums + r * stride + c) * factor, channels - c);
      }
    }
  };
  for_each_row_block(part.rows, weigh_rows);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
