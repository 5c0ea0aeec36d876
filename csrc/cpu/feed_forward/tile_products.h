// Products of pixels with weights in panels, as in products.h, by tiles of AMX: for depths of whole
// tiles. Floats are multiplied in parts (float_parts.h): those of a pixel's factors stand one after
// the other, and so do the panels of the parts of the same weights.
#pragma once

#include "cpu/common/float_parts.h"
#include "cpu/common/tiles.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// 16 neighbours in a row of the hidden map: their factors, and where their sums go.
struct TilePixels {
  const BFloat16* factors;
  float* sums;
};

#if defined(__AVX512F__)
// Adds what a tile's depth of left, rows `bytes` apart, gives with that of right and the next
// panel. With several parts those of left are `depth` elements apart.
template <int kM, int kN, int kParts>
ATTNOPS_INLINE void multiply_parts(const BFloat16* const (&left)[2], int64_t bytes,
                                   const BFloat16* right, int64_t depth) {
  const int64_t panel = depth * kPanelRows;
  if (kParts == 1) {
    multiply_tile_block<kM, kN>({left[0], left[1]}, bytes, {right, right + panel}, sizeof(VecF));
    return;
  }
  const auto at = [](const BFloat16* p) { return reinterpret_cast<const char*>(p); };
  constexpr int64_t kHalf = sizeof(BFloat16);
  multiply_tile_parts<kM, kN>({at(left[0]), at(left[1])}, depth * kHalf, bytes,
                              {at(right), at(right + kParts * panel)}, panel * kHalf, sizeof(VecF));
}

// The sums of a block that are still to leave: rows [row, end), from column n on.
struct WaitingSums {
  static constexpr int64_t kStep = 2 * kTileRows;

  int64_t row = 0, end = 0, n = 0;
  const float* from = nullptr;
  bool wide = false;
  int turn = 0;
  alignas(64) float sums[2][kStep * kStep];
};

// Rows of a can be read for whole tiles. kLater: the sums of a block leave row by row while the
// next one is multiplied, since tiles that are stored and read at once are waited for. Where
// products are short, the writing takes longest and is better left alone.
template <bool kLater, int kParts, class Emit>
struct TileProduct {
  static constexpr int64_t kStep = WaitingSums::kStep;
  static constexpr int64_t kProducts = kParts == 1 ? 1 : kPartProducts;

  const BFloat16* a;
  int64_t stride;
  const BFloat16* b;
  int64_t rows, depth;
  const Emit& emit;
  WaitingSums& waiting;

  template <int kM, int kN>
  void run(int64_t m, int64_t n) const {
    const BFloat16 *left = a + m * stride, *right = b + n * depth * kParts;
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t steps = depth / kTileDepth, share = (kStep + steps - 1) / steps;
    TileStores stores;
    clear_tile_block<kM, kN>();
    for (int64_t k = 0; k < depth; k += kTileDepth) {
      stores.expect(kProducts);
      multiply_parts<kM, kN, kParts>({left + k, left + kTileRows * stride + k}, bytes,
                                     right + k * kPanelRows, depth);
      if (kLater) emit_rows(share);
    }
    finish();
    if (kLater) waiting.turn ^= 1;
    float* sums = waiting.sums[waiting.turn];
    store_tile_block<kM, kN>(sums, kStep);
    waiting.row = m;
    waiting.end = min64(m + kM * kTileRows, rows);
    waiting.n = n;
    waiting.from = sums;
    waiting.wide = kN > 1;
    if (!kLater) finish();
  }

  void finish() const { emit_rows(kStep); }

 private:
  inline __attribute__((always_inline)) void emit_rows(int64_t count) const {
    const int64_t begin = waiting.row, end = min64(waiting.end, begin + count), n = waiting.n;
    if (begin >= end) return;
    const float* from = waiting.from;
    const bool wide = waiting.wide;
    waiting.row = end;
    waiting.from = from + (end - begin) * kStep;
    for (int64_t m = begin; m < end; ++m, from += kStep) {
      emit(m, n, load(from));
      if (wide) emit(m, n + kPanelRows, load(from + kPanelRows));
    }
  }
};

// Of groups of pixels: factors `stride` apart become sums, which begin with the bias, in pixels
// `pixel` apart. They go where they stay; sums of whole groups are written.
template <int kParts>
struct TilePixelProduct {
  const TilePixels* groups;
  int64_t stride;
  const BFloat16* b;
  int64_t depth;
  const float* bias;
  int64_t pixel;

  template <int kM, int kN>
  void run(int64_t m, int64_t n) const {
    const TilePixels &first = groups[m / kTileRows], &second = groups[m / kTileRows + kM - 1];
    const BFloat16* right = b + n * depth * kParts;
    const int64_t left_bytes = stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t pixel_bytes = pixel * static_cast<int64_t>(sizeof(float));
    const float* start = bias + n;
    load_tile_block<kM, kN>(start, 0);
    TileStores stores;
    for (int64_t k = 0; k < depth; k += kTileDepth) {
      if (kParts > 1) stores.expect(kPartProducts);
      multiply_parts<kM, kN, kParts>({first.factors + k, second.factors + k}, left_bytes,
                                     right + k * kPanelRows, depth);
    }
    store_tile<0>(first.sums + n, pixel_bytes);
    if (kN > 1) store_tile<1>(first.sums + n + kTileRows, pixel_bytes);
    if (kM > 1) store_tile<2>(second.sums + n, pixel_bytes);
    if (kM > 1 && kN > 1) store_tile<3>(second.sums + n + kTileRows, pixel_bytes);
  }
};
#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
