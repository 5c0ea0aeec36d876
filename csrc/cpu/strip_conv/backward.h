// Gradients of strip convolutions on a piece of a group of planes. With g = grad, h = horizontal(a)
// with its bias, and kernels turned around for their transposed convolutions:
//
//   gh = vertical^T(g)    da = g + sum over strips of horizontal^T(gh)    dx = local^T(da)
//   drow[t] = sum_yx gh[y, x] a[y, x + t]      dcolumn[t] = sum_yx h[y, x] g[y - t, x]
//   dlocal[i, j] = sum_yx da[y, x] x[y + i, x + j]
//   and every bias the sum of the gradient of its convolution: gh, g, da
//
// The piece is walked down in blocks of kSlide rows. A block of h meets the rows of g around it, so
// a, h and gh live for one block only, and rings hold the rows of g, x and da that columns and the
// local kernel see: about 90 rows for kernels of 5x5, 7, 11 and 21.
#pragma once

#include "rows.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Gradients of a local kernel on a piece of a group of planes: for out = local(x) + bias with the
// gradient g of out,
//
//   dx[y, x] = sum_ij taps[i, j] g[y - i + up, x - j + side]
//   dtaps[i, j] = sum_yx g[y, x] x[y + i - up, x + j - side]      dbias = sum_yx g[y, x]
//
// The piece is walked down in blocks of up to kSlide rows of g, which somebody else computes into a
// ring, also for the rows and columns around the piece that its dx sees.
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
  void start(const MapSizes& maps, const StripPiece& piece, const C* reversed) {
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

  // taps and bias += dtaps [height * width][kWidth] and dbias of rows [y, y + rows) of g.
  void add_sums(int64_t y, int64_t rows, double* taps, double* bias) const {
    const C *left[kSlide], *right[kSlide];
    for (int64_t r = 0; r < rows; ++r) left[r] = gradient.at(y + r, own_.left);
    sum_pixels(left, rows, own_.width(), bias);
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
  StripPiece piece_;
  int64_t map_height_ = 0;
  Span own_, around_;
  const C* reversed_ = nullptr;
  int64_t next_ = 0;  // row of dx to compute
};

template <class S>
class StripBackward {
 public:
  using C = Compute<S>;

  // For pieces of up to `columns` columns.
  StripBackward(const StripShape& shape, int64_t columns, void* scratch)
      : shape_(shape),
        height_(shape.maps.height),
        reach_(shape),
        arena_(scratch),
        parameters_(arena_, shape),
        reversed_(arena_, shape),
        convolution_(arena_, shape.kernel_height, shape.kernel_width),
        local_(arena_, shape.kernel_height, shape.kernel_width, columns,
               reach_.side + reach_.local_side),
        grad_(arena_, kSlide + 2 * reach_.up, columns + 2 * (reach_.side + reach_.local_side)),
        a_(arena_, kSlide, columns + 2 * reach_.side),
        h_(arena_, kSlide, columns),
        zeros_(arena_.take<C>(grad_.rows.stride)),
        window_(arena_.take<const C*>(2 * reach_.up + kSlide)),
        strips_(arena_.take<RowRing<C>>(shape.strips)),
        sources_(arena_.take<const C*>(shape.strips)),
        terms_(arena_.take<Term<C>>(shape.strips)) {
    for (int64_t i = 0; i < shape.strips; ++i) {
      const RowRing<C> rows(arena_, kSlide, columns + 2 * (reach_.side + reach_.local_side));
      if (scratch != nullptr) strips_[i] = rows;
    }
  }

  int64_t bytes() const { return arena_.bytes(); }

  // sums: [taps + kernels][kWidth], zero.
  void run(const StripPiece& piece, const StripSources& parameters, const S* grad, const S* x,
           S* dx, double* sums) {
    const LaneGroup<S> group(shape_.maps, piece.group);
    start(group, piece, parameters, grad, x);
    double* bias_sums = sums + shape_.taps * kWidth<C>;
    local_.for_each_block([&](int64_t y, int64_t rows, bool own) {
      grad_.advance(group, y + rows + reach_.up, height_);
      for (int64_t i = 0; i < shape_.strips; ++i) turn_column(i, y);
      turn_rows(y, rows);
      if (own) {
        local_.x.advance(group, y + rows + reach_.local_up, height_);
        local_.add_sums(y, rows, sums, bias_sums);
        if (shape_.strips > 0) add_strip_sums(y, rows, sums, bias_sums);
      }
      local_.write(group, y + rows, dx);
    });
    // The biases of all columns have the same gradient.
    for (int64_t i = 1; i < shape_.strips; ++i)
      memcpy(bias_sums + (2 * i + 2) * kWidth<C>, bias_sums + 2 * kWidth<C>,
             kWidth<C> * sizeof(double));
  }

 private:
  void start(const LaneGroup<S>& group, const StripPiece& piece, const StripSources& parameters,
             const S* grad, const S* x) {
    const int64_t width = shape_.maps.width;
    parameters_.pack(group, parameters);
    reversed_.pack(group, parameters);
    reversed_.reverse();
    memset(zeros_, 0, static_cast<size_t>(grad_.rows.stride) * sizeof(C));
    local_.start(shape_.maps, piece, reversed_.tap(0));
    own_ = {piece.left, piece.right};
    sides_ = widen(own_, reach_.side, width);
    around_ = widen(local_.around(), reach_.side, width);
    const int64_t origin = piece.left - reach_.side - reach_.local_side;
    grad_.start(grad, around_, piece.top - reach_.local_up - reach_.up, origin);
    local_.x.start(x, widen(sides_, reach_.local_side, width), piece.top - reach_.local_up, origin);
    a_.start(piece.left - reach_.side);
    h_.start(piece.left);
    for (int64_t i = 0; i < shape_.strips; ++i) strips_[i].start(origin);
  }

  // gh of a strip, kSlide rows from y on.
  void turn_column(int64_t i, int64_t y) const {
    const int64_t count = shape_.columns[i];
    point_at(grad_.rows, y - count / 2, count + kSlide - 1, height_, around_.left, zeros_, window_);
    C* target[kSlide];
    for (int64_t r = 0; r < kSlide; ++r) target[r] = strips_[i].at(y + r, around_.left);
    const Term<C> term = {window_, reversed_.tap(column_tap(shape_, i)), count};
    convolve<C, true>(&term, 1, zeros_, nullptr, 0, around_.width(), target);
  }

  // Rows [y, y + rows) of da.
  void turn_rows(int64_t y, int64_t rows) const {
    const Span span = local_.around();
    for_each_row(local_.gradient, span, y, rows, [&](int64_t row, C* target) {
      for (int64_t i = 0; i < shape_.strips; ++i) {
        sources_[i] = strips_[i].at(row, span.left - shape_.rows[i] / 2);
        terms_[i] = {sources_ + i, reversed_.tap(row_tap(shape_, i)), shape_.rows[i]};
      }
      const C* base = grad_.rows.at(row, span.left);
      convolve<C, false>(terms_, shape_.strips, zeros_, &base, 0, span.width(), &target);
    });
  }

  // What rows [y, y + rows) of gh and h add to the gradients of the strips.
  void add_strip_sums(int64_t y, int64_t rows, double* sums, double* bias_sums) const {
    constexpr int kW = kWidth<C>;
    convolution_.run(local_.x.rows, height_, parameters_.tap(0), parameters_.bias(0), zeros_,
                     sides_, y, rows, a_);
    const C *left[kSlide], *right[kSlide];
    for (int64_t r = 0; r < rows; ++r) left[r] = grad_.rows.at(y + r, own_.left);
    sum_pixels(left, rows, own_.width(), bias_sums + 2 * kW);
    for (int64_t i = 0; i < shape_.strips; ++i) {
      const int64_t count = shape_.rows[i];
      for (int64_t r = 0; r < rows; ++r) {
        left[r] = strips_[i].at(y + r, own_.left);
        right[r] = a_.at(y + r, own_.left - count / 2);
      }
      sum_pixels(left, rows, own_.width(), bias_sums + (2 * i + 1) * kW);
      sum_taps<C, false>({left, right, rows, own_.width()}, count, sums + row_tap(shape_, i) * kW,
                         kW);
    }
    for (int64_t i = 0; i < shape_.strips; ++i) add_column_sums(i, y, rows, sums);
  }

  void add_column_sums(int64_t i, int64_t y, int64_t rows, double* sums) const {
    constexpr int kW = kWidth<C>;
    for_each_row(h_, own_, y, rows, [&](int64_t row, C* target) {
      const C* source = a_.at(row, own_.left - shape_.rows[i] / 2);
      const Term<C> term = {&source, parameters_.tap(row_tap(shape_, i)), shape_.rows[i]};
      convolve<C, false>(&term, 1, parameters_.bias(2 * i + 1), nullptr, 0, own_.width(), &target);
    });
    const C* left[kSlide];
    for (int64_t r = 0; r < rows; ++r) left[r] = h_.at(y + r, own_.left);
    const int64_t count = shape_.columns[i];
    point_at(grad_.rows, y - count / 2, count + rows - 1, height_, own_.left, zeros_, window_);
    // Row y - count / 2 + t of g meets tap count - 1 - t.
    sum_taps<C, true>({left, window_, rows, own_.width()}, count,
                      sums + (column_tap(shape_, i) + count - 1) * kW, -kW);
  }

  const StripShape& shape_;
  const int64_t height_;
  const StripReach reach_;
  Arena arena_;
  const StripParameters<S> parameters_, reversed_;
  const LocalConvolution<C> convolution_;
  LocalGradient<S> local_;
  RowReader<S> grad_;
  RowRing<C> a_, h_;
  C* zeros_;
  const C** window_;
  RowRing<C>* strips_;  // gh
  const C** sources_;
  Term<C>* terms_;
  // Columns of the piece, those of a that its rows see, and those of gh that its dx sees.
  Span own_, sides_, around_;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
