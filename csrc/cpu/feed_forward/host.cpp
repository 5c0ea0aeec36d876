// Host entry of feed_forward: the output, strips of columns, runs of rows over threads.
#include "host.h"

#include <algorithm>

#include "common/register.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const FeedForwardKernels& kernels_for(DType dtype) {
  ATTNOPS_SELECT_KERNELS(feed_forward_kernels, dtype);
}

int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The arguments of the op, understood.
class FeedForwardCall {
 public:
  FeedForwardCall(const Tensor& x, const Tensor& expand, const Tensor& contract,
                  const Tensor& inner, const Tensor& outer, Tensor& out)
      : shape_{x.size(2), x.size(3), x.size(1), inner.size(1), multiplies_bfloat16()},
        kernels_(kernels_for(dtype_of(expand))),
        inner_(inner.numel() * static_cast<int64_t>(sizeof(float))),
        weights_{expand.const_data_ptr(), contract.const_data_ptr(),
                 reinterpret_cast<const float*>(inner_.at(0)),
                 static_cast<const float*>(outer.const_data_ptr())},
        batch_(x.size(0)),
        x_(static_cast<const float*>(x.const_data_ptr())),
        out_(static_cast<float*>(out.mutable_data_ptr())) {
    memcpy(inner_.at(0), inner.const_data_ptr(),
           static_cast<size_t>(inner.numel()) * sizeof(float));
  }

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
    const int64_t pixel_bytes = shape_.hidden * static_cast<int64_t>(sizeof(float));
    const int64_t most = std::max<int64_t>(16, kRingBytes / (3 * pixel_bytes));
    const int64_t strips = quotient_up(shape_.width, most);
    const int64_t columns = quotient_up(shape_.width, strips), rows = rows_at_once(columns);
    const int64_t total = batch_ * strips * shape_.height, workers = std::min(threads, total);
    const int64_t ring = (columns + 2) * (rows + 2) * pixel_bytes;
    const int64_t bytes = ring + scratch_bytes(rows, columns);
    const Scratch scratch(workers * bytes);
    for_each_worker(workers, [&](int64_t worker) {
      char* own = scratch.at(worker * bytes);
      const HiddenRows hidden = {reinterpret_cast<float*>(own), rows + 2};
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
    const int64_t offset = item * shape_.height * shape_.width * shape_.channels;
    int64_t next = std::max<int64_t>(0, first - 1);  // hidden row to compute
    for (int64_t y = first; y < last; y += rows) {
      const int64_t end = std::min(last, y + rows), seen = std::min(shape_.height, end + 1);
      while (next < seen) {
        const int64_t until = std::min(seen, next + rows);
        kernels_.expand(shape_, weights_, strip, x_ + offset, next, until, hidden, scratch);
        next = until;
      }
      kernels_.contract(shape_, weights_, strip, hidden, x_ + offset, y, end, out_ + offset,
                        scratch);
    }
  }

  // The whole hidden map, then the output.
  void run_in_two_passes(int64_t workers) const {
    const FeedForwardStrip strip = {0, shape_.width};
    const int64_t height = shape_.height, total = batch_ * height;
    const int64_t item = height * shape_.width * shape_.channels;
    const int64_t hidden_item = height * strip.hidden_pixels() * shape_.hidden;
    const int64_t bytes = scratch_bytes(1, shape_.width);
    const Scratch scratch(workers * bytes);
    const Scratch map(batch_ * hidden_item * static_cast<int64_t>(sizeof(float)));
    const auto for_each_row = [&](const auto& body) {
      for_each_worker(workers, [&](int64_t worker) {
        for (int64_t at = total * worker / workers; at < total * (worker + 1) / workers; ++at) {
          float* data = reinterpret_cast<float*>(map.at(0)) + at / height * hidden_item;
          body(at / height * item, at % height, HiddenRows{data, height},
               static_cast<void*>(scratch.at(worker * bytes)));
        }
      });
    };
    for_each_row([&](int64_t offset, int64_t y, const HiddenRows& hidden, void* own) {
      kernels_.expand(shape_, weights_, strip, x_ + offset, y, y + 1, hidden, own);
    });
    for_each_row([&](int64_t offset, int64_t y, const HiddenRows& hidden, void* own) {
      kernels_.contract(shape_, weights_, strip, hidden, x_ + offset, y, y + 1, out_ + offset, own);
    });
  }

  // So many that a product has pixels enough to read its weights for.
  int64_t rows_at_once(int64_t columns) const {
    constexpr int64_t kPixels = 64;
    return std::min(shape_.height, quotient_up(kPixels, columns));
  }
  int64_t scratch_bytes(int64_t rows, int64_t columns) const {
    return quotient_up(kernels_.scratch_bytes(shape_, rows, columns), 64) * 64;
  }

  const FeedForwardShape shape_;
  const FeedForwardKernels& kernels_;
  const Scratch inner_;  // a copy at whole cache lines: it is read for every vector of the map
  const FeedForwardWeights weights_;
  const int64_t batch_;
  const float* x_;
  float* out_;
};

void check(const Tensor& x, const Tensor& expand, const Tensor& contract, const Tensor& inner,
           const Tensor& outer) {
  STD_TORCH_CHECK(x.dim() == 4 && inner.dim() == 2 && outer.dim() == 1,
                  "feed_forward: expected x [B, C, H, W], inner [11, hidden] and outer [C]");
  const int64_t channels = quotient_up(x.size(1), kPanelRows) * kPanelRows;
  const int64_t hidden = inner.size(1), weights = channels * hidden;
  STD_TORCH_CHECK(is_channels_last(x) || x.size(1) == 1 || x.size(2) * x.size(3) == 1,
                  "feed_forward: expected x in channels_last");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float &&
                      inner.scalar_type() == ScalarType::Float &&
                      outer.scalar_type() == ScalarType::Float &&
                      expand.scalar_type() == contract.scalar_type() &&
                      (expand.scalar_type() == ScalarType::Float ||
                       expand.scalar_type() == ScalarType::BFloat16),
                  "feed_forward: expected float32, and weights in float32 or bfloat16");
  STD_TORCH_CHECK(hidden % kPanelRows == 0 && inner.size(0) == 11 && outer.size(0) == channels &&
                      expand.numel() == weights && contract.numel() == weights,
                  "feed_forward: expected weights of ", channels, " channels, padded");
  for (const Tensor* packed : {&expand, &contract, &inner, &outer})
    STD_TORCH_CHECK(packed->is_contiguous(), "feed_forward: expected contiguous weights");
}

Tensor feed_forward(Tensor x, Tensor expand, Tensor contract, Tensor inner, Tensor outer) {
  check(x, expand, contract, inner, outer);
  Tensor out = empty_map(x, x.size(1), x.size(2), x.size(3), true);
  FeedForwardCall(x, expand, contract, inner, outer, out).run();
  return out;
}
// x [B, C, H, W] in channels_last -> out like x; the weights as host.h says.
ATTNOPS_REGISTER(cpu, CPU, feed_forward,
                 "(Tensor x, Tensor expand, Tensor contract, Tensor inner, Tensor outer) "
                 "-> Tensor out")

}  // namespace
}  // namespace attnops::cpu
