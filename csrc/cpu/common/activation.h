// What is done with the result of a convolution last.
#pragma once

#include <cstdint>

namespace attnops::cpu {

enum class Activation : int64_t { kNone, kRelu, kGelu, kSilu };

inline bool is_activation(int64_t number) {
  return number >= 0 && number <= static_cast<int64_t>(Activation::kSilu);
}

}  // namespace attnops::cpu
