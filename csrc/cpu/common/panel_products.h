// Products of rows with weights in panels, in registers: C[m, n] = sum_k A[m, k] B[n, k].
//
// A stands in rows of `stride` elements, and there are whole blocks of kRows of them to be read. B
// stands as panels.h says: column k of a panel begins at k * 16 elements, and so does a pair of
// columns [k, k + 2) in bfloat16.
#pragma once

#include "gemm.h"
#include "panels.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <int kUsed, int kHeight, class C>
ATTNOPS_INLINE void multiply_panels(Block<C, kUsed, kHeight>& block, const C* a, int64_t stride,
                                    const C* const (&b)[kUsed], int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    typename Vec<C>::V right[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) right[j] = load(b[j] + k * kPanelRows);
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i) {
      const C left = a[i * stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) block.v[i][j] += left * right[j];
    }
  }
}

// A word holds two columns of a row, which become float by a shift and by a mask.
template <int kUsed, int kHeight>
ATTNOPS_INLINE void multiply_panels(Block<float, kUsed, kHeight>& block, const float* a,
                                    int64_t stride, const BFloat16* const (&b)[kUsed],
                                    int64_t depth) {
  for (int64_t k = 0; k < depth; k += 2) {
    VecF even[kUsed], odd[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) {
      WordLanes pair;
      memcpy(&pair, b[j] + k * kPanelRows, sizeof(pair));
      even[j] = (VecF)(pair << 16);
      odd[j] = (VecF)(pair & 0xffff0000u);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i) {
      const float left = a[i * stride + k], next = a[i * stride + k + 1];
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) {
        block.v[i][j] += left * even[j];
        block.v[i][j] += next * odd[j];
      }
    }
  }
}

#if defined(__AVX512F__)
// A word of A, two columns, meets those of 16 rows of a panel.
template <int kUsed, int kHeight>
ATTNOPS_INLINE void multiply_panels(Block<float, kUsed, kHeight>& block, const BFloat16* a,
                                    int64_t stride, const BFloat16* const (&b)[kUsed],
                                    int64_t depth) {
  for (int64_t k = 0; k < depth; k += 2) {
    WordLanes right[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) memcpy(&right[j], b[j] + k * kPanelRows, sizeof(right[j]));
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i) {
      Pair pair;
      memcpy(&pair, a + i * stride + k, sizeof(pair));
      const WordLanes left = spread(pair);
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) add_pair_products(block.v[i][j], left, right[j]);
    }
  }
}
#endif

// Rows [m, m + kHeight), of which `rows` are there, and kUsed vectors of columns from `vector` on,
// in chains of kChain terms.
template <int kUsed, int kHeight, class A, class B, class Emit>
static void multiply_panel_block(const A* a, int64_t stride, const B* b, int64_t m, int64_t rows,
                                 int64_t vector, int64_t depth, const Emit& emit) {
  using C = Compute<A>;
  constexpr int64_t kW = kWidth<C>, kPair = sizeof(C) / sizeof(B);
  const B* columns[kUsed];
#pragma GCC unroll 4
  for (int j = 0; j < kUsed; ++j) {
    const int64_t n = (vector + j) * kW;
    columns[j] = b + n / kPanelRows * kPanelRows * depth + n % kPanelRows * kPair;
  }
  Block<C, kUsed, kHeight> block;
  C sums[kHeight][kUsed * kW];
  a += m * stride;
  for (int64_t k = 0;; k += kChain) {
    block = {};
    multiply_panels<kUsed>(block, a + k, stride, columns, min64(kChain, depth - k));
    if (k > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kUsed; ++j) block.v[i][j] += load(sums[i] + j * kW);
    }
    if (k + kChain >= depth) break;
    store_block(block, sums);
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) columns[j] += kChain * kPanelRows;
  }
  if (rows >= kHeight) {
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) emit(m + i, (vector + j) * kW, block.v[i][j]);
    return;
  }
  // Some rows go by way of memory.
  store_block(block, sums);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < kUsed; ++j) emit(m + i, (vector + j) * kW, load(sums[i] + j * kW));
}

// emit(m, n, vector) for all `rows` x `columns`, whole vectors of them. A block of rows is finished
// across all columns before the next one starts, or with kColumnsOuter the other way round. Before
// a block is multiplied ask(m, n) is called for each of its vectors, for what emit will read.
template <bool kColumnsOuter, class A, class B, class Emit, class Ask>
static void multiply_in_registers(const A* a, int64_t stride, const B* b, int64_t rows,
                                  int64_t columns, int64_t depth, const Emit& emit,
                                  const Ask& ask) {
  const int64_t vectors = columns / kWidth<Compute<A>>;
  // Blocks of six rows and four vectors take fewer loads; up to two of eight rows are left.
  constexpr int kLow = 6, kWide = 4;
  constexpr bool kHasWide = kLow * kWide == kRows * kVectors;
  const bool wide = kHasWide && vectors % kWide == 0;
  const int64_t padded = round_up(rows, kRows);
  const int64_t low_rows = wide ? padded - padded / 2 % 3 * kRows : 0;
  // Else four are two and two, which is faster than three and one.
  const auto used_from = [&](int64_t vector) -> int64_t {
    const int64_t left = vectors - vector;
    if (wide) return kWide;
    return left == 4 || left < kVectors ? min64(left, 2) : kVectors;
  };
  const auto next = [&](int64_t m) { return m + (m < low_rows ? kLow : kRows); };
  const auto run = [&](int64_t m, int64_t vector) {
    const int64_t there = rows - m, used = used_from(vector);
    for (int64_t i = m; i < min64(rows, next(m)); ++i)
      for (int64_t j = vector; j < vector + used; ++j) ask(i, j * kWidth<Compute<A>>);
    if constexpr (kHasWide) {
      if (m < low_rows)
        return multiply_panel_block<kWide, kLow>(a, stride, b, m, there, vector, depth, emit);
      if (used == kWide)
        multiply_panel_block<2, kRows>(a, stride, b, m, there, vector + 2, depth, emit);
    }
    if (kVectors >= 3 && used == 3)
      multiply_panel_block<kVectors, kRows>(a, stride, b, m, there, vector, depth, emit);
    else if (used >= 2)
      multiply_panel_block<2, kRows>(a, stride, b, m, there, vector, depth, emit);
    else
      multiply_panel_block<1, kRows>(a, stride, b, m, there, vector, depth, emit);
  };
  if (kColumnsOuter) {
    for (int64_t vector = 0; vector < vectors; vector += used_from(vector))
      for (int64_t m = 0; m < rows; m = next(m)) run(m, vector);
  } else {
    for (int64_t m = 0; m < rows; m = next(m))
      for (int64_t vector = 0; vector < vectors; vector += used_from(vector)) run(m, vector);
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
