// Host entries of strip convolutions: outputs, scratch memory and the sums over pieces.
#include "host.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cpu/depthwise/host.h"

namespace attnops::cpu {
namespace {

const StripKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(strip_kernels, dtype); }

StripShape shape_of(const Tensor& x, const Tensor& taps, const Tensor& shifts,
                    const std::vector<int64_t>& kernel, const std::vector<int64_t>& rows,
                    const std::vector<int64_t>& columns) {
  STD_TORCH_CHECK(x.scalar_type() == taps.scalar_type() && x.scalar_type() == shifts.scalar_type(),
                  "strip_conv: expected tensors of one dtype");
  STD_TORCH_CHECK(kernel.size() == 2 && rows.size() == columns.size(),
                  "strip_conv: expected two sides of the kernel, a row and a column of each strip");
  StripShape s;
  s.maps = depthwise_maps(x);
  s.kernel_height = kernel[0];
  s.kernel_width = kernel[1];
  s.strips = static_cast<int64_t>(rows.size());
  s.rows = rows.data();
  s.columns = columns.data();
  s.taps = kernel[0] * kernel[1];
  for (size_t i = 0; i < rows.size(); ++i) s.taps += rows[i] + columns[i];
  STD_TORCH_CHECK(taps.dim() == 2 && taps.size(0) == x.size(1) && taps.size(1) == s.taps &&
                      shifts.dim() == 2 && shifts.size(0) == x.size(1) &&
                      shifts.size(1) == s.shifts(),
                  "strip_conv: expected taps [C, ", s.taps, "] and shifts [C, ", s.shifts(), "]");
  return s;
}

Tensor strip_conv(Tensor x, Tensor taps, Tensor shifts, std::vector<int64_t> kernel,
                  std::vector<int64_t> rows, std::vector<int64_t> columns) {
  const StripShape s = shape_of(x, taps, shifts, kernel, rows, columns);
  const StripKernels& kernels = kernels_for(dtype_of(x));
  Tensor out = empty_map(x, s.maps.channels, s.maps.height, s.maps.width, s.maps.channels_last);
  const void *source = x.const_data_ptr(), *weights = taps.const_data_ptr();
  const void* biases = shifts.const_data_ptr();
  void* target = out.mutable_data_ptr();
  const int64_t tile = kernels.tile_columns(s, false);
  const DepthwiseWork work(s.maps, kernels.lanes, tile);
  work.run(kernels.scratch_bytes(s, tile, false),
           [&](int64_t, const DepthwisePiece& piece, char* scratch) {
             kernels.forward(s, piece, source, weights, biases, target, scratch);
           });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> strip_conv_backward(Tensor grad, Tensor x, Tensor taps,
                                                       Tensor shifts, std::vector<int64_t> kernel,
                                                       std::vector<int64_t> rows,
                                                       std::vector<int64_t> columns) {
  const StripShape s = shape_of(x, taps, shifts, kernel, rows, columns);
  const StripKernels& kernels = kernels_for(dtype_of(x));
  Tensor dx = empty_map(x, s.maps.channels, s.maps.height, s.maps.width, s.maps.channels_last);
  Tensor dtaps = torch::stable::new_empty(taps, {s.maps.channels, s.taps});
  Tensor dshifts = torch::stable::new_empty(shifts, {s.maps.channels, s.shifts()});
  const void *gradient = grad.const_data_ptr(), *source = x.const_data_ptr();
  const void *weights = taps.const_data_ptr(), *biases = shifts.const_data_ptr();
  void* target = dx.mutable_data_ptr();
  const int64_t tile = kernels.tile_columns(s, true);
  const DepthwiseWork work(s.maps, kernels.lanes, tile);
  const int64_t count = static_cast<int64_t>(work.pieces().size());
  const int64_t piece_sums = (s.taps + s.shifts()) * kernels.lanes;
  std::vector<double> sums(count * piece_sums);
  work.run(kernels.scratch_bytes(s, tile, true),
           [&](int64_t i, const DepthwisePiece& piece, char* scratch) {
             kernels.backward(s, piece, gradient, source, weights, biases, target,
                              sums.data() + i * piece_sums, scratch);
           });
  std::vector<double> totals(s.maps.channels * std::max(s.taps, s.shifts()));
  kernels.reduce(s, work.pieces().data(), count, sums.data(), dtaps.mutable_data_ptr(),
                 dshifts.mutable_data_ptr(), totals.data());
  return {dx, dtaps, dshifts};
}

}  // namespace
}  // namespace attnops::cpu

// x [B, C, H, W], taps [C, taps] of the local kernel and of the row and the column of each strip,
// shifts [C, 1 + 2 strips] in the same order -> out like x.
ATTNOPS_REGISTER(cpu, CPU, strip_conv,
                 "(Tensor x, Tensor taps, Tensor shifts, int[] kernel, int[] rows, int[] columns) "
                 "-> Tensor out")
ATTNOPS_REGISTER(cpu, CPU, strip_conv_backward,
                 "(Tensor grad, Tensor x, Tensor taps, Tensor shifts, int[] kernel, int[] rows, "
                 "int[] columns) -> (Tensor dx, Tensor dtaps, Tensor dshifts)")
