// Convolutions of bfloat16 maps with stride 1, 1x1 or 3x3, in tiles of AMX, for evaluation:
//
//   out = relu(conv(x, weight) + bias + residual)
//
// A convolution is a sum over taps of products of pixels [positions, C] with weights [C, O]. For
// that x is laid out anew, 32 channels at a time, with zeros around the map: [C /
// 32][positions][32], where the positions count through all rows of all batch items, with the same
// zeros to the right of a row and to the left of the next. Then the pixels that a tap sees are
// those of the results moved by one distance, and 16 positions in a row are a tile; so are 16
// pixels of a 1x1 convolution with whole tiles of channels, which takes x as it is.
//
// The processor multiplies faster than its third-level cache gives operands. So weights are taken
// by blocks that stay in the second-level cache, while the positions go past them: up to
// kMostColumns results by all their terms, or of so many terms as fit, and sums wait in memory. A
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

// side: 1 or 3. pitch, item_rows: of the positions, in a row and an item; spare: rows, and
// positions of a row, before the first result.
struct ConvolutionShape {
  int64_t batch, channels, outputs, height, width, side, dilation;
  bool relu;

  int64_t taps() const { return side * side; }
  int64_t pad() const { return dilation * (side - 1) / 2; }
  int64_t pitch() const { return width + pad(); }
  int64_t item_rows() const { return height + 2 * pad(); }
  int64_t positions() const { return batch * item_rows() * pitch(); }
  // Those that a step may read behind the last, too.
  int64_t laid_out() const { return positions() + 2 * pad() * (pitch() + 1) + kConvolutionStep; }
  int64_t channel_steps() const { return (channels + kConvolutionStep - 1) / kConvolutionStep; }
  int64_t output_steps() const { return (outputs + kConvolutionStep - 1) / kConvolutionStep; }
  int64_t weight_step() const { return taps() * kConvolutionStep * kConvolutionStep; }
  bool takes_as_it_is() const {
    return side == 1 && channels % kConvolutionStep == 0 &&
           batch * height * width >= kConvolutionStep;
  }
};

// Steps of 32 results and of 32 channels, [first, last) each. sums [results][positions][32]: where
// sums wait between blocks of channels, null if there is one block.
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
  // Rows [first, last) of all items to their places. The rest of `laid_out` is zero before.
  void (*lay_out)(const ConvolutionShape&, const void* x, int64_t first, int64_t last,
                  void* laid_out);
  // Positions [first, last), of the items' rows, or of x as it is.
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
