// Starts the kernels of nmf. Knows raw pointers only; the host entries and the emulation both
// launch through it.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels.cuh"

namespace attnops::cuda {

// Calls function(rank) with the padded rank as a constant.
template <typename Function>
auto with_nmf_rank(int64_t rank, const Function& function) {
  return nmf_padded_rank(rank) == 32 ? function(std::integral_constant<int, 32>{})
                                     : function(std::integral_constant<int, 64>{});
}

template <typename Kernel>
int nmf_resident(Kernel kernel, const NmfProblem& problem, int multiprocessors) {
  const size_t bytes = nmf_shared_bytes(nmf_depth(problem.channels), nmf_padded_rank(problem.rank));
  const int resident = resident_blocks(kernel, kNmfThreads, bytes, multiprocessors);
  if (resident == 0) {
    throw std::runtime_error("attnops: nmf: this device has less shared memory than the " +
                             std::to_string(bytes) + " bytes that a block needs for so many " +
                             "channels and bases; use another backend");
  }
  return resident;
}

inline bool nmf_vectors(const NmfProblem& problem, const void* x, size_t element_bytes) {
  const int64_t along = problem.channels_inner ? problem.channels : problem.positions;
  return is_aligned(x) && along * element_bytes % kAccessBytes == 0;
}

// Launches one of nmf's kernels: together if blocks of an item wait for each other.
template <typename Kernel, typename Arguments>
void launch_nmf(Kernel kernel, const NmfPlan& plan, const Arguments& arguments,
                cudaStream_t stream) {
  const size_t bytes = nmf_shared_bytes(plan.depth, plan.padded_rank);
  fill_zero(arguments.counters, plan.items * sizeof(unsigned), stream);
  const dim3 grid(static_cast<unsigned>(plan.items * plan.blocks));
  if (plan.blocks > 1) {
    ATTNOPS_LAUNCH_COOPERATIVE(kernel, grid, dim3(kNmfThreads), bytes, stream, arguments, plan);
  } else {
    ATTNOPS_LAUNCH(kernel, grid, dim3(kNmfThreads), bytes, stream, arguments, plan);
  }
}

template <typename T>
NmfPlan plan_nmf_forward(const NmfProblem& problem, const T* x, int multiprocessors) {
  return with_nmf_rank(problem.rank, [&](auto rank) {
    const int resident = nmf_resident(nmf_forward_kernel<T, rank>, problem, multiprocessors);
    return plan_nmf(problem, nmf_vectors(problem, x, sizeof(T)), resident);
  });
}

template <typename T>
void run_nmf_forward(const NmfPlan& plan, const NmfForward<T>& arguments, cudaStream_t stream) {
  with_nmf_rank(plan.rank, [&](auto rank) {
    launch_nmf(nmf_forward_kernel<T, rank>, plan, arguments, stream);
  });
}

}  // namespace attnops::cuda
