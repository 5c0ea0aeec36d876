// Between maps and tiles of local attention, and sums straight from maps.
//
// A tile holds some channels of rows of one phase: converted to the type of the arithmetic,
// with zeros for what is outside the map, so that products need no borders; and at strides that do
// not fall onto the same cache sets, as those of a map [C, 64, 64] do.
//
// Weighted sums over the window of every position, straight from maps with contiguous channels:
//
//   out[r, x, c] = factor sum_n weights[r, n, x] source[r + i, x + j step, c]     n = (i, j)
//
// Vectors run along the channels, so nothing is transposed. A column j of the window is done at a
// time for a few rows of one phase: their weights stay in registers, one in all lanes each, while
// the sums of a position go through the first-level cache.
#pragma once

#include "host.h"
#include "window.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int kSecondLevel = 2;  // locality of a prefetch: the second-level cache

// Part of a map: `depth` channels from `channel`, `rows` rows of a phase from `row`, `columns`
// columns from `column` (a multiple of the vector width). Rows and columns may be outside the map.
struct Part {
  int64_t channel, depth, phase, row, rows, column, columns;
};

// Where a map of one batch item has its elements.
struct MapStrides {
  int64_t channel, row, column;

  MapStrides(const LocalShape& s, int64_t channels)
      : channel(s.channels_last ? 1 : s.height * s.width),
        row(s.width * (s.channels_last ? channels : 1)),
        column(s.channels_last ? channels : 1) {}
};

// Lanes of the vector at column x that are in the map.
template <class C>
ATTNOPS_INLINE int64_t lanes_inside(int64_t x, int64_t width) {
  return x < 0 ? 0 : max64(0, min64(kWidth<C>, width - x));
}

// tile = alpha map, for a contiguous map. The rows of a tile are too short and too far apart for
// the processor to guess what comes next, so the same row of the next channel is asked for.
template <class S>
static void pack_contiguous(const LocalShape& s, const S* x, const MapStrides& at, const Part& part,
                            Compute<S> alpha, Tile<Compute<S>> tile) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const int64_t right = part.column + part.columns;
  const int64_t full = max64(part.column, min64(right, s.width / kWidth<C> * kWidth<C>));
  for (int64_t c = 0; c < part.depth; ++c)
    for (int64_t r = 0; r < part.rows; ++r) {
      C* out = tile.data + c * tile.channel + r * tile.row;
      const int64_t y = part.phase + (part.row + r) * s.row_step;
      int64_t column = part.column;
      if (y >= 0 && y < s.height) {
        const S* source = x + (part.channel + c) * at.channel + y * at.row;
        for (; column < 0; column += kWidth<C>, out += kWidth<C>) store(out, V{});
        for (; column < full; column += kWidth<C>, out += kWidth<C>) {
          __builtin_prefetch(source + at.channel + column, 0, kSecondLevel);
          store(out, load(source + column) * alpha);
        }
        if (column < right && column < s.width) {
          store(out, load_partial(source + column, s.width - column) * alpha);
          column += kWidth<C>, out += kWidth<C>;
        }
      }
      for (; column < right; column += kWidth<C>, out += kWidth<C>) store(out, V{});
    }
}

// The same for contiguous channels: squares of positions x channels are transposed, and the next
// positions asked for.
template <class S>
static void pack_channels_last(const LocalShape& s, const S* x, const MapStrides& at,
                               const Part& part, Compute<S> alpha, Tile<Compute<S>> tile) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  for (int64_t r = 0; r < part.rows; ++r) {
    const int64_t y = part.phase + (part.row + r) * s.row_step;
    const S* source = x + part.channel + y * at.row;
    for (int64_t i = 0; i < part.columns; i += kWidth<C>) {
      C* out = tile.data + r * tile.row + i;
      const int64_t column = part.column + i;
      const int64_t pixels = y < 0 || y >= s.height ? 0 : lanes_inside<C>(column, s.width);
      for (int64_t c = 0; c < part.depth; c += kWidth<C>, out += kWidth<C> * tile.channel) {
        const int64_t channels = min64(kWidth<C>, part.depth - c);
        const S* pixel = source + column * at.column + c;
        V square[kWidth<C>] = {};
        if (pixels == kWidth<C> && channels == kWidth<C>) {
#pragma GCC unroll 16
          for (int k = 0; k < kWidth<C>; ++k) {
            __builtin_prefetch(pixel + (kWidth<C> + k) * at.column, 0, kSecondLevel);
            square[k] = load(pixel + k * at.column);
          }
          transpose_steps<C>(square);
#pragma GCC unroll 16
          for (int k = 0; k < kWidth<C>; ++k) store(out + k * tile.channel, square[k] * alpha);
          continue;
        }
        for (int64_t k = 0; k < pixels; ++k)
          square[k] = load_lanes(pixel + k * at.column, channels);
        if (pixels > 0) transpose_steps<C>(square);
        for (int64_t k = 0; k < channels; ++k) store(out + k * tile.channel, square[k] * alpha);
      }
    }
  }
}

// The map has `channels` channels in all.
template <class S>
static void pack(const LocalShape& s, const S* x, int64_t channels, const Part& part,
                 Compute<S> alpha, Tile<Compute<S>> tile) {
  const MapStrides at(s, channels);
  (s.channels_last ? pack_channels_last<S> : pack_contiguous<S>)(s, x, at, part, alpha, tile);
}

// map = alpha tile; the rows are in the map.
template <class S>
static void unpack(const LocalShape& s, Tile<const Compute<S>> tile, Compute<S> alpha,
                   const Part& part, S* x, int64_t channels) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const MapStrides at(s, channels);
  const int64_t columns = min64(part.columns, s.width - part.column);
  x += part.channel * at.channel + (part.phase + part.row * s.row_step) * at.row +
       part.column * at.column;
  if (!s.channels_last) {
    for (int64_t c = 0; c < part.depth; ++c)
      for (int64_t r = 0; r < part.rows; ++r) {
        const C* source = tile.data + c * tile.channel + r * tile.row;
        S* out = x + c * at.channel + r * s.row_step * at.row;
        int64_t i = 0;
        for (; columns - i >= kWidth<C>; i += kWidth<C>) store(out + i, load(source + i) * alpha);
        if (i < columns) store_partial(out + i, load(source + i) * alpha, columns - i);
      }
    return;
  }
  for (int64_t r = 0; r < part.rows; ++r)
    for (int64_t i = 0; i < columns; i += kWidth<C>) {
      const int64_t pixels = min64(kWidth<C>, columns - i);
      for (int64_t c = 0; c < part.depth; c += kWidth<C>) {
        const C* source = tile.data + c * tile.channel + r * tile.row + i;
        S* out = x + r * s.row_step * at.row + i * at.column + c;
        const int64_t lanes = min64(kWidth<C>, part.depth - c);
        V square[kWidth<C>] = {};
        if (lanes == kWidth<C>) {
#pragma GCC unroll 16
          for (int k = 0; k < kWidth<C>; ++k) square[k] = load(source + k * tile.channel) * alpha;
        } else {
          for (int64_t k = 0; k < lanes; ++k) square[k] = load(source + k * tile.channel) * alpha;
        }
        transpose_steps<C>(square);
        for (int64_t k = 0; k < pixels; ++k) store_lanes(out + k * at.column, square[k], lanes);
      }
    }
}

// Fewer channels do not pay for the weights.
template <class C>
constexpr int64_t kFewestChannels = 4 * kWidth<C>;

// sums [kRows][stride] of a position: += (`fresh`: =) the terms of column j. `weights`: those of
// its first row and neighbour.
template <class S, int kRows, int kSeen>
static void weigh_position(WeightView<const Compute<S>> weights, const S* const* pixels,
                           int64_t channels, Compute<S>* sums, int64_t stride, bool fresh) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  V left[kRows][kSeen];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 5
    for (int i = 0; i < kSeen; ++i)
      left[r][i] = broadcast<C>(weights.data[r * weights.row + i * weights.neighbour_row]);
  const auto add = [&](int64_t c, const auto& load_source) __attribute__((always_inline)) {
    V total[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) total[r] = fresh ? V{} : load(sums + r * stride + c);
#pragma GCC unroll 8
    for (int n = 0; n < kRows + kSeen - 1; ++n) {
      const V right = load_source(pixels[n] + c);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        if (n - r >= 0 && n - r < kSeen) total[r] += left[r][n - r] * right;
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) store(sums + r * stride + c, total[r]);
  };
  int64_t c = 0;
  for (; c + kWidth<C> <= channels; c += kWidth<C>) add(c, [](const S* p) { return load(p); });
  if (c < channels) add(c, [&](const S* p) { return load_partial(p, channels - c); });
}

// Rows and columns of `part` (all channels) of a map; rows of the window are `window.rows`, and its
// first column is `shift` columns to the left. zeros [channels]; sums [kBlockRows][stride].
template <class S>
static void weigh_channels_last(const LocalShape& s, WeightView<const Compute<S>> weights,
                                const S* source, const Part& part, const Window& window,
                                int64_t shift, Compute<S> factor, const S* zeros, Compute<S>* sums,
                                int64_t stride, S* out) {
  using C = Compute<S>;
  const int64_t channels = part.depth, reach = window.rows / 2;
  const MapStrides at(s, channels);
  const int64_t columns = min64(part.columns, s.width - part.column);
  const auto weigh_rows = [&](auto block, int64_t row) {
    constexpr int kRows = decltype(block)::value;
    for (int64_t x = 0; x < columns; ++x) {
      bool fresh = true;
      for_each_seen_block<kRows>(row, window.rows, [&](auto, auto seen, int64_t, int64_t top) {
        constexpr int kSeen = decltype(seen)::value, kCount = kRows + kSeen - 1;
        for (int64_t j = 0; j < window.columns; ++j) {
          const int64_t column = part.column + x + j * window.step - shift;
          if (column < 0 || column >= s.width) continue;
          const S* pixels[kCount];
          for (int n = 0; n < kCount; ++n) {
            const int64_t y = part.phase + (part.row + row + top + n - reach) * s.row_step;
            pixels[n] = y < 0 || y >= s.height ? zeros : source + y * at.row + column * at.column;
          }
          weigh_position<S, kRows, kSeen>(
              {weights.data + row * weights.row + top * weights.neighbour_row +
                   j * weights.neighbour_column + x,
               weights.row, weights.neighbour_row, weights.neighbour_column},
              pixels, channels, sums, stride, fresh);
          fresh = false;
        }
      });
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t y = part.phase + (part.row + row + r) * s.row_step;
        S* target = out + y * at.row + (part.column + x) * at.column;
        for (int64_t c = 0; c < channels; c += kWidth<C>)
          store_lanes(target + c, load(sums + r * stride + c) * factor, channels - c);
      }
    }
  };
  for_each_row_block(part.rows, weigh_rows);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
