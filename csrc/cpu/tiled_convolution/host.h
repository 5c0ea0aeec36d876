// Convolutions of bfloat16 maps with stride 1, 1x1 or 3x3, in tiles of AMX, for evaluation:
//
//   out = relu(conv(x, weight) + bias + residual)
//
// A convolution is a sum over taps of products of pixels [positions, C] with weights [C, O]. For
// that x is laid out anew, 32 channels at a time, [C / 32][positions][32]: the rows of an item one
// after the other, with the same zeros to the right of a row and to the left of the next, and some
// before the first and behind the last. Then the pixels that a tap sees are those of the results
// moved by one distance, and 16 positions in a row are a tile; so are 16 pixels of a 1x1
// convolution with whole tiles of channels, which takes x as it is. Taps that see nothing but zeros
// above or below the map are left out.
//
// The processor multiplies faster than its third-level cache gives operands. So weights are taken
// by blocks that stay in the second-level cache, while the positions go past them: as many results
// as fit by all their terms, or a few results by as many terms as fit, and sums wait in memory. A
// block of 32 positions stays in the first-level cache from one tap to the next.
//
// Reads x once more than there are such blocks, writes out once; 2 x 2 tiles of sums are made of
// 4 tiles of factors at a time, 64 bytes a cycle, which the second-level cache just gives.
//
// Weights: [O / 32][C / 32][taps][2][16][16][2], outputs by terms in pairs, C and O padded with
// zeros to multiples of 32.
//
// host.cpp plans the blocks and shares positions out; kernels.cpp lays x out and multiplies.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

constexpr int64_t kConvolutionStep = 32;  // channels, results and positions of a step

// side: 1 or 3. An item has `rows` of `pitch` positions, the results in the first ones of a row; of
// a map that is taken as it is, all items are one row.
struct ConvolutionShape {
  int64_t batch, channels, outputs, height, width, side, dilation;
  bool relu;

  int64_t taps() const { return side * side; }
  int64_t pad() const { return dilation * (side - 1) / 2; }
  bool takes_as_it_is() const {
    return side == 1 && channels % kConvolutionStep == 0 &&
           batch * height * width >= kConvolutionStep;
  }
  int64_t items() const { return takes_as_it_is() ? 1 : batch; }
  int64_t pitch() const { return takes_as_it_is() ? batch * height * width : width + pad(); }
  int64_t rows() const { return takes_as_it_is() ? 1 : height; }
  int64_t positions() const { return rows() * pitch(); }  // of an item
  int64_t steps() const { return (positions() + kConvolutionStep - 1) / kConvolutionStep; }
  // Positions of an item as it is laid out: a step of zeros, its rows, zeros to the right of the
  // last one, a step of zeros.
  int64_t laid_out() const { return positions() + pad() + 2 * kConvolutionStep; }
  int64_t channel_steps() const { return (channels + kConvolutionStep - 1) / kConvolutionStep; }
  int64_t output_steps() const { return (outputs + kConvolutionStep - 1) / kConvolutionStep; }
  int64_t weight_step() const { return taps() * kConvolutionStep * kConvolutionStep; }
};

// Steps of 32 results and of 32 channels, [first, last) each.
struct ConvolutionBlock {
  int64_t first_output, last_output, first_channel, last_channel;
  bool is_first, is_last;
};

// Maps have contiguous channels; residual and bias may be null.
struct ConvolutionArguments {
  const void *x, *weight, *residual;
  const float* bias;
  void* out;
};

struct ConvolutionKernels {
  // Rows [first, last) of all items, `height` each, to their places, and the zeros around them.
  void (*lay_out)(const ConvolutionShape&, const void* x, int64_t first, int64_t last,
                  void* laid_out);
  // Steps [first, last) of the positions of all items. laid_out: null for x as it is. sums
  // [steps][results][32][32]: where sums wait between blocks of channels, null if there is one
  // block.
  void (*multiply)(const ConvolutionShape&, const ConvolutionBlock&, const ConvolutionArguments&,
                   const void* laid_out, int64_t first, int64_t last, float* sums);
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
