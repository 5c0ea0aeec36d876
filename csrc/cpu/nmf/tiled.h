// The coefficients' update for x in bfloat16 with whole tiles of channels, in tiles of AMX.
//
// Of X^T A a tile of A is rows of x as they are. X C is multiplied turned, as C^T X^T, so that C^T
// is on the left of this and of C^T C, and x on the right, in pairs of positions: each pass makes
// these of the rows at hand, which is faster than to read them from the last-level cache, too. A
// share adds its products up turned, and turns the sum.
//
// Where both operands are factors, C A^T A and C^T C, each is taken in two parts, itself rounded
// and what that takes away, and all products but that of the second parts are added, whose error
// is close to that of float. C^T C is half the sum of C^T (C + 2 rest) and its transpose, with C
// rounded.
#pragma once

#include "forward.h"
#include "pairs.h"
#include "tile_products.h"

#if defined(__AVX512F__)

namespace attnops::cpu::ATTNOPS_ISA {

// What stands behind the scratch of NmfMemory. `rest` is what rounding takes away.
struct TiledMemory {
  int64_t rank, deep;               // padded to kPad, and to a tile's depth
  Lines<BFloat16> x;                // a copy of the last rows
  Lines<BFloat16> coef, coef_rest;  // C before the update
  Lines<BFloat16> turned;           // C^T after it
  Panels<Pair> x_pairs;             // of positions
  Panels<Pair> pairs, pairs_rest;   // C after the update, of positions; the rest doubled
  Panels<Pair> bases, bases_rest;   // of channels
  Panels<Pair> gram, gram_rest;     // A^T A
  Panels<float> sums;               // (X C)^T
  int64_t size;                     // in floats

  TiledMemory(const NmfShape& shape, const NmfLayout<float>& layout, float* data)
      : rank(layout.rank), deep(round_up(shape.rank, kTileDepth)) {
    int64_t used = 0;
    const auto take = [&](int64_t count) {
      used += count;
      return data == nullptr ? nullptr : data + (used - count);
    };
    // One vector more than is needed parts columns that would fall on the same lines of a cache.
    const auto lines = [&](int64_t rows, int64_t depth) {
      const int64_t step = (rows + 1) * kTileDepth;
      float* words = take(depth / kTileDepth * step / 2);
      return Lines<BFloat16>{reinterpret_cast<BFloat16*>(words), kTileDepth, step};
    };
    const auto panels = [&](int64_t rows, int64_t columns) {
      const int64_t stride = rows * kColumns<float> + kWidth<float>;
      return Panels<float>{take(columns / kColumns<float> * stride), stride};
    };
    const auto pairs_of = [&](int64_t depth, int64_t columns) {
      const Panels<float> words = panels(depth / 2, columns);
      return Panels<Pair>{reinterpret_cast<Pair*>(words.data), words.stride};
    };
    x = lines(kTile, shape.channels);
    coef = lines(kTile, deep);
    coef_rest = lines(kTile, deep);
    turned = lines(rank, kTile);
    x_pairs = pairs_of(kTile, layout.rows);
    bases = pairs_of(shape.channels, rank);
    bases_rest = pairs_of(shape.channels, rank);
    gram = pairs_of(deep, rank);
    gram_rest = pairs_of(deep, rank);
    pairs = pairs_of(kTile, rank);
    pairs_rest = pairs_of(kTile, rank);
    sums = panels(rank, layout.rows);
    size = used;
  }
};

// Positions [first, first + count) of x [positions, channels] to pairs of them, with zeros up to
// whole tiles. Of 32 channels the even ones are a tile's columns, then the odd ones. Returns the
// rows as a left operand: x itself, or where that ends before a tile does, a copy in `lines`.
static Lines<const BFloat16> pack_rows(const NmfShape& shape, const BFloat16* x, int64_t first,
                                       int64_t count, Lines<BFloat16> lines, Panels<Pair> pairs) {
  const int64_t channels = shape.channels;
  const bool copy = first + round_up(count, kTileRows) > shape.positions;
  x += first * channels;
  for (int64_t n = 0; n < round_up(count, kTileDepth); n += 2) {
    const BFloat16* row = x + n * channels;
    for (int64_t d = 0; d < channels; d += kTileDepth) {
      WordLanes even = {}, odd = {};
      if (n < count) memcpy(&even, row + d, sizeof(even));
      if (n + 1 < count) memcpy(&odd, row + channels + d, sizeof(odd));
      store_words(at(pairs, n / 2, d), (even & 0xffffu) | (odd << 16));
      store_words(at(pairs, n / 2, d + kTileRows), (even >> 16) | (odd & 0xffff0000u));
      if (!copy) continue;
      store_words(at(lines, n, d), even);
      store_words(at(lines, n + 1, d), odd);
    }
  }
  if (copy) return lines;
  return {x, channels, kTileDepth};
}

// Rows of coefficients, before(row, column), to both parts in lines. Pairs are terms 16 apart, here
// and in split_square.
template <class Before>
static void split_rows(int64_t count, int64_t columns, const TiledMemory& to,
                       const Before& before) {
  constexpr int64_t kW = kWidth<float>;
  for (int64_t s = 0; s < to.deep; s += kTileDepth) {
    BFloat16 *coef = at(to.coef, 0, s), *rest = at(to.coef_rest, 0, s);
    const bool both = s + kW < columns;
    for (int64_t r = 0; r < count; ++r, coef += kTileDepth, rest += kTileDepth) {
      const Split parts = split(before(r, s), both ? before(r, s + kW) : VecF{});
      store_words(coef, parts.rounded);
      store_words(rest, parts.rest);
    }
  }
}

// A square matrix to both parts in pairs of rows.
static void split_square(Panels<float> x, int64_t size, const TiledMemory& to) {
  for (int64_t k = 0; k < to.deep; k += 2)
    for (int64_t s = 0; s < size; s += kWidth<float>) {
      const int64_t r = k / kTileDepth * kTileDepth + k % kTileDepth / 2, other = r + kTileRows;
      const Split parts = split(r < size ? load(at(x, r, s)) : VecF{},
                                other < size ? load(at(x, other, s)) : VecF{});
      store_words(at(to.gram, k / 2, s), parts.rounded);
      store_words(at(to.gram_rest, k / 2, s), parts.rest);
    }
}

// As update_rows, for before(row, column). The results go to rows of `columns`, where there are
// any, and to pairs of positions, with zeros up to whole tiles.
template <class Before>
static void update_block(const TiledMemory& m, Panels<float> p, Panels<float> q, int64_t count,
                         int64_t columns, float eps, const Before& before, float* to, float* out) {
  constexpr int64_t kRow = kColumns<float>;
  for (int64_t s = 0; s < columns; s += kWidth<float>) {
    const float *ps = at(p, 0, s), *qs = at(q, 0, s);
    Pair *pairs = at(m.pairs, 0, s), *rest = at(m.pairs_rest, 0, s);
    const auto update = [=](int64_t r) __attribute__((always_inline)) {
      if (r >= count) return VecF{};
      const VecF next = before(r, s) * load(ps + r * kRow) / (load(qs + r * kRow) + eps);
      if (to) store_lanes(to + r * columns + s, next, columns - s);
      if (out) store_lanes(out + r * columns + s, next, columns - s);
      return next;
    };
    for (int64_t r = 0; r < round_up(count, kTileDepth); r += 2, pairs += kRow, rest += kRow) {
      const VecF even = update(r);
      const Split parts = split<true>(even, update(r + 1));
      store_words(pairs, parts.rounded);
      store_words(rest, parts.rest);
    }
  }
}

// Pairs of positions to lines of them.
static void turn_pairs(const TiledMemory& m, int64_t count, int64_t columns) {
  constexpr int64_t kW = kWidth<float>;
  for (int64_t n = 0; n < count; n += kTileDepth)
    for (int64_t s = 0; s < columns; s += kW)
      transpose_square(reinterpret_cast<const float*>(at(m.pairs, n / 2, s)), kColumns<Pair>,
                       reinterpret_cast<float*>(at(m.turned, s, n)), kW);
}

// A share's sums [R, D], with the channels as pack_rows has them, to [D, R].
static void turn_sums(Panels<float> sums, int64_t channels, int64_t columns, Panels<float> out) {
  constexpr int64_t kW = kWidth<float>;
  for (int64_t d = 0; d < channels; d += kW)
    for (int64_t s = 0; s < columns; s += kW)
      transpose_square(at(sums, s, d), kColumns<float>,
                       at(out, d / kTileDepth * kTileDepth + d % kTileDepth / kW, s),
                       2 * kColumns<float>);
}

// x <- (x + x^T) / 2 for a square matrix.
static void make_symmetric(Panels<float> x, int64_t size) {
  for (int64_t r = 0; r < size; ++r)
    for (int64_t s = 0; s < r; ++s) {
      float *lower = at(x, r, s), *upper = at(x, s, r);
      *lower = *upper = 0.5f * (*lower + *upper);
    }
}

static void update_coef_in_tiles(const NmfShape& shape, const NmfShare& share,
                                 const NmfCoefStep& step) {
  const TileRegisters registers(true);
  const NmfMemory<float> memory(shape, share, false);
  const TiledMemory m(shape, memory.layout, memory.scratch + memory.layout.scratch);
  const int64_t rank = shape.rank, channels = shape.channels;
  const BFloat16* const xs = static_cast<const BFloat16*>(share.x);
  const float* const froms = static_cast<const float*>(step.from);
  const float eps = static_cast<float>(shape.eps);
  const Panels<float> p = memory.buffer(0), q = memory.buffer(1), first = memory.buffer(2);
  const Panels<float> coef_gram = memory.partial_square(memory.layout.coef_gram);
  split_square(memory.sum_squares(memory.layout.bases_gram, 0), rank, m);
  round_to_pairs(memory.rows_at(0), channels, rank, false, m.bases);
  if (!froms) round_to_pairs(memory.rows_at(0), channels, rank, true, m.bases_rest);

  for (int64_t n = share.first; n < share.last; n += kTile) {
    const int64_t count = min64(kTile, share.last - n), depth = round_up(count, kTileDepth);
    const int64_t next = n + count, rows = min64(kTile, share.last - next);
    const auto rows_of = [&](void* all) {
      return all ? static_cast<float*>(all) + n * rank : nullptr;
    };
    Ahead ahead(xs + next * channels, rows * channels, froms ? froms + next * rank : nullptr,
                froms ? rows * rank : 0);
    const auto update = [&](const auto& before) {
      split_rows(count, rank, m, before);
      multiply_tiles({{m.coef, m.gram}, {m.coef, m.gram_rest}, {m.coef_rest, m.gram}}, q, count,
                     rank, m.deep, false, ahead);
      update_block(m, p, q, count, rank, eps, before, rows_of(step.to), rows_of(step.out));
    };

    const Lines<const BFloat16> x = pack_rows(shape, xs, n, count, m.x, m.x_pairs);
    multiply_tiles({{x, m.bases}}, p, count, rank, channels, false, ahead);
    if (froms) {
      const float* from = froms + n * rank;
      update(
          [from, rank](int64_t r, int64_t s) { return load_lanes(from + r * rank + s, rank - s); });
    } else {
      multiply_tiles({{x, m.bases_rest}}, p, count, rank, channels, true, ahead);
      softmax_rows(p, first, count, rank, static_cast<float>(shape.inv_t));
      if (step.initial) panels_to_rows(first, count, rank, rows_of(step.initial));
      update([first](int64_t r, int64_t s) { return load(at(first, r, s)); });
    }
    if (step.last) continue;
    const bool add = n > share.first;
    turn_pairs(m, count, rank);
    multiply_tiles({{m.turned, m.x_pairs}}, m.sums, rank, channels, depth, add, ahead);
    multiply_tiles({{m.turned, m.pairs}, {m.turned, m.pairs_rest}}, coef_gram, rank, rank, depth,
                   add, ahead);
  }
  if (step.last) return;
  turn_sums(m.sums, channels, rank, memory.partial_rows(0));
  make_symmetric(coef_gram, rank);
}

}  // namespace attnops::cpu::ATTNOPS_ISA

#endif
