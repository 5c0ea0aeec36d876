// What the host code and the vector code of strip convolutions share: plain data and function
// tables.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/depthwise/shape.h"

namespace attnops::cpu {

// taps [channels, taps]: of the local kernel [kernel_height, kernel_width], then of each strip
// rows[s] of the row and columns[s] of the column. shifts [channels, 1 + 2 strips], same order.
struct StripShape {
  DepthwiseMaps maps;
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

  void (*forward)(const StripShape&, const DepthwisePiece&, const void* x, const void* taps,
                  const void* shifts, void* out, void* scratch);

  // dx of a piece, and what it adds to dtaps and dshifts: sums [taps + shifts][lanes], zero before.
  void (*backward)(const StripShape&, const DepthwisePiece&, const void* grad, const void* x,
                   const void* taps, const void* shifts, void* dx, double* sums, void* scratch);

  // dtaps and dshifts from the sums of all pieces. totals [channels * max(taps, shifts)] is
  // scratch.
  void (*reduce)(const StripShape&, const DepthwisePiece* pieces, int64_t count, const double* sums,
                 void* dtaps, void* dshifts, double* totals);
};

ATTNOPS_DECLARE_KERNELS(StripKernels, strip_kernels)

}  // namespace attnops::cpu
