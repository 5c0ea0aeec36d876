// Rearranging the operands of nmf for common/gemm.h: tiles of x, panels of bases and coefficients.
//
// A matrix [rows, rank] is kept in panels [rank / kColumns][rows][kColumns], which are the right
// operand of products, and as a left operand rows of constant stride. `turned`, its transpose in
// panels [rows / kColumns][rank][kColumns], is the left operand of sums over its rows. Padding is
// never summed over: what stands in it does not matter.
#pragma once

#include "cpu/common/gemm.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Sizes of padded axes: a multiple of every kRows, kColumns and kWidth.
constexpr int64_t kPad = kNmfRowUnit;
// Positions of a tile, and rows of the bases that are updated at a time: a multiple of kPad.
constexpr int64_t kTile = 96;

// From a panel's row or column index to the address of its first element.
template <class C>
ATTNOPS_INLINE C* at(Panels<C> x, int64_t row, int64_t column) {
  return x.data + column / kColumns<C> * x.stride + row * kColumns<C> + column % kColumns<C>;
}
template <class C>
ATTNOPS_INLINE Panels<C> from_row(Panels<C> x, int64_t row) {
  return {x.data + row * kColumns<C>, x.stride};
}

// x [rows, columns] contiguous to panels.
template <class S>
static void rows_to_panels(const S* x, int64_t rows, int64_t columns, Panels<Compute<S>> out) {
  using C = Compute<S>;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>)
      store(at(out, r, s), load_lanes(x + r * columns + s, columns - s));
}

template <class S>
static void panels_to_rows(Panels<Compute<S>> x, int64_t rows, int64_t columns, S* out) {
  using C = Compute<S>;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>)
      store_lanes(out + r * columns + s, load(at(x, r, s)), columns - s);
}

template <class C>
static void clear_rows(Panels<C> x, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>) store(at(x, r, s), typename Vec<C>::V{});
}

template <class C>
static void copy_panels(Panels<C> x, int64_t rows, int64_t columns, Panels<C> out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>) store(at(out, r, s), load(at(x, r, s)));
}

template <class C>
static void turn_panels(Panels<C> x, int64_t rows, int64_t columns, Panels<C> out) {
  for (int64_t r = 0; r < rows; r += kWidth<C>)
    for (int64_t s = 0; s < columns; s += kWidth<C>)
      transpose_square(at(x, r, s), kColumns<C>, at(out, s, r), kColumns<C>);
}

// Positions [first, first + count) of x [channels, positions] or [positions, channels] to a tile
// [channels, kTile] with zeros up to whole vectors; `rows` are the channels, padded with zeros.
template <class S>
static void pack_tile(const NmfShape& shape, const S* x, int64_t first, int64_t count, int64_t rows,
                      Compute<S>* tile) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const int64_t channels = shape.channels;
  if (!shape.channels_inner) {
    for (int64_t d = 0; d < channels; ++d)
      for (int64_t n = 0; n < count; n += kWidth<C>)
        store(tile + d * kTile + n, load_lanes(x + d * shape.positions + first + n, count - n));
  } else {
    for (int64_t n = 0; n < count; n += kWidth<C>)
      for (int64_t d = 0; d < channels; d += kWidth<C>) {
        V square[kWidth<C>];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth<C>; ++i)
          square[i] =
              n + i < count ? load_lanes(x + (first + n + i) * channels + d, channels - d) : V{};
        transpose_steps<C>(square);
        const int64_t used = min64(kWidth<C>, channels - d);
        C* target = tile + d * kTile + n;
        if (used == kWidth<C>) {
#pragma GCC unroll 16
          for (int i = 0; i < kWidth<C>; ++i) store(target + i * kTile, square[i]);
        } else {
          for (int i = 0; i < used; ++i) store(target + i * kTile, square[i]);
        }
      }
  }
  memset(tile + channels * kTile, 0, static_cast<size_t>((rows - channels) * kTile) * sizeof(C));
}

}  // namespace attnops::cpu::ATTNOPS_ISA
