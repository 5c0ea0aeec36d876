// Buffers of rows of pixels in the scratch memory of a worker.
#pragma once

#include "cpu/common/arena.h"
#include "lanes.h"
#include "taps.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Columns [left, right).
struct Span {
  int64_t left, right;
  int64_t width() const { return right - left; }
};

// The span and what is within reach of it, inside the map.
ATTNOPS_INLINE Span widen(Span span, int64_t reach, int64_t width) {
  return {max64(0, span.left - reach), min64(width, span.right + reach)};
}

// The last `count` rows of a map that were written, from column `origin` on; what is outside the
// map stays zero.
template <class C>
struct RowRing {
  C* data;
  int64_t count, stride, origin;

  // Blocks of results are written and squares are packed as a whole, so rows have room for one
  // more. At an odd number of cache lines neighbours of a column spread over all cache sets.
  static int64_t stride_for(int64_t columns) {
    constexpr int64_t kRoom = kWidth<C> > kSlide ? kWidth<C> : kSlide;
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(C));
    return (round_up((columns + kRoom) * kWidth<C>, kLine) / kLine | 1) * kLine;
  }

  RowRing(Arena& arena, int64_t rows, int64_t columns)
      : data(arena.take<C>(rows * stride_for(columns))),
        count(rows),
        stride(stride_for(columns)),
        origin(0) {}

  void start(int64_t first_column) {
    origin = first_column;
    memset(data, 0, static_cast<size_t>(count * stride) * sizeof(C));
  }
  C* at(int64_t y, int64_t x) const { return data + y % count * stride + (x - origin) * kWidth<C>; }
};

// Pointers to rows [y, y + count) at column x; `zeros` for those outside the map.
template <class C>
ATTNOPS_INLINE void point_at(const RowRing<C>& rows, int64_t y, int64_t count, int64_t height,
                             int64_t x, const C* zeros, const C** window) {
  for (int64_t i = 0; i < count; ++i)
    window[i] = y + i < 0 || y + i >= height ? zeros : rows.at(y + i, x);
}

// Packs the rows of a map, one after the other, into a ring.
template <class S>
class RowReader {
 public:
  using C = Compute<S>;

  RowReader(Arena& arena, int64_t rows, int64_t columns) : rows(arena, rows, columns) {}

  // Rows from y on, columns `span`.
  void start(const S* map, Span span, int64_t y, int64_t origin) {
    rows.start(origin);
    map_ = map;
    span_ = span;
    next_ = max64(0, y);
  }
  // Rows up to `end`, as far as the map goes.
  void advance(const LaneGroup<S>& group, int64_t end, int64_t height) {
    for (end = min64(end, height); next_ < end; ++next_)
      group.pack(map_, next_, span_.left, span_.width(), rows.at(next_, span_.left));
  }

  RowRing<C> rows;

 private:
  const S* map_ = nullptr;
  Span span_ = {0, 0};
  int64_t next_ = 0;
};

// Rows [y, y + count) of columns `span` of out, one after the other: body(row, where it goes).
// Blocks may write beyond the span: zeros again, as convolutions read them as pixels outside the
// map.
template <class C, class Body>
ATTNOPS_INLINE void for_each_row(const RowRing<C>& out, Span span, int64_t y, int64_t count,
                                 const Body& body) {
  for (int64_t row = y; row < y + count; ++row) {
    C* target = out.at(row, span.left);
    body(row, target);
    for (int64_t x = span.width(); x % kSlide != 0; ++x)
      store(target + x * kWidth<C>, typename Vec<C>::V{});
  }
}

// The convolution with a local kernel [height, width] of taps.
template <class C>
class LocalConvolution {
 public:
  LocalConvolution(Arena& arena, int64_t height, int64_t width)
      : height_(height),
        width_(width),
        window_(arena.take<const C*>(height)),
        terms_(arena.take<Term<C>>(height)) {}

  // Rows [y, y + count) of out, columns `span`. Rows of in are there as far as the kernel reaches
  // and the map goes.
  void run(const RowRing<C>& in, int64_t map_height, const C* taps, const C* shift, const C* zeros,
           Span span, int64_t y, int64_t count, const RowRing<C>& out) const {
    for_each_row(out, span, y, count, [&](int64_t row, C* target) {
      point_at(in, row - height_ / 2, height_, map_height, span.left - width_ / 2, zeros, window_);
      for (int64_t i = 0; i < height_; ++i)
        terms_[i] = {window_ + i, taps + i * width_ * kWidth<C>, width_};
      convolve<C, false>(terms_, height_, shift, nullptr, 0, span.width(), &target);
    });
  }

 private:
  int64_t height_, width_;
  const C** window_;
  Term<C>* terms_;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
