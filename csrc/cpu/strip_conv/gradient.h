// Gradients of a local kernel on a piece of a group of planes: for out = local(x) + shift with the
// gradient g of out,
//
//   dx[y, x] = sum_ij taps[i, j] g[y - i + up, x - j + side]
//   dtaps[i, j] = sum_yx g[y, x] x[y + i - up, x + j - side]      dshift = sum_yx g[y, x]
//
// The piece is walked down in blocks of up to kSlide rows of g, which somebody else computes into a
// ring, also for the rows and columns around the piece that its dx sees.
#pragma once

#include "rows.h"
#include "sums.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class S>
class LocalGradient {
 public:
  using C = Compute<S>;

  // A kernel [height, width] on pieces of up to `columns` columns. x: rows as far to the side of
  // the piece as `x_side`.
  LocalGradient(Arena& arena, int64_t height, int64_t width, int64_t columns, int64_t x_side)
      : x(arena, kSlide + height - 1, columns + 2 * x_side),
        gradient(arena, kSlide + height - 1, columns + width - 1),
        height_(height),
        width_(width),
        convolution_(arena, height, width),
        staged_(arena, 1, columns),
        zeros_(arena.take<C>(gradient.stride)) {}

  // reversed: the taps of the transposed convolution.
  void start(const DepthwiseMaps& maps, const DepthwisePiece& piece, const C* reversed) {
    piece_ = piece;
    map_height_ = maps.height;
    own_ = {piece.left, piece.right};
    around_ = widen(own_, width_ / 2, maps.width);
    reversed_ = reversed;
    next_ = piece.top;
    gradient.start(piece.left - width_ / 2);
    memset(zeros_, 0, static_cast<size_t>(gradient.stride) * sizeof(C));
    staged_.origin = piece.left;
  }

  // Columns of g that dx sees.
  Span around() const { return around_; }

  // Calls body(y, rows, inside the piece) for blocks of rows of g from the first that dx sees to
  // the last.
  template <class Body>
  void for_each_block(const Body& body) const {
    const int64_t up = height_ / 2, first = max64(0, piece_.top - up);
    const int64_t last = min64(map_height_, piece_.bottom + up);
    for (int64_t y = first; y < last;) {
      const int64_t stop = y < piece_.top ? piece_.top : y < piece_.bottom ? piece_.bottom : last;
      const int64_t rows = min64(kSlide, stop - y);
      body(y, rows, y >= piece_.top && y < piece_.bottom);
      y += rows;
    }
  }

  // taps and shift += dtaps [height * width][kWidth] and dshift of rows [y, y + rows) of g.
  void add_sums(int64_t y, int64_t rows, double* taps, double* shift) const {
    const C *left[kSlide], *right[kSlide];
    for (int64_t r = 0; r < rows; ++r) left[r] = gradient.at(y + r, own_.left);
    sum_pixels(left, rows, own_.width(), shift);
    for (int64_t i = 0; i < height_; ++i) {
      const int64_t down = i - height_ / 2;  // row of x less that of g
      const int64_t first = max64(y, -down), last = min64(y + rows, map_height_ - down);
      if (first >= last) continue;
      for (int64_t r = first; r < last; ++r)
        right[r - first] = x.rows.at(r + down, own_.left - width_ / 2);
      const Factors<C> factors = {left + (first - y), right, last - first, own_.width()};
      sum_taps<C, false>(factors, width_, taps + i * width_ * kWidth<C>, kWidth<C>);
    }
  }

  // The rows of dx that see no rows of g from `end` on.
  void write(const LaneGroup<S>& group, int64_t end, S* dx) {
    const int64_t up = height_ / 2;
    const int64_t last = min64(piece_.bottom, end >= map_height_ ? map_height_ : end - up);
    for (; next_ < last; ++next_) {
      convolution_.run(gradient, map_height_, reversed_, zeros_, zeros_, own_, next_, 1, staged_);
      group.unpack(staged_.at(next_, own_.left), next_, own_.left, own_.width(), dx);
    }
  }

  RowReader<S> x;
  RowRing<C> gradient;

 private:
  const int64_t height_, width_;
  const LocalConvolution<C> convolution_;
  RowRing<C> staged_;
  C* zeros_;
  DepthwisePiece piece_;
  int64_t map_height_ = 0;
  Span own_, around_;
  const C* reversed_ = nullptr;
  int64_t next_ = 0;  // row of dx to compute
};

}  // namespace attnops::cpu::ATTNOPS_ISA
