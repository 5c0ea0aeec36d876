// What forward and backward of nmf share on the host: checks and dispatch.
#pragma once

#include <type_traits>
#include <vector>

#include "cuda/common/host.h"
#include "launch.cuh"

namespace attnops::cuda {

inline NmfProblem make_nmf_problem(const Tensor& x, const Tensor& bases, int64_t steps,
                                   double inv_t, double eps) {
  STD_TORCH_CHECK(x.dim() == 3 && bases.dim() == 3 && bases.is_contiguous() &&
                      bases.size(0) == x.size(0) && bases.size(1) == x.size(1),
                  "nmf: expected x [B, D, N] and contiguous bases [B, D, R]");
  STD_TORCH_CHECK(x.scalar_type() == bases.scalar_type(), "nmf: expected tensors of one dtype");
  const NmfProblem problem{x.size(0),
                           x.size(1),
                           x.size(2),
                           bases.size(2),
                           x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous(),
                           steps,
                           static_cast<float>(inv_t),
                           static_cast<float>(eps)};
  STD_TORCH_CHECK(nmf_supported(problem), "nmf: the CUDA kernels take up to ", kNmfMaxRank,
                  " bases of up to ", kNmfMaxChannels, " channels; use another backend");
  return problem;
}

// Calls function(T{}) with the element type.
template <typename Function>
void dispatch_nmf(ScalarType dtype, const Function& function) {
  STD_TORCH_CHECK(dtype != ScalarType::Double,
                  "nmf: the CUDA kernels compute in float32, got float64; use another backend");
  dispatch("nmf", dtype, [&](auto element) {
    if constexpr (!std::is_same_v<decltype(element), double>) function(element);
  });
}

inline Tensor new_floats(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}

inline float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

}  // namespace attnops::cuda
