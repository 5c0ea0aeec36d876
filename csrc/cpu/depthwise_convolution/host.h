// Depthwise convolutions with stride 1 of maps with contiguous channels, dilated or not, for
// evaluation:
//
//   out = activation(conv(x, weight) + bias)
//
// with zeros around the map, so many that out is as large; and the mean of each of its channels, as
// squeeze-and-excitation takes it, while the results are in registers. Libraries turn to plain
// loops where a dilated kernel reaches far beyond the border.
//
// A worker walks down some rows of a slab of channels. The rows of x that a row of the result sees
// stay in a ring in the second-level cache, in the type of arithmetic, each with its zeros; x is
// read once, but for rows at the ends of a walk, and out is written once.
#pragma once

#include <cstdint>

#include "cpu/common/activation.h"
#include "cpu/common/isa.h"

namespace attnops::cpu {

// The kernel is side x side, of 3, 5 or 7.
struct DepthwiseShape {
  int64_t channels, height, width, side, dilation;
  Activation activation;

  int64_t reach() const { return side / 2 * dilation; }
};

// Of an item; weight [side * side, C] and bias [C] or null, in the type of arithmetic. sums [H, C]
// of the rows of the result or null, in that type too.
struct DepthwiseArguments {
  const void *x, *weight, *bias;
  void *out, *sums;
};

// Rows [first, last) of the channels of a slab.
struct DepthwisePart {
  int64_t slab, first, last;
};

// Channels of a slab, and what a worker needs.
struct DepthwisePlan {
  int64_t slab, scratch_bytes;
};

struct DepthwiseKernels {
  DepthwisePlan (*plan)(const DepthwiseShape&);
  void (*run)(const DepthwiseShape&, const DepthwiseArguments&, const DepthwisePart&,
              void* scratch);
  // mean [C], for the channels of a slab, of an item's sums.
  void (*average)(const DepthwiseShape&, const void* sums, int64_t slab, void* mean);
  int64_t sum_bytes;  // of one of the sums
};

ATTNOPS_DECLARE_KERNELS(DepthwiseKernels, depthwise_convolution_kernels)

}  // namespace attnops::cpu
