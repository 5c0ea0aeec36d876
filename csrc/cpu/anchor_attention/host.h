// Anchor attention: every position of a map attends to a few anchors.
//
//   scores[n, s] = scale sum_c query[c, n] key[c, s] + bias[s]    p[n, s] = softmax_s scores[n, s]
//   out[c, n] = sum_s p[n, s] value[c, s]
//   dp[n, s] = sum_c grad[c, n] value[c, s]    ds = p (dp - sum_s p dp)    dquery = scale ds key^T
//   dkey = scale query ds    dvalue = grad p    dbias = sum_n ds
//
// Batch items are cut into tiles of positions, which threads take as they come; the backward gives
// every worker partial gradients of the anchors, added up in order. Packed anchors and a tile of
// scores stay in the second-level cache, a panel of a product's operand in the first. The map is
// read once and the output written once. Scale is folded into the packed key.
//
// host.cpp cuts and allocates; pack.h brings anchors and tiles into the operands of common/gemm.h;
// softmax.h is the pointwise part; kernels.cpp holds the steps of a tile. Here: what they share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// One batch item: query [key_channels, positions], key [key_channels, anchors],
// value [value_channels, anchors]. channels_inner: query, grad and out have contiguous channels.
struct AnchorShape {
  int64_t key_channels, value_channels, positions, anchors;
  double scale;
  bool channels_inner;
};

// Entry points of one instruction set and one element type. Pointers to tensors are to one batch
// item. `packed` holds key, value and bias rearranged for the products, `partial` the running sums
// of the anchors' gradients, `scratch` is private to the caller; all three are aligned to 64 bytes.
struct AnchorKernels {
  // A tile, the unit of forward and backward, has at most this many positions.
  int64_t forward_tile, backward_tile;

  int64_t (*packed_bytes)(const AnchorShape&, bool backward);
  int64_t (*scratch_bytes)(const AnchorShape&, bool backward);
  int64_t (*partial_bytes)(const AnchorShape&);

  // Packs the channels of part `part` of `parts`. bias may be null.
  void (*pack)(const AnchorShape&, bool backward, const void* key, const void* value,
               const void* bias, void* packed, int64_t part, int64_t parts);

  // Positions [first, first + count): out and lse. The value may be read from `packed` or where it
  // is.
  void (*forward)(const AnchorShape&, const void* packed, const void* value, const void* query,
                  void* out, void* lse, int64_t first, int64_t count, void* scratch);

  // Positions [first, first + count): dquery, and their share of the anchors' gradients added to
  // partial, which starts as zeros.
  void (*backward)(const AnchorShape&, const void* packed, const void* grad, const void* query,
                   const void* lse, void* dquery, void* partial, int64_t first, int64_t count,
                   void* scratch);

  // Sums `count` partials, `stride` bytes apart, in order; the channels of part `part` of `parts`.
  // dbias may be null.
  void (*reduce)(const AnchorShape&, const void* partials, int64_t count, int64_t stride,
                 void* dkey, void* dvalue, void* dbias, int64_t part, int64_t parts);
};

ATTNOPS_DECLARE_KERNELS(AnchorKernels, anchor_kernels)

}  // namespace attnops::cpu
