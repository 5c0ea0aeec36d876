// Gradient of max pooling: the gradient of a cell goes to the pixel that was its maximum.
#pragma once

#include "cpu/common/vec.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// One plane: target[argmax * pixel] = sum of the grads of the cells whose maximum it is; target is
// zero before. Cells are visited in order, so the sum does not depend on threads. Reduced precision
// sums in `plane` [H * W], which is zero before and afterwards.
template <class S>
static void scatter_plane(const S* grad, const int32_t* argmax, int64_t cells, S* target,
                          int64_t pixel, Compute<S>* plane) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    for (int64_t i = 0; i < cells; ++i) target[argmax[i] * pixel] += grad[i];
  } else {
    for (int64_t i = 0; i < cells; ++i) plane[argmax[i]] += load_one(grad + i);
    for (int64_t i = 0; i < cells; ++i) store_one(target + argmax[i] * pixel, plane[argmax[i]]);
    for (int64_t i = 0; i < cells; ++i) plane[argmax[i]] = 0;
  }
}

template <class S>
static void max_contiguous_backward(const PoolPlan& plan, const S* grad, const int32_t* argmax,
                                    S* grad_x, int64_t count, Compute<S>* scratch) {
  const int64_t size = plan.rows.size * plan.columns.size;
  for (int64_t plane = 0; plane < count; ++plane) {
    memset(grad_x + plane * size, 0, static_cast<size_t>(size) * sizeof(S));
    scatter_plane(grad + plane * plan.cells, argmax + plane * plan.cells, plan.cells,
                  grad_x + plane * size, 1, scratch);
  }
}

template <class S>
static void max_channels_last_backward(const PoolPlan& plan, const S* grad, const int32_t* argmax,
                                       S* grad_x, int64_t count, Compute<S>* scratch) {
  const int64_t size = plan.rows.size * plan.columns.size;
  for (int64_t i = 0; i < size; ++i)
    memset(grad_x + i * plan.channels, 0, static_cast<size_t>(count) * sizeof(S));
  for (int64_t c = 0; c < count; ++c)
    scatter_plane(grad + c * plan.cells, argmax + c * plan.cells, plan.cells, grad_x + c,
                  plan.channels, scratch);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
