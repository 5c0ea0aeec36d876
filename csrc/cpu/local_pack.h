// Copies between maps and tiles of local attention.
//
// A tile holds up to kDepth channels of rows of one phase: converted to the type of the arithmetic,
// with zeros for what is outside the map, so that products need no borders; and at strides that do
// not fall onto the same cache sets, as those of a map [C, 64, 64] do.
#pragma once

#include "local_attention.h"
#include "local_window.h"

namespace attnops::cpu::ATTNOPS_ISA {

// An odd number of cache lines, in elements: rows at such a stride spread over all cache sets.
template <class C>
constexpr int64_t odd_lines(int64_t elements) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(C));
  return ((elements + line - 1) / line | 1) * line;
}

// Part of a map: `depth` channels from `channel`, `rows` rows of the phase from `row`, `columns`
// columns from `column` (a multiple of the vector width). Rows and columns may be outside the map.
struct Part {
  int64_t channel, depth, row, rows, column, columns;
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

// tile = alpha map. x points at the first row of the phase.
template <class S>
static void pack_planes(const LocalShape& s, const S* x, const MapStrides& at, int64_t phase_rows,
                        const Part& part, Compute<S> alpha, Tile<Compute<S>> tile) {
  using C = Compute<S>;
  const int64_t right = part.column + part.columns;
  const int64_t full = max64(part.column, min64(right, s.width / kWidth<C> * kWidth<C>));
  for (int64_t c = 0; c < part.depth; ++c)
    for (int64_t r = 0; r < part.rows; ++r) {
      C* out = tile.data + c * tile.channel + r * tile.row;
      const int64_t row = part.row + r;
      int64_t column = part.column;
      if (row >= 0 && row < phase_rows) {
        const S* source = x + (part.channel + c) * at.channel + row * s.row_step * at.row;
        for (; column < 0; column += kWidth<C>, out += kWidth<C>) store(out, typename Vec<C>::V{});
        for (; column < full; column += kWidth<C>, out += kWidth<C>)
          store(out, load(source + column) * alpha);
        if (column < right && column < s.width) {
          store(out, load_partial(source + column, s.width - column) * alpha);
          column += kWidth<C>, out += kWidth<C>;
        }
      }
      for (; column < right; column += kWidth<C>, out += kWidth<C>)
        store(out, typename Vec<C>::V{});
    }
}

// The same for contiguous channels: squares of positions x channels are transposed.
template <class S>
static void pack_pixels(const LocalShape& s, const S* x, const MapStrides& at, int64_t phase_rows,
                        const Part& part, Compute<S> alpha, Tile<Compute<S>> tile) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  for (int64_t r = 0; r < part.rows; ++r) {
    const int64_t row = part.row + r;
    const S* source = x + part.channel + row * s.row_step * at.row;
    for (int64_t i = 0; i < part.columns; i += kWidth<C>) {
      C* out = tile.data + r * tile.row + i;
      const int64_t column = part.column + i;
      const int64_t pixels = row < 0 || row >= phase_rows ? 0 : lanes_inside<C>(column, s.width);
      for (int64_t c = 0; c < part.depth; c += kWidth<C>, out += kWidth<C> * tile.channel) {
        const int64_t channels = min64(kWidth<C>, part.depth - c);
        const S* pixel = source + column * at.column + c;
        V square[kWidth<C>] = {};
        if (pixels == kWidth<C> && channels == kWidth<C>) {
#pragma GCC unroll 16
          for (int p = 0; p < kWidth<C>; ++p) square[p] = load(pixel + p * at.column);
          transpose_steps<C>(square);
#pragma GCC unroll 16
          for (int p = 0; p < kWidth<C>; ++p) store(out + p * tile.channel, square[p] * alpha);
          continue;
        }
        for (int64_t p = 0; p < pixels; ++p)
          square[p] = load_lanes(pixel + p * at.column, channels);
        if (pixels) transpose_steps<C>(square);
        for (int64_t p = 0; p < channels; ++p) store(out + p * tile.channel, square[p] * alpha);
      }
    }
  }
}

template <class S>
static void pack(const LocalShape& s, const S* x, int64_t channels, int64_t phase, const Part& part,
                 Compute<S> alpha, Tile<Compute<S>> tile) {
  const MapStrides at(s, channels);
  const int64_t phase_rows = (s.height - phase + s.row_step - 1) / s.row_step;
  (s.channels_last ? pack_pixels<S> : pack_planes<S>)(s, x + phase * at.row, at, phase_rows, part,
                                                      alpha, tile);
}

// map = alpha tile; the rows are in the map.
template <class S>
static void unpack(const LocalShape& s, Tile<const Compute<S>> tile, Compute<S> alpha,
                   const Part& part, S* x, int64_t channels, int64_t phase) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const MapStrides at(s, channels);
  x += phase * at.row + part.channel * at.channel + part.column * at.column;
  const int64_t columns = min64(part.columns, s.width - part.column);
  if (!s.channels_last) {
    for (int64_t c = 0; c < part.depth; ++c)
      for (int64_t r = 0; r < part.rows; ++r) {
        const C* source = tile.data + c * tile.channel + r * tile.row;
        S* out = x + c * at.channel + (part.row + r) * s.row_step * at.row;
        int64_t i = 0;
        for (; columns - i >= kWidth<C>; i += kWidth<C>) store(out + i, load(source + i) * alpha);
        if (i < columns) store_partial(out + i, load(source + i) * alpha, columns - i);
      }
    return;
  }
  for (int64_t r = 0; r < part.rows; ++r)
    for (int64_t i = 0; i < columns; i += kWidth<C>)
      for (int64_t c = 0; c < part.depth; c += kWidth<C>) {
        const C* source = tile.data + c * tile.channel + r * tile.row + i;
        S* out = x + (part.row + r) * s.row_step * at.row + i * at.column + c;
        const int64_t lanes = min64(kWidth<C>, part.depth - c);
        V square[kWidth<C>] = {};
        if (lanes == kWidth<C>) {
#pragma GCC unroll 16
          for (int p = 0; p < kWidth<C>; ++p) square[p] = load(source + p * tile.channel) * alpha;
        } else {
          for (int64_t p = 0; p < lanes; ++p) square[p] = load(source + p * tile.channel) * alpha;
        }
        transpose_steps<C>(square);
        const int64_t pixels = min64(kWidth<C>, columns - i);
        for (int64_t p = 0; p < pixels; ++p) store_lanes(out + p * at.column, square[p], lanes);
      }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
