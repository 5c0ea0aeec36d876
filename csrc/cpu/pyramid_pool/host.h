// Pyramid pooling: out[c, cell] is the mean or maximum of x[c] over a cell of one of several grids.
//
// Rows are cut into bands and columns into segments at the edges of the bins of all levels, so
// every cell is a run of bands times a run of segments and every pixel is read once, for all
// levels. Units are planes of contiguous maps or channels of channels_last ones; each is one
// worker's from end to end, so sums have a fixed order. The segments of a band stay in the
// first-level cache, the cells of a unit in the second.
//
// host.cpp finds the edges and deals out units; mean.h and max.h reduce, mean_backward.h and
// max_backward.h spread the gradient; transposed.h brings channels along the vectors; kernels.cpp
// lists them. Here: what host and kernels share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// One axis of the map. The starts and ends of the bins of all levels cut it into segments: a
// segment lies inside or outside a bin as a whole. Bins of all levels are numbered one after the
// other; level l has sizes[l] of them, from level_bin[l].
struct PoolAxis {
  int64_t size, segments;
  const int64_t* edges;                     // [segments + 1] in pixels
  const int64_t *bin_first, *bin_last;      // [bins] in segments, half-open
  const int64_t *cover_first, *cover_last;  // [levels][segments]: bins with the segment, half-open
};

// Pooling of [height, width] into `cells` values: level l has sizes[l]^2 from level_cell[l].
struct PoolPlan {
  int64_t levels, bins, cells;
  const int64_t *sizes, *level_bin, *level_cell;  // [levels]
  const double* pixels;                           // [cells] in the cell
  PoolAxis rows, columns;
  int64_t channels;  // only channels_last: elements from one pixel to the next
};

// Entry points of one instruction set and one element type. Contiguous maps: x are `count` planes
// [height, width], out [count, cells]. channels_last maps: x is one batch item [height, width,
// channels] at its first channel to be pooled, out [count, cells] for `count` channels.
// argmax int32 like out. Scratch is private to the caller, aligned to 64 bytes, and zero before the
// first call (lanes without a channel are computed, too).
struct PoolKernels {
  int64_t (*scratch_bytes)(const PoolPlan&, bool use_max, bool backward, bool channels_last,
                           int64_t count);
  void (*mean)(const PoolPlan&, bool channels_last, const void* x, void* out, int64_t count,
               void* scratch);
  void (*max)(const PoolPlan&, bool channels_last, const void* x, void* out, int32_t* argmax,
              int64_t count, void* scratch);
  void (*mean_backward)(const PoolPlan&, bool channels_last, const void* grad, void* grad_x,
                        int64_t count, void* scratch);
  // Leaves scratch zero.
  void (*max_backward)(const PoolPlan&, bool channels_last, const void* grad, const int32_t* argmax,
                       void* grad_x, int64_t count, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(PoolKernels, pool_kernels)

}  // namespace attnops::cpu
