// Host entries of pyramid pooling: the plan of bins, outputs and the split of work over threads.
#include "host.h"

#include <algorithm>
#include <vector>

#include "common/bins.h"
#include "common/register.h"
#include "cpu/common/host.h"

namespace attnops::cpu {
namespace {

const PoolKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(pool_kernels, dtype); }

// Owns the arrays of a PoolAxis.
class Axis {
 public:
  Axis(int64_t size, const std::vector<int64_t>& levels) : size_(size) {
    std::vector<int64_t> starts, ends;
    for (const int64_t n : levels)
      for (int64_t i = 0; i < n; ++i) {
        starts.push_back(bin_start(i, n, size));
        ends.push_back(bin_end(i, n, size));
      }
    edges_ = starts;
    edges_.insert(edges_.end(), ends.begin(), ends.end());
    std::sort(edges_.begin(), edges_.end());
    edges_.erase(std::unique(edges_.begin(), edges_.end()), edges_.end());
    for (size_t bin = 0; bin < starts.size(); ++bin) {
      first_.push_back(segment_at(starts[bin]));
      last_.push_back(segment_at(ends[bin]));
    }
    int64_t offset = 0;
    for (const int64_t n : levels) {
      for (size_t s = 0; s + 1 < edges_.size(); ++s) {
        cover_first_.push_back(offset + first_bin_of(edges_[s], n, size));
        cover_last_.push_back(offset + last_bin_of(edges_[s], n, size) + 1);
      }
      offset += n;
    }
  }

  PoolAxis view() const {
    return {size_,
            static_cast<int64_t>(edges_.size()) - 1,
            edges_.data(),
            first_.data(),
            last_.data(),
            cover_first_.data(),
            cover_last_.data()};
  }

 private:
  int64_t segment_at(int64_t edge) const {
    return std::lower_bound(edges_.begin(), edges_.end(), edge) - edges_.begin();
  }

  int64_t size_;
  std::vector<int64_t> edges_, first_, last_, cover_first_, cover_last_;
};

class Plan {
 public:
  Plan(int64_t height, int64_t width, int64_t channels, const std::vector<int64_t>& sizes)
      : sizes_(sizes), rows_(height, sizes), columns_(width, sizes), channels_(channels) {
    for (const int64_t n : sizes) {
      level_bin_.push_back(bins_);
      level_cell_.push_back(cells_);
      bins_ += n;
      cells_ += n * n;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j)
          pixels_.push_back(static_cast<double>(bin_end(i, n, height) - bin_start(i, n, height)) *
                            static_cast<double>(bin_end(j, n, width) - bin_start(j, n, width)));
    }
  }

  int64_t cells() const { return cells_; }
  PoolPlan view() const {
    return {static_cast<int64_t>(sizes_.size()),
            bins_,
            cells_,
            sizes_.data(),
            level_bin_.data(),
            level_cell_.data(),
            pixels_.data(),
            rows_.view(),
            columns_.view(),
            channels_};
  }

 private:
  std::vector<int64_t> sizes_, level_bin_, level_cell_;
  std::vector<double> pixels_;
  int64_t bins_ = 0, cells_ = 0;
  Axis rows_, columns_;
  int64_t channels_;
};

// How [batch, channels] planes are dealt out. Contiguous maps: all planes are alike and a worker
// takes a run of them. channels_last: a unit is a range of channels of one batch item, whole cache
// lines where possible, wide enough for long reads and narrow enough to keep its cells in cache.
struct Units {
  int64_t batch, channels, width, per_item;

  Units(int64_t batch_size, int64_t channel_count, bool channels_last)
      : batch(batch_size), channels(channel_count) {
    if (!channels_last) {
      width = 1;
      per_item = channels;
      return;
    }
    constexpr int64_t kLine = 32, kMost = 2048;
    const int64_t wanted = (thread_count() + batch - 1) / batch;
    const int64_t share = (channels + wanted - 1) / wanted;
    width = std::clamp<int64_t>((share + kLine - 1) / kLine * kLine, kLine, kMost);
    per_item = (channels + width - 1) / width;
  }
  int64_t count() const { return batch * per_item; }
};

// Calls body(plane, first channel, batch item, planes, scratch) for runs of planes.
template <class Body>
void for_each_unit(const Units& units, bool channels_last, int64_t scratch_bytes,
                   const Body& body) {
  const int64_t workers = std::min(thread_count(), units.count());
  const Scratch scratch(workers * scratch_bytes);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t begin = units.count() * worker / workers;
    const int64_t end = units.count() * (worker + 1) / workers;
    char* buffer = scratch.at(worker * scratch_bytes);
    std::memset(buffer, 0, static_cast<size_t>(scratch_bytes));
    if (!channels_last) {
      body(begin, int64_t{0}, begin, end - begin, buffer);
      return;
    }
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t item = unit / units.per_item, channel = unit % units.per_item * units.width;
      body(item * units.channels + channel, channel, item,
           std::min(units.width, units.channels - channel), buffer);
    }
  });
}

std::tuple<Tensor, Tensor> pyramid_pool(Tensor x, std::vector<int64_t> sizes, bool use_max) {
  STD_TORCH_CHECK(x.dim() == 4, "pyramid_pool: expected x [B, C, H, W]");
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const bool channels_last = channels > 1 && x.stride(1) == 1 && !x.is_contiguous();
  const PoolKernels& kernels = kernels_for(dtype_of(x));
  const Plan owner(height, width, channels, sizes);
  const PoolPlan plan = owner.view();
  Tensor out = torch::stable::new_empty(x, {batch, channels, plan.cells});
  Tensor argmax = use_max
                      ? torch::stable::new_empty(x, {batch, channels, plan.cells}, ScalarType::Int)
                      : torch::stable::new_empty(x, {0}, ScalarType::Int);

  const int64_t element = static_cast<int64_t>(x.element_size());
  const char* source = static_cast<const char*>(x.const_data_ptr());
  char* target = static_cast<char*>(out.mutable_data_ptr());
  int32_t* index = static_cast<int32_t*>(argmax.mutable_data_ptr());
  const Units units(batch, channels, channels_last);
  const int64_t scratch_bytes =
      kernels.scratch_bytes(plan, use_max, false, channels_last, units.width);
  for_each_unit(
      units, channels_last, scratch_bytes,
      [&](int64_t plane, int64_t channel, int64_t item, int64_t count, char* scratch) {
        const int64_t start = height * width * (channels_last ? item * channels : plane) + channel;
        const char* from = source + start * element;
        char* to = target + plane * plan.cells * element;
        if (use_max)
          kernels.max(plan, channels_last, from, to, index + plane * plan.cells, count, scratch);
        else
          kernels.mean(plan, channels_last, from, to, count, scratch);
      });
  return {out, argmax};
}
// x [B, C, H, W] -> out [B, C, S], argmax int32 [B, C, S] = h * W + w (use_max) or [0].
ATTNOPS_REGISTER(cpu, CPU, pyramid_pool,
                 "(Tensor x, int[] sizes, bool use_max) -> (Tensor out, Tensor argmax)")

Tensor pyramid_pool_backward(Tensor grad, Tensor argmax, int64_t height, int64_t width,
                             std::vector<int64_t> sizes, bool use_max, bool channels_last) {
  STD_TORCH_CHECK(grad.dim() == 3 && grad.is_contiguous(),
                  "pyramid_pool_backward: expected contiguous grad [B, C, S]");
  const int64_t batch = grad.size(0), channels = grad.size(1);
  const PoolKernels& kernels = kernels_for(dtype_of(grad));
  const Plan owner(height, width, channels, sizes);
  const PoolPlan plan = owner.view();
  Tensor grad_x =
      channels_last
          ? torch::stable::transpose(
                torch::stable::transpose(new_output(grad, {batch, height, width, channels}), 2, 3),
                1, 2)
          : new_output(grad, {batch, channels, height, width});

  const int64_t element = static_cast<int64_t>(grad.element_size());
  const char* source = static_cast<const char*>(grad.const_data_ptr());
  char* target = static_cast<char*>(grad_x.mutable_data_ptr());
  const int32_t* index = static_cast<const int32_t*>(argmax.const_data_ptr());
  const Units units(batch, channels, channels_last);
  const int64_t scratch_bytes =
      kernels.scratch_bytes(plan, use_max, true, channels_last, units.width);
  for_each_unit(units, channels_last, scratch_bytes,
                [&](int64_t plane, int64_t channel, int64_t item, int64_t count, char* scratch) {
                  const int64_t start =
                      height * width * (channels_last ? item * channels : plane) + channel;
                  const char* from = source + plane * plan.cells * element;
                  char* to = target + start * element;
                  if (use_max)
                    kernels.max_backward(plan, channels_last, from, index + plane * plan.cells, to,
                                         count, scratch);
                  else
                    kernels.mean_backward(plan, channels_last, from, to, count, scratch);
                });
  return grad_x;
}
// grad [B, C, S] -> grad_x [B, C, H, W].
ATTNOPS_REGISTER(cpu, CPU, pyramid_pool_backward,
                 "(Tensor grad, Tensor argmax, int height, int width, int[] sizes, bool use_max, "
                 "bool channels_last) -> Tensor grad_x")

}  // namespace
}  // namespace attnops::cpu
