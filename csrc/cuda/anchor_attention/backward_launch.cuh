// Starts the kernels of anchor attention's backward.
#pragma once

#include "backward_kernels.cuh"
#include "launch.cuh"

namespace attnops::cuda {

// Elements of p, or of ds, of a slab; of the sums of its tiles; and of all parts.
inline int64_t slab_size(const AnchorBackwardPlan& plan) {
  return int64_t{plan.items} * plan.slab_tiles * kAnchorRows * padded_anchors(plan.forward.anchors);
}
inline int64_t sums_size(const AnchorBackwardPlan& plan) { return slab_size(plan) / kAnchorRows; }
inline int64_t parts_size(const AnchorBackwardPlan& plan) {
  return int64_t{plan.items} * plan.splits * plan.rows() * padded_anchors(plan.forward.anchors);
}

template <typename T, int kAnchors>
void launch_anchor_backward(const AnchorBackwardPlan& plan, const AnchorBackward<T>& arguments,
                            cudaStream_t stream) {
  const AnchorPlan& forward = plan.forward;
  constexpr size_t kShared = kAnchorSharedBytes<T, kAnchors>;
  const int64_t programs = plan.key_blocks + plan.value_blocks + plan.has_bias;
  const int reducers = (plan.rows() * (kAnchors / 4) + kAnchorThreads - 1) / kAnchorThreads;
  for (int item = 0; item < forward.batch; item += plan.items) {
    const int items = std::min(plan.items, forward.batch - item);
    for (int tile = 0; tile < forward.tiles; tile += plan.slab_tiles) {
      const Slab slab{item, tile, items, std::min(plan.slab_tiles, forward.tiles - tile), tile > 0};
      ATTNOPS_LAUNCH((score_gradient_kernel<T, kAnchors>), anchor_grid(int64_t{items} * slab.tiles),
                     dim3(kAnchorThreads), kShared, stream, arguments, slab, forward);
      ATTNOPS_LAUNCH((anchor_gradient_kernel<T, kAnchors>),
                     anchor_grid(items * plan.splits * programs), dim3(kAnchorThreads), kShared,
                     stream, arguments, slab, plan);
    }
    ATTNOPS_LAUNCH((reduce_parts_kernel<T, kAnchors>), anchor_grid(int64_t{items} * reducers),
                   dim3(kAnchorThreads), 0, stream, arguments, item, reducers, plan);
  }
}

template <typename T>
void run_anchor_attention_backward(AnchorBackwardPlan plan, const AnchorBackward<T>& arguments,
                                   cudaStream_t stream) {
  AnchorPlan& forward = plan.forward;
  forward.query_wide = is_wide<T>(forward, forward.key_channels, arguments.query, arguments.dquery);
  forward.value_wide = is_wide<T>(forward, forward.value_channels, arguments.grad, arguments.grad);
  forward.table_bytes = table_bytes(forward.anchors, arguments.key, arguments.value);
  with_anchors(forward.anchors,
               [&](auto anchors) { launch_anchor_backward<T, anchors>(plan, arguments, stream); });
}

}  // namespace attnops::cuda
