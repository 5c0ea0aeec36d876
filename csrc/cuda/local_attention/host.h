// Checks that the host entries of local attention on CUDA share.
#pragma once

#include <vector>

#include "cuda/common/host.h"
#include "plan.h"

namespace attnops::cuda {

inline LocalProblem make_local_problem(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const std::vector<int64_t>& kernel,
                                       const std::vector<int64_t>& dilation, double scale,
                                       bool mask) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
                  "local_attention: query, key and value must be [B, C, H, W]");
  STD_TORCH_CHECK(kernel.size() == 2 && dilation.size() == 2,
                  "local_attention: kernel and dilation must be pairs");
  STD_TORCH_CHECK(kernel[0] > 0 && kernel[0] % 2 == 1 && kernel[1] > 0 && kernel[1] % 2 == 1 &&
                      dilation[0] > 0 && dilation[1] > 0,
                  "local_attention: kernel must be odd and positive, dilation positive");
  STD_TORCH_CHECK(
      key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(),
      "local_attention: query, key and value must have one dtype");
  const LocalProblem problem{query.size(0),
                             query.size(1),
                             value.size(1),
                             query.size(2),
                             query.size(3),
                             kernel[0],
                             kernel[1],
                             dilation[0],
                             dilation[1],
                             scale,
                             mask,
                             !query.is_contiguous(),
                             count_multiprocessors(query.get_device_index())};
  for (int64_t d : {0, 2, 3}) {
    STD_TORCH_CHECK(key.size(d) == query.size(d) && value.size(d) == query.size(d),
                    "local_attention: query, key and value must agree in B, H and W");
  }
  STD_TORCH_CHECK(key.size(1) == query.size(1),
                  "local_attention: query and key must have the same channels");
  STD_TORCH_CHECK(query.numel() == 0 || local_attention_supported(problem),
                  "local_attention: the CUDA kernels take windows of up to ", kMaxKernel,
                  " an axis and ", kMaxNeighbours,
                  " in all, and maps of less than 2^31 pixels; use "
                  "another backend");
  return problem;
}

}  // namespace attnops::cuda
