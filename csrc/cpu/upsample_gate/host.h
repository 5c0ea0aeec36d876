// The upsampled gate: g = resize(activation(logits)) or activation(resize(logits)), and
//
//   out = g x + input_weight x, g x + g or g x
//   dx = grad g + input_weight grad, or grad g    dg = grad x + grad, or grad x
//   dlogits = resize^T(dg), times the activation's derivative before or after it
//
// Contiguous maps are dealt out as planes, vectors along the rows; channels_last ones as output
// rows (forward) or groups of channels (backward), vectors along the channels. A row of the gate is
// a blend of two rows of logits, which the first-level cache holds; x is read and out written once,
// no resized map exists. A logit's gradient is one worker's, in a fixed order.
//
// host.cpp makes the tables of the resize and deals out; blend.h is the arithmetic; contiguous.h
// and channels_last.h do either layout; kernels.cpp lists them. Here: what host and kernels share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/resize/axis.h"

namespace attnops::cpu {

enum class Activation : int64_t { kIdentity, kSigmoid, kRelu };
enum class Residual : int64_t { kNone, kInput, kGate };

struct GateShape {
  int64_t channels;  // of the whole map: from one pixel to the next in channels_last maps
  ResizeAxis rows, columns;
  Activation activation;
  bool activation_first;
  Residual residual;
  double input_weight;
};

// Entry points of one instruction set and one element type. Contiguous maps: x, out, grad and dx
// are `count` planes, logits and dlogits as many small ones. channels_last maps: pointers are to
// the first of `count` neighbouring channels of one batch item, for all its pixels (backward), or
// for output rows [begin, end) of all its channels (forward). Scratch is private to the caller and
// aligned to 64 bytes.
struct GateKernels {
  int64_t (*scratch_bytes)(const GateShape&, bool backward, bool channels_last, int64_t count);
  void (*forward_contiguous)(const GateShape&, const void* x, const void* logits, void* out,
                             int64_t count, void* scratch);
  void (*forward_channels_last)(const GateShape&, const void* x, const void* logits, void* out,
                                int64_t begin, int64_t end, void* scratch);
  void (*backward_contiguous)(const GateShape&, const void* grad, const void* x, const void* logits,
                              void* dx, void* dlogits, int64_t count, void* scratch);
  void (*backward_channels_last)(const GateShape&, const void* grad, const void* x,
                                 const void* logits, void* dx, void* dlogits, int64_t count,
                                 void* scratch);
};

ATTNOPS_DECLARE_KERNELS(GateKernels, gate_kernels)

}  // namespace attnops::cpu
