// The two steps of the feed-forward network on some rows.
#pragma once

#include <type_traits>

#include "cpu/common/arena.h"
#include "cpu/depthwise/gelu.h"
#include "cpu/depthwise/short_gelu.h"
#include "depthwise.h"
#include "host.h"
#include "pixels.h"
#include "products.h"

namespace attnops::cpu::ATTNOPS_ISA {

// S: type of maps, A: of the pixels' side of products, B: of the weights. kResidual: x is added to
// out, and maps are channels_last. kParts: of a factor, which is float where they are several.
template <class S, class A, class B, bool kResidual, int kParts = 1>
class FeedForward {
 public:
  using C = Compute<S>;
  using Factor = std::conditional_t<(kParts > 1), float, A>;
  using V = typename Vec<C>::V;
  static constexpr int64_t kW = kWidth<C>;

  FeedForward(const FeedForwardShape& s, int64_t rows, int64_t columns, Arena& arena)
      : s_(s),
        padded_(s.padded_channels()),
        pixel_(s.hidden_stride()),
        factors_(arena.take<A>((rows * (columns + 2) + kTileRows) *
                               row_of_factors(max64(padded_, s.hidden)))),
        places_(arena.take<int64_t>(rows * (columns + 2))),
        groups_(arena.take<TilePixels>(rows * ((columns + 2) / kTileRows + 1))),
        results_(arena.take<C>(s.channels_last ? 0 : (rows * columns + kW) * s.padded_outputs())) {}

  void expand(const FeedForwardWeights& weights, const FeedForwardStrip& strip, const S* x,
              int64_t first, int64_t last, const HiddenRows& hidden) {
    const int64_t left = max64(0, strip.left - 1), right = min64(s_.width, strip.right + 1);
    for (int64_t y = first; y < last; ++y)
      load_factors(x, y, left, right,
                   factors_ + (y - first) * (right - left) * row_of_factors(padded_));
    const auto row_of = [&](int64_t y) {
      return static_cast<C*>(hidden.data) + y % hidden.rows * strip.hidden_pixels() * pixel_;
    };
    if (expands_in_tiles()) {
      expand_in_tiles(weights, left, right, first, last,
                      [&](int64_t y) { return row_of(y) + (left - strip.left + 1) * pixel_; });
    } else {
      C* rows = row_of(0);
      int64_t count = 0;
      for (int64_t y = first; y < last; ++y)
        for (int64_t at = left; at < right; ++at)
          places_[count++] = row_of(y) - rows + (at - strip.left + 1) * pixel_;
      const C* bias = static_cast<const C*>(weights.inner) + 10 * pixel_;
      multiply_pixels<true, kParts>(
          s_, factors_, padded_, static_cast<const B*>(weights.expand), count, s_.hidden,
          padded_, [&](int64_t m, int64_t c, V sum) __attribute__((always_inline)) {
            store(rows + places_[m] + c, sum + load(bias + c));
          });
    }
    const size_t pixel_bytes = static_cast<size_t>(s_.hidden) * sizeof(C);
    for (int64_t y = first; y < last; ++y) {
      C* row = row_of(y);
      if (left == strip.left) memset(row, 0, pixel_bytes);
      if (right == strip.right)
        memset(row + (strip.right - strip.left + 1) * pixel_, 0, pixel_bytes);
    }
  }

  void contract(const FeedForwardWeights& weights, const FeedForwardStrip& strip,
                const HiddenRows& hidden, const S* x, int64_t first, int64_t last, S* out) {
    const int64_t row_elements = strip.hidden_pixels() * pixel_, outputs = s_.outputs;
    const C *rows = static_cast<const C*>(hidden.data),
            *inner = static_cast<const C*>(weights.inner),
            *last_bias = static_cast<const C*>(weights.outer);
    const DepthwiseTaps<C> kernel = {inner, pixel_, inner + 9 * pixel_};
    const int64_t depth = s_.hidden, factor_row = row_of_factors(depth);
    int64_t count = 0;
    for (int64_t y = first; y < last; ++y) {
      const C* seen[3];
      for (int64_t i = 0; i < 3; ++i) {
        const int64_t row = y + i - 1;
        seen[i] = row < 0 || row >= s_.height ? nullptr : rows + row % hidden.rows * row_elements;
      }
      A* factors = factors_ + count * factor_row;
      convolve_hidden(
          seen, pixel_, kernel, strip.right - strip.left,
          depth, [=](int64_t at, int64_t c, auto& z) __attribute__((always_inline)) {
            factor_gelu<Factor>(z);
            constexpr int kCount = sizeof(z) / sizeof(V);
#pragma GCC unroll 8
            for (int p = 0; p < kCount; ++p) put(factors + (at + p) * factor_row + c, depth, z[p]);
          });
      for (int64_t at = strip.left; at < strip.right; ++at)
        places_[count++] = (y * s_.width + at) * outputs;
    }
    const B* panels = static_cast<const B*>(weights.contract);
    const int64_t padded = s_.padded_outputs();
    if (kResidual || s_.channels_last) {
      multiply_pixels<true, kParts>(
          s_, factors_, factor_row, panels, count, padded,
          depth, [&](int64_t m, int64_t c, V sum) __attribute__((always_inline)) {
            const int64_t lanes = min64(kW, outputs - c), at = places_[m] + c;
            if (lanes <= 0) return;
            sum += load(last_bias + c);
            if constexpr (kResidual) sum = load_lanes(x + at, lanes) + sum;
            store_lanes(out + at, sum, lanes);
          });
      return;
    }
    multiply_pixels<true, kParts>(
        s_, factors_, factor_row, panels, count, padded,
        depth, [&](int64_t m, int64_t c, V sum) __attribute__((always_inline)) {
          store(results_ + m * padded + c, sum + load(last_bias + c));
        });
    const int64_t columns = strip.right - strip.left, plane = s_.height * s_.width;
    for (int64_t y = first; y < last; ++y)
      pixels_to_planes(results_ + (y - first) * columns * padded, padded, columns, outputs,
                       out + y * s_.width + strip.left, plane);
  }

 private:
  // Of a pixel. Parts of a depth that is a power of two would share sets of the first-level cache.
  static int64_t row_of_factors(int64_t depth) {
    return kParts == 1 ? depth : kParts * depth + kTileDepth;
  }

  bool expands_in_tiles() const { return sizeof(A) == 2 && s_.tiles && padded_ % kTileDepth == 0; }

  static inline __attribute__((always_inline)) void put(A* factors, int64_t depth, V v) {
    if constexpr (kParts > 1)
      store_parts(factors, depth, v);
    else
      store_factor(factors, v);
  }

  // to(y): where pixel `left` of a row goes.
  template <class To>
  void expand_in_tiles([[maybe_unused]] const FeedForwardWeights& weights, int64_t left,
                       int64_t right, int64_t first, int64_t last, const To& to) {
    if constexpr (sizeof(A) == 2) {
      int64_t count = 0;
      for (int64_t y = first; y < last; ++y) {
        const int64_t row = row_of_factors(padded_);
        const A* factors = factors_ + (y - first) * (right - left) * row;
        for (int64_t at = 0; at < right - left; at += kTileRows)
          groups_[count++] = {factors + at * row, to(y) + at * pixel_};
      }
#if defined(__AVX512F__)
      const TilePixelProduct<kParts> product = {groups_,
                                                row_of_factors(padded_),
                                                static_cast<const B*>(weights.expand),
                                                padded_,
                                                static_cast<const C*>(weights.inner) + 10 * pixel_,
                                                pixel_};
      for_tile_blocks<true>(count * kTileRows, s_.hidden, product);
#endif
    }
  }

  // Pixels [left, right) of row y, with padded_ channels.
  void load_factors(const S* x, int64_t y, int64_t left, int64_t right, A* factors) {
    const int64_t channels = s_.channels;
    const int64_t row = row_of_factors(padded_);
    const auto put_pixel = [&](int64_t at, int64_t c, V v) __attribute__((always_inline)) {
      put(factors + at * row + c, padded_, v);
    };
    if (!kResidual && !s_.channels_last)
      return planes_to_pixels(x + y * s_.width + left, s_.height * s_.width, right - left, channels,
                              put_pixel);
    for (int64_t at = 0; at < right - left; ++at) {
      const S* pixel = x + (y * s_.width + left + at) * channels;
      for (int64_t c = 0; c < padded_; c += kW)
        put_pixel(at, c, c < channels ? load_lanes(pixel + c, min64(kW, channels - c)) : V{});
    }
  }

  const FeedForwardShape& s_;
  const int64_t padded_, pixel_;  // elements of a pixel of x and of the hidden map
  A* factors_;                    // a side of a product: pixels [C, padded], or GELUs [hidden]
  int64_t* places_;               // of pixels, where results go
  TilePixels* groups_;            // of pixels of a row
  C* results_;                    // pixels [K, padded] of contiguous maps
};

}  // namespace attnops::cpu::ATTNOPS_ISA
