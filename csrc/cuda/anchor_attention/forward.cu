// Host entry of the forward of anchor attention on CUDA.
#include <tuple>

#include "common/register.h"
#include "host.h"

namespace attnops::cuda {
namespace {

std::tuple<Tensor, Tensor> anchor_attention(Tensor query, Tensor key, Tensor value,
                                            std::optional<Tensor> bias, double scale) {
  const int device = query.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const AnchorProblem problem = make_anchor_problem(query, key, value, bias, scale);
  Tensor out = new_positions(query, problem, problem.value_channels);
  Tensor lse =
      torch::stable::new_empty(query, {problem.batch, problem.positions}, ScalarType::Float);
  if (problem.batch > 0 && problem.positions > 0) {
    dispatch_anchors(query.scalar_type(), [&](auto element) {
      using T = decltype(element);
      run_anchor_attention<T>(plan_anchor_attention(problem),
                              {data_of<T>(query), data_of<T>(key), data_of<T>(value),
                               data_or_null<T>(bias), written<T>(out), written<float>(lse)},
                              current_stream(device));
    });
  }
  return {turn_map(problem, out), lse};
}
ATTNOPS_REGISTER(cuda, CUDA, anchor_attention,
                 "(Tensor query, Tensor key, Tensor value, Tensor? bias, float scale) "
                 "-> (Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cuda
