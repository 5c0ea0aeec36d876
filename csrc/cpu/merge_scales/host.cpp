// Host entries of merge_scales: tables of the resize, outputs and the split of work over threads.
#include "host.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"
#include "cpu/resize/tables.h"

namespace attnops::cpu {
namespace {

const MergeKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(merge_kernels, dtype); }

// The arguments of an op, understood.
class Maps {
 public:
  Maps(const std::vector<Tensor>& scores, const std::optional<Tensor>& logits, int64_t height,
       int64_t width, int64_t reduce, bool align_corners)
      : kernels(kernels_for(dtype_of(scores[0]))),
        batch(scores[0].size(0)),
        scores_(scores),
        logits_(logits) {
    const bool channels_last = is_channels_last(scores[0]);
    const int64_t classes = scores[0].size(1);
    tables_.reserve(2 * scores.size());
    for (const Tensor& map : scores) {
      STD_TORCH_CHECK(map.dim() == 4 && map.scalar_type() == scores[0].scalar_type(),
                      "merge_scales: expected maps [B, K, h, w] of one dtype");
      tables_.emplace_back(map.size(2), height, align_corners, dtype_of(map));
      tables_.emplace_back(map.size(3), width, align_corners, dtype_of(map));
      const size_t last = tables_.size() - 1;
      maps_.push_back({classes, channels_last, tables_[last - 1].view(), tables_[last].view()});
    }
    shape = {classes,       height,
             width,         static_cast<int64_t>(scores.size()),
             channels_last, static_cast<Merge>(reduce),
             maps_.data()};
  }

  // The maps and the logits of a batch item.
  std::vector<const void*> scores_of(int64_t item) const {
    std::vector<const void*> found;
    for (const Tensor& map : scores_) found.push_back(item_of(map, item));
    return found;
  }
  const void* logits_of(int64_t item) const { return logits_ ? item_of(*logits_, item) : nullptr; }

  static const void* item_of(const Tensor& map, int64_t item) {
    return static_cast<const char*>(map.const_data_ptr()) + item * item_bytes(map);
  }
  static int64_t item_bytes(const Tensor& map) {
    return map.numel() / map.size(0) * static_cast<int64_t>(map.element_size());
  }

  // Calls body(item, scores, logits, first row, last row, scratch): the output rows of all items
  // in one run a worker.
  template <class Body>
  void for_each_row(const Body& body) const {
    const int64_t total = batch * shape.height, workers = std::min(thread_count(), total);
    const int64_t bytes = kernels.scratch_bytes(shape, 0);
    const Scratch scratch(workers * bytes);
    for_each_worker(workers, [&](int64_t worker) {
      const int64_t end = total * (worker + 1) / workers;
      for (int64_t at = total * worker / workers; at < end;) {
        const int64_t item = at / shape.height, first = at % shape.height;
        const int64_t last = std::min(shape.height, first + end - at);
        body(item, scores_of(item).data(), logits_of(item), first, last,
             static_cast<void*>(scratch.at(worker * bytes)));
        at += last - first;
      }
    });
  }

  const MergeKernels& kernels;
  const int64_t batch;
  MergeShape shape;

 private:
  const std::vector<Tensor>& scores_;
  const std::optional<Tensor>& logits_;
  std::vector<ResizeTables> tables_;
  std::vector<ScoreMap> maps_;
};

// Rows [first, last) of a map of a batch item.
struct Unit {
  int64_t item, scale, first, last;
};

std::vector<Unit> units_of(const Maps& maps, int64_t most_rows) {
  std::vector<Unit> units;
  const int64_t wanted = (thread_count() + maps.batch - 1) / maps.batch;
  for (int64_t item = 0; item < maps.batch; ++item)
    for (int64_t scale = 0; scale < maps.shape.scales; ++scale) {
      const int64_t height = maps.shape.maps[scale].rows.inputs;
      const int64_t rows = std::clamp<int64_t>((height + wanted - 1) / wanted, 1, most_rows);
      for (int64_t first = 0; first < height; first += rows)
        units.push_back({item, scale, first, std::min(height, first + rows)});
    }
  return units;
}

Tensor merge_scales(std::vector<Tensor> scores, std::optional<Tensor> logits, int64_t height,
                    int64_t width, int64_t reduce, bool align_corners) {
  const Maps maps(scores, logits, height, width, reduce, align_corners);
  const Tensor out =
      empty_map(scores[0], maps.shape.classes, height, width, maps.shape.channels_last);
  char* data = static_cast<char*>(out.mutable_data_ptr());
  maps.for_each_row([&](int64_t item, const void* const* sources, const void* weights,
                        int64_t first, int64_t last, void* scratch) {
    maps.kernels.merge(maps.shape, sources, weights, data + item * Maps::item_bytes(out), first,
                       last, scratch);
  });
  return out;
}
// scores [B, K, h, w] each, attention_logits [B, S, H, W] or none, all in one layout -> out
// [B, K, height, width]; packed: the gradients of the maps one after the other, [elements];
// dlogits [0] without logits. The numbers of reduce are those of host.h.
ATTNOPS_REGISTER(cpu, CPU, merge_scales,
                 "(Tensor[] scores, Tensor? attention_logits, int height, int width, int reduce, "
                 "bool align_corners) -> Tensor out")

std::tuple<Tensor, Tensor> merge_scales_backward(Tensor grad, std::vector<Tensor> scores,
                                                 std::optional<Tensor> logits, int64_t reduce,
                                                 bool align_corners) {
  const Maps maps(scores, logits, grad.size(2), grad.size(3), reduce, align_corners);
  // Where the gradient of each map begins.
  std::vector<int64_t> offsets;
  int64_t total = 0;
  for (const Tensor& map : scores) {
    offsets.push_back(total * static_cast<int64_t>(map.element_size()));
    total += map.numel();
  }
  Tensor packed = new_output(grad, {total});
  char* data = static_cast<char*>(packed.mutable_data_ptr());

  // A unit goes over all output rows that read its own; those at its ends are computed by its
  // neighbour as well.
  constexpr int64_t kRows = 16;
  const std::vector<Unit> units = units_of(maps, kRows);
  const int64_t count = static_cast<int64_t>(units.size());
  const int64_t workers = std::min(thread_count(), count);
  const int64_t bytes = maps.kernels.scratch_bytes(maps.shape, kRows);
  const Scratch scratch(workers * bytes);
  for_each_worker(workers, [&](int64_t worker) {
    // Every worker's share has rows of all maps.
    for (int64_t i = worker; i < count; i += workers) {
      const Unit& unit = units[i];
      const ResizeAxis& axis = maps.shape.maps[unit.scale].rows;
      // Inputs never move back, so the readers of a run of rows are a run of outputs.
      const int64_t begin =
          std::lower_bound(axis.second, axis.second + axis.outputs, unit.first) - axis.second;
      const int64_t end =
          std::lower_bound(axis.first, axis.first + axis.outputs, unit.last) - axis.first;
      maps.kernels.score_gradients(
          maps.shape, unit.scale, Maps::item_of(grad, unit.item), maps.scores_of(unit.item).data(),
          maps.logits_of(unit.item),
          data + offsets[unit.scale] + unit.item * Maps::item_bytes(scores[unit.scale]), unit.first,
          unit.last, begin, std::max(begin, end), scratch.at(worker * bytes));
    }
  });

  if (!logits) return {packed, new_output(grad, {0})};
  const Tensor dlogits = empty_map(*logits, logits->size(1), logits->size(2), logits->size(3),
                                   maps.shape.channels_last);
  char* target = static_cast<char*>(dlogits.mutable_data_ptr());
  maps.for_each_row([&](int64_t item, const void* const* sources, const void* weights,
                        int64_t first, int64_t last, void* rest) {
    maps.kernels.logit_gradients(maps.shape, Maps::item_of(grad, item), sources, weights,
                                 target + item * Maps::item_bytes(dlogits), first, last, rest);
  });
  return {packed, dlogits};
}
ATTNOPS_REGISTER(cpu, CPU, merge_scales_backward,
                 "(Tensor grad, Tensor[] scores, Tensor? attention_logits, int reduce, "
                 "bool align_corners) -> (Tensor packed, Tensor dlogits)")

}  // namespace
}  // namespace attnops::cpu
