// Products of pixels with weights in panels, as in products.h, by tiles of AMX: for depths of whole
// tiles.
#pragma once

#include "cpu/common/tiles.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// 16 neighbours in a row of the hidden map: their factors, and where their sums go.
struct TilePixels {
  const BFloat16* factors;
  float* sums;
};

#if defined(__AVX512F__)
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
template <bool kLater, class Emit>
struct TileProduct {
  static constexpr int64_t kStep = WaitingSums::kStep;

  const BFloat16* a;
  int64_t stride;
  const BFloat16* b;
  int64_t rows, depth;
  const Emit& emit;
  WaitingSums& waiting;

  template <int kM, int kN>
  void run(int64_t m, int64_t n) const {
    const BFloat16 *left = a + m * stride, *right = b + n * depth;
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t steps = depth / kTileDepth, share = (kStep + steps - 1) / steps;
    TileStores stores;
    clear_tile_block<kM, kN>();
    for (int64_t k = 0; k < depth; k += kTileDepth) {
      stores.expect(1);
      multiply_tile_block<kM, kN>({left + k, left + kTileRows * stride + k}, bytes,
                                  {right + k * kPanelRows, right + (depth + k) * kPanelRows},
                                  sizeof(VecF));
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
    const BFloat16 *right = b + n * depth, *next = right + depth * kPanelRows;
    const int64_t left_bytes = stride * static_cast<int64_t>(sizeof(BFloat16));
    const int64_t pixel_bytes = pixel * static_cast<int64_t>(sizeof(float));
    const float* start = bias + n;
    load_tile_block<kM, kN>(start, 0);
    for (int64_t k = 0; k < depth; k += kTileDepth)
      multiply_tile_block<kM, kN>({first.factors + k, second.factors + k}, left_bytes,
                                  {right + k * kPanelRows, next + k * kPanelRows}, sizeof(VecF));
    store_tile<0>(first.sums + n, pixel_bytes);
    if (kN > 1) store_tile<1>(first.sums + n + kTileRows, pixel_bytes);
    if (kM > 1) store_tile<2>(second.sums + n, pixel_bytes);
    if (kM > 1 && kN > 1) store_tile<3>(second.sums + n + kTileRows, pixel_bytes);
  }
};
#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
