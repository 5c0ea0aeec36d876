// Host entry of 1x1 convolutions: shares of the pixels and outputs.
#include "host.h"

#include <algorithm>
#include <optional>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const PointwiseKernels& kernels() {
  ATTNOPS_IF_AVX512(avx512::pointwise_kernels());
  ATTNOPS_IF_AVX2(avx2::pointwise_kernels());
  return baseline::pointwise_kernels();
}

int64_t parts_of(int64_t all, int64_t parts) { return (all + parts - 1) / parts; }

// So many shares of the pixels by so many of the outputs.
struct Shares {
  int64_t pixels, outputs;

  // Those of least time for the largest one, by what it multiplies and reads.
  Shares(int64_t blocks, int64_t block, int64_t panels, int64_t threads) : pixels(1), outputs(1) {
    constexpr int64_t kProducts = 32, kValues = 2;  // in a cycle
    int64_t least = INT64_MAX;
    for (int64_t rows = std::min(threads, blocks); rows > 0; --rows) {
      const int64_t columns = std::min(threads / rows, panels);
      const int64_t m = parts_of(blocks, rows) * block, n = parts_of(panels, columns) * kPanelRows;
      const int64_t cycles = m * n / kProducts + (m + n) / kValues;
      if (cycles >= least) continue;
      least = cycles;
      pixels = rows;
      outputs = columns;
    }
  }
};

void check(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& gate, const std::optional<Tensor>& residual,
           const std::optional<Tensor>& factor, const std::optional<Tensor>& scale, int64_t outputs,
           int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float && x.numel() > 0 &&
                      has_inner_channels(x),
                  "pointwise: expected a map [B, C, H, W] in float32 with contiguous channels");
  STD_TORCH_CHECK(outputs > 0 && weight.scalar_type() == ScalarType::Float &&
                      weight.is_contiguous() &&
                      weight.numel() == padded_to_panels(outputs) * x.size(1),
                  "pointwise: expected weights in panels of ", x.size(1), " channels and ", outputs,
                  " outputs");
  for (const std::optional<Tensor>* row : {&bias, &factor})
    STD_TORCH_CHECK(!*row || ((*row)->scalar_type() == ScalarType::Float &&
                              (*row)->is_contiguous() && (*row)->numel() == outputs),
                    "pointwise: expected a bias and a factor [O] in float32");
  for (const std::optional<Tensor>* map : {&gate, &residual})
    STD_TORCH_CHECK(!*map || is_map_like(**map, x, outputs, ScalarType::Float),
                    "pointwise: expected a gate and a residual like the result");
  STD_TORCH_CHECK(!scale || (scale->scalar_type() == ScalarType::Float && scale->dim() == 4 &&
                             scale->size(0) == x.size(0) && scale->size(1) == x.size(1) &&
                             scale->numel() == x.size(0) * x.size(1) && has_inner_channels(*scale)),
                  "pointwise: expected a scale [B, C, 1, 1] in float32");
  STD_TORCH_CHECK(is_activation(activation), "pointwise: expected an activation");
}

const float* values(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

// `values`, or null, past so many of them.
const float* past(const float* values, int64_t count) {
  return values == nullptr ? nullptr : values + count;
}

// All pixels of `args`, whose tail is taken here; those of one image where there is a scale.
void multiply(const PointwiseShape& s, PointwiseArguments args) {
  const PointwiseKernels& own = kernels();
  const int64_t bytes = s.channels * static_cast<int64_t>(sizeof(float));
  const int64_t left = s.pixels % own.block;
  const Scratch tail(left == 0 ? 0 : own.block * bytes);
  if (left != 0) {
    memcpy(tail.at(0), args.x + (s.pixels - left) * s.channels, static_cast<size_t>(left * bytes));
    memset(tail.at(left * bytes), 0, static_cast<size_t>((own.block - left) * bytes));
  }
  args.tail = reinterpret_cast<const float*>(tail.at(0));

  const int64_t blocks = parts_of(s.pixels, own.block), panels = parts_of(s.outputs, kPanelRows);
  const Shares shares(blocks, own.block, panels, thread_count());
  const int64_t workers = shares.pixels * shares.outputs;
  const int64_t scaled_bytes = args.scale == nullptr ? 0 : own.scaled_bytes(s);
  const Scratch scaled(workers * scaled_bytes);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t row = worker / shares.outputs, column = worker % shares.outputs;
    const auto share = [](int64_t all, int64_t part, int64_t parts) { return all * part / parts; };
    const PointwisePart part = {
        share(blocks, row, shares.pixels) * own.block,
        std::min(s.pixels, share(blocks, row + 1, shares.pixels) * own.block),
        share(panels, column, shares.outputs) * kPanelRows,
        share(panels, column + 1, shares.outputs) * kPanelRows};
    own.run(s, args, part, scaled.at(worker * scaled_bytes));
  });
}

Tensor pointwise(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> gate,
                 std::optional<Tensor> residual, std::optional<Tensor> factor,
                 std::optional<Tensor> scale, int64_t outputs, int64_t activation) {
  check(x, weight, bias, gate, residual, factor, scale, outputs, activation);
  Tensor out = empty_map(x, outputs, x.size(2), x.size(3), true);
  const int64_t channels = x.size(1), images = scale ? x.size(0) : 1;
  const PointwiseShape s = {x.numel() / channels / images, channels, outputs,
                            static_cast<Activation>(activation)};
  for (int64_t image = 0; image < images; ++image) {
    const int64_t pixel = image * s.pixels;
    multiply(s, {static_cast<const float*>(x.const_data_ptr()) + pixel * channels, nullptr,
                 static_cast<const float*>(weight.const_data_ptr()),
                 past(values(scale), image * channels), values(bias),
                 past(values(gate), pixel * outputs), past(values(residual), pixel * outputs),
                 values(factor), static_cast<float*>(out.mutable_data_ptr()) + pixel * outputs});
  }
  return out;
}
// x [B, C, H, W], gate and residual [B, outputs, H, W] in float32 with contiguous channels, weight
// in panels, bias and factor [outputs], scale [B, C, 1, 1] -> out like them. activation: by number,
// as in cpu/common/activation.h.
ATTNOPS_REGISTER(cpu, CPU, pointwise,
                 "(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, "
                 "Tensor? factor, Tensor? scale, int outputs, int activation) -> Tensor")

}  // namespace
}  // namespace attnops::cpu
