// Starts the kernels of strip convolutions. Knows raw pointers only; the host entries and the
// emulation both launch through it.
#pragma once

#include <stdexcept>
#include <vector>

#include "backward_kernels.cuh"
#include "kernels.cuh"

namespace attnops::cuda {

namespace detail {

inline dim3 strip_grid(int64_t blocks) {
  if (blocks > INT32_MAX) {
    throw std::runtime_error("attnops: strip_conv: too many tiles for one grid");
  }
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace detail

// The plan of a pass. Choosing one takes a microsecond, so a thread keeps those it chose.
template <typename T>
StripPlan plan_strip_pass(const StripProblem& problem, StripPass pass) {
  struct Chosen {
    StripProblem problem;
    StripPass pass;
    StripPlan plan;
  };
  constexpr size_t kMost = 64;
  thread_local std::vector<Chosen> known;
  for (const Chosen& chosen : known) {
    if (chosen.pass == pass && chosen.problem == problem) return chosen.plan;
  }
  if (known.size() == kMost) known.clear();
  known.push_back(
      {problem, pass, plan_strip_conv(problem, pass, sizeof(T), sizeof(accumulator_t<T>))});
  return known.back().plan;
}

// Maps in the problem's layout.
template <typename T>
void strip_forward(const StripProblem& problem, const T* x,
                   const StripParameters<const T>& parameters, T* out, cudaStream_t stream) {
  const StripPlan plan = plan_strip_pass<T>(problem, StripPass::kForward);
  ATTNOPS_LAUNCH((strip_forward_kernel<T>), detail::strip_grid(plan.tiles * plan.groups),
                 dim3(plan.threads()),
                 strip_shared_bytes(plan, StripPass::kForward, sizeof(accumulator_t<T>)), stream, x,
                 out, parameters, plan);
}

// Gradients like what they are of; `sums` is the plan of StripPass::kTaps, and `partials` has the
// strip_partials(sums) numbers of scratch memory that it asks for.
template <typename T>
void strip_backward(const StripProblem& problem, const StripPlan& sums, const T* grad, const T* x,
                    const StripParameters<const T>& parameters, T* grad_x,
                    const StripParameters<T>& gradients, accumulator_t<T>* partials,
                    cudaStream_t stream) {
  constexpr size_t kSumBytes = sizeof(accumulator_t<T>);
  const StripPlan plan = plan_strip_pass<T>(problem, StripPass::kMap);
  ATTNOPS_LAUNCH((strip_backward_map_kernel<T>), detail::strip_grid(plan.tiles * plan.groups),
                 dim3(plan.threads()), strip_shared_bytes(plan, StripPass::kMap, kSumBytes), stream,
                 grad, grad_x, parameters, plan);
  ATTNOPS_LAUNCH((strip_backward_taps_kernel<T>),
                 detail::strip_grid(int64_t{sums.slices} * sums.groups), dim3(sums.threads()),
                 strip_shared_bytes(sums, StripPass::kTaps, kSumBytes), stream, grad, x, partials,
                 parameters, sums);
  const int64_t count = int64_t{sums.channels} * sums.parameters();
  ATTNOPS_LAUNCH((strip_backward_reduce_kernel<T>),
                 detail::strip_grid(detail::strip_ceil_divide(count, kWarp)), dim3(kReduceThreads),
                 0, stream, static_cast<const accumulator_t<T>*>(partials), sums.slices, gradients,
                 sums);
}

}  // namespace attnops::cuda
