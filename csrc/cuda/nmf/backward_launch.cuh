// Starts the kernels of nmf's backward.
#pragma once

#include "backward_kernels.cuh"
#include "dx_kernel.cuh"
#include "launch.cuh"

namespace attnops::cuda {

template <typename T>
NmfPlan plan_nmf_backward(const NmfProblem& problem, const T* x, int multiprocessors) {
  return with_nmf_rank(problem.rank, [&](auto rank) {
    const int resident = nmf_resident(nmf_backward_kernel<T, rank>, problem, multiprocessors);
    return plan_nmf(problem, nmf_vectors(problem, x, sizeof(T)), resident);
  });
}

// Tables of an item that the two kernels share.
inline int64_t nmf_tables(const NmfPlan& plan, bool one_step) {
  return one_step ? 1 : 2 * int64_t{plan.steps} + 1;
}

template <typename T>
void run_nmf_backward(const NmfPlan& plan, const NmfBackward<T>& arguments, T* dx,
                      cudaStream_t stream) {
  with_nmf_rank(plan.rank, [&](auto rank) {
    launch_nmf(nmf_backward_kernel<T, rank>, plan, arguments, stream);
  });
  const int tables = static_cast<int>(nmf_tables(plan, arguments.one_step));
  const auto tiles = [](int size) { return (size + kDxSide - 1) / kDxSide; };
  const int64_t along = plan.channels_inner ? plan.channels : plan.positions;
  const NmfDxPlan dx_plan{
      plan.channels,        plan.positions,
      plan.depth,           plan.tiles * kNmfTile,
      plan.padded_rank,     tables,
      tiles(plan.channels), tiles(plan.positions),
      plan.channels_inner,  is_aligned(dx) && along * sizeof(T) % kAccessBytes == 0};
  const int64_t blocks = int64_t{plan.batch} * dx_plan.row_tiles * dx_plan.column_tiles;
  if (blocks > INT32_MAX) throw std::runtime_error("attnops: nmf: too many tiles for one grid");
  ATTNOPS_LAUNCH(nmf_dx_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kNmfThreads),
                 kDxSharedBytes, stream, static_cast<const float*>(arguments.left),
                 static_cast<const float*>(arguments.right), dx, dx_plan);
}

}  // namespace attnops::cuda
