// Host entries of strip convolutions: outputs, scratch memory and the sums over pieces.
#include "host.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const StripKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(strip_kernels, dtype); }

// The maps in pieces of up to `most` columns, a multiple of the lanes. All rows of all groups, one
// after the other, are cut into one run for every worker; the pieces of a run are whole planes but
// for its ends.
class StripWork {
 public:
  StripWork(const MapSizes& m, int64_t lanes, int64_t most) {
    const int64_t groups = m.channels_last ? m.batch * ((m.channels + lanes - 1) / lanes)
                                           : (m.batch * m.channels + lanes - 1) / lanes;
    const int64_t tiles = (m.width + most - 1) / most;
    const int64_t columns = ((m.width + tiles - 1) / tiles + lanes - 1) / lanes * lanes;
    const int64_t blocks = (m.height + kPieceRows - 1) / kPieceRows;
    const int64_t total = groups * tiles * blocks, workers = std::min(thread_count(), total);
    for (int64_t worker = 0; worker < workers; ++worker) {
      const int64_t end = total * (worker + 1) / workers;
      for (int64_t at = total * worker / workers; at < end;) {
        const int64_t first = at % blocks, last = std::min(blocks, first + end - at);
        const int64_t tile = at / blocks % tiles;
        pieces_.push_back({at / blocks / tiles, first * kPieceRows,
                           std::min(m.height, last * kPieceRows), tile * columns,
                           std::min(m.width, (tile + 1) * columns)});
        at += last - first;
      }
      ends_.push_back(static_cast<int64_t>(pieces_.size()));
    }
  }

  const std::vector<StripPiece>& pieces() const { return pieces_; }

  // Calls body(index of the piece, piece, scratch) for all pieces.
  template <class Body>
  void run(int64_t scratch_bytes, const Body& body) const {
    const int64_t workers = static_cast<int64_t>(ends_.size());
    const Scratch scratch(workers * scratch_bytes);
    for_each_worker(workers, [&](int64_t worker) {
      for (int64_t i = worker == 0 ? 0 : ends_[worker - 1]; i < ends_[worker]; ++i)
        body(i, pieces_[i], scratch.at(worker * scratch_bytes));
    });
  }

 private:
  std::vector<StripPiece> pieces_;
  std::vector<int64_t> ends_;  // pieces of worker w end at ends_[w]
};

StripShape shape_of(const Tensor& x, const Tensor& taps, const Tensor& biases,
                    const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& rows,
                    const std::vector<int64_t>& columns) {
  STD_TORCH_CHECK(x.scalar_type() == taps.scalar_type() && x.scalar_type() == biases.scalar_type(),
                  "strip_conv: expected tensors of one dtype");
  STD_TORCH_CHECK(
      kernel_size.size() == 2 && rows.size() == columns.size(),
      "strip_conv: expected two sides of the kernel_size, a row and a column of each strip");
  StripShape s;
  s.maps = map_sizes(x);
  s.kernel_height = kernel_size[0];
  s.kernel_width = kernel_size[1];
  s.strips = static_cast<int64_t>(rows.size());
  s.rows = rows.data();
  s.columns = columns.data();
  s.taps = kernel_size[0] * kernel_size[1];
  for (size_t i = 0; i < rows.size(); ++i) s.taps += rows[i] + columns[i];
  STD_TORCH_CHECK(taps.dim() == 2 && taps.size(0) == x.size(1) && taps.size(1) == s.taps &&
                      biases.dim() == 2 && biases.size(0) == x.size(1) &&
                      biases.size(1) == s.biases(),
                  "strip_conv: expected taps [C, ", s.taps, "] and biases [C, ", s.biases(), "]");
  return s;
}

Tensor strip_conv(Tensor x, Tensor taps, Tensor biases, std::vector<int64_t> kernel_size,
                  std::vector<int64_t> rows, std::vector<int64_t> columns) {
  const StripShape s = shape_of(x, taps, biases, kernel_size, rows, columns);
  const StripKernels& kernels = kernels_for(dtype_of(x));
  Tensor out = empty_map(x, s.maps);
  const void *source = x.const_data_ptr(), *weights = taps.const_data_ptr();
  const void* bias_data = biases.const_data_ptr();
  void* target = out.mutable_data_ptr();
  const int64_t tile = kernels.tile_columns(s, false);
  const StripWork work(s.maps, kernels.lanes, tile);
  work.run(kernels.scratch_bytes(s, tile, false),
           [&](int64_t, const StripPiece& piece, char* scratch) {
             kernels.forward(s, piece, source, weights, bias_data, target, scratch);
           });
  return out;
}
// x [B, C, H, W], taps [C, taps] of the local kernel and of the row and the column of each strip,
// biases [C, 1 + 2 strips] in the same order -> out like x.
ATTNOPS_REGISTER(
    cpu, CPU, strip_conv,
    "(Tensor x, Tensor taps, Tensor biases, int[] kernel_size, int[] rows, int[] columns) "
    "-> Tensor out")

std::tuple<Tensor, Tensor, Tensor> strip_conv_backward(Tensor grad, Tensor x, Tensor taps,
                                                       Tensor biases,
                                                       std::vector<int64_t> kernel_size,
                                                       std::vector<int64_t> rows,
                                                       std::vector<int64_t> columns) {
  const StripShape s = shape_of(x, taps, biases, kernel_size, rows, columns);
  const StripKernels& kernels = kernels_for(dtype_of(x));
  Tensor dx = empty_map(x, s.maps);
  Tensor dtaps = torch::stable::new_empty(taps, {s.maps.channels, s.taps});
  Tensor dbiases = torch::stable::new_empty(biases, {s.maps.channels, s.biases()});
  const void *gradient = grad.const_data_ptr(), *source = x.const_data_ptr();
  const void *weights = taps.const_data_ptr(), *bias_data = biases.const_data_ptr();
  void* target = dx.mutable_data_ptr();
  const int64_t tile = kernels.tile_columns(s, true);
  const StripWork work(s.maps, kernels.lanes, tile);
  const int64_t count = static_cast<int64_t>(work.pieces().size());
  const int64_t piece_sums = (s.taps + s.biases()) * kernels.lanes;
  std::vector<double> sums(count * piece_sums);
  work.run(kernels.scratch_bytes(s, tile, true),
           [&](int64_t i, const StripPiece& piece, char* scratch) {
             kernels.backward(s, piece, gradient, source, weights, bias_data, target,
                              sums.data() + i * piece_sums, scratch);
           });
  std::vector<double> totals(s.maps.channels * std::max(s.taps, s.biases()));
  kernels.reduce(s, work.pieces().data(), count, sums.data(), dtaps.mutable_data_ptr(),
                 dbiases.mutable_data_ptr(), totals.data());
  return {dx, dtaps, dbiases};
}
ATTNOPS_REGISTER(
    cpu, CPU, strip_conv_backward,
    "(Tensor grad, Tensor x, Tensor taps, Tensor biases, int[] kernel_size, int[] rows, "
    "int[] columns) -> (Tensor dx, Tensor dtaps, Tensor dbiases)")

}  // namespace
}  // namespace attnops::cpu
