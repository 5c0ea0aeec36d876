// The entry points of the feed-forward network; compiled once per instruction set.
#include "backward.h"
#include "forward.h"
#include "pack.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// S: type of maps, B: of weights, or of their kParts parts.
template <class S, class B, bool kResidual, int kParts = 1>
struct ForwardEntries {
  using C = Compute<S>;

  // body(FeedForward of the types that the processor is to have).
  template <class Body>
  static void run(const FeedForwardShape& s, int64_t rows, int64_t columns, void* scratch,
                  const Body& body) {
    Arena arena(scratch);
#if defined(__AVX512F__)
    if constexpr (sizeof(B) == 2) {
      if (kParts > 1 || s.native) {
        const TileRegisters tiles(s.tiles);
        FeedForward<S, BFloat16, B, kResidual, kParts> step(s, rows, columns, arena);
        return body(step);
      }
    }
#endif
    if constexpr (kParts == 1) {
      FeedForward<S, C, B, kResidual> step(s, rows, columns, arena);
      body(step);
    }
  }

  static int64_t scratch_bytes(const FeedForwardShape& s, int64_t rows, int64_t columns) {
    Arena arena(nullptr);
    using A = std::conditional_t<(kParts > 1), BFloat16, C>;
    FeedForward<S, A, B, kResidual, kParts>(s, rows, columns, arena);
    return arena.bytes();
  }
  static void expand(const FeedForwardShape& s, const FeedForwardWeights& weights,
                     const FeedForwardStrip& strip, const void* x, int64_t first, int64_t last,
                     const HiddenRows& hidden, void* scratch) {
    run(s, last - first, strip.right - strip.left, scratch, [&](auto& step) {
      step.expand(weights, strip, static_cast<const S*>(x), first, last, hidden);
    });
  }
  static void contract(const FeedForwardShape& s, const FeedForwardWeights& weights,
                       const FeedForwardStrip& strip, const HiddenRows& hidden, const void* x,
                       int64_t first, int64_t last, void* out, void* scratch) {
    run(s, last - first, strip.right - strip.left, scratch, [&](auto& step) {
      step.contract(weights, strip, hidden, static_cast<const S*>(x), first, last,
                    static_cast<S*>(out));
    });
  }

  static constexpr FeedForwardKernels kernels = {sizeof(C), kParts * sizeof(B), scratch_bytes,
                                                 expand, contract};
};

template <class S>
struct PlainEntries : ForwardEntries<S, Panel<S>, false> {};

template <class S>
struct PlainGradients : FeedForwardGradients<S, Compute<S>> {};

}  // namespace

ATTNOPS_DEFINE_KERNELS(FeedForwardKernels, feed_forward_kernels, PlainEntries)
ATTNOPS_DEFINE_KERNELS(FeedForwardPacking, feed_forward_packing, PackingEntries)
ATTNOPS_DEFINE_KERNELS(FeedForwardBackwardKernels, feed_forward_backward_kernels, PlainGradients)

const FeedForwardBackwardKernels& paired_feed_forward_backward_kernels(DType dtype) {
#if defined(__AVX512F__)
  if (dtype == DType::kBFloat16) return FeedForwardGradients<BFloat16, BFloat16>::kernels;
#endif
  return feed_forward_backward_kernels(dtype);
}

const FeedForwardKernels* feed_forward_kernels_in_parts() {
#if defined(__AVX512F__)
  return &ForwardEntries<float, BFloat16, true, kFloatParts>::kernels;
#else
  return nullptr;
#endif
}

const FeedForwardKernels& packed_feed_forward_kernels(DType dtype) {
  return dtype == DType::kBFloat16 ? ForwardEntries<float, BFloat16, true>::kernels
                                   : ForwardEntries<float, float, true>::kernels;
}

}  // namespace attnops::cpu::ATTNOPS_ISA
