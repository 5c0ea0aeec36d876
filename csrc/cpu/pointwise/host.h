// 1x1 convolutions of float maps with stride 1, for evaluation:
//
//   out = activation((conv(scale * x, weight) + bias) * gate + factor * residual)
//
// scale is of an image and a channel, as squeeze-and-excitation has it; it goes to the weights.
//
// Of pixels [P, C] with contiguous channels: x and out are read and written as they are, the
// weights are read once for 64 pixels. Threads share the pixels, and the outputs too where the
// pixels are few; every result is the same sum in the same order.
//
// Weights stand in panels (panels.h), which do not depend on the size of a map.
//
// host.cpp shares the work out, kernels.cpp multiplies.
#pragma once

#include "cpu/common/activation.h"
#include "cpu/common/isa.h"
#include "cpu/common/panels.h"

namespace attnops::cpu {

struct PointwiseShape {
  int64_t pixels, channels, outputs;
  Activation activation;
};

// Callers keep all of them. tail: the pixels behind the last whole block of rows, with zeros up to
// such a block. scale [C], bias [O], gate, residual and factor [O] may be null.
struct PointwiseArguments {
  const float *x, *tail, *weight, *scale, *bias, *gate, *residual, *factor;
  float* out;
};

// What a worker computes: pixels, of which the first stands at a whole block of rows, and outputs,
// at a whole panel.
struct PointwisePart {
  int64_t first_pixel, last_pixel, first_output, last_output;
};

// Entry points of one instruction set.
struct PointwiseKernels {
  int64_t block;                                   // rows that are multiplied at a time
  int64_t (*scaled_bytes)(const PointwiseShape&);  // a worker's scratch where there is a scale
  void (*run)(const PointwiseShape&, const PointwiseArguments&, const PointwisePart&, void* scaled);
};

#define ATTNOPS_DECLARE_POINTWISE(isa)         \
  namespace isa {                              \
  const PointwiseKernels& pointwise_kernels(); \
  }
ATTNOPS_DECLARE_POINTWISE(baseline)
ATTNOPS_DECLARE_POINTWISE(avx2)
ATTNOPS_DECLARE_POINTWISE(avx512)
#undef ATTNOPS_DECLARE_POINTWISE

}  // namespace attnops::cpu
