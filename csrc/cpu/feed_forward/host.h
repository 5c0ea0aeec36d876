// SegNeXt's feed-forward network with its residual, for evaluation. Of pixels x [C], float:
//
//   hidden = W1 x + b1    z = depthwise3x3(hidden) + b    out = x + W2 gelu(z) + b2
//
// The hidden map has 4 to 8 times the channels of x and is never written as a whole: a worker goes
// down a run of rows, in columns so few that the last rows of the hidden map stay in its
// second-level cache, in a ring. Rows between two runs, and columns between two such strips, are
// computed twice. Where threads are so many that a run has only a few rows, all rows of the hidden
// map are computed first, and then what follows from them. Either way every value is the same sum
// in the same order.
//
// Reads x twice and writes out once; the weights are read once for every few pixels, from caches.
//
// W1 and W2 stand in panels of 16 rows, the order in which products read them, whatever the
// instruction set: [rows / 16][columns][16] in float, [rows / 16][columns / 2][16][2] in bfloat16.
// Products with weights in bfloat16 have their other factor rounded to it where the processor has
// AVX512_BF16; it stays float elsewhere. All that is between is float. C and the hidden channels
// are padded with zeros to multiples of 16.
//
// host.cpp lays out the rows over threads; products.h multiplies; kernels.cpp holds the two steps.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

constexpr int64_t kPanelRows = 16;

// hidden: padded channels of the hidden map. native: the processor multiplies bfloat16.
struct FeedForwardShape {
  int64_t height, width, channels, hidden;
  bool native;

  int64_t padded_channels() const { return (channels + kPanelRows - 1) / kPanelRows * kPanelRows; }
};

// inner [11][hidden]: 9 taps, the bias behind them, that before them; outer [C, padded]: b2.
struct FeedForwardWeights {
  const void *expand, *contract;
  const float *inner, *outer;
};

// Columns [left, right) of a batch item, with a column of the hidden map on either side.
struct FeedForwardStrip {
  int64_t left, right;

  int64_t hidden_pixels() const { return right - left + 2; }
};

// Row y of a strip is data + (y % rows) * pixels * hidden channels, column left - 1 first.
struct HiddenRows {
  float* data;
  int64_t rows;
};

// Entry points of one instruction set and one element type of weights. x and out are those of a
// batch item, [height][width][channels]; scratch is private to the caller and aligned to 64 bytes.
struct FeedForwardKernels {
  // For up to so many rows of so many columns in a call.
  int64_t (*scratch_bytes)(const FeedForwardShape&, int64_t rows, int64_t columns);
  // Rows [first, last) of the hidden map.
  void (*expand)(const FeedForwardShape&, const FeedForwardWeights&, const FeedForwardStrip&,
                 const float* x, int64_t first, int64_t last, const HiddenRows& hidden,
                 void* scratch);
  // Rows [first, last) of out, from hidden rows [first - 1, last + 1) where the map has them.
  void (*contract)(const FeedForwardShape&, const FeedForwardWeights&, const FeedForwardStrip&,
                   const HiddenRows& hidden, const float* x, int64_t first, int64_t last,
                   float* out, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(FeedForwardKernels, feed_forward_kernels)

}  // namespace attnops::cpu
