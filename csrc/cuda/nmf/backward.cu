// Host entry of the backward of nmf on CUDA.
#include <optional>
#include <tuple>

#include "backward_launch.cuh"
#include "common/register.h"
#include "host.h"

namespace attnops::cuda {
namespace {

template <typename T>
const T* data_or_null(const std::optional<Tensor>& x) {
  return x ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

std::tuple<Tensor, Tensor> nmf_backward(Tensor x, Tensor bases, std::optional<Tensor> grad_bases,
                                        std::optional<Tensor> grad_coef, Tensor past_bases,
                                        Tensor past_coef, double inv_t, double eps, bool one_step) {
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t steps = one_step ? 0 : past_bases.size(0);
  const NmfProblem problem = make_nmf_problem(x, bases, steps, inv_t, eps);
  const int64_t batch = problem.batch, channels = problem.channels, positions = problem.positions;
  const bool inner = problem.channels_inner;
  Tensor dx = torch::stable::new_empty(
      x, {batch, inner ? positions : channels, inner ? channels : positions});
  Tensor dbases = torch::stable::new_empty(bases, {batch, channels, problem.rank});
  if (one_step) torch::stable::zero_(dbases);
  if (batch > 0) {
    dispatch_nmf(x.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const T* p_x = static_cast<const T*>(x.const_data_ptr());
      const NmfPlan plan = plan_nmf_backward<T>(problem, p_x, count_multiprocessors(device));
      const int64_t tables = batch * nmf_tables(plan, one_step);
      const Tensor left = new_floats(x, {tables * plan.table()});
      const Tensor right = new_floats(x, {tables * nmf_right_table(plan)});
      const Tensor scratch = new_floats(x, {plan.items * nmf_backward_scratch_size(plan)});
      const Tensor counters = new_floats(x, {plan.items});
      run_nmf_backward<T>(
          plan,
          {p_x, static_cast<const T*>(bases.const_data_ptr()), data_or_null<T>(grad_bases),
           data_or_null<T>(grad_coef), floats(past_bases), floats(past_coef),
           static_cast<T*>(dbases.mutable_data_ptr()), floats(left), floats(right), floats(scratch),
           reinterpret_cast<unsigned*>(floats(counters)), one_step},
          static_cast<T*>(dx.mutable_data_ptr()), current_stream(device));
    });
  }
  return {inner ? torch::stable::transpose(dx, 1, 2) : dx, dbases};
}
ATTNOPS_REGISTER(
    cuda, CUDA, nmf_backward,
    "(Tensor x, Tensor bases, Tensor? grad_bases, Tensor? grad_coef, Tensor past_bases, "
    "Tensor past_coef, float inv_t, float eps, bool one_step) -> (Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cuda
