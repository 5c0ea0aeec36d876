// Host entries of strip convolutions on CUDA: checks, allocation, choice of the element type.
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cuda/common/host.h"
#include "launch.cuh"

namespace attnops::cuda {
namespace {

using Tensors = std::vector<Tensor>;

StripProblem make_strip_problem(const Tensor& x, const Tensors& weights, const Tensors& biases,
                                const std::vector<int64_t>& biased) {
  STD_TORCH_CHECK(x.dim() == 4, "strip_conv: x must be [B, C, H, W], got ", x.dim(), "-D");
  STD_TORCH_CHECK(weights.size() % 2 == 1 && biases.size() == biased.size(),
                  "strip_conv: expected a kernel and two of each strip, and a number a bias");
  const auto check = [&](bool fits) {
    STD_TORCH_CHECK(fits,
                    "strip_conv: expected contiguous weights [C, 1, kh, kw] of odd sides and "
                    "biases [C], in the dtype of x");
  };
  std::vector<int64_t> rows, columns;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    check(weight.scalar_type() == x.scalar_type() && weight.dim() == 4 && weight.is_contiguous() &&
          weight.size(0) == x.size(1) && weight.size(1) == 1 && weight.size(2) % 2 == 1 &&
          weight.size(3) % 2 == 1);
    if (i == 0) continue;
    check(weight.size(i % 2 == 1 ? 2 : 3) == 1);
    (i % 2 == 1 ? rows : columns).push_back(weight.size(i % 2 == 1 ? 3 : 2));
  }
  for (const Tensor& bias : biases) {
    check(bias.scalar_type() == x.scalar_type() && bias.dim() == 1 && bias.size(0) == x.size(1) &&
          bias.is_contiguous());
  }
  const StripProblem problem{x.size(0),
                             x.size(1),
                             x.size(2),
                             x.size(3),
                             weights[0].size(2),
                             weights[0].size(3),
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

// Where the tensors lie; T is const where they are only read.
template <typename T>
StripParameters<T> pointers_to(const Tensors& weights, const Tensors& biases,
                               const std::vector<int64_t>& biased) {
  StripParameters<T> found{};
  for (size_t i = 0; i < weights.size(); ++i) {
    found.weights[i] = static_cast<T*>(weights[i].mutable_data_ptr());
  }
  for (size_t i = 0; i < biases.size(); ++i) {
    found.biases[biased[i]] = static_cast<T*>(biases[i].mutable_data_ptr());
  }
  return found;
}

Tensors empty_like_all(const Tensors& tensors) {
  Tensors found;
  for (const Tensor& tensor : tensors) found.push_back(torch::stable::empty_like(tensor));
  return found;
}

Tensor strip_conv(const Tensor& x, const Tensors& weights, const Tensors& biases,
                  std::vector<int64_t> biased) {
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const StripProblem problem = make_strip_problem(x, weights, biases, biased);
  Tensor out = empty_map(x, problem.batch, problem.channels, problem.height, problem.width,
                         problem.channels_last);
  if (x.numel() == 0) return out;
  dispatch("strip_conv", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    strip_forward<T>(problem, static_cast<const T*>(x.const_data_ptr()),
                     pointers_to<const T>(weights, biases, biased),
                     static_cast<T*>(out.mutable_data_ptr()), current_stream(device));
  });
  return out;
}
ATTNOPS_REGISTER(cuda, CUDA, strip_conv,
                 "(Tensor x, Tensor[] weights, Tensor[] biases, int[] biased) -> Tensor")

std::tuple<Tensor, Tensors, Tensors> strip_conv_backward(const Tensor& grad, const Tensor& x,
                                                         const Tensors& weights,
                                                         const Tensors& biases,
                                                         std::vector<int64_t> biased) {
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const StripProblem problem = make_strip_problem(x, weights, biases, biased);
  STD_TORCH_CHECK(grad.numel() == x.numel() && grad.scalar_type() == x.scalar_type(),
                  "strip_conv_backward: grad must have the shape and dtype of x");
  Tensor grad_x = empty_map(x, problem.batch, problem.channels, problem.height, problem.width,
                            problem.channels_last);
  const Tensors grad_weights = empty_like_all(weights), grad_biases = empty_like_all(biases);
  if (x.numel() == 0) {
    for (const Tensors* gradients : {&grad_weights, &grad_biases}) {
      for (Tensor gradient : *gradients) torch::stable::zero_(gradient);
    }
    return {grad_x, grad_weights, grad_biases};
  }
  dispatch("strip_conv_backward", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const StripPlan sums = plan_strip_pass<T>(problem, StripPass::kTaps);
    const Tensor partials = torch::stable::new_empty(x, {strip_partials(sums)}, statistics_type(x));
    strip_backward<T>(
        problem, sums, static_cast<const T*>(grad.const_data_ptr()),
        static_cast<const T*>(x.const_data_ptr()), pointers_to<const T>(weights, biases, biased),
        static_cast<T*>(grad_x.mutable_data_ptr()),
        pointers_to<T>(grad_weights, grad_biases, biased),
        static_cast<accumulator_t<T>*>(partials.mutable_data_ptr()), current_stream(device));
  });
  return {grad_x, grad_weights, grad_biases};
}
ATTNOPS_REGISTER(cuda, CUDA, strip_conv_backward,
                 "(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, int[] biased) "
                 "-> (Tensor, Tensor[], Tensor[])")

}  // namespace
}  // namespace attnops::cuda
