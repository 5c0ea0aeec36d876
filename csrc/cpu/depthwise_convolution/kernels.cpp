// Rows of a slab of channels; compiled once per instruction set.
#include "cpu/common/arena.h"
#include "cpu/common/vec.h"
#include "cpu/depthwise/gelu.h"
#include "cpu/depthwise/silu.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int kLeastSlab = 4;              // vectors of channels, unless there are fewer
constexpr int64_t kRingBytes = 448 << 10;  // of a slab: more channels are more of a row at a time
constexpr int kSlide = 8;                  // results of a row that taps slide over in registers

template <class C>
ATTNOPS_INLINE typename Vec<C>::V activated(typename Vec<C>::V z, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return at_least(C(0), z);
    case Activation::kGelu:
      return gelu_lanes<C>(z);
    case Activation::kSilu:
      return silu_lanes<C>(z);
    default:
      return z;
  }
}

// sums[i] += the products of a row of taps with pixels from `row` on, `step` elements apart, where
// the result of sums[0] begins.
template <int kSide, class C>
ATTNOPS_INLINE void add_taps(const C* row, int64_t step, const typename Vec<C>::V (&taps)[kSide],
                             typename Vec<C>::V (&sums)[kSlide]) {
#pragma GCC unroll 16
  for (int n = 0; n < kSlide + kSide - 1; ++n) {
    const auto in = load(row + n * step);
#pragma GCC unroll 8
    for (int i = 0; i < kSlide; ++i)
      if (n - i >= 0 && n - i < kSide) sums[i] += taps[n - i] * in;
  }
}

template <class S>
class DepthwiseSlab {
 public:
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  static constexpr int64_t kW = kWidth<C>;

  DepthwiseSlab(const DepthwiseShape& s, void* scratch)
      : s_(s),
        reach_(s.reach()),
        // Blocks of results are computed as a whole.
        pixels_(round_up(s.width, kSlide * s.dilation) + 2 * reach_),
        ring_rows_(min64(2 * reach_ + 1, s.height)),
        slab_(slab_vectors()),
        arena_(scratch),
        taps_(arena_.take<C>(slab_ * (s.side * s.side + 1) * kW)),
        ring_(arena_.take<C>(ring_rows_ * slab_ * pixels_ * kW)) {}

  int64_t bytes() const { return arena_.bytes(); }
  int64_t channels() const { return slab_ * kW; }

  void run(const DepthwiseArguments& args, const DepthwisePart& part) {
    first_channel_ = part.slab * channels();
    vectors_ = min64(slab_, (s_.channels - first_channel_ + kW - 1) / kW);
    take_taps(static_cast<const C*>(args.weight), static_cast<const C*>(args.bias));
    memset(ring_, 0, static_cast<size_t>(ring_rows_ * slab_ * pixels_ * kW) * sizeof(C));
    int64_t next = max64(0, part.first - reach_);  // row to be taken
    for (int64_t y = part.first; y < part.last; ++y) {
      for (const int64_t end = min64(s_.height, y + reach_ + 1); next < end; ++next)
        take_row(static_cast<const S*>(args.x), next);
      S* const out = static_cast<S*>(args.out) + y * s_.width * s_.channels;
      C* const sums = args.sums == nullptr ? nullptr : static_cast<C*>(args.sums) + y * s_.channels;
      if (s_.side == 3)
        convolve_row<3>(y, out, sums);
      else if (s_.side == 5)
        convolve_row<5>(y, out, sums);
      else
        convolve_row<7>(y, out, sums);
    }
  }

  void average(const C* sums, int64_t slab, S* mean) {
    first_channel_ = slab * channels();
    const int64_t end = min64(s_.channels, first_channel_ + channels());
    const C each = C(1) / static_cast<C>(s_.height * s_.width);
    for (int64_t c = first_channel_; c < end; c += kW) {
      const int64_t lanes = min64(kW, end - c);
      V total = {};
      for (int64_t y = 0; y < s_.height; ++y)
        total += load_lanes(sums + y * s_.channels + c, lanes);
      store_lanes(mean + c, each * total, lanes);
    }
  }

 private:
  // Of about equal slabs.
  int64_t slab_vectors() const {
    const int64_t all = (s_.channels + kW - 1) / kW;
    const int64_t row = ring_rows_ * pixels_ * kW * static_cast<int64_t>(sizeof(C));
    const int64_t most = max64(kLeastSlab, kRingBytes / row), slabs = (all + most - 1) / most;
    return (all + slabs - 1) / slabs;
  }
  int64_t lanes_of(int64_t vector) const {
    return min64(kW, s_.channels - first_channel_ - vector * kW);
  }

  // Vectors of taps, side * side and the bias for each vector of channels.
  void take_taps(const C* weight, const C* bias) {
    C* to = taps_;
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t c = first_channel_ + v * kW, lanes = lanes_of(v);
      for (int64_t tap = 0; tap < s_.side * s_.side; ++tap, to += kW)
        store(to, load_lanes(weight + tap * s_.channels + c, lanes));
      store(to, bias == nullptr ? V{} : load_lanes(bias + c, lanes));
      to += kW;
    }
  }

  C* ring_row(int64_t y, int64_t vector) const {
    return ring_ + (y % ring_rows_ * slab_ + vector) * pixels_ * kW;
  }

  void take_row(const S* x, int64_t y) const {
    const S* pixel = x + y * s_.width * s_.channels + first_channel_;
    C* to = ring_row(y, 0) + reach_ * kW;
    const int64_t row = s_.width * s_.channels;
    for (int64_t at = 0; at < s_.width; ++at, pixel += s_.channels, to += kW)
      for (int64_t v = 0; v < vectors_; ++v) {
        __builtin_prefetch(pixel + row + v * kW);
        store(to + v * pixels_ * kW, load_lanes(pixel + v * kW, lanes_of(v)));
      }
  }

  // A row of the result, and where `row_sums` is not null, what its pixels add up to.
  template <int kSide>
  void convolve_row(int64_t y, S* out, C* row_sums) const {
    const int64_t step = s_.dilation * kW;
    for (int64_t v = 0; v < vectors_; ++v) {
      V total = {};
      for (int64_t begin = 0; begin < s_.width; begin += kSlide * s_.dilation)
        for (int64_t x = begin; x < min64(s_.width, begin + s_.dilation); ++x) {
          const C* taps = taps_ + v * (kSide * kSide + 1) * kW;
          V sums[kSlide];
#pragma GCC unroll 8
          for (int i = 0; i < kSlide; ++i) sums[i] = load(taps + kSide * kSide * kW);
          for (int i = 0; i < kSide; ++i, taps += kSide * kW) {
            const int64_t row = y + i * s_.dilation - reach_;
            if (row < 0 || row >= s_.height) continue;
            V weights[kSide];
#pragma GCC unroll 8
            for (int t = 0; t < kSide; ++t) weights[t] = load(taps + t * kW);
            add_taps<kSide, C>(ring_row(row, v) + x * kW, step, weights, sums);
          }
          total += put(sums, x, v, out);
        }
      if (row_sums != nullptr) store_lanes(row_sums + first_channel_ + v * kW, total, lanes_of(v));
    }
  }

  // Results at column x and every `dilation` columns from there, as far as the map goes; their sum.
  inline __attribute__((always_inline)) V put(const V (&sums)[kSlide], int64_t x, int64_t vector,
                                              S* out) const {
    S* to = out + x * s_.channels + first_channel_ + vector * kW;
    const int64_t step = s_.dilation * s_.channels, lanes = lanes_of(vector);
    V total = {};
#pragma GCC unroll 8
    for (int i = 0; i < kSlide; ++i, x += s_.dilation, to += step) {
      if (x >= s_.width) break;
      const V result = activated<C>(sums[i], s_.activation);
      store_lanes(to, result, lanes);
      total += result;
    }
    return total;
  }

  const DepthwiseShape& s_;
  const int64_t reach_, pixels_, ring_rows_, slab_;
  Arena arena_;
  C* taps_;
  C* ring_;  // rows of [vectors, pixels], with zeros where the map has ended
  int64_t first_channel_ = 0, vectors_ = 0;
};

template <class S>
struct DepthwiseEntries {
  static DepthwisePlan plan(const DepthwiseShape& s) {
    const DepthwiseSlab<S> slab(s, nullptr);
    return {slab.channels(), slab.bytes()};
  }
  static void run(const DepthwiseShape& s, const DepthwiseArguments& args,
                  const DepthwisePart& part, void* scratch) {
    DepthwiseSlab<S>(s, scratch).run(args, part);
  }
  static void average(const DepthwiseShape& s, const void* sums, int64_t slab, void* mean) {
    DepthwiseSlab<S>(s, nullptr)
        .average(static_cast<const Compute<S>*>(sums), slab, static_cast<S*>(mean));
  }
  static constexpr DepthwiseKernels kernels = {plan, run, average, sizeof(Compute<S>)};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(DepthwiseKernels, depthwise_convolution_kernels, DepthwiseEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
