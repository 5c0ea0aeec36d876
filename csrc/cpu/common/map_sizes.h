// Sizes of maps: plain data.
#pragma once

#include <cstdint>

namespace attnops::cpu {

struct MapSizes {
  int64_t batch, channels, height, width;
  bool channels_last;
};

}  // namespace attnops::cpu
