// 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3), for evaluation: 16 products for four
// results in place of 36.
//
// A tile is a square of 2x2 results whose neighbours are `dilation` apart, made of 4x4 values d of
// each input channel, zeros outside the map. With
//
//   B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]    A' = [1 1 1 0; 0 1 -1 -1]
//
// and 3x3 weights g that were turned into G g G' before, the results are
//
//   out = A' (sum_c (G g_c G') * (B' d_c B)) A + bias,
//
// where * is element by element: 16 products of tiles [tiles, C] with weights [C, O].
//
// Works through a run of tiles at a time, whose parts stay in the second- or third-level cache.
// Reads a map four times, mostly from caches, and writes one; the weights once for every run.
//
// Weights: [16][panels][C][48] in float, [16][panels][C / 2][48][2] in bfloat16, outputs padded
// with zeros to panels of 48. Of bfloat16 maps tiles are rounded to bfloat16, and sums are float.
//
// host.cpp cuts the tiles into runs; products.h multiplies; kernels.cpp transforms.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

constexpr int64_t kWinogradPanel = 48;
constexpr int64_t kWinogradParts = 16;  // of a tile

// Tile (i, j) has its first result at row starts[i], column starts[rows + j], of a map whose pixels
// are contiguous in the channels, of which a group has a multiple of 16.
struct WinogradShape {
  int64_t channels, outputs, groups, height, width, dilation, rows, columns;
  const int64_t* starts;
  bool relu;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }
  int64_t group_panels() const { return (group_outputs() + kWinogradPanel - 1) / kWinogradPanel; }
  int64_t padded_outputs() const { return groups * group_panels() * kWinogradPanel; }
};

// Entry points of one instruction set and one element type, float or bfloat16 (where the processor
// multiplies it). x and out are those of a batch item, bias [O] or null.
struct WinogradKernels {
  int64_t (*scratch_bytes)(const WinogradShape& s, int64_t tiles);
  // Tiles [first, last) of the map.
  void (*run)(const WinogradShape& s, const void* x, const void* weight, const float* bias,
              int64_t first, int64_t last, void* out, void* scratch);
};

#define ATTNOPS_DECLARE_WINOGRAD(isa)            \
  namespace isa {                                \
  const WinogradKernels& winograd_of_float();    \
  const WinogradKernels* winograd_of_bfloat16(); \
  }
ATTNOPS_DECLARE_WINOGRAD(baseline)
ATTNOPS_DECLARE_WINOGRAD(avx2)
ATTNOPS_DECLARE_WINOGRAD(avx512)
#undef ATTNOPS_DECLARE_WINOGRAD

}  // namespace attnops::cpu
