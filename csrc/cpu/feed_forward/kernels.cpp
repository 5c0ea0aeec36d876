// The two steps of the feed-forward network on some rows; compiled once per instruction set.
#include "cpu/common/arena.h"
#include "cpu/depthwise/channels_last.h"
#include "cpu/depthwise/gelu.h"
#include "host.h"
#include "products.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// A: type of the pixels' side of products, B: of the weights.
template <class A, class B>
class FeedForward {
 public:
  static constexpr int64_t kW = kWidth<float>;

  FeedForward(const FeedForwardShape& s, int64_t rows, int64_t columns, Arena& arena)
      : s_(s),
        padded_(s.padded_channels()),
        factors_(arena.take<A>((rows * (columns + 2) + kRows) * max64(padded_, s.hidden))),
        places_(arena.take<int64_t>(rows * (columns + 2))) {}

  void expand(const FeedForwardWeights& weights, const FeedForwardStrip& strip, const float* x,
              int64_t first, int64_t last, const HiddenRows& hidden) {
    const int64_t left = max64(0, strip.left - 1), right = min64(s_.width, strip.right + 1);
    const int64_t pixels = strip.hidden_pixels(), channels = s_.channels;
    int64_t count = 0;
    for (int64_t y = first; y < last; ++y) {
      float* row = hidden.data + y % hidden.rows * pixels * s_.hidden;
      const size_t pixel_bytes = static_cast<size_t>(s_.hidden) * sizeof(float);
      if (left == strip.left) memset(row, 0, pixel_bytes);
      if (right == strip.right) memset(row + (pixels - 1) * s_.hidden, 0, pixel_bytes);
      for (int64_t at = left; at < right; ++at, ++count) {
        const float* pixel = x + (y * s_.width + at) * channels;
        places_[count] = row - hidden.data + (at - strip.left + 1) * s_.hidden;
        A* factor = factors_ + count * padded_;
        for (int64_t c = 0; c < padded_; c += kW)
          store_factor(factor + c,
                       c < channels ? load_lanes(pixel + c, min64(kW, channels - c)) : VecF{});
      }
    }
    const float* bias = weights.inner + 10 * s_.hidden;
    multiply_pixels<false>(
        factors_, padded_, static_cast<const B*>(weights.expand), count, s_.hidden,
        padded_, [&](int64_t m, int64_t c, VecF sum) __attribute__((always_inline)) {
          store(hidden.data + places_[m] + c, sum + load(bias + c));
        });
  }

  void contract(const FeedForwardWeights& weights, const FeedForwardStrip& strip,
                const HiddenRows& hidden, const float* x, int64_t first, int64_t last, float* out) {
    const int64_t pixels = strip.hidden_pixels(), channels = s_.channels;
    const float* bias = weights.inner + 9 * s_.hidden;
    const ChannelsLastKernel<float> kernel = {3, 3, weights.inner, s_.hidden};
    int64_t count = 0;
    for (int64_t y = first; y < last; ++y) {
      const float* seen[3];
      for (int64_t i = 0; i < 3; ++i) {
        const int64_t row = y + i - 1;
        seen[i] = row < 0 || row >= s_.height
                      ? nullptr
                      : hidden.data + row % hidden.rows * pixels * s_.hidden;
      }
      A* factors = factors_ + (count - 1) * s_.hidden;  // of column 1 first
      convolve_channels_last(
          kernel, SeenRows<float>{seen, s_.hidden, pixels}, 1, pixels - 1,
          s_.hidden, [&](int64_t at, int64_t c, int64_t, VecF z) __attribute__((always_inline)) {
            store_factor(factors + at * s_.hidden + c, gelu_lanes<float>(z + load(bias + c)));
          });
      for (int64_t at = strip.left; at < strip.right; ++at)
        places_[count++] = (y * s_.width + at) * channels;
    }
    multiply_pixels<true>(
        factors_, s_.hidden, static_cast<const B*>(weights.contract), count, padded_,
        s_.hidden, [&](int64_t m, int64_t c, VecF sum) __attribute__((always_inline)) {
          const int64_t lanes = min64(kW, channels - c), at = places_[m] + c;
          if (lanes > 0)
            store_lanes(out + at, load_lanes(x + at, lanes) + (sum + load(weights.outer + c)),
                        lanes);
        });
  }

 private:
  const FeedForwardShape& s_;
  const int64_t padded_;
  A* factors_;       // a side of a product: pixels [C, padded], or GELUs [hidden]
  int64_t* places_;  // of pixels, where results go
};

template <class B>
struct FeedForwardEntries {
  // body(FeedForward of the types that the processor is to have).
  template <class Body>
  static void run(const FeedForwardShape& s, int64_t rows, int64_t columns, void* scratch,
                  const Body& body) {
    Arena arena(scratch);
#if defined(__AVX512F__)
    if constexpr (sizeof(B) == 2) {
      if (s.native) {
        FeedForward<BFloat16, B> step(s, rows, columns, arena);
        return body(step);
      }
    }
#endif
    FeedForward<float, B> step(s, rows, columns, arena);
    body(step);
  }

  static int64_t scratch_bytes(const FeedForwardShape& s, int64_t rows, int64_t columns) {
    Arena arena(nullptr);
    FeedForward<float, B>(s, rows, columns, arena);
    return arena.bytes();
  }
  static void expand(const FeedForwardShape& s, const FeedForwardWeights& weights,
                     const FeedForwardStrip& strip, const float* x, int64_t first, int64_t last,
                     const HiddenRows& hidden, void* scratch) {
    run(s, last - first, strip.right - strip.left, scratch,
        [&](auto& step) { step.expand(weights, strip, x, first, last, hidden); });
  }
  static void contract(const FeedForwardShape& s, const FeedForwardWeights& weights,
                       const FeedForwardStrip& strip, const HiddenRows& hidden, const float* x,
                       int64_t first, int64_t last, float* out, void* scratch) {
    run(s, last - first, strip.right - strip.left, scratch,
        [&](auto& step) { step.contract(weights, strip, hidden, x, first, last, out); });
  }

  static constexpr FeedForwardKernels kernels = {scratch_bytes, expand, contract};
};

}  // namespace

const FeedForwardKernels& feed_forward_kernels(DType dtype) {
  return dtype == DType::kBFloat16 ? FeedForwardEntries<BFloat16>::kernels
                                   : FeedForwardEntries<float>::kernels;
}

}  // namespace attnops::cpu::ATTNOPS_ISA
