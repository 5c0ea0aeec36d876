// Host entries of anchor attention: outputs, scratch memory and the split of work over threads.
#include "host.h"

#include <atomic>
#include <optional>
#include <tuple>

#include "common/register.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const AnchorKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(anchor_kernels, dtype); }

constexpr int64_t kPackedBudget = int64_t{8} << 20;     // packed anchors kept at a time
constexpr int64_t kPartialBudget = int64_t{128} << 20;  // scratch and partials of backward workers

AnchorShape shape_of(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3,
                  "anchor_attention: expected query [B, Ck, N], key [B, Ck, S], value [B, Cv, S]");
  STD_TORCH_CHECK(
      query.scalar_type() == key.scalar_type() && query.scalar_type() == value.scalar_type(),
      "anchor_attention: expected tensors of one dtype");
  STD_TORCH_CHECK(key.is_contiguous() && value.is_contiguous(),
                  "anchor_attention: expected contiguous key and value");
  return {key.size(1), value.size(1), query.size(2), key.size(2), scale, is_channels_last(query)};
}

// Packs the anchors of batch items [first, first + count).
void pack_items(const AnchorKernels& kernels, const AnchorShape& shape, bool backward,
                const Items& key, const Items& value, const Items& bias, int64_t first,
                int64_t count, const Scratch& packed, int64_t packed_bytes) {
  const int64_t parts = std::max<int64_t>(1, thread_count() / count);
  for_each_worker(count * parts, [&](int64_t unit) {
    const int64_t item = unit / parts;
    kernels.pack(shape, backward, key[first + item], value[first + item], bias[first + item],
                 packed.at(item * packed_bytes), unit % parts, parts);
  });
}

// Positions of a tile: short maps are cut smaller so that every thread gets `share` tiles.
int64_t tile_size(int64_t most, int64_t positions, int64_t share) {
  constexpr int64_t kSmallest = 48;  // whole panels of every instruction set and type
  const int64_t wanted = positions / (share * thread_count()) / kSmallest * kSmallest;
  return std::clamp(wanted, kSmallest, most);
}

std::tuple<Tensor, Tensor> anchor_attention(Tensor query, Tensor key, Tensor value,
                                            std::optional<Tensor> bias, double scale) {
  const AnchorShape shape = shape_of(query, key, value, scale);
  const AnchorKernels& kernels = kernels_for(dtype_of(query));
  const int64_t batch = query.size(0);
  const auto lse_type =
      query.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor out = empty_positions(query, shape.value_channels, shape.positions, shape.channels_inner);
  Tensor lse = torch::stable::new_empty(query, {batch, shape.positions}, lse_type);
  const Items queries(query), keys(key), values(value), outs(out), norms(lse);
  const Items biases = bias ? Items(*bias) : Items();

  const int64_t packed_bytes = kernels.packed_bytes(shape, false);
  const int64_t scratch_bytes = kernels.scratch_bytes(shape, false);
  const int64_t group =
      std::clamp<int64_t>(kPackedBudget / packed_bytes, 1, std::min(batch, 4 * thread_count()));
  const int64_t tile = tile_size(kernels.forward_tile, shape.positions * group, 4);
  const int64_t tiles = (shape.positions + tile - 1) / tile;
  const int64_t workers = std::min(thread_count(), group * tiles);
  const Scratch packed(group * packed_bytes), scratch(workers * scratch_bytes);

  for (int64_t first = 0; first < batch; first += group) {
    const int64_t items = std::min(group, batch - first);
    pack_items(kernels, shape, false, keys, values, biases, first, items, packed, packed_bytes);
    // Tiles are independent, so whoever is free takes the next one.
    std::atomic<int64_t> next{0};
    for_each_worker(workers, [&](int64_t worker) {
      for (int64_t unit; (unit = next.fetch_add(1)) < items * tiles;) {
        const int64_t item = unit / tiles, start = unit % tiles * tile;
        kernels.forward(shape, packed.at(item * packed_bytes), values[first + item],
                        queries[first + item], outs[first + item], norms[first + item], start,
                        std::min(tile, shape.positions - start),
                        scratch.at(worker * scratch_bytes));
      }
    });
  }
  return {out, lse};
}
// query [B, Ck, N], key [B, Ck, S], value [B, Cv, S], bias [B, S] -> out [B, Cv, N], lse [B, N].
ATTNOPS_REGISTER(cpu, CPU, anchor_attention,
                 "(Tensor query, Tensor key, Tensor value, Tensor? bias, float scale) "
                 "-> (Tensor out, Tensor lse)")

std::tuple<Tensor, Tensor, Tensor, Tensor> anchor_attention_backward(Tensor grad, Tensor query,
                                                                     Tensor key, Tensor value,
                                                                     std::optional<Tensor> bias,
                                                                     Tensor lse, double scale) {
  const AnchorShape shape = shape_of(query, key, value, scale);
  const AnchorKernels& kernels = kernels_for(dtype_of(query));
  const int64_t batch = query.size(0);
  Tensor dquery = empty_positions(query, shape.key_channels, shape.positions, shape.channels_inner);
  Tensor dkey = torch::stable::new_empty(key, {batch, shape.key_channels, shape.anchors});
  Tensor dvalue = torch::stable::new_empty(value, {batch, shape.value_channels, shape.anchors});
  Tensor dbias = bias ? torch::stable::new_empty(key, {batch, shape.anchors})
                      : torch::stable::new_empty(key, {0});
  const Items grads(grad), queries(query), keys(key), values(value), norms(lse);
  const Items dqueries(dquery), dkeys(dkey), dvalues(dvalue);
  const Items biases = bias ? Items(*bias) : Items(), dbiases = bias ? Items(dbias) : Items();

  const int64_t packed_bytes = kernels.packed_bytes(shape, true);
  const int64_t scratch_bytes = kernels.scratch_bytes(shape, true);
  const int64_t partial_bytes = kernels.partial_bytes(shape);
  const int64_t threads =
      std::clamp<int64_t>(kPartialBudget / (partial_bytes + scratch_bytes), 1, thread_count());
  const int64_t group =
      std::clamp<int64_t>(kPackedBudget / packed_bytes, 1, std::min(batch, threads));
  const int64_t tile = tile_size(kernels.backward_tile, shape.positions * group, 2);
  const int64_t tiles = (shape.positions + tile - 1) / tile;
  // Every item of a group is cut into `chunks` runs of tiles with a partial sum each. The cut
  // depends on shapes and the number of threads only, so sums are the same in every run.
  const int64_t chunks = std::min(tiles, std::max<int64_t>(1, threads / group));
  const Scratch packed(group * packed_bytes), partials(group * chunks * partial_bytes);
  const Scratch scratch(group * chunks * scratch_bytes);

  for (int64_t first = 0; first < batch; first += group) {
    const int64_t items = std::min(group, batch - first);
    pack_items(kernels, shape, true, keys, values, biases, first, items, packed, packed_bytes);
    for_each_worker(items * chunks, [&](int64_t unit) {
      const int64_t item = unit / chunks, chunk = unit % chunks;
      char* sums = partials.at(unit * partial_bytes);
      char* buffers = scratch.at(unit * scratch_bytes);
      std::memset(sums, 0, static_cast<size_t>(partial_bytes));
      std::memset(buffers, 0, static_cast<size_t>(scratch_bytes));
      for (int64_t t = tiles * chunk / chunks; t < tiles * (chunk + 1) / chunks; ++t)
        kernels.backward(shape, packed.at(item * packed_bytes), grads[first + item],
                         queries[first + item], norms[first + item], dqueries[first + item], sums,
                         t * tile, std::min(tile, shape.positions - t * tile), buffers);
    });
    const int64_t parts = std::max<int64_t>(1, thread_count() / items);
    for_each_worker(items * parts, [&](int64_t unit) {
      const int64_t item = unit / parts;
      kernels.reduce(shape, partials.at(item * chunks * partial_bytes), chunks, partial_bytes,
                     dkeys[first + item], dvalues[first + item], dbiases[first + item],
                     unit % parts, parts);
    });
  }
  return {dquery, dkey, dvalue, dbias};
}
// dbias has shape [0] without a bias.
ATTNOPS_REGISTER(cpu, CPU, anchor_attention_backward,
                 "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? bias, "
                 "Tensor lse, float scale) -> (Tensor dquery, Tensor dkey, Tensor dvalue, "
                 "Tensor dbias)")

}  // namespace
}  // namespace attnops::cpu
