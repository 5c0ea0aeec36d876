// Maps [B, C, H, W], contiguous or channels_last: layout, allocation, addresses of their items.
#pragma once

#include "host.h"

namespace attnops::cpu {

// One channel is both layouts at once and counts as contiguous.
inline bool is_channels_last(const Tensor& map) {
  return map.size(1) > 1 && map.stride(1) == 1 && !map.is_contiguous();
}

// A fresh map with batch size and dtype of `like`.
inline Tensor empty_map(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                        bool channels_last) {
  const int64_t batch = like.size(0);
  if (!channels_last) return new_output(like, {batch, channels, height, width});
  return torch::stable::transpose(
      torch::stable::transpose(new_output(like, {batch, height, width, channels}), 2, 3), 1, 2);
}

}  // namespace attnops::cpu
