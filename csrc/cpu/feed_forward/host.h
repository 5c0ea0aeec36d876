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
// W1 and W2 stand in panels (panels.h). Products with weights in bfloat16 have their other factor
// rounded to it where the processor has AVX512_BF16, and are made in tiles where it has AMX too (of
// depths that are multiples of 32); it stays float elsewhere. All that is between is float, or
// double, but for GELUs that are to be rounded, which need not be more exact
// (cpu/depthwise/short_gelu.h). C, K and the hidden channels are padded with zeros to multiples of
// 16.
//
// Weights in float may also come in three parts of bfloat16 (cpu/common/float_parts.h), for tiles
// of AMX: the factors are split, too, and the products have the precision of float. C and the
// hidden channels are multiples of 32 then.
//
// feed_forward takes weights as they are and packs them for a call. packed_feed_forward is one of
// deployments: it is given packed weights, takes maps of float in channels_last with weights in
// either type, and adds x to out.
//
// The backward computes the hidden map again. With dout, and a = gelu(z):
//
//   dz = W2^T dout gelu'(z)    dhidden = depthwise3x3^T(dz)    dx = W1^T dhidden
//   dW1 = sum dhidden x^T      dW2 = sum dout a^T              sums over all pixels
//
// Hidden channels meet in dx only. So a worker goes down its rows with a chunk of them at a time,
// and the last rows of hidden and of dz stay in rings, whole rows of the map. Maps are read and
// written once for every chunk, as pixels with padded channels: where they are not so, they are
// brought into that form before. Factors of products are bfloat16 where maps are and the processor
// has AVX512_BF16, else float or double; sums over pixels go in tiles of AMX where it has them,
// over pairs of neighbours in a row. Runs of rows have sums of their own, which are added in order;
// where the rows are fewer than threads could take, they share the chunks, each with a dx.
//
// host.cpp and packed.cpp are the entries of the two; rows.h lays out the rows over threads. pack.h
// packs, products.h and tile_products.h multiply, depthwise.h is the convolution between, forward.h
// holds the two steps, kernels.cpp lists the entry points. Of the backward, backward.cpp is the
// host's part, chunk.h goes down the rows, gradients.h sums over pixels, backward.h does what is
// around that.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/common/panels.h"

namespace attnops::cpu {

constexpr int64_t kInnerRows = 11;
constexpr int64_t kFeedForwardChunk = 64;  // hidden channels at a time, in the backward

// hidden: padded channels of the hidden map. native: the processor multiplies bfloat16; tiles: in
// tiles of AMX.
struct FeedForwardShape {
  int64_t height, width, channels, outputs, hidden;
  bool channels_last, native, tiles;

  int64_t padded_channels() const { return padded_to_panels(channels); }
  int64_t padded_outputs() const { return padded_to_panels(outputs); }
  // From a pixel of the hidden map to the next, and from a row of `inner`: an odd number of panels,
  // so that pixels spread over all sets of caches.
  int64_t hidden_stride() const { return (hidden / kPanelRows | 1) * kPanelRows; }
};

// inner [11][hidden], rows hidden_stride() apart: 9 taps, the bias behind them, that before them;
// outer [K, padded]: b3.
struct FeedForwardWeights {
  const void *expand, *contract, *inner, *outer;
};

// Columns [left, right) of a batch item, with a column of the hidden map on either side, and pixels
// behind them that tiles may be written to.
struct FeedForwardStrip {
  int64_t left, right;

  int64_t hidden_pixels() const { return right - left + 2 + kPanelRows - 1; }
};

// Row y of a strip is data + (y % rows) * hidden_pixels() * hidden_stride(), column left - 1 first.
struct HiddenRows {
  void* data;
  int64_t rows;
};

// Entry points of one instruction set, one element type of maps and one of weights. x and out are
// those of a batch item; scratch is private to the caller and aligned to 64 bytes.
struct FeedForwardKernels {
  int64_t hidden_bytes, weight_bytes;  // of an element of the hidden map, and of W1 and W2
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

// Rows [first, last) of a batch item.
struct FeedForwardRange {
  int64_t item, first, last;
};

// The weights as they are, `hidden` channels without padding, and `inner` as above.
struct FeedForwardSources {
  const void *expand, *contract, *inner;
  int64_t hidden;
};

// Gradients of the weights, and of the biases that there are.
struct FeedForwardTargets {
  void *expand, *depthwise, *contract, *expand_bias, *depthwise_bias, *contract_bias;
};

// Maps of pixels [batch, height, width][channels, padded]: factors of products, and of grad and x
// also their terms in sums over pixels, which are those maps again or pairs of neighbours in a row;
// dx in float or double.
struct FeedForwardPixels {
  const void *grad, *x, *grad_terms, *x_terms;
  void* dx;
};

// Entry points of one instruction set and one element type of maps.
struct FeedForwardBackwardKernels {
  int64_t factor_bytes, value_bytes;  // of an element of grad and x, and of dx
  int64_t spare;                      // pixels behind such a map that may be read

  // Whether a map of so many channels is one of pixels.
  bool (*is_pixels)(const FeedForwardShape&, int64_t channels);
  // Between batch items and rows of theirs as pixels. There may be several maps of pixels, `stride`
  // bytes apart, which are added to the first.
  void (*to_pixels)(const FeedForwardShape&, int64_t channels, const FeedForwardRange&,
                    const void* map, void* pixels);
  // Pairs of pixels of an item, 0 where there are none, and those of a map: [pairs][channels], or
  // for tiles [pairs / 16][channels][16].
  int64_t (*pairs)(const FeedForwardShape&);
  void (*to_pairs)(const FeedForwardShape&, int64_t channels, const FeedForwardRange&,
                   const void* pixels, void* out);
  void (*from_pixels)(const FeedForwardShape&, int64_t channels, const FeedForwardRange&,
                      void* pixels, int64_t maps, int64_t stride, void* map);

  int64_t (*scratch_bytes)(const FeedForwardShape&);
  int64_t (*sums_bytes)(const FeedForwardShape&);  // of a chunk
  // A chunk of some rows: what it adds to gradients of weights, which `sums` get, and dx, which is
  // stored, or with `add` added to.
  void (*run)(const FeedForwardShape&, const FeedForwardSources&, int64_t chunk,
              const FeedForwardRange* ranges, int64_t count, const FeedForwardPixels&, bool add,
              void* sums, void* scratch);
  // sums [K, padded] of grad in some rows.
  void (*sum_outputs)(const FeedForwardShape&, const FeedForwardRange* ranges, int64_t count,
                      const FeedForwardPixels&, double* sums);

  // Gradients from the sums of `runs` runs of rows, `stride` bytes apart.
  void (*reduce)(const FeedForwardShape&, int64_t hidden, int64_t chunk, const void* sums,
                 int64_t runs, int64_t stride, const FeedForwardTargets&);
  void (*reduce_outputs)(const FeedForwardShape&, const double* sums, int64_t runs, void* out);
};

ATTNOPS_DECLARE_KERNELS(FeedForwardKernels, feed_forward_kernels)
ATTNOPS_DECLARE_KERNELS(FeedForwardPacking, feed_forward_packing)
ATTNOPS_DECLARE_KERNELS(FeedForwardBackwardKernels, feed_forward_backward_kernels)
// The same for processors that multiply bfloat16.
ATTNOPS_DECLARE_KERNELS(FeedForwardBackwardKernels, paired_feed_forward_backward_kernels)
// By the type of weights, float or bfloat16.
ATTNOPS_DECLARE_KERNELS(FeedForwardKernels, packed_feed_forward_kernels)

// Of weights in parts, for processors with AMX: null where there is none.
#define ATTNOPS_DECLARE_IN_PARTS(isa)                        \
  namespace isa {                                            \
  const FeedForwardKernels* feed_forward_kernels_in_parts(); \
  }
ATTNOPS_DECLARE_IN_PARTS(baseline)
ATTNOPS_DECLARE_IN_PARTS(avx2)
ATTNOPS_DECLARE_IN_PARTS(avx512)
#undef ATTNOPS_DECLARE_IN_PARTS

}  // namespace attnops::cpu
