// Helpers of the host entries: stream, device, element types.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "launch.h"

namespace attnops::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int count_multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return count;
}

// Calls function(T{}) with the element type of the tensors of `op`.
template <typename Function>
void dispatch(const char* op, ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Half:
      return function(__half{});
    case ScalarType::BFloat16:
      return function(__nv_bfloat16{});
    case ScalarType::Double:
      return function(double{});
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, float16, bfloat16 or float64, got ",
                      torch::headeronly::toString(dtype));
  }
}

// The dtype of sums and statistics of `x`.
inline ScalarType statistics_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A new map `[B, C, H, W]` with dtype and device of `like`, contiguous or channels_last.
inline Tensor empty_map(const Tensor& like, int64_t batch, int64_t channels, int64_t height,
                        int64_t width, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      {batch, channels, height, width}, like.scalar_type(), std::nullopt, like.device(),
      std::nullopt, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

}  // namespace attnops::cuda
