// The entry points of pyramid pooling; compiled once per instruction set.
#include "max.h"
#include "max_backward.h"
#include "mean.h"
#include "mean_backward.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

template <class S>
struct PoolEntries {
  using C = Compute<S>;

  static int64_t scratch_bytes(const PoolPlan& plan, bool use_max, bool backward,
                               bool channels_last, int64_t count) {
    const int64_t lanes = channels_last ? round_up(count, kWidth<C>) : kWidth<C>;
    int64_t elements = PoolBuffers<C>(plan, lanes, channels_last).total;
    if (backward && use_max)
      elements = sizeof(S) == sizeof(C) ? 0 : plan.rows.size * plan.columns.size;
    else if (backward)
      elements += (plan.bins + (channels_last ? plan.columns.segments : 0)) * lanes;
    else if (use_max)
      elements *= 2;
    return round_up(elements * static_cast<int64_t>(sizeof(C)), 64);
  }
  static void mean(const PoolPlan& plan, bool channels_last, const void* x, void* out,
                   int64_t count, void* scratch) {
    (channels_last ? mean_channels_last<S> : mean_contiguous<S>)(plan, static_cast<const S*>(x),
                                                                 static_cast<S*>(out), count,
                                                                 static_cast<C*>(scratch));
  }
  static void max(const PoolPlan& plan, bool channels_last, const void* x, void* out,
                  int32_t* argmax, int64_t count, void* scratch) {
    (channels_last ? max_channels_last<S> : max_contiguous<S>)(plan, static_cast<const S*>(x),
                                                               static_cast<S*>(out), argmax, count,
                                                               static_cast<C*>(scratch));
  }
  static void mean_backward(const PoolPlan& plan, bool channels_last, const void* grad,
                            void* grad_x, int64_t count, void* scratch) {
    (channels_last ? mean_channels_last_backward<S>
                   : mean_contiguous_backward<S>)(plan, static_cast<const S*>(grad),
                                                  static_cast<S*>(grad_x), count,
                                                  static_cast<C*>(scratch));
  }
  static void max_backward(const PoolPlan& plan, bool channels_last, const void* grad,
                           const int32_t* argmax, void* grad_x, int64_t count, void* scratch) {
    (channels_last ? max_channels_last_backward<S>
                   : max_contiguous_backward<S>)(plan, static_cast<const S*>(grad), argmax,
                                                 static_cast<S*>(grad_x), count,
                                                 static_cast<C*>(scratch));
  }
  static constexpr PoolKernels kernels = {scratch_bytes, mean, max, mean_backward, max_backward};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(PoolKernels, pool_kernels, PoolEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
