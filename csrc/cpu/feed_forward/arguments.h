// The arguments of feed_forward and of its backward, understood.
#pragma once

#include <array>
#include <vector>

#include "cpu/common/maps.h"
#include "host.h"

namespace attnops::cpu {

inline const FeedForwardPacking& packing_for(DType dtype) {
  ATTNOPS_SELECT_KERNELS(feed_forward_packing, dtype);
}

// Callers keep the tensors.
struct FeedForwardArguments {
  FeedForwardArguments(const Tensor& x, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, const std::vector<int64_t>& biased) {
    STD_TORCH_CHECK(weights.size() == kernels.size() && biases.size() == biased.size(),
                    "feed_forward: expected three weights, and a number a bias");
    const MapSizes maps = map_sizes(x);
    channels = {weights[0].size(0), weights[0].size(0), weights[2].size(0)};
    const auto check = [&](bool fits) {
      STD_TORCH_CHECK(fits,
                      "feed_forward: expected weights [D, C, 1, 1], [D, 1, 3, 3] and [K, D, 1, 1] "
                      "and biases [D] and [K] like x");
    };
    const int64_t inputs[] = {maps.channels, 1, channels[1]}, sides[] = {1, 3, 1};
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor& weight = weights[i];
      check(weight.scalar_type() == x.scalar_type() && weight.dim() == 4 &&
            weight.size(0) == channels[i] && weight.size(1) == inputs[i] &&
            weight.size(2) == sides[i] && weight.size(3) == sides[i]);
      kernels[i] = weight.const_data_ptr();
    }
    for (size_t i = 0; i < biases.size(); ++i) {
      const size_t number = static_cast<size_t>(biased[i]);
      check(biases[i].scalar_type() == x.scalar_type() && biases[i].dim() == 1 &&
            biases[i].size(0) == channels.at(number));
      bias.at(number) = biases[i].const_data_ptr();
    }
    shape = {maps.height,
             maps.width,
             maps.channels,
             channels[2],
             padded_to_panels(channels[1]),
             maps.channels_last,
             multiplies_bfloat16(),
             multiplies_tiles()};
  }

  FeedForwardShape shape{};
  std::array<int64_t, 3> channels{};             // that the three convolutions give
  std::array<const void*, 3> kernels{}, bias{};  // null where there is none
};

// Rows of 3x3 taps and the two biases of the hidden map, and the last bias, as host.h says.
class InnerWeights {
 public:
  InnerWeights(const FeedForwardArguments& args, const FeedForwardPacking& packing)
      : outer_offset_(kInnerRows * args.shape.hidden_stride() * packing.value_bytes),
        bytes_(outer_offset_ + args.shape.padded_outputs() * packing.value_bytes),
        values_(bytes_) {
    memset(values_.at(0), 0, static_cast<size_t>(bytes_));
    const int64_t row = args.shape.hidden_stride() * packing.value_bytes;
    const int64_t hidden = args.channels[0];
    const int64_t element = packing.element_bytes;
    for (int64_t tap = 0; tap < 9; ++tap)
      packing.values(static_cast<const char*>(args.kernels[1]) + tap * element, 9, hidden,
                     values_.at(tap * row));
    if (args.bias[1]) packing.values(args.bias[1], 1, hidden, values_.at(9 * row));
    if (args.bias[0]) packing.values(args.bias[0], 1, hidden, values_.at(10 * row));
    if (args.bias[2]) packing.values(args.bias[2], 1, args.channels[2], values_.at(outer_offset_));
  }

  const void* inner() const { return values_.at(0); }
  const void* outer() const { return values_.at(outer_offset_); }

 private:
  const int64_t outer_offset_, bytes_;
  const Scratch values_;
};

}  // namespace attnops::cpu
