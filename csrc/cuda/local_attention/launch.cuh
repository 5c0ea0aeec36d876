// Starts the kernel of local attention's forward. Knows raw pointers only; the host entries and the
// emulation both launch through it.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "kernels.cuh"

namespace attnops::cuda {

namespace detail {

// Calls function(kSpan) with the columns of the window that a thread works on: a divisor of the
// kernel's width. float64 has the general case only.
template <typename T, typename Function>
void with_span(const LocalProblem& problem, const Function& function) {
  if constexpr (!std::is_same_v<T, double>) {
    if (problem.kernel_width % 7 == 0) return function(std::integral_constant<int, 7>{});
    if (problem.kernel_width % 5 == 0) return function(std::integral_constant<int, 5>{});
    if (problem.kernel_width % 3 == 0) return function(std::integral_constant<int, 3>{});
  }
  function(std::integral_constant<int, 1>{});
}

// The plan of a kernel that reads and writes `maps`.
template <typename T, int kSpan>
LocalPlan plan_local_kernel(const LocalProblem& problem, int weight_arrays,
                            std::initializer_list<const void*> maps) {
  LocalPlan plan = plan_local_attention(problem, kSpan, weight_arrays, sizeof(accumulator_t<T>));
  const bool wide = problem.channels_last && std::all_of(maps.begin(), maps.end(), is_aligned);
  plan.wide_keys = wide && problem.key_channels % kWidth<T> == 0;
  plan.wide_values = wide && problem.value_channels % kWidth<T> == 0;
  return plan;
}

inline dim3 local_grid(const LocalProblem& problem, const LocalPlan& plan) {
  const int64_t blocks = local_blocks(problem, plan);
  if (blocks > INT32_MAX) {
    throw std::runtime_error("attnops: local_attention: too many tiles for one grid");
  }
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace detail

// Maps in the problem's layout; lse `[B, H, W]`.
template <typename T>
void local_forward(const LocalProblem& problem, const T* query, const T* key, const T* value,
                   T* out, accumulator_t<T>* lse, cudaStream_t stream) {
  using Acc = accumulator_t<T>;
  detail::with_span<T>(problem, [&](auto span) {
    constexpr int kSpan = decltype(span)::value;
    const LocalPlan plan =
        detail::plan_local_kernel<T, kSpan>(problem, 1, {query, key, value, out});
    ATTNOPS_LAUNCH((local_forward_kernel<T, kSpan>), detail::local_grid(problem, plan),
                   dim3(local_threads(plan, kSpan)), local_shared_bytes(plan, 1, sizeof(Acc)),
                   stream, query, key, value, out, lse, static_cast<Acc>(problem.scale), plan);
  });
}

}  // namespace attnops::cuda
