// What the host code and the vector code of strip convolutions share: plain data and function
// tables.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/common/map_sizes.h"

namespace attnops::cpu {

// Rows [top, bottom) and columns [left, right) of the planes of a group: as many planes as a vector
// has lanes, neighbours in [batch, channels] for contiguous maps, neighbouring channels of one
// batch item for channels_last maps. Groups at an end may be smaller.
struct StripPiece {
  int64_t group, top, bottom, left, right;
};

// Pieces are cut between rows that are a multiple of this.
constexpr int64_t kPieceRows = 8;

// taps [channels, taps]: of the local kernel [kernel_height, kernel_width], then of each strip
// rows[s] of the row and columns[s] of the column. shifts [channels, 1 + 2 strips], same order.
struct StripShape {
  MapSizes maps;
  int64_t kernel_height, kernel_width, strips;
  const int64_t *rows, *columns;  // [strips]
  int64_t taps;

  int64_t shifts() const { return 1 + 2 * strips; }
};

// Entry points of one instruction set and one element type. Tensors are whole; scratch is private
// to the caller and aligned to 64 bytes.
struct StripKernels {
  int64_t lanes;
  int64_t (*tile_columns)(const StripShape&, bool backward);  // of the widest piece to ask for
  int64_t (*scratch_bytes)(const StripShape&, int64_t columns, bool backward);

  void (*forward)(const StripShape&, const StripPiece&, const void* x, const void* taps,
                  const void* shifts, void* out, void* scratch);

  // dx of a piece, and what it adds to dtaps and dshifts: sums [taps + shifts][lanes], zero before.
  void (*backward)(const StripShape&, const StripPiece&, const void* grad, const void* x,
                   const void* taps, const void* shifts, void* dx, double* sums, void* scratch);

  // dtaps and dshifts from the sums of all pieces. totals [channels * max(taps, shifts)] is
  // scratch.
  void (*reduce)(const StripShape&, const StripPiece* pieces, int64_t count, const double* sums,
                 void* dtaps, void* dshifts, double* totals);
};

ATTNOPS_DECLARE_KERNELS(StripKernels, strip_kernels)

}  // namespace attnops::cpu
