// Host entries of depthwise_gelu: outputs, scratch memory and the sums over pieces.
#include "depthwise_gelu.h"

#include <optional>
#include <tuple>
#include <vector>

#include "depthwise_host.h"
#include "isa.h"
#include "ops.h"

namespace attnops::cpu {
namespace {

constexpr int64_t kMostColumns = 128;  // of a piece, so that its rows stay in the caches

const GeluKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(gelu_kernels, dtype); }

GeluShape shape_of(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type() &&
                      (!bias.has_value() || x.scalar_type() == bias->scalar_type()),
                  "depthwise_gelu: expected tensors of one dtype");
  STD_TORCH_CHECK(weight.dim() == 4 && x.dim() == 4 && weight.size(0) == x.size(1),
                  "depthwise_gelu: expected x [B, C, H, W] and weight [C, 1, kh, kw]");
  return {depthwise_maps(x), weight.size(2), weight.size(3)};
}

const void* data_of(const std::optional<Tensor>& x) {
  return x.has_value() ? x->const_data_ptr() : nullptr;
}

}  // namespace

Tensor depthwise_gelu(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  const GeluShape s = shape_of(x, weight, bias);
  const GeluKernels& kernels = kernels_for(dtype_of(x));
  Tensor out = empty_map(x, s.maps.channels, s.maps.height, s.maps.width, s.maps.channels_last);
  const void *source = x.const_data_ptr(), *taps = weight.const_data_ptr();
  const void* shifts = data_of(bias);
  void* target = out.mutable_data_ptr();
  const DepthwiseWork work(s.maps, kernels.lanes, kMostColumns);
  work.run(kernels.scratch_bytes(s, work.columns(), false),
           [&](int64_t, const DepthwisePiece& piece, char* scratch) {
             kernels.forward(s, piece, source, taps, shifts, target, scratch);
           });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_gelu_backward(Tensor grad, Tensor x, Tensor weight,
                                                           std::optional<Tensor> bias) {
  const GeluShape s = shape_of(x, weight, bias);
  const GeluKernels& kernels = kernels_for(dtype_of(x));
  Tensor dx = empty_map(x, s.maps.channels, s.maps.height, s.maps.width, s.maps.channels_last);
  Tensor dweight =
      torch::stable::new_empty(weight, {s.maps.channels, 1, s.kernel_height, s.kernel_width});
  Tensor dbias = torch::stable::new_empty(weight, {s.maps.channels});
  const void *gradient = grad.const_data_ptr(), *source = x.const_data_ptr();
  const void *taps = weight.const_data_ptr(), *shifts = data_of(bias);
  void* target = dx.mutable_data_ptr();
  const DepthwiseWork work(s.maps, kernels.lanes, kMostColumns);
  const int64_t count = static_cast<int64_t>(work.pieces().size());
  const int64_t piece_sums = (s.taps() + 1) * kernels.lanes;
  std::vector<double> sums(count * piece_sums);
  work.run(kernels.scratch_bytes(s, work.columns(), true),
           [&](int64_t i, const DepthwisePiece& piece, char* scratch) {
             kernels.backward(s, piece, gradient, source, taps, shifts, target,
                              sums.data() + i * piece_sums, scratch);
           });
  std::vector<double> totals(s.maps.channels * s.taps());
  kernels.reduce(s, work.pieces().data(), count, sums.data(), dweight.mutable_data_ptr(),
                 dbias.mutable_data_ptr(), totals.data());
  return {dx, dweight, dbias};
}

}  // namespace attnops::cpu
