// Backward of a chunk of hidden channels over some rows, in maps of pixels.
#pragma once

#include "cpu/common/arena.h"
#include "cpu/depthwise/gelu.h"
#include "cpu/depthwise/short_gelu.h"
#include "depthwise.h"
#include "gradients.h"
#include "products.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Weights of a chunk of `count` channels, a multiple of 16: panels of expand [count, C], of the
// transposes of contract [count, K] and of expand [C, count], and the rows of `inner`, `inner_row`
// apart.
template <class C, class A>
struct ChunkWeights {
  int64_t count;
  const A *expand, *contract, *turned;
  const C* inner;
  int64_t inner_row;
};

// What a chunk adds to gradients: rows [kChunk] of channels of x and of out, and of taps and biases
// as in `inner`.
template <class C>
struct ChunkSums {
  C *expand, *contract;
  double* inner;

  static int64_t rows(int64_t channels) { return round_up(padded_to_panels(channels), kRows); }
  static ChunkSums in(const FeedForwardShape& s, Arena& arena) {
    C* expand = arena.take<C>(rows(s.channels) * kFeedForwardChunk);
    C* contract = arena.take<C>(rows(s.outputs) * kFeedForwardChunk);
    return {expand, contract, arena.take<double>(kInnerRows * kFeedForwardChunk)};
  }
};

// Maps of the whole batch, or from an item on: pixels, and their terms in sums over pixels.
template <class C, class A>
struct ChunkMaps {
  const A *grad, *x;
  const Term<A>*grad_terms, *x_terms;
  C* dx;
};

// A: type of the factors of products, C or BFloat16. Rings hold the rows of the hidden map and of
// dz that rows at hand still see, with a column of zeros on either side.
template <class C, class A>
class FeedForwardChunk {
 public:
  using V = typename Vec<C>::V;
  using E = Term<A>;
  static constexpr bool kPairs = sizeof(A) < sizeof(C);
  static constexpr int64_t kPixel = kFeedForwardChunk;

  FeedForwardChunk(const FeedForwardShape& s, Arena& arena)
      : s_(s),
        rows_(rows_at_once(s)),
        row_((s.width + 2) * kPixel),
        hidden_{arena.take<C>((rows_ + 4) * row_), rows_ + 4},
        dz_{arena.take<C>((rows_ + 2) * row_), rows_ + 2},
        flat_(arena.take<C>(((rows_ + 2) * s.width + kRows) * kPixel)),
        factors_(arena.take<A>(kPairs ? (rows_ * s.width + kTileRows) * kPixel : 0)),
        terms_(arena.take<E>(kPairs ? (rows_ + 2) * row_terms<E>(s) * kPixel : 0)),
        places_(arena.take<int64_t>((rows_ + 4) * s.width)) {}

  // Adds to `sums` and stores dx, or with `add` adds to it.
  void run(const ChunkWeights<C, A>& weights, const FeedForwardRange* ranges, int64_t count,
           const ChunkMaps<C, A>& maps, bool add, const ChunkSums<C>& sums) {
    w_ = weights;
    sums_ = sums;
    clear_sides(hidden_);
    clear_sides(dz_);
    // What fills rows up stays.
    if (kPairs)
      memset(static_cast<void*>(terms_), 0,
             static_cast<size_t>((rows_ + 2) * row_terms<E>(s_) * kPixel) * sizeof(E));
    for (const FeedForwardRange* range = ranges; range < ranges + count; ++range) {
      const int64_t outputs = s_.padded_outputs(), channels = s_.padded_channels();
      const int64_t pixel = range->item * s_.height * s_.width;
      const int64_t term = range->item * s_.height * row_terms<E>(s_);
      run_range(
          *range,
          {maps.grad + pixel * outputs, maps.x + pixel * channels, maps.grad_terms + term * outputs,
           maps.x_terms + term * channels, maps.dx + pixel * channels},
          add);
    }
  }

 private:
  struct Ring {
    C* data;
    int64_t rows;
  };

  // About equal steps, of pixels enough for products with them.
  static int64_t rows_at_once(const FeedForwardShape& s) {
    constexpr int64_t kPixels = 64;
    const int64_t steps = max64(1, s.height * s.width / kPixels);
    return (s.height + steps - 1) / steps;
  }

  void run_range(const FeedForwardRange& range, const ChunkMaps<C, A>& maps, bool add) {
    const int64_t height = s_.height;
    int64_t hidden = max64(0, range.first - 2), dz = max64(0, range.first - 1);  // to be computed
    for (int64_t y = range.first; y < range.last; y += rows_) {
      const int64_t end = min64(range.last, y + rows_), seen = min64(height, end + 1);
      const int64_t wanted = min64(height, seen + 1);
      if (hidden < wanted) compute_hidden(maps.x, hidden, wanted);
      if (dz < seen) compute_dz(maps, dz, seen, max64(dz, range.first), min64(seen, range.last));
      hidden = wanted;
      dz = seen;
      compute_dx(maps, y, end, add);
    }
  }

  // Rows [first, last) of the hidden map.
  void compute_hidden(const A* x, int64_t first, int64_t last) {
    const int64_t padded = s_.padded_channels();
    const C* bias = w_.inner + 10 * w_.inner_row;
    const int64_t count = place_rows(hidden_, first, last);
    multiply_pixels<false>(
        s_, x + first * s_.width * padded, padded, w_.expand, count, w_.count,
        padded, [&](int64_t m, int64_t c, V sum) __attribute__((always_inline)) {
          store(hidden_.data + places_[m] + c, sum + load(bias + c));
        });
  }

  // Rows [first, last) of dz, of which [begin, end) count for the gradients of weights.
  void compute_dz(const ChunkMaps<C, A>& maps, int64_t first, int64_t last, int64_t begin,
                  int64_t end) {
    const int64_t width = s_.width, padded = s_.padded_outputs();
    const DepthwiseTaps<C> kernel = {w_.inner, w_.inner_row, w_.inner + 9 * w_.inner_row};
    for (int64_t y = first; y < last; ++y) {
      const C* seen[3];
      see(hidden_, y, seen);
      C *slopes = ring_row(dz_, y) + kPixel, *gelus = flat_ + (y - first) * width * kPixel;
      convolve_hidden(
          seen, kPixel, kernel, width,
          w_.count, [=](int64_t at, int64_t c, auto& z) __attribute__((always_inline)) {
            store_neighbours(
                slopes + at * kPixel + c, z,
                [](V v) __attribute__((always_inline)) { return gelu_slope_lanes<C>(v); });
            factor_gelu<A>(z);
            store_neighbours(
                gelus + at * kPixel + c, z, [](V v) __attribute__((always_inline)) { return v; });
          });
    }
    const int64_t count = place_rows(dz_, first, last);
    multiply_pixels<false>(
        s_, maps.grad + first * width * padded, padded, w_.contract, count, w_.count,
        padded, [&](int64_t m, int64_t c, V sum) __attribute__((always_inline)) {
          C* at = dz_.data + places_[m] + c;
          store(at, load(at) * sum);
        });
    if (begin >= end) return;
    const int64_t terms = row_terms<E>(s_);
    add_outer_products(s_, maps.grad_terms + begin * terms * padded, padded,
                       terms_of_rows(begin - first, end - first), (end - begin) * terms, padded,
                       w_.count, sums_.contract);
    for (int64_t y = begin; y < end; ++y) {
      const C* seen[3];
      see(hidden_, y, seen);
      add_tap_sums(ring_row(dz_, y) + kPixel, seen, width, w_.count, sums_.inner);
    }
  }

  // Rows [first, last) of dx.
  void compute_dx(const ChunkMaps<C, A>& maps, int64_t first, int64_t last, bool add) {
    const int64_t width = s_.width, padded = s_.padded_channels(), count = (last - first) * width;
    const DepthwiseTaps<C> turned = {w_.inner + 8 * w_.inner_row, -w_.inner_row, nullptr};
    for (int64_t y = first; y < last; ++y) {
      const C* seen[3];
      see(dz_, y, seen);
      C* row = flat_ + (y - first) * width * kPixel;
      convolve_hidden(
          seen, kPixel, turned, width,
          w_.count, [=](int64_t at, int64_t c, auto& v) __attribute__((always_inline)) {
            store_neighbours(
                row + at * kPixel + c, v, [](V v) __attribute__((always_inline)) { return v; });
          });
    }
    add_pixel_sums(flat_, count, w_.count, sums_.inner + 10 * kPixel);
    C* target = maps.dx + first * width * padded;
    multiply_pixels<true>(
        s_, factors_of_rows(count), kPixel, w_.turned, count, padded,
        w_.count, [&](int64_t m, int64_t c, V sum) __attribute__((always_inline)) {
          C* at = target + m * padded + c;
          store(at, add ? load(at) + sum : sum);
        });
    const int64_t terms = row_terms<E>(s_);
    add_outer_products(s_, maps.x_terms + first * terms * padded, padded,
                       terms_of_rows(0, last - first), (last - first) * terms, padded, w_.count,
                       sums_.expand);
  }

  // Rows [first, last) of flat_ as terms.
  const E* terms_of_rows(int64_t first, int64_t last) {
    if constexpr (kPairs) {
      for (int64_t y = first; y < last; ++y)
        pair_pixels(flat_ + y * s_.width * kPixel, kPixel, s_.width, w_.count,
                    terms_ + (y - first) * row_terms<E>(s_) * kPixel);
      return terms_;
    } else {
      return flat_ + first * s_.width * kPixel;
    }
  }
  // Pixels of flat_ as factors.
  const A* factors_of_rows(int64_t count) {
    if constexpr (kPairs) {
      for (int64_t p = 0; p < count; ++p)
        for (int64_t c = 0; c < w_.count; c += kWidth<C>)
          store_factor(factors_ + p * kPixel + c, load(flat_ + p * kPixel + c));
      return factors_;
    } else {
      return flat_;
    }
  }

  template <int kCount, class Of>
  static inline __attribute__((always_inline)) void store_neighbours(C* to, const V (&v)[kCount],
                                                                     const Of& of) {
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) store(to + p * kPixel, of(v[p]));
  }

  C* ring_row(const Ring& ring, int64_t y) const { return ring.data + y % ring.rows * row_; }
  void see(const Ring& ring, int64_t y, const C* (&seen)[3]) const {
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t row = y + i - 1;
      seen[i] = row < 0 || row >= s_.height ? nullptr : ring_row(ring, row);
    }
  }
  // Where the pixels of rows [first, last) stand in a ring; returns how many they are.
  int64_t place_rows(const Ring& ring, int64_t first, int64_t last) {
    int64_t count = 0;
    for (int64_t y = first; y < last; ++y)
      for (int64_t at = 1; at <= s_.width; ++at)
        places_[count++] = y % ring.rows * row_ + at * kPixel;
    return count;
  }
  void clear_sides(const Ring& ring) const {
    for (int64_t i = 0; i < ring.rows; ++i) {
      memset(ring.data + i * row_, 0, kPixel * sizeof(C));
      memset(ring.data + (i + 1) * row_ - kPixel, 0, kPixel * sizeof(C));
    }
  }

  const FeedForwardShape& s_;
  const int64_t rows_;  // of the maps at a time
  const int64_t row_;   // elements of a row of a ring
  const Ring hidden_, dz_;
  C* flat_;     // GELUs, or gradients of the hidden map, without those columns
  A* factors_;  // those as factors,
  E* terms_;    // and as terms
  int64_t* places_;
  ChunkWeights<C, A> w_{};
  ChunkSums<C> sums_{};
};

}  // namespace attnops::cpu::ATTNOPS_ISA
