// What the host code and the vector code of depthwise_gelu share: plain data and function tables.
#pragma once

#include <cstdint>

#include "depthwise.h"
#include "dtype.h"

namespace attnops::cpu {

// weight [channels, 1, kernel_height, kernel_width], bias [channels] or null.
struct GeluShape {
  DepthwiseMaps maps;
  int64_t kernel_height, kernel_width;

  int64_t taps() const { return kernel_height * kernel_width; }
};

// Entry points of one instruction set and one element type. Tensors are whole; scratch is private
// to the caller and aligned to 64 bytes.
struct GeluKernels {
  int64_t lanes;
  int64_t (*scratch_bytes)(const GeluShape&, int64_t columns, bool backward);

  void (*forward)(const GeluShape&, const DepthwisePiece&, const void* x, const void* weight,
                  const void* bias, void* out, void* scratch);

  // dx of a piece, and what it adds to dweight and dbias: sums [taps + 1][lanes], zero before.
  void (*backward)(const GeluShape&, const DepthwisePiece&, const void* grad, const void* x,
                   const void* weight, const void* bias, void* dx, double* sums, void* scratch);

  // dweight and dbias from the sums of all pieces. totals [channels * taps] is scratch.
  void (*reduce)(const GeluShape&, const DepthwisePiece* pieces, int64_t count, const double* sums,
                 void* dweight, void* dbias, double* totals);
};

namespace baseline {
const GeluKernels& gelu_kernels(DType dtype);
}
namespace avx2 {
const GeluKernels& gelu_kernels(DType dtype);
}
namespace avx512 {
const GeluKernels& gelu_kernels(DType dtype);
}

}  // namespace attnops::cpu
