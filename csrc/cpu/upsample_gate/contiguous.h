// The upsampled gate on contiguous planes: vectors run along the rows.
//
// A row of the gate is a blend of two rows of logits that are resized horizontally once, when they
// are first needed. Backwards the gradient of every output row is added, weighted, to two rows of
// sums as wide as the output, which are folded to the logits' width at the end.
#pragma once

#include "blend.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class C>
struct ContiguousBuffers {
  int64_t width;                       // of the output, padded to whole vectors
  int64_t rows[2], line, sums, total;  // offsets in elements

  ContiguousBuffers(const GateShape& s, bool backward) {
    width = round_up(s.columns.outputs, kWidth<C>);
    rows[0] = round_up(s.rows.inputs * s.columns.inputs, kWidth<C>);  // behind the logits
    rows[1] = rows[0] + width;
    line = rows[1] + width;
    sums = line + (backward ? round_up(s.columns.inputs, kWidth<C>) : 0);
    total = sums + (backward ? s.rows.inputs * width : 0);
  }
};

// The logits of a plane in C, activated if that comes first.
template <class S>
static void load_logits(const GateShape& s, const S* logits, Compute<S>* out) {
  using C = Compute<S>;
  const int64_t count = s.rows.inputs * s.columns.inputs;
  for (int64_t i = 0; i < count; i += kWidth<C>) {
    const int64_t left = min64(kWidth<C>, count - i);
    auto z = load_partial(logits + i, left);
    if (s.activation_first) z = activate<C>(s.activation, z);
    store(out + i, z);
  }
}

// Two horizontally resized rows of logits, kept until others are asked for.
template <class C>
class ResizedRows {
 public:
  ResizedRows(const ResizeAxis& columns, const C* logits, C* first, C* second)
      : columns_(columns), logits_(logits), buffers_{first, second} {}

  // Row `row`, without giving up row `other`.
  const C* get(int64_t row, int64_t other) {
    for (int i = 0; i < 2; ++i)
      if (held_[i] == row) return buffers_[i];
    const int slot = held_[0] == other ? 1 : 0;
    const C* source = logits_ + row * columns_.inputs;
    for (int64_t x = 0; x < columns_.outputs; ++x) {
      const C weight = static_cast<C>(columns_.weight[x]);
      buffers_[slot][x] =
          (C(1) - weight) * source[columns_.first[x]] + weight * source[columns_.second[x]];
    }
    held_[slot] = row;
    return buffers_[slot];
  }

 private:
  const ResizeAxis& columns_;
  const C* logits_;
  C* buffers_[2];
  int64_t held_[2] = {-1, -1};
};

template <class S>
static void gate_contiguous(const GateShape& s, const S* x, const S* logits, S* out, int64_t count,
                            Compute<S>* scratch) {
  using C = Compute<S>;
  const ContiguousBuffers<C> at(s, false);
  const Blend<C> blend(s);
  const int64_t width = s.columns.outputs;
  for (int64_t p = 0; p < count; ++p) {
    load_logits(s, logits + p * s.rows.inputs * s.columns.inputs, scratch);
    ResizedRows<C> resized(s.columns, scratch, scratch + at.rows[0], scratch + at.rows[1]);
    for (int64_t y = 0; y < s.rows.outputs; ++y) {
      const C* top = resized.get(s.rows.first[y], s.rows.second[y]);
      const C* bottom = resized.get(s.rows.second[y], s.rows.first[y]);
      const C low = static_cast<C>(s.rows.weight[y]), high = C(1) - low;
      const int64_t row = (p * s.rows.outputs + y) * width;
      int64_t w = 0;
      for (; w + kWidth<C> <= width; w += kWidth<C>)
        store(out + row + w,
              blend.forward(high * load(top + w) + low * load(bottom + w), load(x + row + w)));
      if (const int64_t left = width - w)
        store_partial(out + row + w,
                      blend.forward(high * load(top + w) + low * load(bottom + w),
                                    load_partial(x + row + w, left)),
                      left);
    }
  }
}

// Folds the rows of sums [h, padded width] to dlogits [h, w].
template <class S>
static void fold_sums(const GateShape& s, const Compute<S>* sums, int64_t padded, const S* logits,
                      const Compute<S>* activated, Compute<S>* line, S* dlogits) {
  using C = Compute<S>;
  const ResizeAxis& columns = s.columns;
  for (int64_t r = 0; r < s.rows.inputs; ++r) {
    for (int64_t i = 0; i < columns.inputs; ++i) line[i] = C(0);
    for (int64_t x = 0; x < columns.outputs; ++x) {
      const C weight = static_cast<C>(columns.weight[x]), value = sums[r * padded + x];
      line[columns.first[x]] += (C(1) - weight) * value;
      line[columns.second[x]] += weight * value;
    }
    const int64_t row = r * columns.inputs;
    for (int64_t i = 0; i < columns.inputs; i += kWidth<C>) {
      const int64_t left = min64(kWidth<C>, columns.inputs - i);
      auto d = load_partial(line + i, left);
      if (s.activation_first)
        d = activate_backward<C>(s.activation, load_partial(logits + row + i, left),
                                 load_partial(activated + row + i, left), d);
      store_partial(dlogits + row + i, d, left);
    }
  }
}

template <class S>
static void gate_contiguous_backward(const GateShape& s, const S* grad, const S* x, const S* logits,
                                     S* dx, S* dlogits, int64_t count, Compute<S>* scratch) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const ContiguousBuffers<C> at(s, true);
  const Blend<C> blend(s);
  const int64_t width = s.columns.outputs, small = s.rows.inputs * s.columns.inputs;
  C* sums = scratch + at.sums;
  for (int64_t p = 0; p < count; ++p) {
    load_logits(s, logits + p * small, scratch);
    for (int64_t i = 0; i < s.rows.inputs * at.width; i += kWidth<C>) store(sums + i, V{});
    ResizedRows<C> resized(s.columns, scratch, scratch + at.rows[0], scratch + at.rows[1]);
    for (int64_t y = 0; y < s.rows.outputs; ++y) {
      const int64_t first = s.rows.first[y], second = s.rows.second[y];
      const C *top = resized.get(first, second), *bottom = resized.get(second, first);
      const C low = static_cast<C>(s.rows.weight[y]), high = C(1) - low;
      C *above = sums + first * at.width, *below = sums + second * at.width;
      const int64_t row = (p * s.rows.outputs + y) * width;
      V dxs, dz;
      int64_t w = 0;
      for (; w + kWidth<C> <= width; w += kWidth<C>) {
        blend.backward(high * load(top + w) + low * load(bottom + w), load(x + row + w),
                       load(grad + row + w), dxs, dz);
        store(dx + row + w, dxs);
        store(above + w, load(above + w) + high * dz);
        store(below + w, load(below + w) + low * dz);
      }
      if (const int64_t left = width - w) {
        blend.backward(high * load(top + w) + low * load(bottom + w),
                       load_partial(x + row + w, left), load_partial(grad + row + w, left), dxs,
                       dz);
        store_partial(dx + row + w, dxs, left);
        store(above + w, load(above + w) + high * dz);
        store(below + w, load(below + w) + low * dz);
      }
    }
    fold_sums(s, sums, at.width, logits + p * small, scratch, scratch + at.line,
              dlogits + p * small);
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
