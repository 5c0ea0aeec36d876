// Grouped attention: inner products of groups of channels, and their products with maps; compiled
// once per instruction set. Sums run in several accumulators of C for at most kChain steps, and in
// double beyond: without that, narrow registers make chains so long that their rounding is several
// times that of PyTorch's sums.
#include "cpu/common/stream.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int kAccumulators = 4;
constexpr int64_t kChain = 64;  // longest chain of additions in C

template <class S>
struct GroupEntries {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  static constexpr int64_t kStep = kAccumulators * kWidth<C>;

  static double dot_contiguous(const void* x_, const void* y_, int64_t count, double factor,
                               void* out_, bool streamed) {
    const S *x = static_cast<const S*>(x_), *y = static_cast<const S*>(y_);
    S* out = static_cast<S*>(out_);
    const C f = static_cast<C>(factor);
    double total = 0;
    with_storing(
        out && streamed, out, 0, [&](auto storing) __attribute__((always_inline)) {
          for (int64_t i = 0; i < count; i += kChain * kStep)
            total += static_cast<double>(dot_block<decltype(storing)>(
                x + i, y + i, min64(kChain * kStep, count - i), f, out ? out + i : nullptr));
        });
    return total;
  }

  template <class Storing>
  static C dot_block(const S* x, const S* y, int64_t count, C f, S* out) {
    V sums[kAccumulators] = {};
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep)
#pragma GCC unroll 4
      for (int j = 0; j < kAccumulators; ++j) {
        const V v = load(x + i + j * kWidth<C>);
        sums[j] += v * load(y + i + j * kWidth<C>);
        if (out) put<Storing::value>(out + i + j * kWidth<C>, f * v);
      }
    for (; i < count; i += kWidth<C>) {
      const int64_t left = min64(kWidth<C>, count - i);
      const V v = load_partial(x + i, left);
      sums[0] += v * load_partial(y + i, left);
      if (out) store_partial(out + i, f * v, left);
    }
    return lane_sum<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  static void scale_contiguous(const void* x_, int64_t count, double factor, void* out_,
                               bool streamed) {
    const S* x = static_cast<const S*>(x_);
    S* out = static_cast<S*>(out_);
    const C f = static_cast<C>(factor);
    int64_t i = 0;
    with_storing(
        streamed, out, 0, [&](auto storing) __attribute__((always_inline)) {
          for (; i + kWidth<C> <= count; i += kWidth<C>)
            put<decltype(storing)::value>(out + i, f * load(x + i));
        });
    if (i < count) store_partial(out + i, f * load_partial(x + i, count - i), count - i);
  }

  // Sums in double and factors by channel, each padded to whole vectors.
  static int64_t scratch_bytes(int64_t channels) {
    return round_up(
        round_up(channels, kWidth<C>) * static_cast<int64_t>(sizeof(double) + sizeof(C)), 64);
  }

  static void spread(const double* factors, int64_t channels, int64_t groups, C* out) {
    const int64_t width = channels / groups;
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<C>(factors[c / width]);
    for (int64_t c = channels; c < round_up(channels, kWidth<C>); ++c) out[c] = C(0);
  }

  static void dot_channels_last(const void* x_, const void* y_, int64_t pixels, int64_t channels,
                                int64_t groups, const double* factors, void* out_, bool streamed,
                                double* sums, void* scratch) {
    const S *x = static_cast<const S*>(x_), *y = static_cast<const S*>(y_);
    S* out = static_cast<S*>(out_);
    double* totals = static_cast<double*>(scratch);
    C* scales = reinterpret_cast<C*>(totals + round_up(channels, kWidth<C>));
    if (out) spread(factors, channels, groups, scales);
    for (int64_t c = 0; c < channels; ++c) totals[c] = 0;
    // A few vectors of channels at a time, their sums in registers over a chain of pixels.
    const auto run = [&](auto storing) __attribute__((always_inline)) {
      using Storing = decltype(storing);
      for (int64_t first = 0; first < channels; first += kStep) {
        const int64_t lanes = min64(kStep, channels - first);
        for (int64_t p = 0; p < pixels; p += kChain) {
          const int64_t i = p * channels, chain = min64(kChain, pixels - p);
          S* to = out ? out + i : nullptr;
          if (lanes == kStep)
            dot_columns<true, Storing>(x + i, y + i, chain, channels, first, lanes, scales, to,
                                       totals);
          else
            dot_columns<false, Storing>(x + i, y + i, chain, channels, first, lanes, scales, to,
                                        totals);
        }
      }
    };
    with_storing(out && streamed, out, channels, run);
    const int64_t width = channels / groups;
    for (int64_t g = 0; g < groups; ++g) {
      double sum = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) sum += totals[c];
      sums[g] = sum;
    }
  }

  template <bool kWhole, class Storing>
  static void dot_columns(const S* x, const S* y, int64_t pixels, int64_t channels, int64_t first,
                          int64_t lanes, const C* scales, S* out, double* totals) {
    V sums[kAccumulators] = {};
    for (int64_t p = 0; p < pixels; ++p)
#pragma GCC unroll 4
      for (int j = 0; j < kAccumulators; ++j) {
        const int64_t at = first + j * kWidth<C>, left = lanes - j * kWidth<C>;
        if (!kWhole && left <= 0) break;
        const int64_t i = p * channels + at;
        const bool whole = kWhole || left >= kWidth<C>;
        const V v = whole ? load(x + i) : load_partial(x + i, left);
        sums[j] += v * (whole ? load(y + i) : load_partial(y + i, left));
        if (!out) continue;
        const V scaled = load(scales + at) * v;
        if (whole)
          put<Storing::value>(out + i, scaled);
        else
          store_partial(out + i, scaled, left);
      }
    C found[kStep];
    for (int j = 0; j < kAccumulators; ++j) store(found + j * kWidth<C>, sums[j]);
    for (int64_t c = 0; c < lanes; ++c) totals[first + c] += static_cast<double>(found[c]);
  }

  static void scale_channels_last(const void* x_, int64_t pixels, int64_t channels, int64_t groups,
                                  const double* factors, void* out_, bool streamed, void* scratch) {
    const S* x = static_cast<const S*>(x_);
    S* out = static_cast<S*>(out_);
    C* scales = static_cast<C*>(scratch);
    spread(factors, channels, groups, scales);
    const auto run = [&](auto storing) __attribute__((always_inline)) {
      for (int64_t p = 0; p < pixels; ++p) {
        const int64_t pixel = p * channels;
        int64_t c = 0;
        for (; c + kWidth<C> <= channels; c += kWidth<C>)
          put<decltype(storing)::value>(out + pixel + c, load(scales + c) * load(x + pixel + c));
        if (const int64_t left = channels - c)
          store_partial(out + pixel + c, load(scales + c) * load_partial(x + pixel + c, left),
                        left);
      }
    };
    with_storing(streamed, out, channels, run);
  }

  static constexpr GroupKernels kernels = {dot_contiguous, scale_contiguous, scratch_bytes,
                                           dot_channels_last, scale_channels_last};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(GroupKernels, group_kernels, GroupEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
