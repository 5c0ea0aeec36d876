// Host entry of local attention's forward on CUDA.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "host.h"
#include "launch.cuh"

namespace attnops::cuda {
namespace {

std::tuple<Tensor, Tensor> local_attention(const Tensor& query, const Tensor& key,
                                           const Tensor& value, std::vector<int64_t> kernel,
                                           std::vector<int64_t> dilation, double scale, bool mask) {
  const int device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const LocalProblem problem = make_local_problem(query, key, value, kernel, dilation, scale, mask);
  Tensor out = empty_map(query, problem.batch, problem.value_channels, problem.height,
                         problem.width, problem.channels_last);
  Tensor lse = torch::stable::new_empty(query, {problem.batch, problem.height, problem.width},
                                        statistics_type(query));
  if (value.numel() == 0) return {out, lse};
  dispatch("local_attention", query.scalar_type(), [&](auto element) {
    using T = decltype(element);
    local_forward<T>(
        problem, static_cast<const T*>(query.const_data_ptr()),
        static_cast<const T*>(key.const_data_ptr()), static_cast<const T*>(value.const_data_ptr()),
        static_cast<T*>(out.mutable_data_ptr()),
        static_cast<accumulator_t<T>*>(lse.mutable_data_ptr()), current_stream(device));
  });
  return {out, lse};
}

}  // namespace
}  // namespace attnops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(attnops_cuda, m) {
  m.def(
      "local_attention(Tensor query, Tensor key, Tensor value, int[] kernel, int[] dilation, "
      "float scale, bool mask) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(attnops_cuda, CUDA, m) {
  m.impl("local_attention", TORCH_BOX(&attnops::cuda::local_attention));
}
