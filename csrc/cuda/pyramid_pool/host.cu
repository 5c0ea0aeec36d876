// Host entries of pyramid pooling on CUDA: checks, allocation, choice of the element type.
#include <tuple>

#include "common/register.h"
#include "cuda/common/host.h"
#include "launch.cuh"

namespace attnops::cuda {
namespace {

PoolProblem make_problem(int64_t batch, int64_t channels, int64_t height, int64_t width,
                         const std::vector<int64_t>& sizes, bool use_max, bool channels_last,
                         int device) {
  STD_TORCH_CHECK(levels_supported(sizes), "pyramid_pool: the CUDA kernels take 1 to ", kMaxLevels,
                  " levels whose sizes sum to at most ", kMaxBins, "; use another backend");
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= kMaxPixels / width,
                  "pyramid_pool: the CUDA kernels take planes of 1 to ", kMaxPixels,
                  " pixels, got ", height, "x", width);
  return {batch,   channels,      static_cast<int>(height),     static_cast<int>(width), sizes,
          use_max, channels_last, count_multiprocessors(device)};
}

std::tuple<Tensor, Tensor> pyramid_pool(const Tensor& x, std::vector<int64_t> sizes, bool use_max) {
  STD_TORCH_CHECK(x.dim() == 4, "pyramid_pool: x must be [B, C, H, W], got ", x.dim(), "-D");
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const PoolProblem problem = make_problem(x.size(0), x.size(1), x.size(2), x.size(3), sizes,
                                           use_max, !x.is_contiguous(), device);
  const int64_t cells = make_levels(sizes).cells;
  Tensor out = torch::stable::new_empty(x, {problem.batch, problem.channels, cells});
  Tensor argmax = use_max ? torch::stable::new_empty(x, {problem.batch, problem.channels, cells},
                                                     ScalarType::Int)
                          : torch::stable::new_empty(x, {0}, ScalarType::Int);
  if (x.numel() == 0) return {out, argmax};
  dispatch("pyramid_pool", x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* input = static_cast<const T*>(x.const_data_ptr());
    const PoolSchedule schedule = schedule_forward<T>(problem, is_aligned(input));
    Tensor scratch = torch::stable::new_empty(x, {static_cast<int64_t>(schedule.scratch_bytes)},
                                              ScalarType::Byte);
    pool_forward<T>(problem, schedule, input, static_cast<T*>(out.mutable_data_ptr()),
                    use_max ? static_cast<int32_t*>(argmax.mutable_data_ptr()) : nullptr,
                    schedule.scratch_bytes > 0 ? scratch.mutable_data_ptr() : nullptr,
                    current_stream(device));
  });
  return {out, argmax};
}
ATTNOPS_REGISTER(cuda, CUDA, pyramid_pool,
                 "(Tensor x, int[] sizes, bool use_max) -> (Tensor, Tensor)")

Tensor pyramid_pool_backward(const Tensor& grad, const Tensor& argmax, int64_t height,
                             int64_t width, std::vector<int64_t> sizes, bool use_max,
                             bool channels_last) {
  STD_TORCH_CHECK(grad.dim() == 3 && grad.is_contiguous(),
                  "pyramid_pool_backward: grad must be a contiguous [B, C, S]");
  const int device = grad.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const PoolProblem problem = make_problem(grad.size(0), grad.size(1), height, width, sizes,
                                           use_max, channels_last, device);
  STD_TORCH_CHECK(grad.size(2) == make_levels(sizes).cells, "pyramid_pool_backward: grad has ",
                  grad.size(2), " cells a plane, expected ", make_levels(sizes).cells);
  STD_TORCH_CHECK(!use_max || (argmax.numel() == grad.numel() && argmax.is_contiguous() &&
                               argmax.scalar_type() == ScalarType::Int),
                  "pyramid_pool_backward: argmax must be a contiguous int32 of the shape of grad");
  Tensor grad_x = empty_map(grad, problem.batch, problem.channels, height, width, channels_last);
  if (grad.numel() == 0) return grad_x;
  dispatch("pyramid_pool_backward", grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    pool_backward<T>(problem, static_cast<const T*>(grad.const_data_ptr()),
                     use_max ? static_cast<const int32_t*>(argmax.const_data_ptr()) : nullptr,
                     static_cast<T*>(grad_x.mutable_data_ptr()), current_stream(device));
  });
  return grad_x;
}
ATTNOPS_REGISTER(cuda, CUDA, pyramid_pool_backward,
                 "(Tensor grad, Tensor argmax, int height, int width, int[] sizes, bool use_max, "
                 "bool channels_last) -> Tensor")

}  // namespace
}  // namespace attnops::cuda
