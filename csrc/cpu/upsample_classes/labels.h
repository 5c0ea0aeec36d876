// Labels of output rows: the class of the largest blend of every pixel, the first of equal ones.
//
// Two columns and two rows of logits are the corners of a cell of pixels, 8x8 of them where the
// resize is by 8. Where one class is the label of all four corners, it is that of the whole cell:
// no other is above it at the ends of a line, so none is in between, and neither products with one
// weight nor their sums change order when they are rounded. Only the other cells are computed. The
// labels of corners cost as much as those of so many pixels; a resize that makes few pixels of one
// computes them all.
#pragma once

#include "cpu/resize/class_rows.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// The logit of a lane without a class, which none of a class is below: finite, because blends of
// infinities are NaN. Where logits are not all finite, it becomes minus infinity.
template <class C>
constexpr C kNothing = sizeof(C) == 4 ? -static_cast<C>(__FLT_MAX__) : -static_cast<C>(__DBL_MAX__);

// The logits of a pixel between columns a and b. kFinite: all of them are.
template <bool kFinite, class C>
ATTNOPS_INLINE typename Vec<C>::V pixel_logits(const C* a, const C* b, C left, C right, int64_t k,
                                               int64_t classes) {
  constexpr int64_t kW = kWidth<C>;
  const typename Vec<C>::V v = left * load(a + k) + right * load(b + k);
  if (kFinite || k + kW <= classes) return v;
  C lanes[kW];
  store(lanes, v);
  for (int64_t i = classes - k; i < kW; ++i) lanes[i] = -C(__builtin_inf());
  return load(lanes);
}

// NaN is larger than anything but NaN.
template <bool kFinite, class C>
ATTNOPS_INLINE typename Vec<C>::I is_better(typename Vec<C>::V v, typename Vec<C>::V than) {
  using I = typename Vec<C>::I;
  const I larger = (I)(v > than);
  return kFinite ? larger : larger | ((I)(v != v) & (I)(than == than));
}

// Classes of the largest logits(p)(k), p < count: of up to a vector of pixels.
template <bool kFinite, class C, class Logits>
static void find_largest(int64_t lanes, int64_t count, const Logits& logits,
                         typename Vec<C>::Int* out) {
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  using Int = typename Vec<C>::Int;
  constexpr int64_t kW = kWidth<C>;
  I lane;
  for (int64_t i = 0; i < kW; ++i) lane[i] = static_cast<Int>(i);
  V best[kW] = {}, index[kW] = {};
  for (int64_t p = 0; p < count; ++p) {
    const auto at = logits(p);
    V most = at(0);
    I found = lane, current = lane;
    for (int64_t k = kW; k < lanes; k += kW) {
      const V v = at(k);
      current += static_cast<Int>(kW);
      const I better = is_better<kFinite, C>(v, most);
      most = better ? v : most;
      found = better ? current : found;
    }
    best[p] = most;
    index[p] = (V)found;
  }
  // A lane of all pixels becomes a vector, and vectors are compared.
  transpose_steps<C>(best);
  transpose_steps<C>(index);
  V most = best[0];
  I found = (I)index[0];
  for (int64_t i = 1; i < kW; ++i) {
    const I other = (I)index[i];
    const I same = ~is_better<kFinite, C>(most, best[i]) & (I)(other < found);
    const I better = is_better<kFinite, C>(best[i], most) | same;
    most = better ? best[i] : most;
    found = better ? other : found;
  }
  for (int64_t p = 0; p < count; ++p) out[p] = found[p];
}

template <class S>
class RowLabels {
 public:
  using C = Compute<S>;
  using Label = typename Vec<C>::Int;

  RowLabels(Arena& arena, const ClassesShape& s)
      : s_(s),
        lanes_(lanes_for<C>(s.classes)),
        rows_(arena, s, kNothing<C>),
        corners_{arena.take<Label>(s.columns.inputs), arena.take<Label>(s.columns.inputs)},
        begins_(arena.take<int64_t>(s.columns.outputs + 1)),
        cells_(arena.take<Label>(s.columns.outputs)) {}

  void start(const S* scores) {
    const ResizeAxis& columns = s_.columns;
    rows_.start(scores);
    cell_count_ = 0;
    for (int64_t x = 0; x < columns.outputs; ++x)
      if (x == 0 || columns.first[x] != columns.first[x - 1] ||
          columns.second[x] != columns.second[x - 1])
        begins_[cell_count_++] = x;
    begins_[cell_count_] = columns.outputs;
  }

  // The labels of output row y.
  void find(int64_t y, int64_t* out) {
    const int64_t width = s_.columns.outputs;
    rows_.read(y);
    const bool finite = rows_.finite();
    const int64_t known = finite && is_worth_a_look() ? look(y) : 0;
    const C* blend = known < width ? rows_.blend(y) : nullptr;
    if (!finite)
      find_all<false>(blend, out);
    else if (known == 0 || known < width / kFewest)  // cells are there only where some are known
      find_all<true>(blend, out);
    else
      find_others(blend, out);
  }

 private:
  static constexpr int64_t kW = kWidth<C>;
  static constexpr int64_t kGrowth = 8;  // pixels for one of the logits
  static constexpr int64_t kFewest = 4;  // a share of the pixels that is worth to be left out

  bool is_worth_a_look() const {
    const ResizeAxis &rows = s_.rows, &columns = s_.columns;
    return rows.outputs * columns.outputs >= kGrowth * rows.inputs * columns.inputs;
  }

  // The labels of the cells that output row y runs through, -1 where corners differ; returns how
  // many pixels of the row have one.
  int64_t look(int64_t y) {
    const ResizeAxis& columns = s_.columns;
    const int64_t rows[2] = {s_.rows.first[y], s_.rows.second[y]};
    if (rows[0] == looked_[0] && rows[1] == looked_[1]) return known_;
    for (int i = 0; i < 2; ++i) {
      const int place = rows_.place(i);
      if (labelled_[place] == rows[i]) continue;
      for (int64_t x = 0; x < columns.inputs; x += kW) {
        const C* from = rows_.source(i) + x * lanes_;
        const auto column = [&](int64_t p) __attribute__((always_inline)) {
          const C* at = from + p * lanes_;
          return [at](int64_t k) __attribute__((always_inline)) { return load(at + k); };
        };
        find_largest<true, C>(lanes_, min64(kW, columns.inputs - x), column, corners_[place] + x);
      }
      labelled_[place] = rows[i];
    }
    const Label *top = corners_[rows_.place(0)], *bottom = corners_[rows_.place(1)];
    known_ = 0;
    for (int64_t i = 0; i < cell_count_; ++i) {
      const int64_t a = columns.first[begins_[i]], b = columns.second[begins_[i]];
      const bool same = top[a] == top[b] && top[a] == bottom[a] && top[a] == bottom[b];
      cells_[i] = same ? top[a] : -1;
      if (same) known_ += begins_[i + 1] - begins_[i];
    }
    looked_[0] = rows[0];
    looked_[1] = rows[1];
    return known_;
  }

  // The logits of pixel x of a blended row.
  template <bool kFinite>
  __attribute__((always_inline)) auto logits_at(const C* blend, int64_t x) const {
    const ResizeAxis& columns = s_.columns;
    const C right = static_cast<C>(columns.weight[x]), left = C(1) - right;
    const C *a = blend + columns.first[x] * lanes_, *b = blend + columns.second[x] * lanes_;
    const int64_t classes = s_.classes;
    return [=](int64_t k) __attribute__((always_inline)) {
      return pixel_logits<kFinite>(a, b, left, right, k, classes);
    };
  }

  template <bool kFinite>
  void find_all(const C* blend, int64_t* out) {
    for (int64_t x = 0; x < s_.columns.outputs; x += kW) {
      const int64_t count = min64(kW, s_.columns.outputs - x);
      const auto pixel = [&](int64_t p) __attribute__((always_inline)) {
        return logits_at<kFinite>(blend, x + p);
      };
      Label found[kW];
      find_largest<kFinite, C>(lanes_, count, pixel, found);
      for (int64_t p = 0; p < count; ++p) out[x + p] = found[p];
    }
  }

  // The labels of cells, and those of the other pixels, a vector of them at a time.
  void find_others(const C* blend, int64_t* out) {
    int64_t others[kW], count = 0;
    const auto pixel = [&](int64_t p) __attribute__((always_inline)) {
      return logits_at<true>(blend, others[p]);
    };
    const auto finish = [&] {
      Label found[kW];
      find_largest<true, C>(lanes_, count, pixel, found);
      for (int64_t p = 0; p < count; ++p) out[others[p]] = found[p];
      count = 0;
    };
    for (int64_t i = 0; i < cell_count_; ++i)
      for (int64_t x = begins_[i]; x < begins_[i + 1]; ++x) {
        if (cells_[i] >= 0) {
          out[x] = cells_[i];
          continue;
        }
        others[count++] = x;
        if (count == kW) finish();
      }
    if (count > 0) finish();
  }

  const ClassesShape& s_;
  const int64_t lanes_;
  BlendedRows<S> rows_;
  Label* corners_[2];  // labels of the rows of logits that are held
  int64_t* begins_;    // of cells, along a row: the pixels between the same two columns
  Label* cells_;
  int64_t cell_count_ = 0, known_ = 0;
  int64_t labelled_[2] = {-1, -1}, looked_[2] = {-1, -1};
};

}  // namespace attnops::cpu::ATTNOPS_ISA
