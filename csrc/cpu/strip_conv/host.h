// Strip convolutions: a depthwise convolution and, added to it, strips in both directions.
//
//   a = local(x) + bias
//   out = a + sum over strips of vertical(horizontal(a) + row bias) + column bias
//
// A plane is a channel of a batch item; lanes of vectors are planes, a group is as many as a vector
// has lanes. Groups are cut into pieces of rows and of columns (host.cpp), each a worker's. A piece
// is walked down a few rows at a time; rings in the second-level cache hold the rows of x, a and
// horizontal(a) that kernels still see, so each is computed once. The backward does the same with
// the rows of grad, and adds up the sums of its pieces in order.
//
// rows.h brings rows of planes to vectors and keeps them in rings, taps.h convolves them and sums
// gradients by the taps, forward.h and backward.h walk a piece, kernels.cpp lists the entry points.
// Here: what host and kernels share.
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

// Kernels in order: the local one [kernel_height, kernel_width], then of each strip the row of
// rows[s] taps and the column of columns[s]. `taps` counts those of all, which are numbered so.
struct StripShape {
  MapSizes maps;
  int64_t kernel_height, kernel_width, strips;
  const int64_t *rows, *columns;  // [strips]
  int64_t taps;

  int64_t kernels() const { return 1 + 2 * strips; }
  int64_t taps_of(int64_t kernel) const {
    if (kernel == 0) return kernel_height * kernel_width;
    return (kernel % 2 == 1 ? rows : columns)[(kernel - 1) / 2];
  }
};

// Where the parameters lie, or their gradients: of every kernel the weight [channels, taps] and the
// bias [channels], null if it has none.
template <class Pointer>
struct StripPointers {
  const Pointer *weights, *biases;  // [kernels]
};
using StripSources = StripPointers<const void*>;
using StripTargets = StripPointers<void*>;

// Entry points of one instruction set and one element type. Tensors are whole; scratch is private
// to the caller and aligned to 64 bytes.
struct StripKernels {
  int64_t lanes;
  int64_t (*tile_columns)(const StripShape&, bool backward);  // of the widest piece to ask for
  int64_t (*scratch_bytes)(const StripShape&, int64_t columns, bool backward);

  void (*forward)(const StripShape&, const StripPiece&, const StripSources&, const void* x,
                  void* out, void* scratch);

  // dx of a piece, and what it adds to the gradients of all taps, then of the biases of all
  // kernels: sums [taps + kernels][lanes], zero before.
  void (*backward)(const StripShape&, const StripPiece&, const StripSources&, const void* grad,
                   const void* x, void* dx, double* sums, void* scratch);

  // The gradients from the sums of all pieces. totals [channels * taps] is scratch.
  void (*reduce)(const StripShape&, const StripPiece* pieces, int64_t count, const double* sums,
                 const StripTargets&, double* totals);
};

ATTNOPS_DECLARE_KERNELS(StripKernels, strip_kernels)

}  // namespace attnops::cpu
