// Host entries of upsample_argmax and upsample_cross_entropy: tables of the resize, outputs,
// threads.
#include "host.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"
#include "cpu/resize/tables.h"

namespace attnops::cpu {
namespace {

const ClassesKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(classes_kernels, dtype); }

struct Logits {
  const ClassesKernels& kernels;
  int64_t batch, height, width, item_bytes;
  ResizeTables rows, columns;
  ClassesShape map;

  Logits(const Tensor& logits, int64_t out_height, int64_t out_width, bool align_corners,
         int64_t ignore_index)
      : kernels(kernels_for(dtype_of(logits))),
        batch(logits.size(0)),
        height(out_height),
        width(out_width),
        item_bytes(logits.numel() / logits.size(0) * static_cast<int64_t>(logits.element_size())),
        rows(logits.size(2), out_height, align_corners, dtype_of(logits)),
        columns(logits.size(3), out_width, align_corners, dtype_of(logits)),
        map{{logits.size(1), is_channels_last(logits), rows.view(), columns.view()}, ignore_index} {
  }

  // Calls body(item, first row, last row, scratch): the output rows of all items in one run a
  // worker.
  template <class Body>
  void for_each_row(const Body& body) const {
    const int64_t total = batch * height, workers = std::min(thread_count(), total);
    const int64_t bytes = kernels.scratch_bytes(map, 0);
    const Scratch scratch(workers * bytes);
    for_each_worker(workers, [&](int64_t worker) {
      const int64_t end = total * (worker + 1) / workers;
      for (int64_t at = total * worker / workers; at < end;) {
        const int64_t first = at % height, last = std::min(height, first + end - at);
        body(at / height, first, last, static_cast<void*>(scratch.at(worker * bytes)));
        at += last - first;
      }
    });
  }
};

int64_t bytes_of(ScalarType type) { return type == ScalarType::Double ? 8 : 4; }

ScalarType statistics_of(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor upsample_argmax(Tensor logits, int64_t height, int64_t width, bool align_corners) {
  STD_TORCH_CHECK(logits.dim() == 4, "upsample_argmax: expected logits [B, K, h, w]");
  const Logits maps(logits, height, width, align_corners, -1);
  Tensor labels = torch::stable::new_empty(logits, {maps.batch, height, width}, ScalarType::Long);
  const char* source = static_cast<const char*>(logits.const_data_ptr());
  int64_t* out = static_cast<int64_t*>(labels.mutable_data_ptr());
  maps.for_each_row([&](int64_t item, int64_t first, int64_t last, void* scratch) {
    maps.kernels.labels(maps.map, source + item * maps.item_bytes, out + item * height * width,
                        first, last, scratch);
  });
  return labels;
}
// logits [B, K, h, w], labels int64 [B, H, W].
ATTNOPS_REGISTER(cpu, CPU, upsample_argmax,
                 "(Tensor logits, int height, int width, bool align_corners) -> Tensor labels")

std::tuple<Tensor, Tensor> upsample_cross_entropy(Tensor logits, Tensor target,
                                                  int64_t ignore_index, bool align_corners) {
  STD_TORCH_CHECK(logits.dim() == 4 && target.dim() == 3 && target.is_contiguous(),
                  "upsample_cross_entropy: expected logits [B, K, h, w], contiguous target "
                  "[B, H, W]");
  const int64_t height = target.size(1), width = target.size(2);
  const Logits maps(logits, height, width, align_corners, ignore_index);
  const ScalarType type = statistics_of(logits);
  Tensor loss = torch::stable::new_empty(logits, {maps.batch, height, width}, type);
  Tensor statistics = torch::stable::new_empty(logits, {2, maps.batch, height, width}, type);
  const int64_t item = height * width * bytes_of(type);
  const char* source = static_cast<const char*>(logits.const_data_ptr());
  const int64_t* labels = static_cast<const int64_t*>(target.const_data_ptr());
  char* losses = static_cast<char*>(loss.mutable_data_ptr());
  char* largest = static_cast<char*>(statistics.mutable_data_ptr());
  maps.for_each_row([&](int64_t b, int64_t first, int64_t last, void* scratch) {
    maps.kernels.losses(maps.map, source + b * maps.item_bytes, labels + b * height * width,
                        losses + b * item, largest + b * item, largest + (maps.batch + b) * item,
                        first, last, scratch);
  });
  return {loss, statistics};
}
// target int64 [B, H, W], loss [B, H, W], statistics [2, B, H, W], both float32 or float64.
ATTNOPS_REGISTER(cpu, CPU, upsample_cross_entropy,
                 "(Tensor logits, Tensor target, int ignore_index, bool align_corners) "
                 "-> (Tensor loss, Tensor statistics)")

Tensor upsample_cross_entropy_backward(Tensor grad, std::optional<Tensor> grad_lse, Tensor logits,
                                       Tensor target, Tensor statistics, int64_t ignore_index,
                                       bool align_corners) {
  const int64_t height = target.size(1), width = target.size(2), inputs = logits.size(2);
  const Logits maps(logits, height, width, align_corners, ignore_index);
  Tensor dlogits =
      empty_map(logits, logits.size(1), inputs, logits.size(3), maps.map.channels_last);
  // A unit owns some rows of logits and goes over all output rows that read them; those at its ends
  // are computed by its neighbour as well.
  constexpr int64_t kRows = 16;
  const int64_t wanted = (thread_count() + maps.batch - 1) / maps.batch;
  const int64_t rows = std::clamp<int64_t>((inputs + wanted - 1) / wanted, 1, kRows);
  const int64_t per_item = (inputs + rows - 1) / rows, units = maps.batch * per_item;
  const int64_t workers = std::min(thread_count(), units);
  const int64_t bytes = maps.kernels.scratch_bytes(maps.map, rows);
  const Scratch scratch(workers * bytes);
  const int64_t item = height * width * bytes_of(statistics_of(logits));
  const char* incoming = static_cast<const char*>(grad.const_data_ptr());
  const char* incoming_lse =
      grad_lse ? static_cast<const char*>(grad_lse->const_data_ptr()) : nullptr;
  const char* source = static_cast<const char*>(logits.const_data_ptr());
  const int64_t* labels = static_cast<const int64_t*>(target.const_data_ptr());
  const char* largest = static_cast<const char*>(statistics.const_data_ptr());
  char* out = static_cast<char*>(dlogits.mutable_data_ptr());
  const ResizeAxis& axis = maps.map.rows;
  for_each_worker(workers, [&](int64_t worker) {
    for (int64_t unit = units * worker / workers; unit < units * (worker + 1) / workers; ++unit) {
      const int64_t b = unit / per_item, first = unit % per_item * rows;
      const int64_t last = std::min(inputs, first + rows);
      // Inputs never move back, so the readers of a run of rows are a run of outputs.
      const int64_t begin =
          std::lower_bound(axis.second, axis.second + height, first) - axis.second;
      const int64_t end = std::lower_bound(axis.first, axis.first + height, last) - axis.first;
      maps.kernels.gradients(maps.map, incoming + b * item,
                             incoming_lse == nullptr ? nullptr : incoming_lse + b * item,
                             source + b * maps.item_bytes, labels + b * height * width,
                             largest + b * item, largest + (maps.batch + b) * item,
                             out + b * maps.item_bytes, first, last, begin, std::max(begin, end),
                             scratch.at(worker * bytes));
    }
  });
  return dlogits;
}
// grad of the losses, grad_lse of the pixels' log-sum-exp, both like the losses.
ATTNOPS_REGISTER(cpu, CPU, upsample_cross_entropy_backward,
                 "(Tensor grad, Tensor? grad_lse, Tensor logits, Tensor target, Tensor statistics, "
                 "int ignore_index, bool align_corners) -> Tensor dlogits")

}  // namespace
}  // namespace attnops::cpu
