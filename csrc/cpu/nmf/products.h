// The products of nmf, in the layouts of pack.h. All add to `out` where `add` is set.
#pragma once

#include "pack.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Terms summed up in one chain, and the depth of a panel that stays in the first-level cache: a
// multiple of kPad.
constexpr int64_t kDepth = 144;

// out [rows, columns] = left [rows, depth] right [depth, columns].
template <class C>
static void multiply_matrices(Panels<C> left, Panels<C> right, Panels<C> out, int64_t rows,
                              int64_t columns, int64_t depth, bool add) {
  for (int64_t k = 0; k < depth; k += kDepth)
    multiply_panels<C, kColumns<C>, 1>(
        {at(left, 0, k), kRows * kColumns<C>, kColumns<C>, left.stride},
        {at(right, k, 0), right.stride}, out, rows, columns, min64(kDepth, depth - k),
        add || k > 0);
}

// How many terms an element stands for.
template <class E>
constexpr int64_t kTerms = 1;
template <>
constexpr int64_t kTerms<Pair> = 2;

// out [count, columns] = transposed tile of x [depth, kTile] times right [depth, columns], where
// the depth counts channels, or pairs of them.
template <class E>
static void tile_to_positions(const E* tile, int64_t depth, Panels<E> right, Panels<Sum<E>> out,
                              int64_t count, int64_t columns, bool add) {
  for (int64_t d = 0; d < depth; d += kDepth) {
    const int64_t chain = min64(kDepth, depth - d);
    multiply_panels<E, 1, kTile>({tile + d * kTile, kRows, chain, 0},
                                 {at(right, d, 0), right.stride}, out, count, columns, chain,
                                 add || d > 0);
  }
}

// out [channels, columns] = tile of x [channels, kTile] times right [count, columns], where a row
// of the tile and the rows of `right` are positions, or pairs of them.
template <class E>
static void tile_to_channels(const E* tile, int64_t channels, Panels<E> right, Panels<Sum<E>> out,
                             int64_t count, int64_t columns, bool add) {
  constexpr int64_t kRow = kTile / kTerms<E>;
  multiply_panels<E, kRow, 1>({tile, kRows * kRow, count, 0}, {right.data, right.stride}, out,
                              channels, columns, count, add);
}

template <class C>
struct Factors {
  Panels<C> left, right;
};

template <class C, int kUsed>
ATTNOPS_INLINE void write_block(const Block<C, kUsed>& block, C* out, int64_t row_stride,
                                int64_t rows, int64_t columns, bool add) {
  constexpr int64_t kW = kWidth<C>;
  if (rows >= kRows && columns >= kUsed * kW) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) {
        C* target = out + i * row_stride + j * kW;
        store(target, add ? load(target) + block.v[i][j] : block.v[i][j]);
      }
    return;
  }
  // Some rows or columns go by way of memory.
  C sums[kRows][kUsed * kW];
  store_block(block, sums);
  for (int i = 0; i < min64(rows, kRows); ++i)
    for (int j = 0; j < kUsed; ++j) {
      C* target = out + i * row_stride + j * kW;
      const int64_t count = columns - j * kW;
      const auto sum = load(sums[i] + j * kW);
      store_lanes(target, add ? load_lanes(target, count) + sum : sum, count);
    }
}

template <class C, int kUsed>
static void sum_products_block(const Factors<C>* factors, int pairs, int64_t m, int64_t n,
                               int64_t depth, C* out, int64_t row_stride, int64_t rows,
                               int64_t columns, bool add) {
  Block<C, kUsed> block = {};
  int64_t chained = 0;
  for (int f = 0; f < pairs; ++f)
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t terms = min64(kDepth, depth - k);
      if (chained > 0 && chained + terms > kDepth) {
        write_block(block, out, row_stride, rows, columns, add);
        block = {};
        chained = 0;
        add = true;
      }
      multiply<C, kUsed, kColumns<C>, 1>(block, at(factors[f].left, m, k), kColumns<C>,
                                         factors[f].left.stride, at(factors[f].right, k, n), terms);
      chained += terms;
    }
  write_block(block, out, row_stride, rows, columns, add);
}

// Sum of `pairs` products of equal sizes into plain rows: out[m * row_stride + n].
template <class C>
static void sum_products(const Factors<C>* factors, int pairs, int64_t rows, int64_t columns,
                         int64_t depth, C* out, int64_t row_stride, bool add) {
  for (int64_t n = 0; n < columns; n += kColumns<C>)
    for (int64_t m = 0; m < rows; m += kRows) {
      const int64_t vectors = (columns - n + kWidth<C> - 1) / kWidth<C>;
      C* target = out + m * row_stride + n;
      if (kVectors >= 3 && vectors >= 3)
        sum_products_block<C, kVectors>(factors, pairs, m, n, depth, target, row_stride, rows - m,
                                        columns - n, add);
      else if (vectors >= 2)
        sum_products_block<C, 2>(factors, pairs, m, n, depth, target, row_stride, rows - m,
                                 columns - n, add);
      else
        sum_products_block<C, 1>(factors, pairs, m, n, depth, target, row_stride, rows - m,
                                 columns - n, add);
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
