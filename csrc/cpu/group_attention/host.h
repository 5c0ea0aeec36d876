// Grouped attention (CGNL): per batch item and group of channels
//
//   affinity = <phi, g>    out = affinity theta
//   daffinity = <grad, theta>    dtheta = affinity grad    dphi = daffinity g    dg = daffinity phi
//
// Maps are cut into runs of about kElements elements of one group (contiguous) or of pixels of one
// item (channels_last), by shapes alone, and the sums of runs are added in order: results do not
// depend on threads. Runs pass through the first-level cache once for every sum and once for every
// product; where a sum and a product want the same map, one pass does both.
//
// host.cpp cuts and adds up; kernels.cpp sums and scales a run in either layout.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// Entry points of one instruction set and one element type. Contiguous maps: a run of elements of
// one group. channels_last maps: a run of pixels with all their `channels` in `groups` groups.
// With `out`, the factors times x are written there on the way, `streamed` past the caches. Scratch
// is private to the caller, aligned to 64 bytes.
struct GroupKernels {
  // The sum of x * y over `count` elements.
  double (*dot_contiguous)(const void* x, const void* y, int64_t count, double factor, void* out,
                           bool streamed);
  void (*scale_contiguous)(const void* x, int64_t count, double factor, void* out, bool streamed);

  int64_t (*scratch_bytes)(int64_t channels);
  // sums[groups]. factors[groups] may be null where out is.
  void (*dot_channels_last)(const void* x, const void* y, int64_t pixels, int64_t channels,
                            int64_t groups, const double* factors, void* out, bool streamed,
                            double* sums, void* scratch);
  void (*scale_channels_last)(const void* x, int64_t pixels, int64_t channels, int64_t groups,
                              const double* factors, void* out, bool streamed, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(GroupKernels, group_kernels)

}  // namespace attnops::cpu
