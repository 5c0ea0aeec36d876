// Host entry of the forward of nmf on CUDA.
#include <tuple>
#include <vector>

#include "common/register.h"
#include "host.h"

namespace attnops::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> nmf(const Tensor& x, const Tensor& bases, int64_t steps,
                                               double inv_t, double eps, bool one_step,
                                               int64_t record) {
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const NmfProblem problem = make_nmf_problem(x, bases, steps, inv_t, eps);
  const auto kind = static_cast<NmfRecord>(record);
  const bool all = kind == NmfRecord::kAll, last = kind == NmfRecord::kLast;
  const int64_t batch = problem.batch, channels = problem.channels;
  const int64_t positions = problem.positions, rank = problem.rank;
  Tensor found = torch::stable::new_empty(bases, {batch, channels, rank});
  Tensor coef = torch::stable::new_empty(bases, {batch, positions, rank});
  Tensor past_bases = new_floats(x, {0}), past_coef = new_floats(x, {0});
  if (all || last) {
    past_bases = new_floats(x, {all ? steps : 1, batch, channels, rank});
    past_coef = new_floats(x, {all ? steps + 2 : 1, batch, positions, rank});
  }
  if (batch == 0) return {found, coef, past_bases, past_coef};
  const Tensor state = new_floats(x, {all ? 0 : batch, positions, rank});
  dispatch_nmf(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* p_x = static_cast<const T*>(x.const_data_ptr());
    const NmfPlan plan = plan_nmf_forward<T>(problem, p_x, count_multiprocessors(device));
    const Tensor scratch = new_floats(x, {plan.items * nmf_scratch_size(plan)});
    const Tensor counters = new_floats(x, {plan.items});
    run_nmf_forward<T>(
        plan,
        {p_x, static_cast<const T*>(bases.const_data_ptr()),
         static_cast<T*>(found.mutable_data_ptr()), static_cast<T*>(coef.mutable_data_ptr()),
         floats(past_bases), floats(past_coef), kind, floats(state), floats(scratch),
         reinterpret_cast<unsigned*>(floats(counters))},
        current_stream(device));
  });
  return {found, coef, past_bases, past_coef};
}
ATTNOPS_REGISTER(
    cuda, CUDA, nmf,
    "(Tensor x, Tensor bases, int steps, float inv_t, float eps, bool one_step, int record) "
    "-> (Tensor, Tensor, Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cuda
