// Starts the kernels of local attention's backward, as launch.cuh the forward's.
#pragma once

#include "backward_kernels.cuh"
#include "launch.cuh"

namespace attnops::cuda {

// Gradients in the layout of the maps; statistics `[B, H, W]` are scratch.
template <typename T>
void local_backward(const LocalProblem& problem, const T* grad, const T* query, const T* key,
                    const T* value, const accumulator_t<T>* lse,
                    QueryStatistics<accumulator_t<T>>* statistics, T* dquery, T* dkey, T* dvalue,
                    cudaStream_t stream) {
  using Acc = accumulator_t<T>;
  detail::with_span<T>(problem, [&](auto span) {
    constexpr int kSpan = decltype(span)::value;
    const LocalPlan plan = detail::plan_local_kernel<T, kSpan>(
        problem, 2, {grad, query, key, value, dquery, dkey, dvalue});
    const dim3 grid = detail::local_grid(problem, plan);
    const dim3 block(local_threads(plan, kSpan));
    const size_t shared_bytes = local_shared_bytes(plan, 2, sizeof(Acc));
    const Acc scale = static_cast<Acc>(problem.scale);
    ATTNOPS_LAUNCH((local_backward_query_kernel<T, kSpan>), grid, block, shared_bytes, stream, grad,
                   query, key, value, lse, dquery, statistics, scale, plan);
    ATTNOPS_LAUNCH((local_backward_key_kernel<T, kSpan>), grid, block, shared_bytes, stream, grad,
                   query, key, value, lse, static_cast<const QueryStatistics<Acc>*>(statistics),
                   dkey, dvalue, scale, plan);
  });
}

}  // namespace attnops::cuda
