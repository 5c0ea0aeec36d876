// Host entry of depthwise convolutions: checks, and shares of the rows of slabs of channels.
#include "host.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"
#include "cpu/common/panels.h"

namespace attnops::cpu {
namespace {

const DepthwiseKernels& kernels_for(DType dtype) {
  ATTNOPS_SELECT_KERNELS(depthwise_convolution_kernels, dtype);
}

struct Options {
  int64_t side, dilation, activation;
};

// Of x, or of what the expansion gives of it: a map of so many channels.
void check(const Tensor& x, int64_t channels, const Tensor& weight,
           const std::optional<Tensor>& bias, const Options& options) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && has_inner_channels(x),
                  "depthwise_convolution: expected a map [B, C, H, W] with contiguous channels");
  const int64_t side = options.side;
  STD_TORCH_CHECK((side == 3 || side == 5 || side == 7) && options.dilation > 0,
                  "depthwise_convolution: expected a side of 3, 5 or 7 and a dilation, got ", side,
                  " and ", options.dilation);
  const ScalarType wide =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.scalar_type() == wide && weight.is_contiguous() &&
                      weight.numel() == side * side * channels,
                  "depthwise_convolution: expected weights [side * side, C] in float32, or in "
                  "float64 like the map");
  STD_TORCH_CHECK(
      !bias || (bias->scalar_type() == wide && bias->is_contiguous() && bias->numel() == channels),
      "depthwise_convolution: expected a bias [C] of the weights' dtype");
  STD_TORCH_CHECK(is_activation(options.activation),
                  "depthwise_convolution: expected an activation");
}

// Where a worker's share of the rows of all slabs begins: as many units each.
int64_t first_row(const DepthwisePlan& plan, int64_t height, int64_t items, int64_t worker,
                  int64_t workers) {
  const int64_t all = plan.units * height, unit = items * all * worker / workers;
  const int64_t item = unit / all, at = unit % all;
  int64_t slab = at / height * plan.slabs / plan.units;
  while (plan.first_unit(slab + 1) * height <= at) ++slab;
  const int64_t first = plan.first_unit(slab), width = plan.first_unit(slab + 1) - first;
  return (item * plan.slabs + slab) * height + (at - first * height) / width;
}

// The convolution, and the means of its channels into `mean` if that is a tensor.
Tensor convolve(const Tensor& x, int64_t channels, const Tensor& weight,
                const std::optional<Tensor>& bias, const Options& options,
                const Expansion* expansion, Tensor* mean) {
  check(x, channels, weight, bias, options);
  const DepthwiseShape s = {channels,         x.size(2),
                            x.size(3),        options.side,
                            options.dilation, static_cast<Activation>(options.activation),
                            expansion};
  const DepthwiseKernels& kernels = kernels_for(dtype_of(x));
  Tensor out = empty_map(x, s.channels, s.height, s.width, true);
  const Items from(x), to(out);
  const DepthwisePlan plan = kernels.plan(s);
  const int64_t slabs = plan.slabs, items = x.size(0);
  const int64_t rows = items * slabs * s.height, workers = std::min(thread_count(), rows);
  const Scratch scratch(workers * plan.scratch_bytes);
  const int64_t item_sums = mean == nullptr ? 0 : s.height * s.channels * kernels.sum_bytes;
  const Scratch sums(items * item_sums);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t end = first_row(plan, s.height, items, worker + 1, workers);
    for (int64_t row = first_row(plan, s.height, items, worker, workers); row < end;) {
      const int64_t walk = row / s.height, item = walk / slabs, first = row % s.height;
      const int64_t last = std::min(first + end - row, s.height);
      const DepthwiseArguments args = {from[item], weight.const_data_ptr(),
                                       bias ? bias->const_data_ptr() : nullptr, to[item],
                                       mean == nullptr ? nullptr : sums.at(item * item_sums)};
      kernels.run(s, args, {walk % slabs, first, last}, scratch.at(worker * plan.scratch_bytes));
      row += last - first;
    }
  });
  if (mean == nullptr) return out;
  const Items means(*mean);
  const int64_t parts = items * slabs, averaging = std::min(thread_count(), parts);
  for_each_worker(averaging, [&](int64_t worker) {
    for (int64_t part = worker; part < parts; part += averaging)
      kernels.average(s, sums.at(part / slabs * item_sums), part % slabs, means[part / slabs]);
  });
  return out;
}

Tensor depthwise_convolution(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t side,
                             int64_t dilation, int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4, "depthwise_convolution: expected a map [B, C, H, W]");
  return convolve(x, x.size(1), weight, bias, {side, dilation, activation}, nullptr, nullptr);
}

std::tuple<Tensor, Tensor> with_mean(const Tensor& x, int64_t channels, const Tensor& weight,
                                     const std::optional<Tensor>& bias, const Options& options,
                                     const Expansion* expansion) {
  Tensor mean = empty_map(x, channels, 1, 1, true);
  Tensor out = convolve(x, channels, weight, bias, options, expansion, &mean);
  return {out, mean};
}

std::tuple<Tensor, Tensor> depthwise_convolution_with_mean(Tensor x, Tensor weight,
                                                           std::optional<Tensor> bias, int64_t side,
                                                           int64_t dilation, int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4, "depthwise_convolution: expected a map [B, C, H, W]");
  return with_mean(x, x.size(1), weight, bias, {side, dilation, activation}, nullptr);
}

std::tuple<Tensor, Tensor> expanded_depthwise_convolution(
    Tensor x, Tensor expansion, std::optional<Tensor> expansion_bias, int64_t expansion_activation,
    Tensor weight, std::optional<Tensor> bias, int64_t side, int64_t dilation, int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == ScalarType::Float,
                  "depthwise_convolution: expected a map [B, C, H, W] in float32 to expand");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0,
                  "depthwise_convolution: expected weights [side * side, C]");
  const int64_t channels = weight.size(1);
  STD_TORCH_CHECK(expansion.scalar_type() == ScalarType::Float && expansion.is_contiguous() &&
                      expansion.numel() == padded_to_panels(channels) * x.size(1),
                  "depthwise_convolution: expected weights of the expansion in panels of ",
                  x.size(1), " channels and ", channels, " outputs");
  STD_TORCH_CHECK(
      !expansion_bias || (expansion_bias->scalar_type() == ScalarType::Float &&
                          expansion_bias->is_contiguous() && expansion_bias->numel() == channels),
      "depthwise_convolution: expected a bias [C] of the expansion in float32");
  STD_TORCH_CHECK(is_activation(expansion_activation),
                  "depthwise_convolution: expected an activation of the expansion");
  const auto values = [](const Tensor& tensor) {
    return static_cast<const float*>(tensor.const_data_ptr());
  };
  const Expansion given = {x.size(1), values(expansion),
                           expansion_bias ? values(*expansion_bias) : nullptr,
                           static_cast<Activation>(expansion_activation)};
  return with_mean(x, channels, weight, bias, {side, dilation, activation}, &given);
}

// x [B, C, H, W] with contiguous channels, weight [side * side, C], bias [C] -> out like x.
// activation: by number, as in cpu/common/activation.h.
ATTNOPS_REGISTER(cpu, CPU, depthwise_convolution,
                 "(Tensor x, Tensor weight, Tensor? bias, int side, int dilation, int activation) "
                 "-> Tensor")
// -> also the means of its channels, [B, C, 1, 1].
ATTNOPS_REGISTER(cpu, CPU, depthwise_convolution_with_mean,
                 "(Tensor x, Tensor weight, Tensor? bias, int side, int dilation, int activation) "
                 "-> (Tensor, Tensor)")
// x [B, c, H, W] in float32, expansion [C/16, c, 16] (cpu/common/panels.h), expansion_bias [C]
// -> both, of the expansion's results.
ATTNOPS_REGISTER(cpu, CPU, expanded_depthwise_convolution,
                 "(Tensor x, Tensor expansion, Tensor? expansion_bias, int expansion_activation, "
                 "Tensor weight, Tensor? bias, int side, int dilation, int activation) -> "
                 "(Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cpu
