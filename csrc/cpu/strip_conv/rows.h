// Rows of pixels in the scratch memory of a worker: a pixel is a vector with one plane of a group
// in every lane. Half precision becomes float on the way there, lanes without a plane are zero. For
// contiguous maps squares of planes x pixels are transposed.
#pragma once

#include "cpu/common/arena.h"
#include "host.h"
#include "taps.h"

namespace attnops::cpu::ATTNOPS_ISA {

// out[i][lane] = line(lane)[i] for i < count. Writes whole squares: zeros follow.
template <class S, class Line>
ATTNOPS_INLINE void pack_lines(const Line& line, int64_t lanes, int64_t count, Compute<S>* out) {
  using C = Compute<S>;
  constexpr int kW = kWidth<C>;
  for (int64_t i = 0; i < count; i += kW) {
    typename Vec<C>::V square[kW] = {};
    if (lanes == kW && count - i >= kW) {
#pragma GCC unroll 16
      for (int lane = 0; lane < kW; ++lane) square[lane] = load(line(lane) + i);
    } else {
      for (int64_t lane = 0; lane < lanes; ++lane)
        square[lane] = load_lanes(line(lane) + i, min64(kW, count - i));
    }
    transpose_steps<C>(square);
#pragma GCC unroll 16
    for (int p = 0; p < kW; ++p) store(out + (i + p) * kW, square[p]);
  }
}

// line(lane)[i] = in[i][lane] for i < count. Reads whole squares.
template <class S, class Line>
ATTNOPS_INLINE void unpack_lines(const Compute<S>* in, int64_t lanes, int64_t count,
                                 const Line& line) {
  using C = Compute<S>;
  constexpr int kW = kWidth<C>;
  for (int64_t i = 0; i < count; i += kW) {
    typename Vec<C>::V square[kW];
#pragma GCC unroll 16
    for (int p = 0; p < kW; ++p) square[p] = load(in + (i + p) * kW);
    transpose_steps<C>(square);
    if (lanes == kW && count - i >= kW) {
#pragma GCC unroll 16
      for (int lane = 0; lane < kW; ++lane) store(line(lane) + i, square[lane]);
    } else {
      for (int64_t lane = 0; lane < lanes; ++lane)
        store_lanes(line(lane) + i, square[lane], min64(kW, count - i));
    }
  }
}

// Where the planes of a group are.
template <class S>
class LaneGroup {
 public:
  using C = Compute<S>;

  LaneGroup(const MapSizes& maps, int64_t group) : maps_(maps) {
    constexpr int kW = kWidth<C>;
    if (maps.channels_last) {
      const int64_t groups = (maps.channels + kW - 1) / kW;  // of a batch item
      first_ = group % groups * kW;
      lanes_ = min64(kW, maps.channels - first_);
      offset_ = group / groups * maps.height * maps.width * maps.channels + first_;
    } else {
      first_ = group * kW;
      lanes_ = min64(kW, maps.batch * maps.channels - first_);
      offset_ = first_ * maps.height * maps.width;
    }
  }

  int64_t lanes() const { return lanes_; }
  int64_t channel(int64_t lane) const { return (first_ + lane) % maps_.channels; }

  // out: the pixels of row y from column x on.
  void pack(const S* map, int64_t y, int64_t x, int64_t count, C* out) const {
    const S* start = map + start_of(y, x);
    if (!maps_.channels_last) {
      const int64_t plane = maps_.height * maps_.width;
      pack_lines<S>([=](int64_t lane) { return start + lane * plane; }, lanes_, count, out);
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      store(out + i * kWidth<C>, load_lanes(start + i * maps_.channels, lanes_));
  }

  void unpack(const C* in, int64_t y, int64_t x, int64_t count, S* map) const {
    S* start = map + start_of(y, x);
    if (!maps_.channels_last) {
      const int64_t plane = maps_.height * maps_.width;
      unpack_lines<S>(in, lanes_, count, [=](int64_t lane) { return start + lane * plane; });
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      store_lanes(start + i * maps_.channels, load(in + i * kWidth<C>), lanes_);
  }

  // out [count] pixels from parameters [channels, count].
  void pack_parameters(const S* parameters, int64_t count, C* out) const {
    pack_lines<S>([=](int64_t lane) { return parameters + channel(lane) * count; }, lanes_, count,
                  out);
  }

 private:
  int64_t start_of(int64_t y, int64_t x) const {
    const int64_t pixel = y * maps_.width + x;
    return offset_ + pixel * (maps_.channels_last ? maps_.channels : 1);
  }

  const MapSizes maps_;
  int64_t first_, lanes_, offset_;
};

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
    return odd_lines<C>((columns + kRoom) * kWidth<C>);
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
  void run(const RowRing<C>& in, int64_t map_height, const C* taps, const C* bias, const C* zeros,
           Span span, int64_t y, int64_t count, const RowRing<C>& out) const {
    for_each_row(out, span, y, count, [&](int64_t row, C* target) {
      point_at(in, row - height_ / 2, height_, map_height, span.left - width_ / 2, zeros, window_);
      for (int64_t i = 0; i < height_; ++i)
        terms_[i] = {window_ + i, taps + i * width_ * kWidth<C>, width_};
      convolve<C, false>(terms_, height_, bias, nullptr, 0, span.width(), &target);
    });
  }

 private:
  int64_t height_, width_;
  const C** window_;
  Term<C>* terms_;
};

// How far a pixel sees to the side and up or down.
struct StripReach {
  int64_t local_side, local_up;  // of the local kernel
  int64_t side = 0, up = 0;      // of the longest row and column

  explicit StripReach(const StripShape& s)
      : local_side(s.kernel_width / 2), local_up(s.kernel_height / 2) {
    for (int64_t i = 0; i < s.strips; ++i) {
      side = max64(side, s.rows[i] / 2);
      up = max64(up, s.columns[i] / 2);
    }
  }
};

// Index of the first tap of the row of a strip; those of its column follow.
ATTNOPS_INLINE int64_t row_tap(const StripShape& s, int64_t strip) {
  int64_t tap = s.kernel_height * s.kernel_width;
  for (int64_t i = 0; i < strip; ++i) tap += s.rows[i] + s.columns[i];
  return tap;
}
ATTNOPS_INLINE int64_t column_tap(const StripShape& s, int64_t strip) {
  return row_tap(s, strip) + s.rows[strip];
}

template <class S>
class StripParameters {
 public:
  using C = Compute<S>;

  StripParameters(Arena& arena, const StripShape& s)
      : shape_(s),
        taps_(arena.take<C>((s.taps + kWidth<C>)*kWidth<C>)),
        biases_(arena.take<C>((s.kernels() + kWidth<C>)*kWidth<C>)) {}

  void pack(const LaneGroup<S>& group, const StripSources& from) const {
    C* taps = taps_;
    for (int64_t i = 0; i < shape_.kernels(); ++i) {
      const int64_t count = shape_.taps_of(i);
      group.pack_parameters(static_cast<const S*>(from.weights[i]), count, taps);
      taps += count * kWidth<C>;
      if (from.biases[i] == nullptr)
        store(bias(i), typename Vec<C>::V{});
      else
        group.pack_parameters(static_cast<const S*>(from.biases[i]), 1, bias(i));
    }
  }
  // Turns the convolutions into their transposes.
  void reverse() const {
    reverse_taps(taps_, shape_.kernel_height * shape_.kernel_width);
    for (int64_t i = 0; i < shape_.strips; ++i) {
      reverse_taps(tap(row_tap(shape_, i)), shape_.rows[i]);
      reverse_taps(tap(column_tap(shape_, i)), shape_.columns[i]);
    }
  }
  C* tap(int64_t i) const { return taps_ + i * kWidth<C>; }
  C* bias(int64_t i) const { return biases_ + i * kWidth<C>; }

 private:
  const StripShape& shape_;
  C *taps_, *biases_;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
