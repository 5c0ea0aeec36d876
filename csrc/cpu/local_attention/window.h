// Products over the window of every position, on tiles that vectors cross along a row of the map.
//
//   scores[r, n, x] += sum_c query[c, r, x] key[c, r + i, x + j step]     n = (i, j)
//   out[c, r, x]     = sum_n weights[r, n, x] source[c, r + i, x + j step]
//
// Rows of a tile are rows of one phase, so neighbours along a column are next to each other. One
// column j of the window is done at a time for kBlockRows rows: kBlockRows * kSeen accumulators
// (or weights) stay in registers, and a row of key serves every row that has it in its window. With
// 4 rows and 5 rows of the window that is 12 loads for 20 multiply-adds instead of 40.
#pragma once

#include "cpu/common/vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
constexpr int kBlockRows = 4;
#else
constexpr int kBlockRows = 2;
#endif
constexpr int kMostSeen = 5;

// Channels of a tile: what a vector of positions needs of them stays in the first-level cache. Sums
// over channels are chains of this many terms, then sums of chains, which keeps roundings few.
constexpr int64_t kDepth = 16;

// Element (c, r, x) of a tile is data[c * channel + r * row + x].
template <class C>
struct Tile {
  C* data;
  int64_t row, channel;
};

// Element (r, (i, j), x) of scores or weights is data[r * row + i * neighbour_row + j *
// neighbour_column + x].
template <class C>
struct WeightView {
  C* data;
  int64_t row, neighbour_row, neighbour_column;
};

// The window: rows x columns neighbours, in a row `step` apart.
struct Window {
  int64_t rows, columns, step;
};

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Calls body(Int<rows>, Int<seen>, row, top) for blocks of rows and of `seen` rows of the window
// from `top` on that cover `rows` x `window_rows`. Blocks are as even as possible: 4 + 4 + 1 would
// cost more than 3 + 3 + 3.
template <int kRows, class Body>
ATTNOPS_INLINE void for_each_seen_block(int64_t row, int64_t window_rows, const Body& body) {
  const int64_t pieces = (window_rows + kMostSeen - 1) / kMostSeen;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t top = window_rows * piece / pieces;
    const int64_t seen = window_rows * (piece + 1) / pieces - top;
    if (seen == 5)
      body(Int<kRows>(), Int<5>(), row, top);
    else if (seen == 4)
      body(Int<kRows>(), Int<4>(), row, top);
    else if (seen == 3)
      body(Int<kRows>(), Int<3>(), row, top);
    else  // a part of an odd number is never 2
      body(Int<kRows>(), Int<1>(), row, top);
  }
}

// Calls body(Int<rows>, row) for blocks that cover `rows`.
template <class Body>
ATTNOPS_INLINE void for_each_row_block(int64_t rows, const Body& body) {
  const int64_t pieces = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t row = rows * piece / pieces;
    const int64_t count = rows * (piece + 1) / pieces - row;
    if (count == 1) body(Int<1>(), row);
    if (count == 2) body(Int<2>(), row);
    if constexpr (kBlockRows == 4) {
      if (count == 3) body(Int<3>(), row);
      if (count == 4) body(Int<4>(), row);
    }
  }
}

template <class Body>
ATTNOPS_INLINE void for_each_block(int64_t rows, int64_t window_rows, const Body& body) {
  for_each_row_block(rows, [&](auto block, int64_t row) {
    for_each_seen_block<decltype(block)::value>(row, window_rows, body);
  });
}

// Scores of kRows rows and kSeen rows of the window, all columns of the tile and of the window.
// With `fresh` they are written, else added to.
template <class C, int kRows, int kSeen>
static void add_products(Tile<const C> query, Tile<const C> key, int64_t depth,
                         WeightView<C> scores, const Window& window, int64_t columns, bool fresh) {
  using V = typename Vec<C>::V;
  for (int64_t x = 0; x < columns; x += kWidth<C>)
    for (int64_t j = 0; j < window.columns; ++j) {
      V sums[kRows][kSeen] = {};
      const C* q = query.data + x;
      const C* k = key.data + x + j * window.step;
      for (int64_t c = 0; c < depth; ++c, q += query.channel, k += key.channel) {
        V left[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) left[r] = load(q + r * query.row);
#pragma GCC unroll 8
        for (int n = 0; n < kRows + kSeen - 1; ++n) {
          const V right = load(k + n * key.row);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r)
            if (n - r >= 0 && n - r < kSeen) sums[r][n - r] += left[r] * right;
        }
      }
      C* out = scores.data + x + j * scores.neighbour_column;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 5
        for (int i = 0; i < kSeen; ++i) {
          C* target = out + r * scores.row + i * scores.neighbour_row;
          store(target, fresh ? sums[r][i] : load(target) + sums[r][i]);
        }
    }
}

// out of kRows rows, the terms of kSeen rows of the window; with `fresh` out is written, else added
// to.
template <class C, int kRows, int kSeen>
static void weigh_rows(WeightView<const C> weights, Tile<const C> source, int64_t depth,
                       Tile<C> out, const Window& window, int64_t columns, bool fresh) {
  using V = typename Vec<C>::V;
  for (int64_t x = 0; x < columns; x += kWidth<C>)
    for (int64_t j = 0; j < window.columns; ++j) {
      V left[kRows][kSeen];
      const C* w = weights.data + x + j * weights.neighbour_column;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 5
        for (int i = 0; i < kSeen; ++i)
          left[r][i] = load(w + r * weights.row + i * weights.neighbour_row);
      const C* v = source.data + x + j * window.step;
      C* target = out.data + x;
      const bool first = fresh && j == 0;
      for (int64_t c = 0; c < depth; ++c, v += source.channel, target += out.channel) {
        V sums[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r] = first ? V{} : load(target + r * out.row);
#pragma GCC unroll 8
        for (int n = 0; n < kRows + kSeen - 1; ++n) {
          const V right = load(v + n * source.row);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r)
            if (n - r >= 0 && n - r < kSeen) sums[r] += left[r][n - r] * right;
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) store(target + r * out.row, sums[r]);
      }
    }
}

// Row 0, column 0 of key stand for the first neighbour of row 0, column 0 of query.
template <class C>
static void add_scores(Tile<const C> query, Tile<const C> key, int64_t depth, WeightView<C> scores,
                       const Window& window, int64_t rows, int64_t columns, bool fresh) {
  for_each_block(rows, window.rows, [&](auto block, auto seen, int64_t row, int64_t top) {
    add_products<C, decltype(block)::value, decltype(seen)::value>(
        {query.data + row * query.row, query.row, query.channel},
        {key.data + (row + top) * key.row, key.row, key.channel}, depth,
        {scores.data + row * scores.row + top * scores.neighbour_row, scores.row,
         scores.neighbour_row, scores.neighbour_column},
        window, columns, fresh);
  });
}

// Row 0, column 0 of source stand for the first neighbour of row 0, column 0 of out.
template <class C>
static void weigh(WeightView<const C> weights, Tile<const C> source, int64_t depth, Tile<C> out,
                  const Window& window, int64_t rows, int64_t columns) {
  for_each_block(rows, window.rows, [&](auto block, auto seen, int64_t row, int64_t top) {
    weigh_rows<C, decltype(block)::value, decltype(seen)::value>(
        {weights.data + row * weights.row + top * weights.neighbour_row, weights.row,
         weights.neighbour_row, weights.neighbour_column},
        {source.data + (row + top) * source.row, source.row, source.channel}, depth,
        {out.data + row * out.row, out.row, out.channel}, window, columns, top == 0);
  });
}

}  // namespace attnops::cpu::ATTNOPS_ISA
