// Where things stand in the memory that the host lends to nmf, in elements of C.
#pragma once

#include "pack.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class C>
struct NmfLayout {
  int64_t rank, rows;             // R and D, padded to kPad
  int64_t tile_rows;              // channels of a tile of x
  int64_t bases, square, buffer;  // sizes of matrices [D, R], [R, R], [kTile, R]
  // State of an item. The gradient is that of the bases; the factor is dP of their update.
  int64_t gradient, factor, turned_bases, turned_factor, exact_rows, state;
  // Partial sums of a share: of [D, R] x C or x dP and x C in exact rows; of [R, R] the Gram
  // matrices of bases and coefficients and their gradients.
  int64_t exact_sums, bases_gram, coef_gram, bases_gram_gradient, coef_gram_gradient, partial;
  // Scratch of a share.
  int64_t second_square, buffers, gathered, list, x_tile, scratch;

  NmfLayout(const NmfShape& s, bool backward) {
    rank = round_up(s.rank, kPad);
    rows = round_up(s.channels, kPad);
    tile_rows = round_up(s.channels, kRows);
    bases = rows * rank;
    square = rank * rank;
    buffer = kTile * rank;

    gradient = bases;
    factor = gradient + bases;
    turned_bases = factor + bases;
    turned_factor = turned_bases + (s.channels_inner ? bases : 0);
    exact_rows = turned_factor + (s.channels_inner ? bases : 0);
    state = backward ? exact_rows + rows : bases;

    bases_gram = bases;
    coef_gram = bases_gram + square;
    bases_gram_gradient = coef_gram + square;
    coef_gram_gradient = bases_gram_gradient + square;
    exact_sums = coef_gram_gradient + square;
    partial = backward ? exact_sums + bases : bases_gram_gradient;

    second_square = square;
    buffers = second_square + square;
    gathered = buffers + (backward ? 7 : 4) * buffer;
    list = gathered + kRows * kTile;
    x_tile = list + rows + kPad;
    scratch = x_tile + round_up(tile_rows * kTile, 16);
  }
};

// The memory of one share.
template <class C>
struct NmfMemory {
  NmfLayout<C> layout;
  NmfShare share;
  C *state, *partials, *scratch;

  NmfMemory(const NmfShape& shape, const NmfShare& s, bool backward)
      : layout(shape, backward),
        share(s),
        state(static_cast<C*>(s.state)),
        partials(static_cast<C*>(s.partials)),
        scratch(static_cast<C*>(s.scratch)) {}

  // A [D, R] matrix of the state, from the row on, and one turned.
  Panels<C> rows_at(int64_t offset, int64_t row = 0) const {
    return {state + offset + row * kColumns<C>, layout.rows * kColumns<C>};
  }
  Panels<C> turned_at(int64_t offset, int64_t row = 0) const {
    return {state + offset + row * layout.rank, layout.rank * kColumns<C>};
  }
  uint8_t* exact_rows() const { return reinterpret_cast<uint8_t*>(state + layout.exact_rows); }

  // Exact rows by number; behind `rows` entries, how many come before this share.
  int32_t* list() const { return reinterpret_cast<int32_t*>(scratch + layout.list); }

  // Matrices of this share's partial sums.
  Panels<C> partial_rows(int64_t offset) const {
    return {partials + share.index * layout.partial + offset, layout.rows * kColumns<C>};
  }
  Panels<C> partial_square(int64_t offset) const {
    return {partials + share.index * layout.partial + offset, layout.rank * kColumns<C>};
  }
  // The sums of all shares: of an [R, R] matrix into scratch 0 or 1, of rows of [D, R] into `out`.
  Panels<C> sum_squares(int64_t offset, int which) const;
  void sum_rows(int64_t offset, int64_t row, int64_t count, int64_t columns, Panels<C> out) const;

  // Buffers [kTile, R] and turned ones.
  Panels<C> buffer(int which) const {
    return {scratch + layout.buffers + which * layout.buffer, kTile * kColumns<C>};
  }
  Panels<C> turned_buffer(int which) const {
    return {scratch + layout.buffers + which * layout.buffer, layout.rank * kColumns<C>};
  }

  // The tile of x at position n, packed before or now, by Tiles::pack.
  template <class Tiles>
  const C* tile(const NmfShape& shape, int64_t n, int64_t count) const {
    const int64_t size = layout.tile_rows * kTile;
    if (share.packed) return static_cast<const C*>(share.packed) + (n - share.first) / kTile * size;
    Tiles::pack(shape, share.x, n, count, layout.tile_rows, scratch + layout.x_tile);
    return scratch + layout.x_tile;
  }
};

// In order of the shares, so that the sum is the same in every run.
template <class C>
Panels<C> NmfMemory<C>::sum_squares(int64_t offset, int which) const {
  C* out = scratch + which * layout.second_square;
  for (int64_t i = 0; i < layout.square; i += kWidth<C>) {
    auto sum = load(partials + offset + i);
    for (int64_t b = 1; b < share.count; ++b)
      sum += load(partials + b * layout.partial + offset + i);
    store(out + i, sum);
  }
  return {out, layout.rank * kColumns<C>};
}

template <class C>
void NmfMemory<C>::sum_rows(int64_t offset, int64_t row, int64_t count, int64_t columns,
                            Panels<C> out) const {
  const Panels<C> first = {partials + offset, layout.rows * kColumns<C>};
  for (int64_t r = 0; r < count; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>) {
      const C* source = at(first, row + r, s);
      auto sum = load(source);
      for (int64_t b = 1; b < share.count; ++b) sum += load(source + b * layout.partial);
      store(at(out, r, s), sum);
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
