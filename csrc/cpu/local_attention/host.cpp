// Host entries of local attention: outputs, scratch memory and the split of work over threads.
#include "host.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const LocalKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(local_kernels, dtype); }

LocalShape shape_of(const Tensor& query, const Tensor& key, const Tensor& value,
                    const std::vector<int64_t>& kernel_size, const std::vector<int64_t>& dilation,
                    double scale, bool mask_border) {
  STD_TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
                  "local_attention: expected maps [B, C, H, W]");
  STD_TORCH_CHECK(
      query.scalar_type() == key.scalar_type() && query.scalar_type() == value.scalar_type(),
      "local_attention: expected tensors of one dtype");
  STD_TORCH_CHECK(kernel_size.size() == 2 && dilation.size() == 2,
                  "local_attention: expected two numbers for kernel and for dilation");
  LocalShape s;
  s.key_channels = query.size(1);
  s.value_channels = value.size(1);
  s.scale = scale;
  s.mask_border = mask_border;
  s.channels_last = is_channels_last(query);
  // A map of one column is in memory what a map of one row is, and vectors run along rows.
  const int turned = query.size(3) == 1;
  s.height = query.size(2 + turned);
  s.width = query.size(3 - turned);
  s.row_step = dilation[turned];
  s.column_step = dilation[1 - turned];
  s.rows = 2 * std::min(kernel_size[turned] / 2, (s.height - 1) / s.row_step) + 1;
  s.columns = 2 * std::min(kernel_size[1 - turned] / 2, (s.width - 1) / s.column_step) + 1;
  s.unreachable = kernel_size[0] * kernel_size[1] - s.rows * s.columns;
  // Without neighbours along an axis its step means nothing.
  if (s.rows == 1) s.row_step = 1;
  if (s.columns == 1) s.column_step = 1;
  return s;
}

// Calls body(batch item, piece, scratch) for pieces that cover `batch` maps. The rows of all maps,
// phase by phase, are cut into one run for every worker; pieces of a run are whole phases but for
// its ends. `columns` is the width of a piece.
template <class Body>
void for_each_piece(const LocalShape& s, int64_t batch, int64_t columns, int64_t scratch_bytes,
                    const Body& body) {
  const int64_t tiles = (s.width + columns - 1) / columns;
  const int64_t total = batch * tiles * s.height;
  const int64_t workers = std::min(thread_count(), total);
  const Scratch scratch(workers * scratch_bytes);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t end = total * (worker + 1) / workers;
    for (int64_t at = total * worker / workers; at < end;) {
      const int64_t tile = at / s.height % tiles;
      int64_t phase = 0, first = at % s.height, rows;
      while (first >= (rows = (s.height - phase + s.row_step - 1) / s.row_step)) {
        first -= rows;
        ++phase;
      }
      const int64_t last = std::min(rows, first + end - at);
      body(at / s.height / tiles,
           LocalPiece{phase, first, last, tile * columns, std::min(s.width, (tile + 1) * columns)},
           scratch.at(worker * scratch_bytes));
      at += last - first;
    }
  });
}

std::tuple<Tensor, Tensor> local_attention(Tensor query, Tensor key, Tensor value,
                                           std::vector<int64_t> kernel_size,
                                           std::vector<int64_t> dilation, double scale,
                                           bool mask_border) {
  const LocalShape s = shape_of(query, key, value, kernel_size, dilation, scale, mask_border);
  const LocalKernels& kernels = kernels_for(dtype_of(query));
  const int64_t batch = query.size(0);
  const auto lse_type =
      query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = empty_map(query, s.value_channels, query.size(2), query.size(3), s.channels_last);
  Tensor lse = torch::stable::new_empty(query, {batch, query.size(2), query.size(3)}, lse_type);
  const Items queries(query), keys(key), values(value), outs(out), norms(lse);
  for_each_piece(s, batch, kernels.piece_columns(s), kernels.scratch_bytes(s, false),
                 [&](int64_t b, const LocalPiece& piece, char* scratch) {
                   kernels.forward(s, piece, queries[b], keys[b], values[b], outs[b], norms[b],
                                   scratch);
                 });
  return {out, lse};
}
// query, key [B, Ck, H, W], value [B, Cv, H, W], two numbers in kernel and dilation ->
// out [B, Cv, H, W], lse [B, H, W].
ATTNOPS_REGISTER(cpu, CPU, local_attention,
                 "(Tensor query, Tensor key, Tensor value, int[] kernel_size, int[] dilation, "
                 "float scale, bool mask_border) -> (Tensor out, Tensor lse)")

std::tuple<Tensor, Tensor, Tensor> local_attention_backward(Tensor grad, Tensor query, Tensor key,
                                                            Tensor value, Tensor lse,
                                                            std::vector<int64_t> kernel_size,
                                                            std::vector<int64_t> dilation,
                                                            double scale, bool mask_border) {
  const LocalShape s = shape_of(query, key, value, kernel_size, dilation, scale, mask_border);
  const LocalKernels& kernels = kernels_for(dtype_of(query));
  Tensor dquery = empty_map(query, s.key_channels, query.size(2), query.size(3), s.channels_last);
  Tensor dkey = empty_map(query, s.key_channels, query.size(2), query.size(3), s.channels_last);
  Tensor dvalue = empty_map(query, s.value_channels, query.size(2), query.size(3), s.channels_last);
  const Items grads(grad), queries(query), keys(key), values(value), norms(lse);
  const Items dqueries(dquery), dkeys(dkey), dvalues(dvalue);
  for_each_piece(s, query.size(0), s.width, kernels.scratch_bytes(s, true),
                 [&](int64_t b, const LocalPiece& piece, char* scratch) {
                   kernels.backward(s, piece, grads[b], queries[b], keys[b], values[b], norms[b],
                                    dqueries[b], dkeys[b], dvalues[b], scratch);
                 });
  return {dquery, dkey, dvalue};
}
ATTNOPS_REGISTER(
    cpu, CPU, local_attention_backward,
    "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor lse, "
    "int[] kernel_size, int[] dilation, float scale, bool mask_border) -> (Tensor dquery, "
    "Tensor dkey, Tensor dvalue)")

}  // namespace
}  // namespace attnops::cpu
