// Maps [B, C, H, W] and positions [B, C, N], contiguous or channels_last: layout, allocation,
// addresses of batch items.
#pragma once

#include "host.h"
#include "map_sizes.h"

namespace attnops::cpu {

// One channel is both layouts at once and counts as contiguous.
inline bool is_channels_last(const Tensor& map) {
  return map.size(1) > 1 && map.stride(1) == 1 && !map.is_contiguous();
}

// Whether the channels of a pixel, the pixels of a row, the rows and the items follow one another.
inline bool has_inner_channels(const Tensor& map) {
  const int64_t channels = map.size(1), height = map.size(2), width = map.size(3);
  return (channels == 1 || map.stride(1) == 1) && (width == 1 || map.stride(3) == channels) &&
         (height == 1 || map.stride(2) == width * channels) &&
         (map.size(0) == 1 || map.stride(0) == height * width * channels);
}

// Whether `map` has the size of x but so many channels, this dtype, and contiguous channels.
inline bool is_map_like(const Tensor& map, const Tensor& x, int64_t channels, ScalarType dtype) {
  return map.scalar_type() == dtype && map.dim() == 4 && map.size(0) == x.size(0) &&
         map.size(1) == channels && map.size(2) == x.size(2) && map.size(3) == x.size(3) &&
         has_inner_channels(map);
}

inline MapSizes map_sizes(const Tensor& map) {
  STD_TORCH_CHECK(map.dim() == 4, "expected maps [B, C, H, W]");
  return {map.size(0), map.size(1), map.size(2), map.size(3), is_channels_last(map)};
}

// A fresh map with the batch size of `like`, and its dtype if none is given.
inline Tensor empty_map(const Tensor& like, int64_t channels, int64_t height, int64_t width,
                        bool channels_last, std::optional<ScalarType> dtype = std::nullopt) {
  const int64_t batch = like.size(0);
  if (!channels_last) return new_output(like, {batch, channels, height, width}, dtype);
  return torch::stable::transpose(
      torch::stable::transpose(new_output(like, {batch, height, width, channels}, dtype), 2, 3), 1,
      2);
}

// A fresh map of the sizes and with the dtype of `like`.
inline Tensor empty_map(const Tensor& like, const MapSizes& m) {
  return empty_map(like, m.channels, m.height, m.width, m.channels_last);
}

// A fresh tensor [batch, channels, positions] in either layout.
inline Tensor empty_positions(const Tensor& like, int64_t channels, int64_t positions,
                              bool channels_last) {
  const int64_t batch = like.size(0);
  if (!channels_last) return new_output(like, {batch, channels, positions});
  return torch::stable::transpose(new_output(like, {batch, positions, channels}), 1, 2);
}

// Addresses one batch item of a dense tensor; null where there is no tensor.
class Items {
 public:
  Items() = default;
  explicit Items(const Tensor& x)
      : data_(static_cast<char*>(x.mutable_data_ptr())),
        bytes_(x.numel() / x.size(0) * static_cast<int64_t>(x.element_size())) {}

  char* operator[](int64_t item) const { return data_ ? data_ + item * bytes_ : nullptr; }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace attnops::cpu
