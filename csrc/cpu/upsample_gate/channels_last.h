// The upsampled gate on channels_last maps: vectors run along the channels.
//
// For an output row the two rows of logits are blended first, [w][channels]; every pixel then needs
// two of its columns.
#pragma once

#include "blend.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Offsets, in elements of C, of rows with `lanes` channels (padded) a pixel.
template <class C>
struct ChannelsLastBuffers {
  int64_t lanes, row, sum, sums, total;

  ChannelsLastBuffers(const GateShape& s, bool backward, int64_t count) {
    lanes = round_up(count, kWidth<C>);
    row = 0;
    sum = row + s.columns.inputs * lanes;
    sums = sum + (backward ? s.columns.inputs * lanes : 0);
    total = sums + (backward ? s.rows.inputs * s.columns.inputs * lanes : 0);
  }
};

// The blend of two rows of logits for output row y: [w][lanes], zeros beyond `count` channels.
template <class S>
static void blend_rows(const GateShape& s, const S* logits, int64_t y, int64_t count, int64_t lanes,
                       Compute<S>* out) {
  using C = Compute<S>;
  const C low = static_cast<C>(s.rows.weight[y]), high = C(1) - low;
  const int64_t stride = s.columns.inputs * s.channels;
  const S *top = logits + s.rows.first[y] * stride, *bottom = logits + s.rows.second[y] * stride;
  for (int64_t x = 0; x < s.columns.inputs; ++x)
    for (int64_t c = 0; c < count; c += kWidth<C>) {
      const int64_t left = min64(kWidth<C>, count - c);
      auto a = load_partial(top + x * s.channels + c, left);
      auto b = load_partial(bottom + x * s.channels + c, left);
      if (s.activation_first) {
        a = activate<C>(s.activation, a);
        b = activate<C>(s.activation, b);
      }
      store(out + x * lanes + c, high * a + low * b);
    }
}

template <class S>
static void gate_channels_last(const GateShape& s, const S* x, const S* logits, S* out,
                               int64_t begin, int64_t end, Compute<S>* scratch) {
  using C = Compute<S>;
  const ChannelsLastBuffers<C> at(s, false, s.channels);
  const Blend<C> blend(s);
  const int64_t width = s.columns.outputs;
  for (int64_t y = begin; y < end; ++y) {
    blend_rows(s, logits, y, s.channels, at.lanes, scratch + at.row);
    for (int64_t w = 0; w < width; ++w) {
      const C right = static_cast<C>(s.columns.weight[w]), left = C(1) - right;
      const C* a = scratch + at.row + s.columns.first[w] * at.lanes;
      const C* b = scratch + at.row + s.columns.second[w] * at.lanes;
      const int64_t pixel = (y * width + w) * s.channels;
      int64_t c = 0;
      for (; c + kWidth<C> <= s.channels; c += kWidth<C>)
        store(out + pixel + c,
              blend.forward(left * load(a + c) + right * load(b + c), load(x + pixel + c)));
      if (const int64_t rest = s.channels - c)
        store_partial(out + pixel + c,
                      blend.forward(left * load(a + c) + right * load(b + c),
                                    load_partial(x + pixel + c, rest)),
                      rest);
    }
  }
}

template <class S>
static void gate_channels_last_backward(const GateShape& s, const S* grad, const S* x,
                                        const S* logits, S* dx, S* dlogits, int64_t count,
                                        Compute<S>* scratch) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const ChannelsLastBuffers<C> at(s, true, count);
  const Blend<C> blend(s);
  const int64_t width = s.columns.outputs, row_elements = s.columns.inputs * at.lanes;
  C *row = scratch + at.row, *sum = scratch + at.sum, *sums = scratch + at.sums;
  for (int64_t i = 0; i < s.rows.inputs * row_elements; i += kWidth<C>) store(sums + i, V{});
  for (int64_t y = 0; y < s.rows.outputs; ++y) {
    blend_rows(s, logits, y, count, at.lanes, row);
    for (int64_t i = 0; i < row_elements; i += kWidth<C>) store(sum + i, V{});
    for (int64_t w = 0; w < width; ++w) {
      const C right = static_cast<C>(s.columns.weight[w]), left = C(1) - right;
      const int64_t a = s.columns.first[w] * at.lanes, b = s.columns.second[w] * at.lanes;
      const int64_t pixel = (y * width + w) * s.channels;
      for (int64_t c = 0; c < count; c += kWidth<C>) {
        const V z = left * load(row + a + c) + right * load(row + b + c);
        const int64_t lanes = count - c;
        V dxs, dz;
        if (lanes >= kWidth<C>) {
          blend.backward(z, load(x + pixel + c), load(grad + pixel + c), dxs, dz);
          store(dx + pixel + c, dxs);
        } else {
          blend.backward(z, load_partial(x + pixel + c, lanes),
                         load_partial(grad + pixel + c, lanes), dxs, dz);
          store_partial(dx + pixel + c, dxs, lanes);
        }
        store(sum + a + c, load(sum + a + c) + left * dz);
        store(sum + b + c, load(sum + b + c) + right * dz);
      }
    }
    const C low = static_cast<C>(s.rows.weight[y]), high = C(1) - low;
    C* above = sums + s.rows.first[y] * row_elements;
    C* below = sums + s.rows.second[y] * row_elements;
    for (int64_t i = 0; i < row_elements; i += kWidth<C>) {
      store(above + i, load(above + i) + high * load(sum + i));
      store(below + i, load(below + i) + low * load(sum + i));
    }
  }
  for (int64_t i = 0; i < s.rows.inputs * s.columns.inputs; ++i)
    for (int64_t c = 0; c < count; c += kWidth<C>) {
      const int64_t lanes = min64(kWidth<C>, count - c);
      V d = load(sums + i * at.lanes + c);
      if (s.activation_first) {
        const V z = load_partial(logits + i * s.channels + c, lanes);
        d = activate_backward<C>(s.activation, z, activate<C>(s.activation, z), d);
      }
      store_partial(dlogits + i * s.channels + c, d, lanes);
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
