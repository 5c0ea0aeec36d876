// Strip convolutions of a piece of a group of planes:
//
//   a = local(x) + bias
//   out = a + sum over strips of vertical(horizontal(a) + row bias) + column bias
//
// The piece is walked down kSlide rows of the result at a time. Rows of a and of every
// horizontal(a) are computed once, when they are needed, and stay in rings that hold just what the
// vertical kernels still see: about 80 rows for kernels of 5x5, 7, 11 and 21, which the
// second-level cache holds for maps of 128 columns. x is read once and out written once.
#pragma once

#include "rows.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class S>
class StripForward {
 public:
  using C = Compute<S>;

  // For pieces of up to `columns` columns.
  StripForward(const StripShape& shape, int64_t columns, void* scratch)
      : shape_(shape),
        height_(shape.maps.height),
        reach_(shape),
        arena_(scratch),
        parameters_(arena_, shape),
        local_(arena_, shape.kernel_height, shape.kernel_width),
        x_(arena_, shape.kernel_height, columns + 2 * (reach_.side + reach_.local_side)),
        a_(arena_, kSlide + reach_.up, columns + 2 * reach_.side),
        zeros_(arena_.take<C>(x_.rows.stride)),
        staged_(arena_.take<C>(kSlide * kTile * kWidth<C>)),
        bias_(arena_.take<C>(kWidth<C>)),
        strips_(arena_.take<Strip>(shape.strips)),
        terms_(arena_.take<Term<C>>(shape.strips)) {
    for (int64_t i = 0; i < shape.strips; ++i) {
      const RowRing<C> rows(arena_, shape.columns[i] + kSlide - 1, columns);
      const C** window = arena_.take<const C*>(shape.columns[i] + kSlide - 1);
      if (scratch != nullptr) strips_[i] = {rows, window, 0};
    }
  }

  int64_t bytes() const { return arena_.bytes(); }

  void run(const StripPiece& piece, const StripSources& parameters, const S* x, S* out) {
    const LaneGroup<S> group(shape_.maps, piece.group);
    start(group, piece, parameters, x);
    for (int64_t y = piece.top; y < piece.bottom; y += kSlide) {
      const int64_t rows = min64(kSlide, piece.bottom - y);
      compute_rows(group, y + rows);
      add_columns(group, y, rows, out);
    }
  }

 private:
  // Pixels of a row on the way to the map at a time, in squares for unpack_lines.
  static constexpr int kTile = 16;
  static_assert(kTile % kWidth<C> == 0, "whole squares");

  struct Strip {
    RowRing<C> rows;  // horizontal(a)
    const C** window;
    int64_t next;  // row to compute
  };

  void start(const LaneGroup<S>& group, const StripPiece& piece, const StripSources& parameters,
             const S* x) {
    own_ = {piece.left, piece.right};
    around_ = widen(own_, reach_.side, shape_.maps.width);
    parameters_.pack(group, parameters);
    memset(zeros_, 0, static_cast<size_t>(x_.rows.stride) * sizeof(C));
    auto bias = typename Vec<C>::V{};
    for (int64_t i = 0; i < shape_.strips; ++i) {
      bias += load(parameters_.bias(2 * i + 2));
      strips_[i].rows.origin = piece.left;
      strips_[i].next = max64(0, piece.top - shape_.columns[i] / 2);
    }
    store(bias_, bias);
    next_ = max64(0, piece.top - reach_.up);
    a_.start(piece.left - reach_.side);
    x_.start(x, widen(around_, reach_.local_side, shape_.maps.width), next_ - reach_.local_up,
             around_.left - reach_.local_side);
  }

  // Rows of a and of horizontal(a) that the rows above `end` of the result see.
  void compute_rows(const LaneGroup<S>& group, int64_t end) {
    const int64_t last = min64(height_, end + reach_.up);
    do {
      if (next_ < last) {
        x_.advance(group, next_ + 1 + reach_.local_up, height_);
        local_.run(x_.rows, height_, parameters_.tap(0), parameters_.bias(0), zeros_, around_,
                   next_, 1, a_);
        ++next_;
      }
      for (int64_t i = 0; i < shape_.strips; ++i)
        add_row(i, min64(next_, end + shape_.columns[i] / 2));
    } while (next_ < last);
  }

  // horizontal(a) of a strip up to row `end`.
  void add_row(int64_t i, int64_t end) {
    Strip& strip = strips_[i];
    const int64_t count = shape_.rows[i];
    const C* taps = parameters_.tap(row_tap(shape_, i));
    for_each_row(strip.rows, own_, strip.next, end - strip.next, [&](int64_t y, C* target) {
      const C* source = a_.at(y, own_.left - count / 2);
      const Term<C> term = {&source, taps, count};
      convolve<C, false>(&term, 1, parameters_.bias(2 * i + 1), nullptr, 0, own_.width(), &target);
    });
    strip.next = max64(strip.next, end);
  }

  // The rows of the result.
  void add_columns(const LaneGroup<S>& group, int64_t y, int64_t rows, S* out) {
    const C* base[kSlide];
    C* staged[kSlide];
    for (int64_t r = 0; r < kSlide; ++r) {
      base[r] = a_.at(y + r, own_.left);
      staged[r] = staged_ + r * kTile * kWidth<C>;
    }
    for (int64_t i = 0; i < shape_.strips; ++i) {
      const int64_t count = shape_.columns[i];
      point_at(strips_[i].rows, y - count / 2, count + kSlide - 1, height_, own_.left, zeros_,
               strips_[i].window);
      terms_[i] = {strips_[i].window, parameters_.tap(column_tap(shape_, i)), count};
    }
    for (int64_t x = 0; x < own_.width(); x += kTile) {
      const int64_t columns = min64(kTile, own_.width() - x);
      convolve<C, true>(terms_, shape_.strips, bias_, base, x, x + columns, staged);
      for (int64_t r = 0; r < rows; ++r)
        group.unpack(staged[r], y + r, own_.left + x, columns, out);
    }
  }

  const StripShape& shape_;
  const int64_t height_;
  const StripReach reach_;
  Arena arena_;
  const StripParameters<S> parameters_;
  const LocalConvolution<C> local_;
  RowReader<S> x_;
  RowRing<C> a_;
  C *zeros_, *staged_, *bias_;
  Strip* strips_;
  Term<C>* terms_;
  Span own_, around_;  // columns of the piece, and those of a that its rows see
  int64_t next_;       // row of a to compute
};

}  // namespace attnops::cpu::ATTNOPS_ISA
