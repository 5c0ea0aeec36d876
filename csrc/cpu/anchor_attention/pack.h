// Rearranging anchors and map tiles into the operands of common/gemm.h, and adding up partial
// gradients.
#pragma once

#include <type_traits>

#include "cpu/common/gemm.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Map tiles are cut into chunks of this many channels: a panel of a chunk stays in the first-level
// cache. A multiple of every kRows.
constexpr int64_t kChunk = 144;
// Rows of a chunk in the channels-inner form: not a power of two, so that the rows of a block fall
// into different cache sets.
constexpr int kChunkStride = kChunk + 16;

// Width of the packed panels of anchors: they are the left operand for a contiguous map (positions
// along the vectors), the right operand for a channels-inner one.
template <class C, bool kInner>
constexpr int64_t kPanel = kInner ? kColumns<C> : kRows;

// Whether forward reads the value [channels, anchors] where it is: as the left operand it needs no
// panels, and a packed copy would be as large as the value itself, C S elements.
template <class S, bool kInner>
constexpr bool value_may_stay = !kInner && std::is_same_v<S, Compute<S>>;
template <class S, bool kInner>
constexpr bool value_in_place(const AnchorShape& s) {
  return value_may_stay<S, kInner> && s.value_channels >= kRows;
}

// Packed anchors of one batch item of type S, elements of C. Forward: key_scores, value_out unless
// the value stays in place, bias. Backward: key_scores, value_scores, key_out, bias.
//   *_scores  panels over anchors  [anchors / kPanel][channels][kPanel]
//   *_out     panels over channels [channels / kPanel][anchors][kPanel]
//   bias      [anchors], padded with -inf: padding gets probability 0
template <class S, bool kInner>
struct PackedLayout {
  using C = Compute<S>;
  int64_t key_scores = 0, value_scores, key_out, value_out, bias, total;

  PackedLayout(const AnchorShape& s, bool backward) {
    constexpr int64_t panel = kPanel<C, kInner>;
    const int64_t anchors = round_up(s.anchors, panel);
    value_scores = round_up(anchors * s.key_channels, 16);
    key_out = value_scores + (backward ? round_up(anchors * s.value_channels, 16) : 0);
    value_out =
        key_out + (backward ? round_up(round_up(s.key_channels, panel) * s.anchors, 16) : 0);
    const bool packs_value = !backward && !value_in_place<S, kInner>(s);
    bias =
        value_out + (packs_value ? round_up(round_up(s.value_channels, panel) * s.anchors, 16) : 0);
    total = bias + round_up(s.anchors, kColumns<C>);
  }
};

// Sums of the anchors' gradients, elements of C: panels over anchors
// [anchors / kColumns][channels, padded][kColumns], then dbias [anchors, padded].
template <class C>
struct PartialLayout {
  int64_t anchors, key_rows, value_rows, value, bias, total;

  explicit PartialLayout(const AnchorShape& s) {
    anchors = round_up(s.anchors, kColumns<C>);
    key_rows = round_up(s.key_channels, kRows);
    value_rows = round_up(s.value_channels, kRows);
    value = anchors * key_rows;
    bias = value + anchors * value_rows;
    total = round_up(bias + anchors, 16);
  }
};

// Channels [begin, end) of x [channels, anchors], times alpha, into panels over anchors and/or
// panels over channels (either may be null).
template <class S>
static void pack_anchors(const S* x, int64_t channels, int64_t anchors, int64_t begin, int64_t end,
                         Compute<S> alpha, int64_t panel, Compute<S>* by_anchor,
                         Compute<S>* by_channel) {
  using C = Compute<S>;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t s = 0; s < anchors; s += kWidth<C>) {
      const int64_t count = min64(kWidth<C>, anchors - s);
      const S* source = x + c * anchors + s;
      C lanes[kWidth<C>];
      store(lanes, (count == kWidth<C> ? load(source) : load_partial(source, count)) * alpha);
      if (by_anchor)
        for (int64_t i = 0; i < count; ++i)
          by_anchor[((s + i) / panel * channels + c) * panel + (s + i) % panel] = lanes[i];
      if (by_channel)
        for (int64_t i = 0; i < count; ++i)
          by_channel[(c / panel * anchors + s + i) * panel + c % panel] = lanes[i];
    }
    if (by_anchor)
      for (int64_t s = anchors; s < round_up(anchors, panel); ++s)
        by_anchor[(s / panel * channels + c) * panel + s % panel] = 0;
  }
  if (by_channel && end == channels)
    for (int64_t c = channels; c < round_up(channels, panel); ++c)
      for (int64_t s = 0; s < anchors; ++s)
        by_channel[(c / panel * anchors + s) * panel + c % panel] = 0;
}

// x [rows, positions] with rows `row_stride` apart, `count` positions, into panels of positions
// [count / kColumns][rows][kColumns], `panel_stride` apart; zeros beyond count.
template <class S>
static void pack_positions(const S* x, int64_t row_stride, int64_t rows, int64_t count,
                           Compute<S>* out, int64_t panel_stride) {
  using C = Compute<S>;
  for (int64_t r = 0; r < rows; ++r) {
    const S* source = x + r * row_stride;
    C* target = out + r * kColumns<C>;
    for (int64_t n = 0; n < count; n += kColumns<C>, target += panel_stride) {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        const int64_t left = count - n - j * kWidth<C>;
        const S* from = source + n + j * kWidth<C>;
        store(target + j * kWidth<C>, left >= kWidth<C> ? load(from)
                                      : left > 0        ? load_partial(from, left)
                                                        : typename Vec<C>::V{});
      }
    }
  }
}

// x [positions, channels] with rows `row_stride` apart: `count` rows of `channels` <= kChunk into
// rows of kChunkStride; zeros beyond, rows up to a multiple of kRows.
template <class S>
static void copy_rows(const S* x, int64_t row_stride, int64_t channels, int64_t count,
                      Compute<S>* out) {
  using C = Compute<S>;
  const int64_t full = channels / kWidth<C> * kWidth<C>;
  for (int64_t n = 0; n < count; ++n, x += row_stride, out += kChunkStride) {
    int64_t c = 0;
    for (; c < full; c += kWidth<C>) store(out + c, load(x + c));
    if (c < channels) {
      store(out + c, load_partial(x + c, channels - c));
      c += kWidth<C>;
    }
    for (; c < kChunkStride; c += kWidth<C>) store(out + c, typename Vec<C>::V{});
  }
  const int64_t padding = round_up(count, kRows) - count;
  memset(out, 0, static_cast<size_t>(padding * kChunkStride) * sizeof(C));
}

// Scores in panels of positions [count / kColumns][anchors][kColumns] to panels of anchors
// [anchors / kColumns][positions][kColumns]; panels of the two are *_stride elements apart. Both
// axes are padded to whole vectors.
template <class C>
static void transpose_panels(const C* x, int64_t x_stride, int64_t anchors, int64_t count, C* out,
                             int64_t out_stride) {
  for (int64_t n = 0; n < count; n += kWidth<C>)
    for (int64_t s = 0; s < anchors; s += kWidth<C>)
      transpose_square(
          x + n / kColumns<C> * x_stride + s * kColumns<C> + n % kColumns<C>, kColumns<C>,
          out + s / kColumns<C> * out_stride + n * kColumns<C> + s % kColumns<C>, kColumns<C>);
}

// Rows [begin, end) of a gradient [channels, anchors]: alpha times the sum, in order, of `count`
// partials `stride` elements apart, whose panels of anchors are `panel_stride` apart.
template <class S>
static void reduce_rows(const Compute<S>* partials, int64_t count, int64_t stride,
                        int64_t panel_stride, int64_t anchors, Compute<S> alpha, S* out,
                        int64_t begin, int64_t end) {
  using C = Compute<S>;
  for (int64_t c = begin; c < end; ++c) {
    for (int64_t s = 0; s < anchors; s += kWidth<C>) {
      const C* source =
          partials + s / kColumns<C> * panel_stride + c * kColumns<C> + s % kColumns<C>;
      typename Vec<C>::V sum = load(source);
      for (int64_t i = 1; i < count; ++i) sum += load(source + i * stride);
      const int64_t left = anchors - s;
      if (left >= kWidth<C>)
        store(out + c * anchors + s, sum * alpha);
      else
        store_partial(out + c * anchors + s, sum * alpha, left);
    }
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
