// Convolutions of bfloat16 or float maps with stride 1, or 3x3 with stride 2, 1x1 or 3x3, in tiles
// of AMX, for evaluation:
//
//   out = activation((conv(scale * x, weight) + bias) * gate + factor * residual)
//
// scale is of an image and a channel, as squeeze-and-excitation has it; in bfloat16 it goes to the
// weights, which are rounded again, not the map.
//
// A convolution is a sum over taps of products of pixels [positions, C] with weights [C, O]. For
// that x is laid out anew, 32 channels at a time, [C / 32][positions][32]: rows one after the
// other, with the same zeros to the right of a row and to the left of the next, and some before the
// first and behind the last. A map in float is rounded by that. Then the pixels that a tap sees are
// those of the results moved by one distance, and 16 positions in a row are a tile. Taps that see
// nothing but zeros above or below the map are left out. A 1x1 convolution takes 16 pixels of x as
// it is as a tile.
//
// The processor multiplies faster than its third-level cache gives operands. So weights are taken
// by blocks that stay in the second-level cache, while the positions go past them: as many results
// as fit by all their terms, or a few results by as many terms as fit, and sums wait in memory. A
// worker lays out a few rows and multiplies them at once, with the first block of weights; where it
// would lay out more for its neighbours' sake than of its own, all lay out the whole map before. A
// block of 32 positions stays in the first-level cache from one tap to the next.
//
// With stride 2, of 3x3 and no dilation, x is laid out as four maps of the result's size, its
// phases: of even rows or odd ones, and columns. A tap sees one of them, its pixels or those
// before.
//
// A 1x1 convolution whose map is laid out takes 32 pixels for a row, with all their channels
// together, [pixels / 32][C / 32][32][32], in memory that is used again where one block holds all
// weights. Floats are laid out anew for every block, the channels of it: that reads less than their
// parts.
//
// Reads x once more than there are such blocks, writes out once; 2 x 2 tiles of sums are made of
// 4 tiles of factors at a time, 64 bytes a cycle, which the second-level cache just gives.
//
// Weights: [O / 32][C / 32][taps][2][16][16][2], outputs by terms in pairs, C (of a group) and O
// padded with zeros to multiples of 32.
//
// Convolutions in float have their weights in three parts of bfloat16 (cpu/common/float_parts.h),
// [O / 32][C / 32][taps][parts][2][16][16][2]. x is split, too, when it is laid out, and its
// scale goes to it there. A tap is six products of parts, to the precision of float; all maps are
// float, and GELU and SiLU are in full.
//
// host.cpp plans the blocks and shares positions out; lay_out.h lays x out, kernels.cpp multiplies.
#pragma once

#include <cstdint>

#include "cpu/common/activation.h"
#include "cpu/common/isa.h"

namespace attnops::cpu {

constexpr int64_t kConvolutionStep = 32;  // channels, results and positions of a step

// side: 1 or 3; of several groups each has whole steps of channels and of results. An item has
// `height` rows of `pitch` positions, with the results in the first `width` of a row.
struct ConvolutionShape {
  int64_t batch, channels, outputs, height, width, side, dilation, groups;
  Activation activation;
  bool float_in, float_out;               // whether x, or residual and out, are float
  int64_t parts;                          // of a weight
  int64_t pixels;                         // of an item's result, which rows of 32 may be more than
  int64_t stride, map_height, map_width;  // of x

  int64_t phases() const { return stride * stride; }
  int64_t map_pixels() const { return map_height * map_width; }
  int64_t taps() const { return side * side; }
  int64_t pad() const { return dilation * (side - 1) / 2; }
  int64_t pitch() const { return width + pad(); }
  int64_t positions() const { return height * pitch(); }  // of an item
  int64_t steps() const { return (positions() + kConvolutionStep - 1) / kConvolutionStep; }
  // Rows [first, last) that the results of steps [first, last) see.
  int64_t first_row(int64_t first) const {
    const int64_t row = first * kConvolutionStep / pitch() - pad();
    return row < 0 ? 0 : row;
  }
  int64_t last_row(int64_t last) const {
    const int64_t row = (last * kConvolutionStep - 1) / pitch() + 1 + pad();
    return row > height ? height : row;
  }
  int64_t channel_steps() const { return (channels + kConvolutionStep - 1) / kConvolutionStep; }
  int64_t output_steps() const { return (outputs + kConvolutionStep - 1) / kConvolutionStep; }
  int64_t group_channel_steps() const { return channel_steps() / groups; }
  int64_t group_output_steps() const { return output_steps() / groups; }
  int64_t weights() const { return output_steps() * group_channel_steps() * weight_step(); }
  int64_t weight_step() const { return taps() * parts * kConvolutionStep * kConvolutionStep; }
};

// Rows [first, last) of an item, laid out: for every phase, step of channels, and part, a step of
// zeros, the rows, zeros to the right of the last one, a step of zeros; of a 1x1 convolution for
// every row all steps of channels and parts. data is null where x is taken as it is: a 1x1
// convolution of one row, of at least a step, with whole steps of channels.
struct LaidOut {
  int64_t item, first, last;
  void* data;

  int64_t positions(const ConvolutionShape& s) const {
    const int64_t around = s.side == 1 ? 0 : 2 * s.pad() + 2 * kConvolutionStep;
    return (last - first) * s.pitch() + around;
  }
  int64_t elements(const ConvolutionShape& s) const {
    return s.phases() * s.channel_steps() * s.parts * positions(s) * kConvolutionStep;
  }
};

// Steps of 32 results and of 32 channels, [first, last) each, of one group.
struct ConvolutionBlock {
  int64_t first_output, last_output, first_channel, last_channel;
  bool is_first, is_last;
};

// Maps have contiguous channels; bias [O], gate, residual and factor [O] may be null.
struct ConvolutionArguments {
  const void *x, *weight, *gate, *residual;
  const float *bias, *factor;
  void* out;
};

struct ConvolutionKernels {
  // Weights of a 1x1 convolution of one group, of one part, with the scale [C] of the channels that
  // they are multiplied with: steps of results [first, last).
  void (*scale)(const ConvolutionShape&, const void* weight, const void* scale, int64_t first,
                int64_t last, void* scaled);
  // Rows [first, last) of those of `to`, and the zeros around them, of the channels that a block
  // takes; all with null. scale: of the item's channels, for maps that are split, or null.
  void (*lay_out)(const ConvolutionShape&, const void* x, const float* scale, int64_t first,
                  int64_t last, const ConvolutionBlock*, const LaidOut& to);
  // Steps [first, last) of an item's positions, all of whose taps see rows that are laid out. sums
  // [steps][results][32][32]: where sums wait between blocks of channels, null if there is one
  // block.
  void (*multiply)(const ConvolutionShape&, const ConvolutionBlock&, const ConvolutionArguments&,
                   const LaidOut&, int64_t first, int64_t last, float* sums);
};

#define ATTNOPS_DECLARE_CONVOLUTION(isa)            \
  namespace isa {                                   \
  const ConvolutionKernels* convolution_in_tiles(); \
  }
ATTNOPS_DECLARE_CONVOLUTION(baseline)
ATTNOPS_DECLARE_CONVOLUTION(avx2)
ATTNOPS_DECLARE_CONVOLUTION(avx512)
#undef ATTNOPS_DECLARE_CONVOLUTION

}  // namespace attnops::cpu
