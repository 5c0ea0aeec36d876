// Laying maps out by 32 channels, as they are or in parts.
#pragma once

#include "cpu/common/split.h"
#include "cpu/common/tiles.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)

constexpr int64_t kStep = kConvolutionStep;
constexpr int64_t kVector = kWidth<float>;
constexpr int64_t kHalf = sizeof(BFloat16);
constexpr int64_t kLine = kStep * kHalf;
static_assert(kStep == 2 * kTileRows && kStep == kTileDepth, "a step is whole tiles");

// 32 channels of a pixel, of which `count` are there.
ATTNOPS_INLINE void copy_line(const BFloat16* from, int64_t count, BFloat16* to) {
  HalfLanesPair lanes = {};
  if (count >= kStep)
    memcpy(&lanes, from, sizeof(lanes));
  else
    memcpy(&lanes, from, static_cast<size_t>(count) * sizeof(BFloat16));
  memcpy(to, &lanes, sizeof(lanes));
}

// `count` floats, at most 32.
struct FloatLine {
  VecF low, high;

  inline __attribute__((always_inline)) FloatLine(const float* from, int64_t count)
      : low(load_lanes(from, min64(count, kVector))),
        high(count > kVector ? load_lanes(from + kVector, count - kVector) : VecF{}) {}
};

ATTNOPS_INLINE void copy_line(const float* from, int64_t count, BFloat16* to) {
  const FloatLine x(from, count);
  const HalfLanesPair lanes = rounded(x.low, x.high);
  memcpy(to, &lanes, sizeof(lanes));
}

// Parts of the floats, one `apart` from the other; with a scale of their products with it.
ATTNOPS_INLINE void split_line(const float* from, const float* scale, int64_t count, BFloat16* to,
                               int64_t apart) {
  FloatLine x(from, count);
  if (scale != nullptr) {
    const FloatLine factors(scale, count);
    x.low *= factors.low;
    x.high *= factors.high;
  }
  store_parts(to, apart, x.low, x.high);
}

static void clear_lines(BFloat16* to, int64_t count) {
  memset(to, 0, static_cast<size_t>(count * kLine));
}

// Channels [first, last).
struct Channels {
  int64_t first, last;
};

// copy(pixel, channel, line) for pixels `stride` from each other. `apart`: from one step of
// channels to the next.
template <class S, class Copy>
static void lay_out_pixels(const ConvolutionShape& s, const S* x, int64_t count,
                           const Channels& channels, int64_t apart, BFloat16* to,
                           const Copy& copy) {
  for (; count > 0; --count, x += s.stride * s.channels, to += kStep)
    for (int64_t c = channels.first; c < channels.last; c += kStep)
      copy(x, c, to + c / kStep * apart);
}

// A row of 32 pixels of a 1x1 convolution.
template <class S, class Copy>
static void lay_out_step(const ConvolutionShape& s, const S* x, int64_t row,
                         const Channels& channels, const LaidOut& to, const Copy& copy) {
  const int64_t before = row * s.width, line = s.channel_steps() * s.parts * kStep * kStep;
  lay_out_pixels(s, x + (to.item * s.pixels + before) * s.channels,
                 min64(s.width, s.pixels - before), channels, s.parts * kStep * kStep,
                 static_cast<BFloat16*>(to.data) + (row - to.first) * line, copy);
}

// A row of a phase, and the zeros around it.
template <class S, class Copy>
static void lay_out_row(const ConvolutionShape& s, const S* x, int64_t row, int64_t phase,
                        const Channels& channels, const LaidOut& to, const Copy& copy) {
  const int64_t pitch = s.pitch(), pad = s.pad(), apart = to.positions(s) * kStep;
  const int64_t steps = s.channel_steps() * s.parts;
  const int64_t y = row * s.stride + phase / s.stride, column = phase % s.stride;
  // The last row or column of a phase may be past the map.
  const int64_t count = y < s.map_height ? (s.map_width - column + s.stride - 1) / s.stride : 0;
  BFloat16* const line = static_cast<BFloat16*>(to.data) + phase * steps * apart +
                         (kStep + (row - to.first) * pitch) * kStep;
  for (int64_t step = 0; step < steps; ++step) {
    BFloat16* begin = line + step * apart;
    if (row == to.first) clear_lines(begin - kStep * kStep, kStep + pad);
    if (count < s.width) clear_lines(begin + (pad + count) * kStep, s.width - count);
    clear_lines(begin + pitch * kStep, row == to.last - 1 ? 2 * pad + kStep : pad);
  }
  lay_out_pixels(s, x + (to.item * s.map_pixels() + y * s.map_width + column) * s.channels, count,
                 channels, s.parts * apart, line + pad * kStep, copy);
}

template <class S, class Copy>
static void lay_out_rows(const ConvolutionShape& s, const S* x, int64_t first, int64_t last,
                         const Channels& channels, const LaidOut& to, const Copy& copy) {
  for (int64_t row = first; row < last; ++row) {
    if (s.side == 1)
      lay_out_step(s, x, row, channels, to, copy);
    else
      for (int64_t phase = 0; phase < s.phases(); ++phase)
        lay_out_row(s, x, row, phase, channels, to, copy);
  }
}

static void lay_out(const ConvolutionShape& s, const void* x, const float* scale, int64_t first,
                    int64_t last, const ConvolutionBlock* block, const LaidOut& to) {
  const Channels channels = {
      block == nullptr ? 0 : block->first_channel * kStep,
      block == nullptr ? s.channels : min64(s.channels, block->last_channel * kStep)};
  const auto round = [&](const auto* pixel, int64_t c, BFloat16* line)
      __attribute__((always_inline)) {
    copy_line(pixel + c, s.channels - c, line);
  };
  const int64_t apart = (s.side == 1 ? kStep : to.positions(s)) * kStep;
  const auto split = [&](const float* pixel, int64_t c, BFloat16* line)
      __attribute__((always_inline)) {
    split_line(pixel + c, scale == nullptr ? nullptr : scale + c, s.channels - c, line, apart);
  };
  if (s.parts > 1)
    lay_out_rows(s, static_cast<const float*>(x), first, last, channels, to, split);
  else if (s.float_in)
    lay_out_rows(s, static_cast<const float*>(x), first, last, channels, to, round);
  else
    lay_out_rows(s, static_cast<const BFloat16*>(x), first, last, channels, to, round);
}

#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
