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
//
// In float32 x may be what a 1x1 convolution of a narrower map gives, as where a block of an
// EfficientNet begins: out = activation(conv(expansion(map), weight) + bias). A row of that is
// multiplied where it is taken into the ring. The map, narrower as it is, is read once a slab; what
// the expansion gives is never written.
//
// host.cpp shares the work out, kernels.cpp walks.
#pragma once

#include <cstdint>

#include "cpu/common/activation.h"
#include "cpu/common/isa.h"

namespace attnops::cpu {

// activation(conv(map, weight) + bias) with a kernel of 1x1, of a map in float32. weight in panels
// (panels.h), bias of its results or null.
struct Expansion {
  int64_t channels;  // of the map
  const float *weight, *bias;
  Activation activation;
};

// The kernel is side x side, of 3, 5 or 7. expansion: what gives x of a map, or null.
struct DepthwiseShape {
  int64_t channels, height, width, side, dilation;
  Activation activation;
  const Expansion* expansion;

  int64_t reach() const { return side / 2 * dilation; }
};

// Of an item; x is the map where there is an expansion. weight [side * side, C] and bias [C] or
// null, in the type of arithmetic. sums [H, C] of the rows of the result or null, in that type too.
struct DepthwiseArguments {
  const void *x, *weight, *bias;
  void *out, *sums;
};

// Rows [first, last) of the channels of a slab.
struct DepthwisePart {
  int64_t slab, first, last;
};

// Units of channels in slabs of about as many, and what a worker needs.
struct DepthwisePlan {
  int64_t units, slabs, scratch_bytes;

  int64_t first_unit(int64_t slab) const { return units * slab / slabs; }
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
