// Host entry of the backward of feed_forward: runs of rows and groups of chunks over threads.
#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>

#include "arguments.h"
#include "common/register.h"

namespace attnops::cpu {
namespace {

const FeedForwardBackwardKernels& plain_kernels(DType dtype) {
  ATTNOPS_SELECT_KERNELS(feed_forward_backward_kernels, dtype);
}
const FeedForwardBackwardKernels& paired_kernels(DType dtype) {
  ATTNOPS_SELECT_KERNELS(paired_feed_forward_backward_kernels, dtype);
}

// All rows of a batch, one item after the other, in runs of about equal length.
class RowRuns {
 public:
  RowRuns(int64_t batch, int64_t height, int64_t runs) : ranges_(runs) {
    const int64_t total = batch * height;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t end = total * (run + 1) / runs;
      for (int64_t at = total * run / runs; at < end;) {
        const int64_t first = at % height, last = std::min(height, first + end - at);
        ranges_[run].push_back({at / height, first, last});
        at += last - first;
      }
    }
  }

  int64_t count() const { return static_cast<int64_t>(ranges_.size()); }
  const std::vector<FeedForwardRange>& operator[](int64_t run) const { return ranges_[run]; }

 private:
  std::vector<std::vector<FeedForwardRange>> ranges_;
};

class FeedForwardBackward {
 public:
  FeedForwardBackward(const FeedForwardArguments& args, const InnerWeights& inner,
                      const Tensor& grad, const Tensor& x, const Tensor& dx)
      : shape_(args.shape),
        kernels_(shape_.native ? paired_kernels(dtype_of(x)) : plain_kernels(dtype_of(x))),
        sources_{args.kernels[0], args.kernels[2], inner.inner(), args.channels[0]},
        batch_(x.size(0)),
        chunks_((shape_.hidden + kFeedForwardChunk - 1) / kFeedForwardChunk),
        runs_(batch_, shape_.height, runs_for(batch_ * shape_.height, chunks_)),
        groups_(std::clamp<int64_t>(thread_count() / runs_.count(), 1, chunks_)),
        sums_bytes_(whole_lines(kernels_.sums_bytes(shape_))),
        sums_(runs_.count() * chunks_ * sums_bytes_),
        outer_(runs_.count() * shape_.padded_outputs()),
        grad_(grad.const_data_ptr()),
        x_(x.const_data_ptr()),
        dx_(dx.mutable_data_ptr()) {}

  void run(const FeedForwardTargets& targets) {
    take_pixels();
    const int64_t runs = runs_.count(), scratch_bytes = whole_lines(kernels_.scratch_bytes(shape_));
    const Scratch scratch(runs * groups_ * scratch_bytes);
    for_each_worker(runs * groups_, [&](int64_t worker) {
      const int64_t run = worker / groups_, group = worker % groups_;
      const std::vector<FeedForwardRange>& ranges = runs_[run];
      const int64_t count = static_cast<int64_t>(ranges.size());
      FeedForwardPixels pixels = pixels_;
      pixels.dx = static_cast<char*>(pixels.dx) + group * dx_stride_;
      const int64_t first = chunks_ * group / groups_, last = chunks_ * (group + 1) / groups_;
      for (int64_t chunk = first; chunk < last; ++chunk)
        kernels_.run(shape_, sources_, chunk, ranges.data(), count, pixels, chunk > first,
                     sums_.at((run * chunks_ + chunk) * sums_bytes_),
                     scratch.at(worker * scratch_bytes));
      if (group == 0 && targets.contract_bias)
        kernels_.sum_outputs(shape_, ranges.data(), count, pixels,
                             outer_.data() + run * shape_.padded_outputs());
    });
    if (pixels_.dx != dx_)
      for_each_range([&](const FeedForwardRange& range) {
        kernels_.from_pixels(shape_, shape_.channels, range, pixels_.dx, groups_, dx_stride_, dx_);
      });
    const int64_t workers = std::min(thread_count(), chunks_);
    for_each_worker(workers, [&](int64_t worker) {
      for (int64_t chunk = worker; chunk < chunks_; chunk += workers)
        kernels_.reduce(shape_, sources_.hidden, chunk, sums_.at(chunk * sums_bytes_), runs,
                        chunks_ * sums_bytes_, targets);
    });
    if (targets.contract_bias)
      kernels_.reduce_outputs(shape_, outer_.data(), runs, targets.contract_bias);
  }

 private:
  using Owned = std::unique_ptr<Scratch>;

  static int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  // Of so many rows, with which groups of chunks keep most threads busy.
  static int64_t runs_for(int64_t rows, int64_t chunks) {
    constexpr int64_t kFewestRows = 16;  // of a run, with which some are computed twice
    const int64_t threads = thread_count();
    const auto busy = [&](int64_t runs) { return runs * std::min(threads / runs, chunks); };
    int64_t best = 1;
    for (int64_t runs = 2; runs <= std::min(rows / kFewestRows, threads); ++runs)
      if (busy(runs) >= busy(best)) best = runs;
    return best;
  }

  // Calls body(range) for all rows of the batch.
  template <class Body>
  void for_each_range(const Body& body) const {
    const RowRuns all(batch_, shape_.height, std::min(thread_count(), batch_ * shape_.height));
    for_each_worker(all.count(), [&](int64_t worker) {
      for (const FeedForwardRange& range : all[worker]) body(range);
    });
  }

  void take_pixels() {
    const int64_t pixels = batch_ * shape_.height * shape_.width + kernels_.spare;
    const int64_t pairs = batch_ * kernels_.pairs(shape_);
    const auto take = [&](int64_t channels, const void* map, Owned& own, Owned& own_pairs) {
      const int64_t padded = padded_to_panels(channels);
      if (!kernels_.is_pixels(shape_, channels)) {
        own = std::make_unique<Scratch>(pixels * padded * kernels_.factor_bytes);
        for_each_range([&](const FeedForwardRange& range) {
          kernels_.to_pixels(shape_, channels, range, map, own->at(0));
        });
        map = own->at(0);
      }
      if (pairs == 0) return std::pair(map, map);
      own_pairs = std::make_unique<Scratch>(pairs * padded * 2 * kernels_.factor_bytes);
      for_each_range([&](const FeedForwardRange& range) {
        kernels_.to_pairs(shape_, channels, range, map, own_pairs->at(0));
      });
      return std::pair(map, static_cast<const void*>(own_pairs->at(0)));
    };
    std::tie(pixels_.grad, pixels_.grad_terms) =
        take(shape_.outputs, grad_, grad_pixels_, grad_pairs_);
    std::tie(pixels_.x, pixels_.x_terms) = take(shape_.channels, x_, x_pixels_, x_pairs_);
    pixels_.dx = dx_;
    if (groups_ == 1 && pairs == 0 && kernels_.is_pixels(shape_, shape_.channels)) return;
    dx_stride_ = whole_lines(pixels * shape_.padded_channels() * kernels_.value_bytes);
    dx_pixels_ = std::make_unique<Scratch>(groups_ * dx_stride_);
    pixels_.dx = dx_pixels_->at(0);
  }

  const FeedForwardShape& shape_;
  const FeedForwardBackwardKernels& kernels_;
  const FeedForwardSources sources_;
  const int64_t batch_, chunks_;
  const RowRuns runs_;
  const int64_t groups_;  // of chunks; every worker has a run and a group
  const int64_t sums_bytes_;
  const Scratch sums_;  // [runs][chunks]
  std::vector<double> outer_;
  const void *grad_, *x_;
  void* dx_;
  FeedForwardPixels pixels_{};
  int64_t dx_stride_ = 0;
  Owned grad_pixels_, grad_pairs_, x_pixels_, x_pairs_, dx_pixels_;
};

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> feed_forward_backward(
    Tensor grad, Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases,
    std::vector<int64_t> biased) {
  const FeedForwardArguments args(x, weights, biases, biased);
  const InnerWeights inner(args, packing_for(dtype_of(x)));
  Tensor dx = empty_map(x, map_sizes(x));
  std::vector<Tensor> dweights, dbiases;
  for (const Tensor& weight : weights) dweights.push_back(torch::stable::empty_like(weight));
  void* bias[3] = {};
  for (size_t i = 0; i < biases.size(); ++i) {
    dbiases.push_back(torch::stable::empty_like(biases[i]));
    bias[biased[i]] = dbiases[i].mutable_data_ptr();
  }
  FeedForwardBackward(args, inner, grad, x, dx)
      .run({dweights[0].mutable_data_ptr(), dweights[1].mutable_data_ptr(),
            dweights[2].mutable_data_ptr(), bias[0], bias[1], bias[2]});
  return {dx, dweights, dbiases};
}
ATTNOPS_REGISTER(cpu, CPU, feed_forward_backward,
                 "(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, int[] biased) "
                 "-> (Tensor dx, Tensor[] dweights, Tensor[] dbiases)")

}  // namespace
}  // namespace attnops::cpu
