// The forward of the feed-forward network: strips of columns, runs of rows over threads.
#pragma once

#include <algorithm>

#include "cpu/common/maps.h"
#include "host.h"

namespace attnops::cpu {

inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Takes x to out, with packed weights. Callers keep all of them.
class FeedForwardRows {
 public:
  FeedForwardRows(const FeedForwardShape& shape, const FeedForwardKernels& kernels,
                  const FeedForwardWeights& weights, const Tensor& x, const Tensor& out)
      : shape_(shape), kernels_(kernels), weights_(weights), batch_(x.size(0)), x_(x), out_(out) {}

  void run() const {
    constexpr int64_t kFewestRows = 4;  // of a run: less, and rows between runs cost more than maps
    const int64_t threads = thread_count();
    if (threads > 1 && batch_ * shape_.height < threads * kFewestRows)
      run_in_two_passes(std::min(threads, batch_ * shape_.height));
    else
      run_in_strips(threads);
  }

 private:
  // Strips [0, strips) are those of the first batch item, and so on.
  void run_in_strips(int64_t threads) const {
    constexpr int64_t kRingBytes = int64_t{768} << 10;  // of three rows
    const int64_t pixel_bytes = shape_.hidden_stride() * kernels_.hidden_bytes;
    const int64_t most = std::max<int64_t>(16, kRingBytes / (3 * pixel_bytes));
    const int64_t strips = quotient_up(shape_.width, most);
    const int64_t columns = quotient_up(shape_.width, strips), rows = rows_at_once(columns);
    const int64_t total = batch_ * strips * shape_.height, workers = std::min(threads, total);
    const int64_t ring = FeedForwardStrip{0, columns}.hidden_pixels() * (rows + 2) * pixel_bytes;
    const int64_t bytes = ring + scratch_bytes(rows, columns);
    const Scratch scratch(workers * bytes);
    for_each_worker(workers, [&](int64_t worker) {
      char* own = scratch.at(worker * bytes);
      const HiddenRows hidden = {own, rows + 2};
      const int64_t end = total * (worker + 1) / workers;
      for (int64_t at = total * worker / workers; at < end;) {
        const int64_t number = at / shape_.height, first = at % shape_.height;
        const int64_t last = std::min(shape_.height, first + end - at);
        const int64_t left = number % strips * columns;
        const FeedForwardStrip strip = {left, std::min(shape_.width, left + columns)};
        if (strip.left < strip.right)
          run_strip(strip, number / strips, first, last, rows, hidden, own + ring);
        at += last - first;
      }
    });
  }

  void run_strip(const FeedForwardStrip& strip, int64_t item, int64_t first, int64_t last,
                 int64_t rows, const HiddenRows& hidden, void* scratch) const {
    int64_t next = std::max<int64_t>(0, first - 1);  // hidden row to compute
    for (int64_t y = first; y < last; y += rows) {
      const int64_t end = std::min(last, y + rows), seen = std::min(shape_.height, end + 1);
      while (next < seen) {
        const int64_t until = std::min(seen, next + rows);
        kernels_.expand(shape_, weights_, strip, x_[item], next, until, hidden, scratch);
        next = until;
      }
      kernels_.contract(shape_, weights_, strip, hidden, x_[item], y, end, out_[item], scratch);
    }
  }

  // The whole hidden map, then the output.
  void run_in_two_passes(int64_t workers) const {
    const FeedForwardStrip strip = {0, shape_.width};
    const int64_t height = shape_.height, total = batch_ * height;
    const int64_t hidden_item =
        height * strip.hidden_pixels() * shape_.hidden_stride() * kernels_.hidden_bytes;
    const int64_t bytes = scratch_bytes(1, shape_.width);
    const Scratch scratch(workers * bytes);
    const Scratch map(batch_ * hidden_item);
    const auto for_each_row = [&](const auto& body) {
      for_each_worker(workers, [&](int64_t worker) {
        for (int64_t at = total * worker / workers; at < total * (worker + 1) / workers; ++at) {
          const int64_t item = at / height;
          body(item, at % height, HiddenRows{map.at(item * hidden_item), height},
               static_cast<void*>(scratch.at(worker * bytes)));
        }
      });
    };
    for_each_row([&](int64_t item, int64_t y, const HiddenRows& hidden, void* own) {
      kernels_.expand(shape_, weights_, strip, x_[item], y, y + 1, hidden, own);
    });
    for_each_row([&](int64_t item, int64_t y, const HiddenRows& hidden, void* own) {
      kernels_.contract(shape_, weights_, strip, hidden, x_[item], y, y + 1, out_[item], own);
    });
  }

  // So many that a product has pixels enough to read its weights for, of more where the ring has
  // the room. Tiles take less time for a pixel than weights that fill a second-level cache take to
  // come.
  int64_t rows_at_once(int64_t columns) const {
    constexpr int64_t kPixels = 64, kTilePixels = 256, kMostWeightBytes = int64_t{5} << 18;
    const bool large = kernels_.weight_bytes > 2 && second_level_cache() >= int64_t{2} << 20;
    const int64_t weights = (shape_.padded_channels() + shape_.padded_outputs()) * shape_.hidden *
                            kernels_.weight_bytes;
    const bool many = shape_.tiles && kernels_.weight_bytes == 2 && weights > kMostWeightBytes;
    const int64_t pixels = many ? kTilePixels : large ? 2 * kPixels : kPixels;
    return std::min(shape_.height, quotient_up(pixels, columns));
  }
  int64_t scratch_bytes(int64_t rows, int64_t columns) const {
    return quotient_up(kernels_.scratch_bytes(shape_, rows, columns), 64) * 64;
  }

  const FeedForwardShape& shape_;
  const FeedForwardKernels& kernels_;
  const FeedForwardWeights& weights_;
  const int64_t batch_;
  const Items x_, out_;
};

}  // namespace attnops::cpu
