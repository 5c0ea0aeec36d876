// Starts the kernels of anchor attention. Knows raw pointers only; the host entries and the
// emulation both launch through it.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "kernels.cuh"

namespace attnops::cuda {

// Calls function(anchors) with the padded number of anchors as a constant.
template <typename Function>
void with_anchors(int64_t anchors, const Function& function) {
  padded_anchors(anchors) == 64 ? function(std::integral_constant<int, 64>{})
                                : function(std::integral_constant<int, 112>{});
}

// Whether all lines of maps of so many channels are multiples of 16 bytes, and start on one.
template <typename T>
bool is_wide(const AnchorPlan& plan, int channels, const T* map, const T* other) {
  const int64_t along = plan.channels_inner ? channels : plan.positions;
  return is_aligned(map) && is_aligned(other) && along * sizeof(T) % kAccessBytes == 0;
}

// The bytes of the widest pieces of rows of anchors: 16, two elements, or one.
template <typename T>
int table_bytes(int anchors, const T* key, const T* value) {
  const auto fits = [&](uintptr_t bytes) {
    return (reinterpret_cast<uintptr_t>(key) | reinterpret_cast<uintptr_t>(value) |
            anchors * sizeof(T)) %
               bytes ==
           0;
  };
  return fits(kAccessBytes) ? kAccessBytes
                            : static_cast<int>(sizeof(T) * (fits(2 * sizeof(T)) + 1));
}

inline dim3 anchor_grid(int64_t blocks) {
  if (blocks > INT32_MAX) {
    throw std::runtime_error("attnops: anchor_attention: too many tiles for one grid");
  }
  return dim3(static_cast<unsigned>(blocks));
}

template <typename T>
void run_anchor_attention(AnchorPlan plan, const AnchorForward<T>& arguments, cudaStream_t stream) {
  plan.query_wide = is_wide(plan, plan.key_channels, arguments.query, arguments.query);
  plan.value_wide = is_wide<T>(plan, plan.value_channels, arguments.out, arguments.out);
  plan.table_bytes = table_bytes(plan.anchors, arguments.key, arguments.value);
  with_anchors(plan.anchors, [&](auto anchors) {
    ATTNOPS_LAUNCH((anchor_attention_kernel<T, anchors>),
                   anchor_grid(int64_t{plan.batch} * plan.tiles), dim3(kAnchorThreads),
                   (kAnchorSharedBytes<T, anchors>), stream, arguments, plan);
  });
}

}  // namespace attnops::cuda
