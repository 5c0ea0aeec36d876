// Anchor attention on tiles of positions; compiled once per instruction set.
//
// Per position forward does anchors * (Ck + Cv) multiply-adds, backward that for scores, dp,
// dquery, dkey and dvalue. Every product has the map or its gradient on one side and anchors on the
// other. A contiguous map [C, N] puts positions along the vectors: scores are [anchors, positions]
// and packed anchors are the left operand. A channels-inner map [N, C] is the transposed problem:
// scores are [positions, anchors] and packed anchors are the right operand.
#include "cpu/common/subnormals.h"
#include "pack.h"
#include "softmax.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int64_t kForwardTile = 192;
constexpr int64_t kBackwardTile = 144;

// Buffers of one worker, elements of C. Forward keeps one chunk of the map tile, backward all of
// query and grad, since they are operands twice.
template <class C, bool kInner>
struct ScratchLayout {
  int64_t key_rows, value_rows;  // channels, padded for blocks of kRows
  int64_t tile, scores_stride, turned_stride;
  int64_t grad, scores, dp, turned_p, turned_ds, total;  // offsets; the query stands first

  ScratchLayout(const AnchorShape& s, bool backward) {
    tile = backward ? kBackwardTile : kForwardTile;
    key_rows = round_up(s.key_channels, kRows);
    value_rows = round_up(s.value_channels, kRows);
    const int64_t row_anchors = max64(round_up(s.anchors, kRows), round_up(s.anchors, kWidth<C>));
    const int64_t column_anchors = round_up(s.anchors, kColumns<C>);
    scores_stride = kInner ? tile * kColumns<C> : row_anchors * kColumns<C>;
    turned_stride = tile * kColumns<C>;
    const int64_t chunk = kInner ? tile * kChunkStride : tile * kChunk;
    auto map_size = [&](int64_t rows) {
      return kInner ? (rows + kChunk - 1) / kChunk * chunk : tile * rows;
    };
    const int64_t scores_size = tile * (kInner ? column_anchors : row_anchors);
    grad = backward ? map_size(key_rows) : chunk;
    scores = grad + (backward ? map_size(value_rows) : 0);
    dp = scores + round_up(scores_size, 16);
    turned_p = dp + (backward ? round_up(scores_size, 16) : 0);
    const int64_t turned_size = backward && !kInner ? tile * column_anchors : 0;
    turned_ds = turned_p + turned_size;
    total = turned_ds + turned_size;
  }
};

// scores = map^T anchors for a tile. x points at the tile's first position; `packed` are panels
// over anchors. `tile` receives the map: with keep, all chunks one after the other, else the last
// one.
template <class S, bool kInner>
void map_times_anchors(const S* x, int64_t channels, const AnchorShape& shape, int64_t count,
                       const Compute<S>* packed, Compute<S>* tile, int64_t tile_rows, bool keep,
                       int64_t tile_positions, Compute<S>* scores, int64_t scores_stride) {
  using C = Compute<S>;
  constexpr int64_t panel = kPanel<C, kInner>;
  for (int64_t c = 0; c < channels; c += kChunk) {
    const int64_t depth = min64(kChunk, channels - c);
    const C* anchors = packed + c * panel;
    if constexpr (kInner) {
      C* rows = tile + (keep ? c / kChunk * tile_positions * kChunkStride : 0);
      copy_rows(x + c, channels, depth, count, rows);
      multiply_panels<C, kChunkStride, 1>({rows, kRows * kChunkStride, depth, 0},
                                          {anchors, channels * panel}, {scores, scores_stride},
                                          count, shape.anchors, depth, c > 0);
    } else {
      C* panels = tile + (keep ? c * kColumns<C> : 0);
      const int64_t stride = (keep ? tile_rows : depth) * kColumns<C>;
      pack_positions(x + c * shape.positions, shape.positions, depth, count, panels, stride);
      multiply_panels<C, 1, kRows>({anchors, channels * panel, depth, 0}, {panels, stride},
                                   {scores, scores_stride}, shape.anchors, count, depth, c > 0);
    }
  }
}

// out = anchors weights for a tile: weights are scores-shaped, `packed` panels over channels.
template <class S, bool kInner>
void anchors_times_weights(const Compute<S>* packed, const Compute<S>* weights, int64_t stride,
                           int64_t channels, const AnchorShape& shape, int64_t first, int64_t count,
                           S* out) {
  using C = Compute<S>;
  const int64_t panel_size = shape.anchors * kPanel<C, kInner>;
  if constexpr (kInner)
    multiply_out<S, kColumns<C>, 1, false>({weights, kRows * kColumns<C>, kColumns<C>, stride},
                                           {packed, panel_size}, out + first * channels, channels,
                                           count, channels, shape.anchors);
  else
    multiply_out<S, 1, kRows, true>({packed, panel_size, shape.anchors, 0}, {weights, stride},
                                    out + first, shape.positions, channels, count, shape.anchors);
}

// sums[c, s] += sum over the tile's positions of map[c, n] weights[n, s]; weights are panels over
// anchors, the map is what map_times_anchors kept.
template <class C, bool kInner>
void accumulate_anchors(const C* map, int64_t map_rows, const C* weights, int64_t weights_stride,
                        int64_t channels, int64_t anchors, int64_t count, int64_t tile, C* sums) {
  const int64_t sums_stride = map_rows * kColumns<C>;
  if constexpr (kInner) {
    for (int64_t c = 0; c < channels; c += kChunk)
      multiply_panels<C, 1, kChunkStride>(
          {map + c / kChunk * tile * kChunkStride, kRows, count, 0}, {weights, weights_stride},
          {sums + c * kColumns<C>, sums_stride}, min64(kChunk, channels - c), anchors, count, true);
  } else {
    multiply_panels<C, kColumns<C>, 1>(
        {map, kRows * kColumns<C>, kColumns<C>, map_rows * kColumns<C>}, {weights, weights_stride},
        {sums, sums_stride}, channels, anchors, count, true);
  }
}

template <class S, bool kInner>
void forward_tile(const AnchorShape& shape, const Compute<S>* packed, const S* value,
                  const S* query, S* out, Compute<S>* lse, int64_t first, int64_t count,
                  Compute<S>* scratch) {
  using C = Compute<S>;
  const PackedLayout<S, kInner> layout(shape, false);
  const ScratchLayout<C, kInner> buffers(shape, false);
  C* scores = scratch + buffers.scores;
  const C* bias = packed + layout.bias;
  map_times_anchors<S, kInner>(query + first * (kInner ? shape.key_channels : 1),
                               shape.key_channels, shape, count, packed + layout.key_scores,
                               scratch, 0, false, buffers.tile, scores, buffers.scores_stride);
  if constexpr (kInner)
    softmax_rows(scores, buffers.scores_stride, shape.anchors, count, bias, lse + first);
  else
    softmax_columns(scores, buffers.scores_stride, shape.anchors, count, bias, lse + first);
  if constexpr (value_may_stay<S, kInner>) {
    if (value_in_place<S, kInner>(shape)) {
      const int64_t anchors = shape.anchors;
      multiply_out<S, 0, 1, true>({value, 0, anchors, 0, anchors}, {scores, buffers.scores_stride},
                                  out + first, shape.positions, shape.value_channels, count,
                                  anchors);
      return;
    }
  }
  anchors_times_weights<S, kInner>(packed + layout.value_out, scores, buffers.scores_stride,
                                   shape.value_channels, shape, first, count, out);
}

template <class S, bool kInner>
void backward_tile(const AnchorShape& shape, const Compute<S>* packed, const S* grad,
                   const S* query, const Compute<S>* lse, S* dquery, Compute<S>* partial,
                   int64_t first, int64_t count, Compute<S>* scratch) {
  using C = Compute<S>;
  const PackedLayout<S, kInner> layout(shape, true);
  const ScratchLayout<C, kInner> buffers(shape, true);
  const PartialLayout<C> sums(shape);
  const C* bias = packed + layout.bias;
  C *query_tile = scratch, *grad_tile = scratch + buffers.grad;
  C *p = scratch + buffers.scores, *ds = scratch + buffers.dp;
  map_times_anchors<S, kInner>(query + first * (kInner ? shape.key_channels : 1),
                               shape.key_channels, shape, count, packed + layout.key_scores,
                               query_tile, buffers.key_rows, true, buffers.tile, p,
                               buffers.scores_stride);
  map_times_anchors<S, kInner>(grad + first * (kInner ? shape.value_channels : 1),
                               shape.value_channels, shape, count, packed + layout.value_scores,
                               grad_tile, buffers.value_rows, true, buffers.tile, ds,
                               buffers.scores_stride);
  if constexpr (kInner) {
    softmax_backward_rows(p, ds, buffers.scores_stride, shape.anchors, count, bias, lse + first);
    sum_positions_rows(ds, buffers.scores_stride, shape.anchors, count, partial + sums.bias);
  } else {
    softmax_backward_columns(p, ds, buffers.scores_stride, shape.anchors, count, bias, lse + first);
    sum_positions_columns(ds, buffers.scores_stride, shape.anchors, count, partial + sums.bias);
  }
  anchors_times_weights<S, kInner>(packed + layout.key_out, ds, buffers.scores_stride,
                                   shape.key_channels, shape, first, count, dquery);
  if constexpr (!kInner) {
    C *turned_p = scratch + buffers.turned_p, *turned_ds = scratch + buffers.turned_ds;
    transpose_panels(p, buffers.scores_stride, shape.anchors, count, turned_p,
                     buffers.turned_stride);
    transpose_panels(ds, buffers.scores_stride, shape.anchors, count, turned_ds,
                     buffers.turned_stride);
    p = turned_p;
    ds = turned_ds;
  }
  accumulate_anchors<C, kInner>(query_tile, buffers.key_rows, ds, buffers.turned_stride,
                                shape.key_channels, shape.anchors, count, buffers.tile, partial);
  accumulate_anchors<C, kInner>(grad_tile, buffers.value_rows, p, buffers.turned_stride,
                                shape.value_channels, shape.anchors, count, buffers.tile,
                                partial + sums.value);
}

template <class S, bool kInner>
void pack_part(const AnchorShape& shape, bool backward, const S* key, const S* value, const S* bias,
               Compute<S>* packed, int64_t part, int64_t parts) {
  using C = Compute<S>;
  constexpr int64_t panel = kPanel<C, kInner>;
  const PackedLayout<S, kInner> layout(shape, backward);
  pack_anchors<S>(key, shape.key_channels, shape.anchors, shape.key_channels * part / parts,
                  shape.key_channels * (part + 1) / parts, static_cast<C>(shape.scale), panel,
                  packed + layout.key_scores, backward ? packed + layout.key_out : nullptr);
  if (backward || !value_in_place<S, kInner>(shape))
    pack_anchors<S>(value, shape.value_channels, shape.anchors, shape.value_channels * part / parts,
                    shape.value_channels * (part + 1) / parts, (C)1, panel,
                    backward ? packed + layout.value_scores : nullptr,
                    backward ? nullptr : packed + layout.value_out);
  if (part > 0) return;
  C* target = packed + layout.bias;
  for (int64_t s = 0; s < round_up(shape.anchors, kColumns<C>); ++s)
    target[s] = s >= shape.anchors ? -static_cast<C>(__builtin_inf())
                : bias             ? load_one(bias + s)
                                   : 0;
}

template <class S>
struct AnchorEntries {
  using C = Compute<S>;

  static int64_t packed_bytes(const AnchorShape& s, bool backward) {
    const int64_t count = s.channels_inner ? PackedLayout<S, true>(s, backward).total
                                           : PackedLayout<S, false>(s, backward).total;
    return round_up(count * static_cast<int64_t>(sizeof(C)), 64);
  }
  static int64_t scratch_bytes(const AnchorShape& s, bool backward) {
    const int64_t count = s.channels_inner ? ScratchLayout<C, true>(s, backward).total
                                           : ScratchLayout<C, false>(s, backward).total;
    return round_up(count * static_cast<int64_t>(sizeof(C)), 64);
  }
  static int64_t partial_bytes(const AnchorShape& s) {
    return round_up(PartialLayout<C>(s).total * static_cast<int64_t>(sizeof(C)), 64);
  }
  static void pack(const AnchorShape& s, bool backward, const void* key, const void* value,
                   const void* bias, void* packed, int64_t part, int64_t parts) {
    (s.channels_inner ? pack_part<S, true>
                      : pack_part<S, false>)(s, backward, static_cast<const S*>(key),
                                             static_cast<const S*>(value),
                                             static_cast<const S*>(bias), static_cast<C*>(packed),
                                             part, parts);
  }
  static void forward(const AnchorShape& s, const void* packed, const void* value,
                      const void* query, void* out, void* lse, int64_t first, int64_t count,
                      void* scratch) {
    const NoSubnormalResults none;
    (s.channels_inner
         ? forward_tile<S, true>
         : forward_tile<S, false>)(s, static_cast<const C*>(packed), static_cast<const S*>(value),
                                   static_cast<const S*>(query), static_cast<S*>(out),
                                   static_cast<C*>(lse), first, count, static_cast<C*>(scratch));
  }
  static void backward(const AnchorShape& s, const void* packed, const void* grad,
                       const void* query, const void* lse, void* dquery, void* partial,
                       int64_t first, int64_t count, void* scratch) {
    const NoSubnormalResults none;
    (s.channels_inner
         ? backward_tile<S, true>
         : backward_tile<S, false>)(s, static_cast<const C*>(packed), static_cast<const S*>(grad),
                                    static_cast<const S*>(query), static_cast<const C*>(lse),
                                    static_cast<S*>(dquery), static_cast<C*>(partial), first, count,
                                    static_cast<C*>(scratch));
  }
  static void reduce(const AnchorShape& s, const void* partials, int64_t count, int64_t stride,
                     void* dkey, void* dvalue, void* dbias, int64_t part, int64_t parts) {
    const PartialLayout<C> layout(s);
    const C* sums = static_cast<const C*>(partials);
    const int64_t step = stride / static_cast<int64_t>(sizeof(C));
    reduce_rows<S>(sums, count, step, layout.key_rows * kColumns<C>, s.anchors,
                   static_cast<C>(s.scale), static_cast<S*>(dkey), s.key_channels * part / parts,
                   s.key_channels * (part + 1) / parts);
    reduce_rows<S>(sums + layout.value, count, step, layout.value_rows * kColumns<C>, s.anchors,
                   (C)1, static_cast<S*>(dvalue), s.value_channels * part / parts,
                   s.value_channels * (part + 1) / parts);
    if (part == 0 && dbias)
      reduce_rows<S>(sums + layout.bias, count, step, kColumns<C>, s.anchors, (C)1,
                     static_cast<S*>(dbias), 0, 1);
  }
  static constexpr AnchorKernels kernels = {kForwardTile,  kBackwardTile, packed_bytes,
                                            scratch_bytes, partial_bytes, pack,
                                            forward,       backward,      reduce};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(AnchorKernels, anchor_kernels, AnchorEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
