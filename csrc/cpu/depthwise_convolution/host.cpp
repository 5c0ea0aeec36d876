// Host entry of depthwise convolutions: checks, and shares of the rows of slabs of channels.
#include "host.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const DepthwiseKernels& kernels_for(DType dtype) {
  ATTNOPS_SELECT_KERNELS(depthwise_convolution_kernels, dtype);
}

void check(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t side,
           int64_t dilation, int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && has_inner_channels(x),
                  "depthwise_convolution: expected a map [B, C, H, W] with contiguous channels");
  STD_TORCH_CHECK((side == 3 || side == 5 || side == 7) && dilation > 0,
                  "depthwise_convolution: expected a side of 3, 5 or 7 and a dilation, got ", side,
                  " and ", dilation);
  const ScalarType wide =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.scalar_type() == wide && weight.is_contiguous() &&
                      weight.numel() == side * side * x.size(1),
                  "depthwise_convolution: expected weights [side * side, C] in float32, or in "
                  "float64 like the map");
  STD_TORCH_CHECK(
      !bias || (bias->scalar_type() == wide && bias->is_contiguous() && bias->numel() == x.size(1)),
      "depthwise_convolution: expected a bias [C] of the weights' dtype");
  STD_TORCH_CHECK(is_activation(activation), "depthwise_convolution: expected an activation");
}

// The convolution, and the means of its channels into `mean` if that is a tensor.
Tensor convolve(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                int64_t side, int64_t dilation, int64_t activation, Tensor* mean) {
  check(x, weight, bias, side, dilation, activation);
  const DepthwiseShape s = {x.size(1), x.size(2), x.size(3),
                            side,      dilation,  static_cast<Activation>(activation)};
  const DepthwiseKernels& kernels = kernels_for(dtype_of(x));
  Tensor out = empty_map(x, s.channels, s.height, s.width, true);
  const Items from(x), to(out);
  const DepthwisePlan plan = kernels.plan(s);
  const int64_t slabs = (s.channels + plan.slab - 1) / plan.slab, items = x.size(0);
  const int64_t rows = items * slabs * s.height, workers = std::min(thread_count(), rows);
  const Scratch scratch(workers * plan.scratch_bytes);
  const int64_t item_sums = mean == nullptr ? 0 : s.height * s.channels * kernels.sum_bytes;
  const Scratch sums(items * item_sums);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t end = rows * (worker + 1) / workers;
    for (int64_t row = rows * worker / workers; row < end;) {
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
  return convolve(x, weight, bias, side, dilation, activation, nullptr);
}

std::tuple<Tensor, Tensor> depthwise_convolution_with_mean(Tensor x, Tensor weight,
                                                           std::optional<Tensor> bias, int64_t side,
                                                           int64_t dilation, int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4, "depthwise_convolution: expected a map [B, C, H, W]");
  Tensor mean = empty_map(x, x.size(1), 1, 1, true);
  Tensor out = convolve(x, weight, bias, side, dilation, activation, &mean);
  return {out, mean};
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

}  // namespace
}  // namespace attnops::cpu
