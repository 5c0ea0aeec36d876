// Forward of nmf: one pass over x for each update of the coefficients.
//
// In a pass a tile of x is multiplied with the bases for the new coefficients of its positions,
// and at once with those, for the share's part of X C and C^T C. An update of the bases then
// needs these sums alone. The softmax and the first update share one product X^T A.
#pragma once

#include "memory.h"
#include "products.h"
#include "update.h"

namespace attnops::cpu::ATTNOPS_ISA {

// gram (+)= u^T v for rows of u and v; `turned` receives u^T.
template <class C>
static void add_gram(Panels<C> u, Panels<C> v, Panels<C> turned, Panels<C> gram, int64_t rows,
                     int64_t columns, bool add) {
  turn_panels(u, rows, columns, turned);
  multiply_matrices(turned, v, gram, columns, columns, rows, add);
}

// The Gram matrix of a share without rows is zero.
template <class C>
static void clear_square(const NmfMemory<C>& memory, int64_t offset) {
  memset(memory.partial_square(offset).data, 0,
         static_cast<size_t>(memory.layout.square) * sizeof(C));
}

template <class S>
static void start(const NmfShape& shape, const NmfShare& share, const S* bases, Compute<S>* past,
                  S* out) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, false);
  const int64_t rank = shape.rank;
  if (share.row == share.row_end) clear_square(memory, memory.layout.bases_gram);
  for (int64_t d = share.row; d < share.row_end; d += kTile) {
    const int64_t count = min64(kTile, share.row_end - d);
    const Panels<C> block = memory.rows_at(0, d);
    rows_to_panels(bases + d * rank, count, rank, block);
    if (past) panels_to_rows(block, count, rank, past + d * rank);
    if (out) panels_to_rows(block, count, rank, out + d * rank);
    add_gram(block, block, memory.turned_buffer(0), memory.partial_square(memory.layout.bases_gram),
             count, rank, d > share.row);
  }
}

// Tiles of x, of S, in the type of arithmetic, and their products with the factors.
template <class S>
class WideTiles {
 public:
  using C = Compute<S>;

  static int64_t scratch(const NmfLayout<C>&) { return 0; }
  static void pack(const NmfShape& shape, const void* x, int64_t first, int64_t count, int64_t rows,
                   C* tile) {
    pack_tile(shape, static_cast<const S*>(x), first, count, rows, tile);
  }

  WideTiles(const NmfShape& shape, const NmfMemory<C>& memory, bool /*for_softmax*/)
      : shape_(shape), memory_(memory) {}

  void take(int64_t n, int64_t count) {
    tile_ = memory_.template tile<WideTiles>(shape_, n, count);
  }
  void to_positions(Panels<C> out, int64_t count) const {
    tile_to_positions(tile_, shape_.channels, memory_.rows_at(0), out, count, shape_.rank, false);
  }
  void to_channels(Panels<C> coef, Panels<C> out, int64_t count, bool add) const {
    tile_to_channels(tile_, shape_.channels, coef, out, count, shape_.rank, add);
  }

 private:
  const NmfShape& shape_;
  const NmfMemory<C>& memory_;
  const C* tile_ = nullptr;
};

// F: element type of the factors.
template <class F, class Tiles>
static void update_coef(const NmfShape& shape, const NmfShare& share, const NmfCoefStep& step) {
  using C = Compute<F>;
  const NmfMemory<C> memory(shape, share, false);
  Tiles tiles(shape, memory, step.from == nullptr);
  const int64_t rank = shape.rank;
  const Panels<C> gram = memory.sum_squares(memory.layout.bases_gram, 0);
  const Panels<C> p = memory.buffer(0), q = memory.buffer(1), coef = memory.buffer(2);
  for (int64_t n = share.first; n < share.last; n += kTile) {
    const int64_t count = min64(kTile, share.last - n);
    tiles.take(n, count);
    tiles.to_positions(p, count);
    if (step.from) {
      rows_to_panels(static_cast<const C*>(step.from) + n * rank, count, rank, coef);
    } else {
      softmax_rows(p, coef, count, rank, static_cast<C>(shape.inv_t));
      if (step.initial) panels_to_rows(coef, count, rank, static_cast<C*>(step.initial) + n * rank);
    }
    multiply_matrices(coef, gram, q, count, rank, rank, false);
    update_rows(coef, p, q, count, rank, static_cast<C>(shape.eps));
    if (step.to) panels_to_rows(coef, count, rank, static_cast<C*>(step.to) + n * rank);
    if (step.out) panels_to_rows(coef, count, rank, static_cast<F*>(step.out) + n * rank);
    if (step.last) continue;
    const bool add = n > share.first;
    tiles.to_channels(coef, memory.partial_rows(0), count, add);
    add_gram(coef, coef, memory.turned_buffer(3), memory.partial_square(memory.layout.coef_gram),
             count, rank, add);
  }
}

template <class S>
static void update_bases(const NmfShape& shape, const NmfShare& share, Compute<S>* past, S* out) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, false);
  const int64_t rank = shape.rank;
  const Panels<C> gram = memory.sum_squares(memory.layout.coef_gram, 0);
  const Panels<C> p = memory.buffer(0), q = memory.buffer(1);
  for (int64_t d = share.row; d < share.row_end; d += kTile) {
    const int64_t count = min64(kTile, share.row_end - d);
    const Panels<C> block = memory.rows_at(0, d);
    memory.sum_rows(0, d, count, rank, p);
    multiply_matrices(block, gram, q, count, rank, rank, false);
    update_rows(block, p, q, count, rank, static_cast<C>(shape.eps));
    if (past) panels_to_rows(block, count, rank, past + d * rank);
    if (out) panels_to_rows(block, count, rank, out + d * rank);
    add_gram(block, block, memory.turned_buffer(3), memory.partial_square(memory.layout.bases_gram),
             count, rank, d > share.row);
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
