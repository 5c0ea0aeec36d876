// Host entries of strip convolutions on CUDA: checks, allocation, choice of the element type.
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cuda/common/host.h"
#include "launch.cuh"

namespace attnops::cuda {
namespace {

bool are_odd(const std::vector<int64_t>& sides) {
  return std::all_of(sides.begin(), sides.end(), [](int64_t side) { return side % 2 == 1; });
}

StripProblem make_strip_problem(const Tensor& x, const Tensor& taps, const Tensor& biases,
                                const std::vector<int64_t>& kernel_size,
                                const std::vector<int64_t>& rows,
                                const std::vector<int64_t>& columns) {
  STD_TORCH_CHECK(x.dim() == 4, "strip_conv: x must be [B, C, H, W], got ", x.dim(), "-D");
  STD_TORCH_CHECK(kernel_size.size() == 2 && rows.size() == columns.size() &&
                      are_odd(kernel_size) && are_odd(rows) && are_odd(columns),
                  "strip_conv: kernel must be a pair, every strip have a row and a column, and all "
                  "sides be odd");
  STD_TORCH_CHECK(x.scalar_type() == taps.scalar_type() && x.scalar_type() == biases.scalar_type(),
                  "strip_conv: x, taps and biases must have one dtype");
  int64_t count = kernel_size[0] * kernel_size[1];
  for (size_t s = 0; s < rows.size(); ++s) count += rows[s] + columns[s];
  const int64_t bias_count = 1 + 2 * static_cast<int64_t>(rows.size());
  STD_TORCH_CHECK(
      taps.dim() == 2 && taps.size(0) == x.size(1) && taps.size(1) == count && biases.dim() == 2 &&
          biases.size(0) == x.size(1) && biases.size(1) == bias_count && taps.is_contiguous() &&
          biases.is_contiguous(),
      "strip_conv: expected contiguous taps [C, ", count, "] and biases [C, ", bias_count, "]");
  const StripProblem problem{x.size(0),
                             x.size(1),
                             x.size(2),
                             x.size(3),
                             kernel_size[0],
                             kernel_size[1],
                             rows,
                             columns,
                             !x.is_contiguous(),
                             count_multiprocessors(x.get_device_index())};
  STD_TORCH_CHECK(x.numel() == 0 || strip_conv_supported(problem),
                  "strip_conv: the CUDA kernels take local kernels of up to ", kMaxLocalSide,
                  " an axis, ", kMaxStrips, " strips of up to ", kMaxStripSide,
                  ", and maps of less than 2^31 pixels; use another backend");
  return problem;
}

Tensor strip_conv(const Tensor& x, const Tensor& taps, const Tensor& biases,
                  std::vector<int64_t> kernel_size, std::vector<int64_t> rows,
                  std::vector<int64_t> columns) {
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const StripProblem problem = make_strip_problem(x, taps, biases, kernel_size, rows, columns);
  Tensor out = empty_map(x, problem.batch, problem.channels, problem.height, problem.width,
                         problem.channels_last);
  if (x.numel() == 0) return out;
  dispatch("strip_conv", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    strip_forward<T>(problem, static_cast<const T*>(x.const_data_ptr()),
                     static_cast<const T*>(taps.const_data_ptr()),
                     static_cast<const T*>(biases.const_data_ptr()),
                     static_cast<T*>(out.mutable_data_ptr()), current_stream(device));
  });
  return out;
}
ATTNOPS_REGISTER(
    cuda, CUDA, strip_conv,
    "(Tensor x, Tensor taps, Tensor biases, int[] kernel_size, int[] rows, int[] columns) "
    "-> Tensor")

std::tuple<Tensor, Tensor, Tensor> strip_conv_backward(const Tensor& grad, const Tensor& x,
                                                       const Tensor& taps, const Tensor& biases,
                                                       std::vector<int64_t> kernel_size,
                                                       std::vector<int64_t> rows,
                                                       std::vector<int64_t> columns) {
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const StripProblem problem = make_strip_problem(x, taps, biases, kernel_size, rows, columns);
  STD_TORCH_CHECK(grad.numel() == x.numel() && grad.scalar_type() == x.scalar_type(),
                  "strip_conv_backward: grad must have the shape and dtype of x");
  Tensor grad_x = empty_map(x, problem.batch, problem.channels, problem.height, problem.width,
                            problem.channels_last);
  Tensor grad_taps = torch::stable::new_empty(taps, {taps.size(0), taps.size(1)});
  Tensor grad_biases = torch::stable::new_empty(biases, {biases.size(0), biases.size(1)});
  if (x.numel() == 0) {
    return {grad_x, torch::stable::zero_(grad_taps), torch::stable::zero_(grad_biases)};
  }
  dispatch("strip_conv_backward", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const StripPlan sums = plan_strip_pass<T>(problem, StripPass::kTaps);
    const Tensor partials = torch::stable::new_empty(x, {strip_partials(sums)}, statistics_type(x));
    strip_backward<T>(
        problem, sums, static_cast<const T*>(grad.const_data_ptr()),
        static_cast<const T*>(x.const_data_ptr()), static_cast<const T*>(taps.const_data_ptr()),
        static_cast<const T*>(biases.const_data_ptr()), static_cast<T*>(grad_x.mutable_data_ptr()),
        static_cast<T*>(grad_taps.mutable_data_ptr()),
        static_cast<T*>(grad_biases.mutable_data_ptr()),
        static_cast<accumulator_t<T>*>(partials.mutable_data_ptr()), current_stream(device));
  });
  return {grad_x, grad_taps, grad_biases};
}
ATTNOPS_REGISTER(
    cuda, CUDA, strip_conv_backward,
    "(Tensor grad, Tensor x, Tensor taps, Tensor biases, int[] kernel_size, int[] rows, "
    "int[] columns) -> (Tensor, Tensor, Tensor)")

}  // namespace
}  // namespace attnops::cuda
