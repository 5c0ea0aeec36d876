// Rows of score maps (logits, or their gradients) as [w][lanes]: vectors run along the classes,
// lanes being the classes padded to whole vectors.
#pragma once

#include "cpu/common/arena.h"
#include "score_map.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class C>
constexpr int64_t lanes_for(int64_t classes) {
  return round_up(classes, kWidth<C>);
}

// out [width][lanes] = row `y` of a map [classes, height, width]; lanes past the classes:
// `padding`.
template <class S>
static void load_scores(const S* map, bool channels_last, int64_t classes, int64_t height,
                        int64_t width, int64_t y, Compute<S> padding, Compute<S>* out) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  constexpr int kW = kWidth<C>;
  const int64_t lanes = lanes_for<C>(classes);
  for (int64_t k = 0; k < classes; k += kW) {
    const int64_t count = min64(kW, classes - k);
    if (channels_last) {
      using I = typename Vec<C>::I;
      V rest = {};
      for (int64_t i = count; i < kW; ++i) rest[i] = padding;
      const S* source = map + y * width * classes + k;
      for (int64_t x = 0; x < width; ++x)
        store(out + x * lanes + k, (V)((I)load_partial(source + x * classes, count) | (I)rest));
      continue;
    }
    for (int64_t x = 0; x < width; x += kW) {
      const int64_t pixels = min64(kW, width - x);
      V square[kW];
      for (int64_t i = count; i < kW; ++i) square[i] = broadcast<C>(padding);
      for (int64_t i = 0; i < count; ++i)
        square[i] = load_partial(map + ((k + i) * height + y) * width + x, pixels);
      transpose_steps<C>(square);
      for (int64_t i = 0; i < pixels; ++i) store(out + (x + i) * lanes + k, square[i]);
    }
  }
}

// The other way.
template <class S>
static void store_scores(const Compute<S>* row, bool channels_last, int64_t classes, int64_t height,
                         int64_t width, int64_t y, S* map) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  constexpr int kW = kWidth<C>;
  const int64_t lanes = lanes_for<C>(classes);
  for (int64_t k = 0; k < classes; k += kW) {
    const int64_t count = min64(kW, classes - k);
    if (channels_last) {
      S* target = map + y * width * classes + k;
      for (int64_t x = 0; x < width; ++x)
        store_partial(target + x * classes, load(row + x * lanes + k), count);
      continue;
    }
    for (int64_t x = 0; x < width; x += kW) {
      const int64_t pixels = min64(kW, width - x);
      V square[kW] = {};
      for (int64_t i = 0; i < pixels; ++i) square[i] = load(row + (x + i) * lanes + k);
      transpose_steps<C>(square);
      for (int64_t i = 0; i < count; ++i)
        store_partial(map + ((k + i) * height + y) * width + x, square[i], pixels);
    }
  }
}

// The vertical half of a resize: the blend of two rows of a map for one output row after the other.
template <class S>
class BlendedRows {
 public:
  using C = Compute<S>;

  BlendedRows(Arena& arena, const ScoreMap& map, C padding)
      : map_(map),
        lanes_(lanes_for<C>(map.classes)),
        row_(map.columns.inputs * lanes_),
        padding_(padding),
        rows_{arena.take<C>(row_), arena.take<C>(row_)},
        blend_(arena.take<C>(row_)) {}

  void start(const S* scores) {
    scores_ = scores;
    held_[0] = held_[1] = -1;
  }

  // Whether neither of the rows read last has an infinity or NaN: blends of them have none, either.
  bool finite() const { return finite_[last_[0]] && finite_[last_[1]]; }

  // Reads the rows of the map that output row y is a blend of.
  void read(int64_t y) {
    const ResizeAxis& axis = map_.rows;
    last_[0] = get(axis.first[y], axis.second[y]);
    last_[1] = get(axis.second[y], axis.first[y]);
  }

  // Those rows [w][lanes]: i = 0 the first, i = 1 the second, and where it is held.
  const C* source(int i) const { return rows_[last_[i]]; }
  int place(int i) const { return last_[i]; }

  // [w][lanes] for output row y, to be blended horizontally; valid up to the next call.
  const C* blend(int64_t y) {
    const ResizeAxis& axis = map_.rows;
    read(y);
    const C *top = source(0), *bottom = source(1);
    if (top == bottom) return top;
    const C low = static_cast<C>(axis.weight[y]), high = C(1) - low;
    for (int64_t i = 0; i < row_; i += kWidth<C>)
      store(blend_ + i, high * load(top + i) + low * load(bottom + i));
    return blend_;
  }

 private:
  // The place in rows_ of row `row`, without giving up row `other`.
  int get(int64_t row, int64_t other) {
    for (int i = 0; i < 2; ++i)
      if (held_[i] == row) return i;
    const int slot = held_[0] == other ? 1 : 0;
    load_scores(scores_, map_.channels_last, map_.classes, map_.rows.inputs, map_.columns.inputs,
                row, padding_, rows_[slot]);
    typename Vec<C>::I bad = {};
    for (int64_t i = 0; i < row_; i += kWidth<C>) {
      const auto v = load(rows_[slot] + i);
      bad |= (typename Vec<C>::I)(v - v != 0);
    }
    finite_[slot] = true;
    for (int i = 0; i < kWidth<C>; ++i) finite_[slot] &= bad[i] == 0;
    held_[slot] = row;
    return slot;
  }

  ScoreMap map_;
  int64_t lanes_, row_;
  C padding_;
  C *rows_[2], *blend_;
  const S* scores_ = nullptr;
  int64_t held_[2] = {-1, -1};
  bool finite_[2] = {};
  int last_[2] = {};  // the rows of the last blend
};

// Gradients of rows [first, last) of a map, gathered from the output rows that read them.
template <class S>
class RowGradients {
 public:
  using C = Compute<S>;

  RowGradients(Arena& arena, const ScoreMap& map, int64_t most_rows)
      : map_(map),
        row_(map.columns.inputs * lanes_for<C>(map.classes)),
        sum_(arena.take<C>(row_)),
        held_(arena.take<C>(most_rows * row_)) {}

  void start(int64_t first, int64_t last) {
    first_ = first;
    last_ = last;
    memset(held_, 0, static_cast<size_t>((last - first) * row_) * sizeof(C));
  }

  // The sums [w][lanes] of an output row, zero, to which its pixels add; then add_row.
  C* start_row() {
    memset(sum_, 0, static_cast<size_t>(row_) * sizeof(C));
    return sum_;
  }
  void add_row(int64_t y) {
    const ResizeAxis& axis = map_.rows;
    const C low = static_cast<C>(axis.weight[y]);
    add(axis.first[y], C(1) - low);
    add(axis.second[y], low);
  }

  void write(S* map) const {
    for (int64_t row = first_; row < last_; ++row)
      store_scores(held_ + (row - first_) * row_, map_.channels_last, map_.classes,
                   map_.rows.inputs, map_.columns.inputs, row, map);
  }

 private:
  void add(int64_t row, C weight) {
    if (row < first_ || row >= last_) return;
    C* to = held_ + (row - first_) * row_;
    for (int64_t i = 0; i < row_; i += kWidth<C>)
      store(to + i, load(to + i) + weight * load(sum_ + i));
  }

  ScoreMap map_;
  int64_t row_;
  C *sum_, *held_;
  int64_t first_ = 0, last_ = 0;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
