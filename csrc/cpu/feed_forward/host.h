// SegNeXt's feed-forward network. Of pixels x [C]:
//
//   hidden = W1 x + b1 [D]    z = depthwise3x3(hidden) + b2    out = W2 gelu(z) + b3 [K]
//
// The hidden map has 4 to 8 times the channels of x and is never written as a whole: a worker goes
// down a run of rows, in columns so few that the last rows of the hidden map stay in its
// second-level cache, in a ring. Rows between two runs, and columns between two such strips, are
// computed twice. Where threads are so many that a run has only a few rows, all rows of the hidden
// map are computed first, and then what follows from them. Either way every value is the same sum
// in the same order.
//
// Reads x once and writes out once; the weights are read once for every few pixels, from caches.
//
// W1 and W2 stand in panels of 16 rows, the order in which products read them, whatever the
// instruction set: [rows / 16][columns][16] in float or double, [rows / 16][columns / 2][16][2] in
// bfloat16. Products with weights in bfloat16 have their other factor rounded to it where the
// processor has AVX512_BF16; it stays float elsewhere. All that is between is float, or double. C,
// K and the hidden channels are padded with zeros to multiples of 16.
//
// feed_forward takes weights as they are and packs them for a call. packed_feed_forward is one of
// deployments: it is given packed weights, takes maps of float in channels_last with weights in
// either type, and adds x to out.
//
// host.cpp and packed.cpp are the entries of the two; rows.h lays out the rows over threads. pack.h
// packs, products.h multiplies, forward.h holds the two steps, kernels.cpp lists the entry points.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kInnerRows = 11;

constexpr int64_t padded_to_panels(int64_t rows) {
  return (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
}

// hidden: padded channels of the hidden map. native: the processor multiplies bfloat16.
struct FeedForwardShape {
  int64_t height, width, channels, outputs, hidden;
  bool channels_last, native;

  int64_t padded_channels() const { return padded_to_panels(channels); }
  int64_t padded_outputs() const { return padded_to_panels(outputs); }
};

// inner [11][hidden]: 9 taps, the bias behind them, that before them; outer [K, padded]: b3.
struct FeedForwardWeights {
  const void *expand, *contract, *inner, *outer;
};

// Columns [left, right) of a batch item, with a column of the hidden map on either side.
struct FeedForwardStrip {
  int64_t left, right;

  int64_t hidden_pixels() const { return right - left + 2; }
};

// Row y of a strip is data + (y % rows) * pixels * hidden channels, column left - 1 first.
struct HiddenRows {
  void* data;
  int64_t rows;
};

// Entry points of one instruction set, one element type of maps and one of weights. x and out are
// those of a batch item; scratch is private to the caller and aligned to 64 bytes.
struct FeedForwardKernels {
  int64_t hidden_bytes;  // of an element of the hidden map
  // For up to so many rows of so many columns in a call.
  int64_t (*scratch_bytes)(const FeedForwardShape&, int64_t rows, int64_t columns);
  // Rows [first, last) of the hidden map.
  void (*expand)(const FeedForwardShape&, const FeedForwardWeights&, const FeedForwardStrip&,
                 const void* x, int64_t first, int64_t last, const HiddenRows& hidden,
                 void* scratch);
  // Rows [first, last) of out, from hidden rows [first - 1, last + 1) where the map has them.
  void (*contract)(const FeedForwardShape&, const FeedForwardWeights&, const FeedForwardStrip&,
                   const HiddenRows& hidden, const void* x, int64_t first, int64_t last, void* out,
                   void* scratch);
};

// Packing of weights of one element type, that of the maps.
struct FeedForwardPacking {
  int64_t element_bytes, panel_bytes, value_bytes;  // of maps, of panels, and of all else
  // Panels [first, last) of matrix [rows, columns] as rows of `padded` columns, a multiple of 16.
  void (*panels)(const void* matrix, int64_t rows, int64_t columns, int64_t padded, int64_t first,
                 int64_t last, void* out);
  // out [count], from elements `step` apart.
  void (*values)(const void* from, int64_t step, int64_t count, void* out);
};

ATTNOPS_DECLARE_KERNELS(FeedForwardKernels, feed_forward_kernels)
ATTNOPS_DECLARE_KERNELS(FeedForwardPacking, feed_forward_packing)
// By the type of weights, float or bfloat16.
ATTNOPS_DECLARE_KERNELS(FeedForwardKernels, packed_feed_forward_kernels)

}  // namespace attnops::cpu
