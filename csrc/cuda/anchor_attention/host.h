// What forward and backward of anchor attention share on the host: checks and dispatch.
#pragma once

#include <optional>
#include <type_traits>

#include "cuda/common/host.h"
#include "launch.cuh"

namespace attnops::cuda {

inline AnchorProblem make_anchor_problem(const Tensor& query, const Tensor& key,
                                         const Tensor& value, const std::optional<Tensor>& bias,
                                         double scale) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && key.is_contiguous() &&
                      value.is_contiguous() && (!bias || bias->is_contiguous()),
                  "anchor_attention: expected query [B, Ck, N] and contiguous key [B, Ck, S], "
                  "value [B, Cv, S], bias [B, S]");
  STD_TORCH_CHECK(query.scalar_type() == key.scalar_type() &&
                      query.scalar_type() == value.scalar_type() &&
                      (!bias || bias->scalar_type() == query.scalar_type()),
                  "anchor_attention: expected tensors of one dtype");
  const bool inner = query.size(1) > 1 && query.stride(1) == 1 && !query.is_contiguous();
  const AnchorProblem problem{query.size(0), query.size(1), value.size(1),    query.size(2),
                              key.size(2),   inner,         bias.has_value(), scale};
  STD_TORCH_CHECK(anchor_attention_supported(problem),
                  "anchor_attention: the CUDA kernels take up "
                  "to ",
                  kMaxAnchors, " anchors; use another backend");
  return problem;
}

// Calls function(T{}) with the element type.
template <typename Function>
void dispatch_anchors(ScalarType dtype, const Function& function) {
  STD_TORCH_CHECK(dtype != ScalarType::Double,
                  "anchor_attention: the CUDA kernels compute in float32, got float64; use another "
                  "backend");
  dispatch("anchor_attention", dtype, [&](auto element) {
    if constexpr (!std::is_same_v<decltype(element), double>) function(element);
  });
}

// A new map `[B, C, N]`, in memory [B, N, C] with channels_inner; turn_map gives it its shape.
inline Tensor new_positions(const Tensor& like, const AnchorProblem& problem, int64_t channels) {
  const int64_t positions = problem.positions;
  return torch::stable::new_empty(like,
                                  {problem.batch, problem.channels_inner ? positions : channels,
                                   problem.channels_inner ? channels : positions});
}

inline Tensor turn_map(const AnchorProblem& problem, const Tensor& x) {
  return problem.channels_inner ? torch::stable::transpose(x, 1, 2) : x;
}

template <typename T>
const T* data_of(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& x) {
  return x ? data_of<T>(*x) : nullptr;
}

template <typename T>
T* written(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

}  // namespace attnops::cuda
