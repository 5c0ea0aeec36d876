// Backward of nmf, through every update or through the last one alone.
//
// With U' = U P / Q, Q = U M + eps and the gradient dU' of U' (update.h):
//   dP = dU' U / Q,  dQ = -dU' U' / Q,  dU = dU' P / Q + dQ M,  dM = U^T dQ
// and a Gram matrix M = V^T V passes V (dM + dM^T) on. From the coefficients, dX += A dP^T and
// dA += X dP; from the bases, dX += dP C^T and dC += X^T dP. One pass over x for each update of
// the coefficients, which takes along what the update of the bases after it left to do.
#pragma once

#include "forward.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class S>
static void load_bases(NmfBases bases, int64_t row, int64_t count, int64_t rank,
                       Panels<Compute<S>> out) {
  if (bases.step)
    rows_to_panels(static_cast<const Compute<S>*>(bases.step) + row * rank, count, rank, out);
  else
    rows_to_panels(static_cast<const S*>(bases.given) + row * rank, count, rank, out);
}

// What the next pass needs of the rows at d of the bases, which stand in the state: their Gram
// matrix, their transpose for a channels-inner dx, and the rows whose update needs P itself.
// Buffers 4 and 5 are overwritten.
template <class S>
static void prepare_bases(const NmfShape& shape, const NmfMemory<Compute<S>>& memory, int64_t d,
                          int64_t count, NmfBases before) {
  using C = Compute<S>;
  const Panels<C> block = memory.rows_at(0, d);
  const Panels<C> turned = shape.channels_inner ? memory.turned_at(memory.layout.turned_bases, d)
                                                : memory.turned_buffer(4);
  add_gram(block, block, turned, memory.partial_square(memory.layout.bases_gram), count, shape.rank,
           d > memory.share.row);
  if (!before.given && !before.step) return;
  load_bases<S>(before, d, count, shape.rank, memory.buffer(5));
  mark_exact(memory.buffer(5), block, count, shape.rank, static_cast<C>(shape.eps),
             memory.exact_rows() + d);
}

template <class S>
static void start_backward(const NmfShape& shape, const NmfShare& share, NmfBases bases,
                           NmfBases before, const S* grad) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, true);
  if (share.row == share.row_end) clear_square(memory, memory.layout.bases_gram);
  for (int64_t d = share.row; d < share.row_end; d += kTile) {
    const int64_t count = min64(kTile, share.row_end - d);
    load_bases<S>(bases, d, count, shape.rank, memory.rows_at(0, d));
    const Panels<C> gradient = memory.rows_at(memory.layout.gradient, d);
    if (grad)
      rows_to_panels(grad + d * shape.rank, count, shape.rank, gradient);
    else
      clear_rows(gradient, count, shape.rank);
    prepare_bases<S>(shape, memory, d, count, before);
  }
}

// The gradient of the bases at hand, rows at d: what went around the coefficients, what came back
// from them, and the share through the Gram matrix (dM + dM^T in `gram`).
template <class C>
static Panels<C> finished_gradient(const NmfShape& shape, const NmfMemory<C>& memory, int64_t d,
                                   int64_t count, Panels<C> gram) {
  const Panels<C> gradient = memory.rows_at(memory.layout.gradient, d);
  const Panels<C> sums = memory.buffer(0);
  memory.sum_rows(0, d, count, shape.rank, sums);
  multiply_matrices(memory.rows_at(0, d), gram, sums, count, shape.rank, shape.rank, true);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t s = 0; s < shape.rank; s += kWidth<C>)
      store(at(gradient, r, s), load(at(gradient, r, s)) + load(at(sums, r, s)));
  return gradient;
}

template <class C>
static Panels<C> symmetric_square(const NmfShape& shape, const NmfMemory<C>& memory, int64_t offset,
                                  int which) {
  const Panels<C> sum = memory.sum_squares(offset, which);
  add_transpose(sum, shape.rank);
  return sum;
}

template <class S>
static void finish_bases(const NmfShape& shape, const NmfShare& share, S* dbases) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, true);
  const Panels<C> gram = symmetric_square(shape, memory, memory.layout.bases_gram_gradient, 0);
  for (int64_t d = share.row; d < share.row_end; d += kTile) {
    const int64_t count = min64(kTile, share.row_end - d);
    panels_to_rows(finished_gradient(shape, memory, d, count, gram), count, shape.rank,
                   dbases + d * shape.rank);
  }
}

template <class S>
static void bases_backward(const NmfShape& shape, const NmfShare& share, NmfBases bases,
                           NmfBases before) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, true);
  const int64_t rank = shape.rank;
  const auto& layout = memory.layout;
  const Panels<C> pull = symmetric_square(shape, memory, layout.bases_gram_gradient, 0);
  const Panels<C> gram = memory.sum_squares(layout.coef_gram, 1);
  const Panels<C> u = memory.buffer(1), q = memory.buffer(2), p = memory.buffer(3);
  const uint8_t* exact = memory.exact_rows();
  int64_t marked = memory.list()[layout.rows];  // exact rows before this one
  if (share.row == share.row_end) {
    clear_square(memory, layout.bases_gram);
    clear_square(memory, layout.coef_gram_gradient);
  }
  for (int64_t d = share.row; d < share.row_end; d += kTile) {
    const int64_t count = min64(kTile, share.row_end - d);
    const Panels<C> block = memory.rows_at(0, d);
    const Panels<C> gradient = finished_gradient(shape, memory, d, count, pull);
    load_bases<S>(bases, d, count, rank, u);
    multiply_matrices(u, gram, q, count, rank, rank, false);
    for (int64_t r = 0; r < count; ++r)
      if (exact[d + r]) memory.sum_rows(layout.exact_sums, marked++, 1, rank, from_row(p, r));
    update_rows_backward(u, block, gradient, q, p, exact + d, count, rank,
                         static_cast<C>(shape.eps));
    multiply_matrices(q, gram, gradient, count, rank, rank, true);
    add_gram(u, q, memory.turned_buffer(4), memory.partial_square(layout.coef_gram_gradient), count,
             rank, d > share.row);
    copy_panels(p, count, rank, memory.rows_at(layout.factor, d));
    copy_panels(u, count, rank, block);
    if (shape.channels_inner)
      turn_panels(p, count, rank, memory.turned_at(layout.turned_factor, d));
    prepare_bases<S>(shape, memory, d, count, before);
  }
}

// Lists the exact rows of all shares, returns how many there are, and leaves how many come before
// this share behind the list.
template <class C>
static int64_t list_exact_rows(const NmfMemory<C>& memory, int64_t channels) {
  int32_t* list = memory.list();
  int32_t marked = 0, before = 0;
  for (int64_t d = 0; d < channels; ++d) {
    if (d == memory.share.row) before = marked;
    if (memory.exact_rows()[d]) list[marked++] = static_cast<int32_t>(d);
  }
  list[memory.layout.rows] = before;
  return marked;
}

// sums (+)= x C in exact rows alone, which stand one after the other.
template <class C>
static void sum_exact_rows(const NmfMemory<C>& memory, const C* tile, int64_t marked,
                           Panels<C> coef, int64_t count, int64_t rank, bool add) {
  const int32_t* list = memory.list();
  C* gathered = memory.scratch + memory.layout.gathered;
  const Panels<C> sums = memory.partial_rows(memory.layout.exact_sums);
  for (int64_t first = 0; first < marked; first += kRows) {
    for (int64_t i = 0; i < min64(kRows, marked - first); ++i)
      memcpy(gathered + i * kTile, tile + list[first + i] * kTile, kTile * sizeof(C));
    tile_to_channels(gathered, kRows, coef, from_row(sums, first), count, rank, add);
  }
}

// dx (+)= left times right^T for up to two pairs of [D, R] and [count, R]; the pairs come with the
// transposes of their left (channels-inner) or right member.
template <class C>
struct GradientPair {
  Panels<C> bases, turned_bases, coef, turned_coef;
};

template <class C>
static void add_to_dx(const NmfShape& shape, const GradientPair<C>* pairs, int count, C* dx,
                      int64_t first, int64_t positions, bool add) {
  Factors<C> factors[2];
  for (int i = 0; i < count; ++i)
    factors[i] = shape.channels_inner ? Factors<C>{pairs[i].coef, pairs[i].turned_bases}
                                      : Factors<C>{pairs[i].bases, pairs[i].turned_coef};
  if (shape.channels_inner)
    sum_products(factors, count, positions, shape.channels, shape.rank, dx + first * shape.channels,
                 shape.channels, add);
  else
    sum_products(factors, count, shape.channels, positions, shape.rank, dx + first, shape.positions,
                 add);
}

template <class S>
static void coef_backward(const NmfShape& shape, const NmfShare& share,
                          const NmfCoefGradient& step) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, true);
  const int64_t rank = shape.rank, channels = shape.channels;
  const auto& layout = memory.layout;
  const C eps = static_cast<C>(shape.eps);
  const Panels<C> bases = memory.rows_at(0);
  const Panels<C> factor = memory.rows_at(layout.factor);
  const Panels<C> turned_bases = memory.turned_at(layout.turned_bases);
  const Panels<C> turned_factor = memory.turned_at(layout.turned_factor);
  const Panels<C> gram = memory.sum_squares(layout.bases_gram, 0);
  const Panels<C> pull =
      step.last ? gram : symmetric_square(shape, memory, layout.coef_gram_gradient, 1);
  const Panels<C> coef = memory.buffer(0), next = memory.buffer(1), gradient = memory.buffer(2);
  const Panels<C> q = memory.buffer(3), p = memory.buffer(4);
  const Panels<C> turned = memory.turned_buffer(5), turned_next = memory.turned_buffer(6);
  const int64_t marked = step.first ? 0 : list_exact_rows(memory, channels);

  for (int64_t n = share.first; n < share.last; n += kTile) {
    const int64_t count = min64(kTile, share.last - n);
    const bool add = n > share.first;
    const C* tile = memory.template tile<WideTiles<S>>(shape, n, count);
    rows_to_panels(static_cast<const C*>(step.coef) + n * rank, count, rank, coef);
    rows_to_panels(static_cast<const C*>(step.next) + n * rank, count, rank, next);
    C* state = static_cast<C*>(step.state) + n * rank;
    if (!step.last) {
      rows_to_panels(state, count, rank, gradient);
      multiply_matrices(next, pull, gradient, count, rank, rank, true);
      tile_to_positions(tile, channels, factor, gradient, count, rank, true);
    } else if (step.grad) {
      rows_to_panels(static_cast<const S*>(step.grad) + n * rank, count, rank, gradient);
    } else {
      clear_rows(gradient, count, rank);
    }

    multiply_matrices(coef, gram, q, count, rank, rank, false);
    uint8_t exact[kTile];
    if (mark_exact(coef, next, count, rank, eps, exact) > 0)
      for (int64_t m = 0; m < count; m += kRows) {
        int any = 0;
        for (int64_t r = m; r < min64(m + kRows, count); ++r) any |= exact[r];
        if (any) tile_to_positions(tile + m, channels, bases, from_row(p, m), kRows, rank, false);
      }
    update_rows_backward(coef, next, gradient, q, p, exact, count, rank, eps);
    multiply_matrices(q, gram, gradient, count, rank, rank, true);
    if (step.first)
      softmax_rows_backward(coef, gradient, p, count, rank, static_cast<C>(shape.inv_t));
    else
      panels_to_rows(gradient, count, rank, state);

    tile_to_channels(tile, channels, p, memory.partial_rows(0), count, rank, add);
    if (!shape.channels_inner) {
      turn_panels(p, count, rank, turned);
      if (!step.last) turn_panels(next, count, rank, turned_next);
    }
    const GradientPair<C> pairs[2] = {{bases, turned_bases, p, turned},
                                      {factor, turned_factor, next, turned_next}};
    add_to_dx(shape, pairs, step.last ? 1 : 2, static_cast<C*>(step.dx), n, count, !step.last);

    add_gram(coef, q, turned, memory.partial_square(layout.bases_gram_gradient), count, rank, add);
    if (step.first) continue;
    multiply_matrices(turned, coef, memory.partial_square(layout.coef_gram), rank, rank, count,
                      add);
    sum_exact_rows(memory, tile, marked, coef, count, rank, add);
  }
}

template <class S>
static void one_step_backward(const NmfShape& shape, const NmfShare& share, const Compute<S>* past,
                              const S* grad, Compute<S>* dx) {
  using C = Compute<S>;
  const NmfMemory<C> memory(shape, share, true);
  const int64_t rank = shape.rank;
  const Panels<C> gram = memory.sum_squares(memory.layout.bases_gram, 0);
  const Panels<C> coef = memory.buffer(0), gradient = memory.buffer(1), q = memory.buffer(2);
  const Panels<C> turned = memory.turned_buffer(3);
  for (int64_t n = share.first; n < share.last; n += kTile) {
    const int64_t count = min64(kTile, share.last - n);
    rows_to_panels(past + n * rank, count, rank, coef);
    rows_to_panels(grad + n * rank, count, rank, gradient);
    multiply_matrices(coef, gram, q, count, rank, rank, false);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t s = 0; s < rank; s += kWidth<C>)
        store(at(q, r, s), load(at(gradient, r, s)) /
                               (load(at(q, r, s)) + static_cast<C>(shape.eps)) *
                               load(at(coef, r, s)));
    if (!shape.channels_inner) turn_panels(q, count, rank, turned);
    const GradientPair<C> pair = {memory.rows_at(0), memory.turned_at(memory.layout.turned_bases),
                                  q, turned};
    add_to_dx(shape, &pair, 1, dx, n, count, false);
  }
}

// Positions of dx, from C to S.
template <class S>
static void finish_x(const NmfShape& shape, const NmfShare& share, const Compute<S>* from, S* dx) {
  using C = Compute<S>;
  const bool inner = shape.channels_inner;
  const int64_t rows = inner ? share.last - share.first : shape.channels;
  const int64_t columns = inner ? shape.channels : share.last - share.first;
  const int64_t row_stride = inner ? shape.channels : shape.positions;
  const int64_t offset = inner ? share.first * shape.channels : share.first;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; i += kWidth<C>) {
      const int64_t element = offset + r * row_stride + i;
      store_lanes(dx + element, load_lanes(from + element, columns - i), columns - i);
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
