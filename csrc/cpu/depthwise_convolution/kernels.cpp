// Rows of a slab of channels; compiled once per instruction set.
#include <type_traits>

#include "cpu/common/arena.h"
#include "cpu/common/panel_products.h"
#include "cpu/depthwise/activate.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int kLeastSlab = 4;              // vectors of channels, whole panels
constexpr int64_t kRingBytes = 448 << 10;  // of a slab: more channels are more of a row at a time
constexpr int64_t kExpandedBytes = 896 << 10;  // with weights, where a map is read for every slab
constexpr int kSlide = 8;                      // results of a row that taps slide over in registers

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
        unit_(s.expansion == nullptr ? 1 : kLeastSlab),
        units_((s.channels + unit_ * kW - 1) / (unit_ * kW)),
        slabs_((units_ + most_units() - 1) / most_units()),
        slab_((units_ + slabs_ - 1) / slabs_ * unit_),
        arena_(scratch),
        taps_(arena_.take<C>(slab_ * (s.side * s.side + 1) * kW)),
        ring_(arena_.take<C>(ring_rows_ * slab_ * pixels_ * kW)),
        row_(arena_.take<C>(row_elements())) {}

  DepthwisePlan plan() const { return {units_, slabs_, arena_.bytes()}; }

  void run(const DepthwiseArguments& args, const DepthwisePart& part) {
    first_channel_ = channel_of(part.slab);
    const int64_t end = min64(s_.channels, channel_of(part.slab + 1));
    vectors_ = (end - first_channel_ + kW - 1) / kW;
    take_taps(static_cast<const C*>(args.weight), static_cast<const C*>(args.bias));
    memset(ring_, 0, static_cast<size_t>(ring_rows_ * slab_ * pixels_ * kW) * sizeof(C));
    memset(row_, 0, static_cast<size_t>(row_elements()) * sizeof(C));
    int64_t next = max64(0, part.first - reach_);  // row to be taken
    for (int64_t y = part.first; y < part.last; ++y) {
      for (const int64_t seen = min64(s_.height, y + reach_ + 1); next < seen; ++next)
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
    first_channel_ = channel_of(slab);
    const int64_t end = min64(s_.channels, channel_of(slab + 1));
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
  int64_t channel_of(int64_t slab) const { return plan().first_unit(slab) * unit_ * kW; }
  // Of a slab: its rows in the ring, and where there is an expansion its weights.
  int64_t most_units() const {
    const bool expands = s_.expansion != nullptr;
    const int64_t channels = unit_ * kW, size = sizeof(C);
    const int64_t rows = ring_rows_ * pixels_ + (expands ? s_.expansion->channels : 0);
    return max64(kLeastSlab / unit_,
                 (expands ? kExpandedBytes : kRingBytes) / (rows * channels * size));
  }
  // Of a row of an expansion's map, as whole blocks of pixels.
  int64_t row_elements() const {
    return s_.expansion == nullptr ? 0 : round_up(s_.width, kRows) * s_.expansion->channels;
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
    if constexpr (std::is_same_v<S, float>) {
      if (s_.expansion != nullptr) return expand_row(*s_.expansion, x, y);
    }
    const S* pixel = x + y * s_.width * s_.channels + first_channel_;
    C* to = ring_row(y, 0) + reach_ * kW;
    const int64_t row = s_.width * s_.channels;
    for (int64_t at = 0; at < s_.width; ++at, pixel += s_.channels, to += kW)
      for (int64_t v = 0; v < vectors_; ++v) {
        __builtin_prefetch(pixel + row + v * kW);
        store(to + v * pixels_ * kW, load_lanes(pixel + v * kW, lanes_of(v)));
      }
  }

  // A row of what the expansion gives of map x.
  void expand_row(const Expansion& expansion, const float* x, int64_t y) const {
    const int64_t depth = expansion.channels, step = pixels_ * kW, first = first_channel_;
    const float* pixels = x + y * s_.width * depth;
    // Whole blocks of pixels are read: past the end of the map those of a copy.
    if (y * s_.width + round_up(s_.width, kRows) > s_.height * s_.width) {
      memcpy(row_, pixels, static_cast<size_t>(s_.width * depth) * sizeof(float));
      pixels = row_;
    }
    float* const to = ring_row(y, 0) + reach_ * kW;
    multiply_in_registers<true>(
        pixels, depth, expansion.weight + first * depth, s_.width, vectors_ * kW, depth,
        [=](int64_t m, int64_t c, VecF sum) __attribute__((always_inline)) {
          if (expansion.bias != nullptr)
            sum += load_lanes(expansion.bias + first + c, min64(kW, s_.channels - first - c));
          store(to + c / kW * step + m * kW, sum);
        },
        [](int64_t, int64_t) {});
    for (int64_t v = 0; v < vectors_; ++v)
      activate_values(to + v * step, s_.width * kW, expansion.activation);
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
  const int64_t reach_, pixels_, ring_rows_;
  const int64_t unit_;  // vectors; those of whole panels where there is an expansion
  const int64_t units_, slabs_;
  const int64_t slab_;  // vectors of the largest one
  Arena arena_;
  C* taps_;
  C* ring_;  // rows of [vectors, pixels], with zeros where the map has ended
  C* row_;   // of an expansion's map, with zeros behind it
  int64_t first_channel_ = 0, vectors_ = 0;
};

template <class S>
struct DepthwiseEntries {
  static DepthwisePlan plan(const DepthwiseShape& s) { return DepthwiseSlab<S>(s, nullptr).plan(); }
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
