// Between maps and rows of pixels: a pixel is a vector with one plane of a group in every lane.
//
// Half precision becomes float here, lanes without a plane are zero. For contiguous maps squares of
// planes x pixels are transposed.
#pragma once

#include "cpu/common/vec.h"
#include "cpu/depthwise/shape.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_lanes(const S* x, int64_t lanes) {
  return lanes == kWidth<Compute<S>> ? load(x) : load_partial(x, lanes);
}
template <class S>
ATTNOPS_INLINE void store_lanes(S* x, typename Vec<Compute<S>>::V v, int64_t lanes) {
  if (lanes == kWidth<Compute<S>>)
    store(x, v);
  else
    store_partial(x, v, lanes);
}

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

  LaneGroup(const DepthwiseMaps& maps, int64_t group) : maps_(maps) {
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

  const DepthwiseMaps maps_;
  int64_t first_, lanes_, offset_;
};

// out [channels, length] = the sums of all pieces. sums [pieces][stride] pixels, those of interest
// from `first` on. total [channels * length] is scratch.
template <class S>
static void reduce_sums(const DepthwiseMaps& maps, const DepthwisePiece* pieces, int64_t count,
                        const double* sums, int64_t stride, int64_t first, int64_t length,
                        double* total, S* out) {
  constexpr int kW = kWidth<Compute<S>>;
  for (int64_t i = 0; i < maps.channels * length; ++i) total[i] = 0;
  for (int64_t piece = 0; piece < count; ++piece) {
    const LaneGroup<S> group(maps, pieces[piece].group);
    const double* from = sums + (piece * stride + first) * kW;
    for (int64_t lane = 0; lane < group.lanes(); ++lane)
      for (int64_t i = 0; i < length; ++i)
        total[group.channel(lane) * length + i] += from[i * kW + lane];
  }
  for (int64_t i = 0; i < maps.channels * length; ++i)
    store_one(out + i, static_cast<Compute<S>>(total[i]));
}

}  // namespace attnops::cpu::ATTNOPS_ISA
