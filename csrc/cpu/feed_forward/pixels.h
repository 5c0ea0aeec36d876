// Pixels with their channels beside each other, from planes of contiguous maps and back.
#pragma once

#include "cpu/common/vec.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// A square of a matrix in memory as its columns; rows past `count` and columns past `lanes` are
// zero.
template <class S>
ATTNOPS_INLINE void load_turned(const S* from, int64_t stride, int64_t count, int64_t lanes,
                                typename Vec<Compute<S>>::V (&v)[kWidth<Compute<S>>]) {
  constexpr int64_t kW = kWidth<Compute<S>>;
  if (count >= kW && lanes >= kW) {
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) v[i] = load(from + i * stride);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i)
      v[i] = i < count && lanes > 0 ? load_lanes(from + i * stride, lanes)
                                    : typename Vec<Compute<S>>::V{};
  }
  transpose_steps<Compute<S>>(v);
}

// put(pixel, c, vector) for `count` pixels of planes `plane` apart and all channels, with zeros up
// to whole panels.
template <class S, class Put>
static void planes_to_pixels(const S* x, int64_t plane, int64_t count, int64_t channels,
                             const Put& put) {
  constexpr int64_t kW = kWidth<Compute<S>>;
  for (int64_t c = 0; c < padded_to_panels(channels); c += kW)
    for (int64_t at = 0; at < count; at += kW) {
      typename Vec<Compute<S>>::V v[kW];
      load_turned(x + c * plane + at, plane, channels - c, count - at, v);
      if (count - at >= kW) {
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i) put(at + i, c, v[i]);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i)
          if (i < count - at) put(at + i, c, v[i]);
      }
    }
}

// The way back, from rows of `stride` elements that are there for whole vectors of pixels.
template <class S>
static void pixels_to_planes(const Compute<S>* pixels, int64_t stride, int64_t count,
                             int64_t channels, S* out, int64_t plane) {
  constexpr int64_t kW = kWidth<Compute<S>>;
  for (int64_t c = 0; c < channels; c += kW)
    for (int64_t at = 0; at < count; at += kW) {
      typename Vec<Compute<S>>::V v[kW];
      load_turned(pixels + at * stride + c, stride, kW, kW, v);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        if (i < channels - c) store_lanes(out + (c + i) * plane + at, v[i], count - at);
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
