// Edges of adaptive pooling bins, as PyTorch defines them. Shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace attnops {

// First input index of bin `i` of `n` along an axis of `size` inputs: floor(i * size / n).
ATTNOPS_HOST_DEVICE int64_t bin_start(int64_t i, int64_t n, int64_t size) { return i * size / n; }

// One past the last input index of bin `i`: ceil((i + 1) * size / n). Neighbouring bins overlap by
// one input when n does not divide size; with size < n several bins hold the same input.
ATTNOPS_HOST_DEVICE int64_t bin_end(int64_t i, int64_t n, int64_t size) {
  return ((i + 1) * size + n - 1) / n;
}

// First bin that contains input `p`: the smallest i with bin_end(i) > p, that is floor(p * n /
// size).
ATTNOPS_HOST_DEVICE int64_t first_bin_of(int64_t p, int64_t n, int64_t size) {
  return p * n / size;
}

// Last bin that contains input `p`: the largest i with bin_start(i) <= p.
ATTNOPS_HOST_DEVICE int64_t last_bin_of(int64_t p, int64_t n, int64_t size) {
  return ((p + 1) * n - 1) / size;
}

}  // namespace attnops
