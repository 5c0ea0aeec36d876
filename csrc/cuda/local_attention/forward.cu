// Host entry of local attention's forward on CUDA.
#include <tuple>

#include "common/register.h"
#include "host.h"
#include "launch.cuh"

namespace attnops::cuda {
namespace {

std::tuple<Tensor, Tensor> local_attention(const Tensor& query, const Tensor& key,
                                           const Tensor& value, std::vector<int64_t> kernel_size,
                                           std::vector<int64_t> dilation, double scale,
                                           bool mask_border) {
  const int device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const LocalProblem problem =
      make_local_problem(query, key, value, kernel_size, dilation, scale, mask_border);
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
ATTNOPS_REGISTER(cuda, CUDA, local_attention,
                 "(Tensor query, Tensor key, Tensor value, int[] kernel_size, int[] dilation, "
                 "float scale, bool mask_border) -> (Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cuda
