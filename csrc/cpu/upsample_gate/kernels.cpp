// The entry points of the upsampled gate; compiled once per instruction set.
#include "channels_last.h"
#include "contiguous.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

template <class S>
struct GateEntries {
  using C = Compute<S>;

  static int64_t scratch_bytes(const GateShape& s, bool backward, bool channels_last,
                               int64_t count) {
    const int64_t elements = channels_last ? ChannelsLastBuffers<C>(s, backward, count).total
                                           : ContiguousBuffers<C>(s, backward).total;
    return round_up(elements * static_cast<int64_t>(sizeof(C)), 64);
  }
  static void forward_contiguous(const GateShape& s, const void* x, const void* logits, void* out,
                                 int64_t count, void* scratch) {
    gate_contiguous(s, static_cast<const S*>(x), static_cast<const S*>(logits),
                    static_cast<S*>(out), count, static_cast<C*>(scratch));
  }
  static void forward_channels_last(const GateShape& s, const void* x, const void* logits,
                                    void* out, int64_t begin, int64_t end, void* scratch) {
    gate_channels_last(s, static_cast<const S*>(x), static_cast<const S*>(logits),
                       static_cast<S*>(out), begin, end, static_cast<C*>(scratch));
  }
  static void backward_contiguous(const GateShape& s, const void* grad, const void* x,
                                  const void* logits, void* dx, void* dlogits, int64_t count,
                                  void* scratch) {
    gate_contiguous_backward(s, static_cast<const S*>(grad), static_cast<const S*>(x),
                             static_cast<const S*>(logits), static_cast<S*>(dx),
                             static_cast<S*>(dlogits), count, static_cast<C*>(scratch));
  }
  static void backward_channels_last(const GateShape& s, const void* grad, const void* x,
                                     const void* logits, void* dx, void* dlogits, int64_t count,
                                     void* scratch) {
    gate_channels_last_backward(s, static_cast<const S*>(grad), static_cast<const S*>(x),
                                static_cast<const S*>(logits), static_cast<S*>(dx),
                                static_cast<S*>(dlogits), count, static_cast<C*>(scratch));
  }
  static constexpr GateKernels kernels = {scratch_bytes, forward_contiguous, forward_channels_last,
                                          backward_contiguous, backward_channels_last};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(GateKernels, gate_kernels, GateEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
