// Products of pixels, and what is done with them before they are written.
#include "cpu/common/panel_products.h"
#include "cpu/depthwise/activate.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int64_t kW = kWidth<float>;
constexpr int64_t kWeights = 1 << 17;  // that pixels go past, half a second-level cache or less
constexpr int64_t kPixels = 48;        // that a panel is read for, and of long rows:
constexpr int64_t kLongRow = 2048;     // bytes, from which on so many would be of too many pages

class Pointwise {
 public:
  Pointwise(const PointwiseShape& s, const PointwiseArguments& args, float* scaled)
      : s_(s), args_(args), scaled_(scaled) {}

  void run(const PointwisePart& part) {
    const int64_t all = part.last_output - part.first_output;
    const int64_t blocks = all * s_.channels / kWeights + 1;
    const int64_t step = round_up((all + blocks - 1) / blocks, kStep);
    for (int64_t first = part.first_output; first < part.last_output; first += step) {
      const int64_t last = min64(part.last_output, first + step);
      take_weights(first, last);
      multiply_all({part.first_pixel, part.last_pixel, first, last});
    }
  }

  // Of the weights of so many outputs as `run` takes at a time at most.
  static int64_t scaled_bytes(const PointwiseShape& s) {
    const int64_t most = min64(s.outputs, kWeights / s.channels + 1);
    return round_up(most, kStep) * s.channels * static_cast<int64_t>(sizeof(float));
  }

 private:
  static constexpr int64_t kStep = 4 * kPanelRows;

  // Weights of these outputs, with the scale of the channels that they are multiplied with.
  void take_weights(int64_t first, int64_t last) {
    const float* const weight = args_.weight + first * s_.channels;
    weights_ = weight;
    if (args_.scale == nullptr) return;
    const int64_t rows = round_up(last - first, kPanelRows) / kPanelRows * s_.channels;
    for (int64_t row = 0; row < rows; ++row) {
      const VecF scale = VecF{} + args_.scale[row % s_.channels];
      for (int64_t i = row * kPanelRows; i < (row + 1) * kPanelRows; i += kW)
        store(scaled_ + i, scale * load(weight + i));
    }
    weights_ = scaled_;
  }

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
    // A ReLU took the results in registers.
    if (s_.activation == Activation::kRelu || s_.activation == Activation::kNone) return;
    const int64_t end = min64(part.last_output, s_.outputs);
    for (int64_t pixel = first; pixel < last; ++pixel)
      activate_values(args_.out + pixel * s_.outputs + part.first_output, end - part.first_output,
                      s_.activation);
  }

  void multiply_products(const float* pixels, int64_t first, int64_t last,
                         const PointwisePart& part) const {
    const int64_t depth = s_.channels, outputs = s_.outputs, from = part.first_output;
    const bool relu = s_.activation == Activation::kRelu;
    const PointwiseArguments& args = args_;
    multiply_in_registers<true>(
        pixels, depth, weights_, last - first, part.last_output - from, depth,
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
  float* const scaled_;
  const float* weights_ = nullptr;  // of the outputs that are computed
};

void run(const PointwiseShape& s, const PointwiseArguments& args, const PointwisePart& part,
         void* scaled) {
  Pointwise(s, args, static_cast<float*>(scaled)).run(part);
}

constexpr PointwiseKernels kKernels = {kRows, Pointwise::scaled_bytes, run};

}  // namespace

const PointwiseKernels& pointwise_kernels() { return kKernels; }

}  // namespace attnops::cpu::ATTNOPS_ISA
