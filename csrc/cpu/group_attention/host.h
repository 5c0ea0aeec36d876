// What the host code and the vector code of grouped attention share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// Entry points of one instruction set and one element type. Contiguous maps: a run of elements of
// one group. channels_last maps: a run of pixels with all their `channels` in `groups` groups.
// With `out`, the factors times x are written there on the way. Scratch is private to the caller,
// aligned to 64 bytes.
struct GroupKernels {
  // The sum of x * y over `count` elements.
  double (*dot_run)(const void* x, const void* y, int64_t count, double factor, void* out);
  void (*scale_run)(const void* x, int64_t count, double factor, void* out);

  int64_t (*scratch_bytes)(int64_t channels);
  // sums[groups]. factors[groups] may be null where out is.
  void (*dot_pixels)(const void* x, const void* y, int64_t pixels, int64_t channels, int64_t groups,
                     const double* factors, void* out, double* sums, void* scratch);
  void (*scale_pixels)(const void* x, int64_t pixels, int64_t channels, int64_t groups,
                       const double* factors, void* out, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(GroupKernels, group_kernels)

}  // namespace attnops::cpu
