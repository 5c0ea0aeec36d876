// Host entry of packed_feed_forward.
#include "common/register.h"
#include "cpu/common/float_parts.h"
#include "rows.h"

namespace attnops::cpu {
namespace {

const FeedForwardKernels& kernels_for(DType dtype) {
  ATTNOPS_SELECT_KERNELS(packed_feed_forward_kernels, dtype);
}

const FeedForwardKernels* kernels_in_parts() {
  if (!multiplies_tiles()) return nullptr;
  ATTNOPS_IF_AVX512(avx512::feed_forward_kernels_in_parts());
  return nullptr;
}

// parts: of a weight.
void check(const Tensor& x, const Tensor& expand, const Tensor& contract, const Tensor& inner,
           const Tensor& outer, int64_t parts) {
  STD_TORCH_CHECK(x.dim() == 4 && inner.dim() == 2 && outer.dim() == 1,
                  "packed_feed_forward: expected x [B, C, H, W], inner [11, hidden], outer [C]");
  const int64_t channels = padded_to_panels(x.size(1));
  const int64_t hidden = inner.size(1), weights = channels * hidden * parts;
  STD_TORCH_CHECK(is_channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1,
                  "packed_feed_forward: expected x in channels_last");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float &&
                      inner.scalar_type() == ScalarType::Float &&
                      outer.scalar_type() == ScalarType::Float &&
                      expand.scalar_type() == contract.scalar_type() &&
                      (expand.scalar_type() == ScalarType::Float ||
                       expand.scalar_type() == ScalarType::BFloat16),
                  "packed_feed_forward: expected float32, and weights in float32 or bfloat16");
  STD_TORCH_CHECK(hidden % kPanelRows == 0 && inner.size(0) == kInnerRows &&
                      outer.size(0) == channels && expand.numel() == weights &&
                      contract.numel() == weights,
                  "packed_feed_forward: expected weights of ", channels, " channels, padded");
  STD_TORCH_CHECK(
      parts == 1 || (expand.scalar_type() == ScalarType::BFloat16 &&
                     kernels_in_parts() != nullptr && channels % 32 == 0 && hidden % 32 == 0),
      "packed_feed_forward: weights in parts are for processors with AMX, and for "
      "multiples of 32 channels");
  for (const Tensor* packed : {&expand, &contract, &inner, &outer})
    STD_TORCH_CHECK(packed->is_contiguous(), "packed_feed_forward: expected contiguous weights");
}

int64_t parts_of(const Tensor& x, const Tensor& expand, const Tensor& inner) {
  const int64_t weights =
      x.dim() == 4 && inner.dim() == 2 ? padded_to_panels(x.size(1)) * inner.size(1) : 0;
  return expand.numel() == kFloatParts * weights ? kFloatParts : 1;
}

Tensor packed_feed_forward(Tensor x, Tensor expand, Tensor contract, Tensor inner, Tensor outer) {
  const int64_t parts = parts_of(x, expand, inner);
  check(x, expand, contract, inner, outer, parts);
  Tensor out = empty_map(x, x.size(1), x.size(2), x.size(3), true);
  const FeedForwardShape shape = {x.size(2),
                                  x.size(3),
                                  x.size(1),
                                  x.size(1),
                                  inner.size(1),
                                  true,
                                  multiplies_bfloat16(),
                                  multiplies_tiles()};
  // A copy at whole cache lines: it is read for every vector of the map.
  const int64_t row = shape.hidden * static_cast<int64_t>(sizeof(float));
  const int64_t stride = shape.hidden_stride() * static_cast<int64_t>(sizeof(float));
  const Scratch aligned(kInnerRows * stride);
  for (int64_t i = 0; i < kInnerRows; ++i)
    memcpy(aligned.at(i * stride), static_cast<const char*>(inner.const_data_ptr()) + i * row,
           static_cast<size_t>(row));
  const FeedForwardWeights weights = {expand.const_data_ptr(), contract.const_data_ptr(),
                                      aligned.at(0), outer.const_data_ptr()};
  const FeedForwardKernels& kernels =
      parts == 1 ? kernels_for(dtype_of(expand)) : *kernels_in_parts();
  FeedForwardRows(shape, kernels, weights, x, out).run();
  return out;
}
// x [B, C, H, W] in channels_last -> out like x; the weights as host.h says.
ATTNOPS_REGISTER(cpu, CPU, packed_feed_forward,
                 "(Tensor x, Tensor expand, Tensor contract, Tensor inner, Tensor outer) "
                 "-> Tensor out")

}  // namespace
}  // namespace attnops::cpu
