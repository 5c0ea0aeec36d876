// Products of pixels, and what is done with them before they are written.
#include "cpu/common/panel_products.h"
#include "cpu/depthwise/gelu.h"
#include "cpu/depthwise/silu.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int64_t kW = kWidth<float>;
constexpr int64_t kWeights = 1 << 17;  // that pixels go past, half a second-level cache or less
constexpr int64_t kPixels = 48;        // that a panel is read for, and of long rows:
constexpr int64_t kLongRow = 2048;     // bytes, from which on so many would be of too many pages

// x = of(x) for `count` values, four vectors at a time: each is a long chain.
template <class Of>
void activate_values(float* x, int64_t count, const Of& of) {
  constexpr int kTogether = 4;
  int64_t i = 0;
  for (; i + kTogether * kW <= count; i += kTogether * kW) {
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) store(x + i + j * kW, of(load(x + i + j * kW)));
  }
  for (; i < count; i += kW) store_lanes(x + i, of(load_lanes(x + i, count - i)), count - i);
}

class Pointwise {
 public:
  Pointwise(const PointwiseShape& s, const PointwiseArguments& args) : s_(s), args_(args) {}

  void run(const PointwisePart& part) const {
    const int64_t all = part.last_output - part.first_output;
    const int64_t blocks = all * s_.channels / kWeights + 1;
    const int64_t step = round_up((all + blocks - 1) / blocks, 4 * kPanelRows);
    for (int64_t first = part.first_output; first < part.last_output; first += step)
      multiply_all(
          {part.first_pixel, part.last_pixel, first, min64(part.last_output, first + step)});
  }

 private:
  // Of weights that stay in the second-level cache.
  void multiply_all(const PointwisePart& part) const {
    const int64_t whole = s_.pixels - s_.pixels % kRows, last = min64(part.last_pixel, whole);
    const int64_t row = s_.outputs * static_cast<int64_t>(sizeof(float));
    const int64_t pixels = row > kLongRow ? kPixels / 2 : kPixels;
    for (int64_t first = part.first_pixel; first < last; first += pixels)
      multiply(args_.x + first * s_.channels, first, min64(last, first + pixels), part);
    if (part.last_pixel > whole) multiply(args_.tail, whole, part.last_pixel, part);
  }

  void multiply(const float* pixels, int64_t first, int64_t last, const PointwisePart& part) const {
    multiply_products(pixels, first, last, part);
    const auto gelu = [](VecF v) __attribute__((always_inline)) { return gelu_lanes<float>(v); };
    const auto silu = [](VecF v) __attribute__((always_inline)) { return silu_lanes<float>(v); };
    if (s_.activation == Activation::kGelu) activate(first, last, part, gelu);
    if (s_.activation == Activation::kSilu) activate(first, last, part, silu);
  }

  template <class Of>
  void activate(int64_t first, int64_t last, const PointwisePart& part, const Of& of) const {
    const int64_t end = min64(part.last_output, s_.outputs);
    for (int64_t pixel = first; pixel < last; ++pixel)
      activate_values(args_.out + pixel * s_.outputs + part.first_output, end - part.first_output,
                      of);
  }

  void multiply_products(const float* pixels, int64_t first, int64_t last,
                         const PointwisePart& part) const {
    const int64_t depth = s_.channels, outputs = s_.outputs, from = part.first_output;
    const bool relu = s_.activation == Activation::kRelu;
    const PointwiseArguments& args = args_;
    multiply_in_registers<true>(
        pixels, depth, args.weight + from * depth, last - first, part.last_output - from, depth,
        [=](int64_t m, int64_t c, VecF sum) __attribute__((always_inline)) {
          const int64_t n = from + c, lanes = min64(kW, outputs - n);
          if (lanes <= 0) return;
          const int64_t at = (first + m) * outputs + n;
          if (args.bias != nullptr) sum += load_lanes(args.bias + n, lanes);
          if (args.gate != nullptr) sum *= load_lanes(args.gate + at, lanes);
          if (args.residual != nullptr) {
            VecF term = load_lanes(args.residual + at, lanes);
            if (args.factor != nullptr) term *= load_lanes(args.factor + n, lanes);
            sum += term;
          }
          if (relu) sum = at_least(0.0f, sum);
          store_lanes(args.out + at, sum, lanes);
        },
        [=](int64_t m, int64_t c) __attribute__((always_inline)) {
          const int64_t at = (first + m) * outputs + from + c;
          if (args.gate != nullptr) __builtin_prefetch(args.gate + at);
          if (args.residual != nullptr) __builtin_prefetch(args.residual + at);
        });
  }

  const PointwiseShape& s_;
  const PointwiseArguments& args_;
};

void run(const PointwiseShape& s, const PointwiseArguments& args, const PointwisePart& part) {
  Pointwise(s, args).run(part);
}

constexpr PointwiseKernels kKernels = {kRows, run};

}  // namespace

const PointwiseKernels& pointwise_kernels() { return kKernels; }

}  // namespace attnops::cpu::ATTNOPS_ISA
