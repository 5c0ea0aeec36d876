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

// The arguments of an op, understood. Callers keep the tensors.
class Strips {
 public:
  Strips(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
         const std::vector<int64_t>& biased)
      : kernels(kernels_for(dtype_of(x))), biases_(weights.size(), nullptr) {
    STD_TORCH_CHECK(weights.size() % 2 == 1 && biases.size() == biased.size(),
                    "strip_conv: expected a kernel and two of each strip, and a number a bias");
    const auto check = [&](bool fits) {
      STD_TORCH_CHECK(fits, "strip_conv: expected weights [C, 1, kh, kw] and biases [C] like x");
    };
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor& weight = weights[i];
      check(weight.scalar_type() == x.scalar_type() && weight.dim() == 4 &&
            weight.size(0) == x.size(1) && weight.size(1) == 1);
      check(i == 0 || weight.size(i % 2 == 1 ? 2 : 3) == 1);
      if (i > 0) (i % 2 == 1 ? rows_ : columns_).push_back(weight.size(i % 2 == 1 ? 3 : 2));
      weights_.push_back(weight.const_data_ptr());
      shape.taps += weight.size(2) * weight.size(3);
    }
    for (size_t i = 0; i < biases.size(); ++i) {
      check(biases[i].scalar_type() == x.scalar_type() && biases[i].dim() == 1 &&
            biases[i].size(0) == x.size(1));
      biases_.at(static_cast<size_t>(biased[i])) = biases[i].const_data_ptr();
    }
    shape.maps = map_sizes(x);
    shape.kernel_height = weights[0].size(2);
    shape.kernel_width = weights[0].size(3);
    shape.strips = static_cast<int64_t>(rows_.size());
    shape.rows = rows_.data();
    shape.columns = columns_.data();
  }
  Strips(const Strips&) = delete;
  Strips& operator=(const Strips&) = delete;

  StripSources parameters() const { return {weights_.data(), biases_.data()}; }

  const StripKernels& kernels;
  StripShape shape{};

 private:
  std::vector<int64_t> rows_, columns_;
  std::vector<const void*> weights_, biases_;
};

std::vector<Tensor> empty_like_all(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> found;
  for (const Tensor& tensor : tensors) found.push_back(torch::stable::empty_like(tensor));
  return found;
}

Tensor strip_conv(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases,
                  std::vector<int64_t> biased) {
  const Strips strips(x, weights, biases, biased);
  const StripShape& s = strips.shape;
  const StripKernels& kernels = strips.kernels;
  Tensor out = empty_map(x, s.maps);
  const void* source = x.const_data_ptr();
  void* target = out.mutable_data_ptr();
  const int64_t tile = kernels.tile_columns(s, false);
  const StripWork work(s.maps, kernels.lanes, tile);
  work.run(kernels.scratch_bytes(s, tile, false),
           [&](int64_t, const StripPiece& piece, char* scratch) {
             kernels.forward(s, piece, strips.parameters(), source, target, scratch);
           });
  return out;
}
// x [B, C, H, W], weights [C, 1, kh, kw] of the local kernel and of the row and the column of each
// strip, biases [C] of the weights whose numbers `biased` has -> out like x.
ATTNOPS_REGISTER(cpu, CPU, strip_conv,
                 "(Tensor x, Tensor[] weights, Tensor[] biases, int[] biased) -> Tensor out")

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> strip_conv_backward(
    Tensor grad, Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases,
    std::vector<int64_t> biased) {
  const Strips strips(x, weights, biases, biased);
  const StripShape& s = strips.shape;
  const StripKernels& kernels = strips.kernels;
  Tensor dx = empty_map(x, s.maps);
  std::vector<Tensor> dweights = empty_like_all(weights), dbiases = empty_like_all(biases);
  std::vector<void*> weight_data, bias_data(weights.size(), nullptr);
  for (Tensor& dweight : dweights) weight_data.push_back(dweight.mutable_data_ptr());
  for (size_t i = 0; i < dbiases.size(); ++i)
    bias_data[static_cast<size_t>(biased[i])] = dbiases[i].mutable_data_ptr();
  const void *gradient = grad.const_data_ptr(), *source = x.const_data_ptr();
  void* target = dx.mutable_data_ptr();
  const int64_t tile = kernels.tile_columns(s, true);
  const StripWork work(s.maps, kernels.lanes, tile);
  const int64_t count = static_cast<int64_t>(work.pieces().size());
  const int64_t piece_sums = (s.taps + s.kernels()) * kernels.lanes;
  std::vector<double> sums(count * piece_sums);
  work.run(kernels.scratch_bytes(s, tile, true),
           [&](int64_t i, const StripPiece& piece, char* scratch) {
             kernels.backward(s, piece, strips.parameters(), gradient, source, target,
                              sums.data() + i * piece_sums, scratch);
           });
  std::vector<double> totals(s.maps.channels * s.taps);
  kernels.reduce(s, work.pieces().data(), count, sums.data(),
                 {weight_data.data(), bias_data.data()}, totals.data());
  return {dx, dweights, dbiases};
}
ATTNOPS_REGISTER(cpu, CPU, strip_conv_backward,
                 "(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, int[] biased) "
                 "-> (Tensor dx, Tensor[] dweights, Tensor[] dbiases)")

}  // namespace
}  // namespace attnops::cpu
