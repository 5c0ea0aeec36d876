// Products of pixels with weights in panels: C[m, n] = sum_k A[m, k] B[n, k].
//
// A stands in rows of `stride` elements, rows padded to whole blocks of kRows. B stands as host.h
// says: column k of a panel begins at k * 16 elements, and so does a pair of columns [k, k + 2) in
// bfloat16.
#pragma once

#include "cpu/common/gemm.h"
#include "host.h"
#include "tile_products.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <int kUsed, class C>
ATTNOPS_INLINE void multiply_panels(Block<C, kUsed>& block, const C* a, int64_t stride,
                                    const C* const (&b)[kUsed], int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    typename Vec<C>::V right[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) right[j] = load(b[j] + k * kPanelRows);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const C left = a[i * stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) block.v[i][j] += left * right[j];
    }
  }
}

// A word holds two columns of a row, which become float by a shift and by a mask.
template <int kUsed>
ATTNOPS_INLINE void multiply_panels(Block<float, kUsed>& block, const float* a, int64_t stride,
                                    const BFloat16* const (&b)[kUsed], int64_t depth) {
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
    for (int i = 0; i < kRows; ++i) {
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
template <int kUsed>
ATTNOPS_INLINE void multiply_panels(Block<float, kUsed>& block, const BFloat16* a, int64_t stride,
                                    const BFloat16* const (&b)[kUsed], int64_t depth) {
  for (int64_t k = 0; k < depth; k += 2) {
    WordLanes right[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) memcpy(&right[j], b[j] + k * kPanelRows, sizeof(right[j]));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      Pair pair;
      memcpy(&pair, a + i * stride + k, sizeof(pair));
      const WordLanes left = spread(pair);
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) add_pair_products(block.v[i][j], left, right[j]);
    }
  }
}

ATTNOPS_INLINE void store_factor(BFloat16* p, VecF v) {
  const HalfLanes lanes = rounded(v);
  memcpy(p, &lanes, sizeof(lanes));
}

ATTNOPS_INLINE void store_pairs(void* p, VecF even, VecF odd) {
  const WordLanes pairs = __builtin_convertvector(rounded(even), WordLanes) |
                          __builtin_convertvector(rounded(odd), WordLanes) << 16;
  memcpy(p, &pairs, sizeof(pairs));
}
#endif

ATTNOPS_INLINE void store_factor(float* p, VecF v) { store(p, v); }
ATTNOPS_INLINE void store_factor(double* p, VecD v) { store(p, v); }

// Rows [m, m + kRows), of which `rows` are there, and kUsed vectors of columns from `vector` on.
// kChained: in chains of kChain terms.
template <bool kChained, int kUsed, class A, class B, class Emit>
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
  Block<C, kUsed> block;
  C sums[kRows][kUsed * kW];
  a += m * stride;
  const int64_t chain = kChained ? kChain : depth;
  for (int64_t k = 0;; k += chain) {
    block = {};
    multiply_panels<kUsed>(block, a + k, stride, columns, min64(chain, depth - k));
    if constexpr (!kChained) break;
    if (k > 0) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kUsed; ++j) block.v[i][j] += load(sums[i] + j * kW);
    }
    if (k + chain >= depth) break;
    store_block(block, sums);
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) columns[j] += chain * kPanelRows;
  }
  if (rows >= kRows) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) emit(m + i, (vector + j) * kW, block.v[i][j]);
    return;
  }
  // Some rows go by way of memory.
  store_block(block, sums);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < kUsed; ++j) emit(m + i, (vector + j) * kW, load(sums[i] + j * kW));
}

// emit(m, n, vector) for all `rows` x `columns`. A block of rows is finished across all columns
// before the next one starts, or with kColumnsOuter the other way round. In tiles of AMX where the
// shape says so and the depth is one of whole tiles: rows of a can be read for whole tiles.
template <bool kColumnsOuter, bool kChained, class A, class B, class Emit>
static void multiply_pixels([[maybe_unused]] const FeedForwardShape& shape, const A* a,
                            int64_t stride, const B* b, int64_t rows, int64_t columns,
                            int64_t depth, const Emit& emit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 2) {
    if (shape.tiles && depth % kTileDepth == 0) {
      constexpr int64_t kDeep = 8 * kTileDepth;
      WaitingSums waiting;
      const auto in_tiles = [&](const auto& product) {
        for_tile_blocks<kColumnsOuter>(rows, columns, product);
        product.finish();
      };
      return depth < kDeep
                 ? in_tiles(TileProduct<false, Emit>{a, stride, b, rows, depth, emit, waiting})
                 : in_tiles(TileProduct<true, Emit>{a, stride, b, rows, depth, emit, waiting});
    }
  }
#endif
  const int64_t vectors = columns / kWidth<Compute<A>>;
  // Four are two and two, which is faster than three and one.
  const auto used_from = [&](int64_t vector) -> int64_t {
    const int64_t left = vectors - vector;
    return left == 4 || left < kVectors ? min64(left, 2) : kVectors;
  };
  const auto run = [&](int64_t m, int64_t vector, int64_t used) {
    const int64_t there = min64(kRows, rows - m);
    if (kVectors >= 3 && used == 3)
      multiply_panel_block<kChained, kVectors>(a, stride, b, m, there, vector, depth, emit);
    else if (used == 2)
      multiply_panel_block<kChained, 2>(a, stride, b, m, there, vector, depth, emit);
    else
      multiply_panel_block<kChained, 1>(a, stride, b, m, there, vector, depth, emit);
  };
  if (kColumnsOuter) {
    for (int64_t vector = 0; vector < vectors; vector += used_from(vector))
      for (int64_t m = 0; m < rows; m += kRows) run(m, vector, used_from(vector));
  } else {
    for (int64_t m = 0; m < rows; m += kRows)
      for (int64_t vector = 0; vector < vectors; vector += used_from(vector))
        run(m, vector, used_from(vector));
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
