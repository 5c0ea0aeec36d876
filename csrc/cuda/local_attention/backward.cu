// Host entry of local attention's backward on CUDA; a file of its own, compiled beside the forward.
#include <tuple>

#include "backward_launch.cuh"
#include "common/register.h"
#include "host.h"

namespace attnops::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> local_attention_backward(const Tensor& grad, const Tensor& query,
                                                            const Tensor& key, const Tensor& value,
                                                            const Tensor& lse,
                                                            std::vector<int64_t> kernel_size,
                                                            std::vector<int64_t> dilation,
                                                            double scale, bool mask_border) {
  const int device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const LocalProblem problem =
      make_local_problem(query, key, value, kernel_size, dilation, scale, mask_border);
  STD_TORCH_CHECK(grad.numel() == value.numel() && grad.scalar_type() == value.scalar_type(),
                  "local_attention_backward: grad must have the shape and dtype of value");
  STD_TORCH_CHECK(lse.is_contiguous() && lse.scalar_type() == statistics_type(query) &&
                      lse.numel() == problem.batch * problem.height * problem.width,
                  "local_attention_backward: lse must be that of the forward");
  const auto like = [&](const Tensor& x) {
    return empty_map(x, problem.batch, x.size(1), problem.height, problem.width,
                     problem.channels_last);
  };
  Tensor dquery = like(query);
  Tensor dkey = like(key);
  Tensor dvalue = like(value);
  if (value.numel() == 0) return {dquery, dkey, dvalue};
  const Tensor statistics = torch::stable::new_empty(
      query, {problem.batch, problem.height, problem.width, 2}, statistics_type(query));
  dispatch("local_attention_backward", query.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using Acc = accumulator_t<T>;
    local_backward<T>(
        problem, static_cast<const T*>(grad.const_data_ptr()),
        static_cast<const T*>(query.const_data_ptr()), static_cast<const T*>(key.const_data_ptr()),
        static_cast<const T*>(value.const_data_ptr()),
        static_cast<const Acc*>(lse.const_data_ptr()),
        static_cast<QueryStatistics<Acc>*>(statistics.mutable_data_ptr()),
        static_cast<T*>(dquery.mutable_data_ptr()), static_cast<T*>(dkey.mutable_data_ptr()),
        static_cast<T*>(dvalue.mutable_data_ptr()), current_stream(device));
  });
  return {dquery, dkey, dvalue};
}
ATTNOPS_REGISTER(
    cuda, CUDA, local_attention_backward,
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor lse, "
    "int[] kernel_size, int[] dilation, float scale, bool mask_border) -> (Tensor, Tensor, "
    "Tensor)")

}  // namespace
}  // namespace attnops::cuda
