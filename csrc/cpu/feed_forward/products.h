// Products of pixels with weights in panels, in registers or tiles, and their factors.
#pragma once

#include "cpu/common/panel_products.h"
#include "cpu/common/split.h"
#include "host.h"
#include "tile_products.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
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

// emit(m, n, vector) for all `rows` x `columns`. A block of rows is finished across all columns
// before the next one starts, or with kColumnsOuter the other way round. In tiles of AMX where the
// shape says so and the depth is one of whole tiles: rows of a can be read for whole tiles. Factors
// in several parts are for tiles alone.
template <bool kColumnsOuter, int kParts = 1, class A, class B, class Emit>
static void multiply_pixels([[maybe_unused]] const FeedForwardShape& shape, const A* a,
                            int64_t stride, const B* b, int64_t rows, int64_t columns,
                            int64_t depth, const Emit& emit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 2) {
    if (kParts > 1 || (shape.tiles && depth % kTileDepth == 0)) {
      constexpr int64_t kDeep = (kParts > 1 ? 2 : 8) * kTileDepth;
      WaitingSums waiting;
      const auto in_tiles = [&](const auto& product) {
        for_tile_blocks<kColumnsOuter>(rows, columns, product);
        product.finish();
      };
      if (depth < kDeep)
        in_tiles(TileProduct<false, kParts, Emit>{a, stride, b, rows, depth, emit, waiting});
      else
        in_tiles(TileProduct<true, kParts, Emit>{a, stride, b, rows, depth, emit, waiting});
      return;
    }
  }
#endif
  if constexpr (kParts == 1)
    multiply_in_registers<kColumnsOuter>(a, stride, b, rows, columns, depth, emit,
                                         [](int64_t, int64_t) {});
}

}  // namespace attnops::cpu::ATTNOPS_ISA
