// Host entry of the backward of anchor attention on CUDA.
#include <tuple>

#include "backward_launch.cuh"
#include "common/register.h"
#include "host.h"

namespace attnops::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> anchor_attention_backward(Tensor grad, Tensor query,
                                                                     Tensor key, Tensor value,
                                                                     std::optional<Tensor> bias,
                                                                     Tensor lse, double scale) {
  const int device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const AnchorProblem problem = make_anchor_problem(query, key, value, bias, scale);
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(1) == value.size(1) &&
                      grad.scalar_type() == query.scalar_type() && lse.is_contiguous(),
                  "anchor_attention: expected grad [B, Cv, N] and contiguous lse [B, N]");
  Tensor dquery = new_positions(query, problem, problem.key_channels);
  Tensor dkey =
      torch::stable::new_empty(key, {problem.batch, problem.key_channels, problem.anchors});
  Tensor dvalue =
      torch::stable::new_empty(key, {problem.batch, problem.value_channels, problem.anchors});
  Tensor dbias = bias ? torch::stable::new_empty(key, {problem.batch, problem.anchors})
                      : torch::stable::new_empty(key, {0});
  if (problem.positions == 0) {
    for (Tensor& gradient : {std::ref(dkey), std::ref(dvalue), std::ref(dbias)}) {
      torch::stable::zero_(gradient);
    }
  } else if (problem.batch > 0) {
    dispatch_anchors(query.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const AnchorBackwardPlan plan = plan_anchor_attention_backward(problem);
      const Tensor p = torch::stable::new_empty(query, {slab_size(plan)});
      const Tensor ds = torch::stable::new_empty(query, {slab_size(plan)});
      const Tensor sums =
          torch::stable::new_empty(query, {plan.has_bias ? sums_size(plan) : 0}, ScalarType::Float);
      const Tensor parts = torch::stable::new_empty(query, {parts_size(plan)}, ScalarType::Float);
      run_anchor_attention_backward<T>(
          plan,
          {data_of<T>(grad), data_of<T>(query), data_of<T>(key), data_of<T>(value),
           data_or_null<T>(bias), data_of<float>(lse), written<T>(dquery), written<T>(dkey),
           written<T>(dvalue), bias ? written<T>(dbias) : nullptr, written<T>(p), written<T>(ds),
           written<float>(sums), written<float>(parts)},
          current_stream(device));
    });
  }
  return {turn_map(problem, dquery), dkey, dvalue, dbias};
}
ATTNOPS_REGISTER(cuda, CUDA, anchor_attention_backward,
                 "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor lse, "
                 "float scale) -> (Tensor, Tensor, Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cuda
