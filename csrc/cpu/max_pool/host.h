// 3x3 max pooling with padding 1 of maps with contiguous channels, of stride 1 or 2, for
// evaluation. Compilers mask every load of it at the border, and for free sizes they compute the
// windows of stride 1 even where the stride is 2.
//
// The border counts as the last row or column, which every window over it holds anyway. Reads x
// once, as the three rows of a window stay in the second-level cache; a NaN is the largest value.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// Of an item. The middle of a window may be the place behind the last one.
struct MaxPoolShape {
  int64_t channels, height, width, out_height, out_width, stride;
};

struct MaxPoolKernels {
  // Rows [first, last) of an item's result.
  void (*run)(const MaxPoolShape&, const void* x, int64_t first, int64_t last, void* out);
};

ATTNOPS_DECLARE_KERNELS(MaxPoolKernels, max_pool_kernels)

}  // namespace attnops::cpu
