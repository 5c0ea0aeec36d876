// The pointwise parts of nmf on panels of rows: both factors are updated by the same formula,
//
//   U' = U P / Q,  Q = U M + eps
//
// for U = C, P = X^T A, M = A^T A and for U = A, P = X C, M = C^T C.
#pragma once

#include "pack.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Lanes of the vector at column s that lie below `columns`.
template <class C>
ATTNOPS_INLINE typename Vec<C>::I valid_lanes(int64_t columns, int64_t s) {
  typename Vec<C>::I lanes;
  for (int i = 0; i < kWidth<C>; ++i) lanes[i] = s + i < columns ? -1 : 0;
  return lanes;
}

// out = softmax(inv_t x) of every row.
template <class C>
static void softmax_rows(Panels<C> x, Panels<C> out, int64_t rows, int64_t columns, C inv_t) {
  using V = typename Vec<C>::V;
  const int64_t last = (columns - 1) / kWidth<C> * kWidth<C>;
  const auto valid = valid_lanes<C>(columns, last);
  const V lowest = broadcast<C>(-static_cast<C>(__builtin_inf()));
  for (int64_t r = 0; r < rows; ++r) {
    V top = lowest;
    for (int64_t s = 0; s <= last; s += kWidth<C>) {
      V score = load(at(x, r, s)) * inv_t;
      if (s == last) score = select(valid, score, lowest);
      store(at(out, r, s), score);
      top = select(score > top, score, top);
    }
    const C highest = lane_max<C>(top);
    V sum = {};
    for (int64_t s = 0; s <= last; s += kWidth<C>) {
      const V e = exp_lanes<C>(load(at(out, r, s)) - highest);
      store(at(out, r, s), e);
      sum += e;
    }
    const C total = lane_sum<C>(sum);
    for (int64_t s = 0; s <= last; s += kWidth<C>)
      store(at(out, r, s), load(at(out, r, s)) / total);
  }
}

// dP += the share of P in the softmax: inv_t p (dp - <p, dp>).
template <class C>
static void softmax_rows_backward(Panels<C> p, Panels<C> dp, Panels<C> out, int64_t rows,
                                  int64_t columns, C inv_t) {
  using V = typename Vec<C>::V;
  const int64_t last = (columns - 1) / kWidth<C> * kWidth<C>;
  const auto valid = valid_lanes<C>(columns, last);
  for (int64_t r = 0; r < rows; ++r) {
    V dot = {};
    for (int64_t s = 0; s <= last; s += kWidth<C>) {
      const V term = load(at(p, r, s)) * load(at(dp, r, s));
      dot += s == last ? select(valid, term, V{}) : term;
    }
    const C delta = lane_sum<C>(dot);
    for (int64_t s = 0; s <= last; s += kWidth<C>)
      store(at(out, r, s),
            load(at(out, r, s)) + inv_t * (load(at(p, r, s)) * (load(at(dp, r, s)) - delta)));
  }
}

// u <- u p / (um + eps).
template <class C>
static void update_rows(Panels<C> u, Panels<C> p, Panels<C> um, int64_t rows, int64_t columns,
                        C eps) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>)
      store(at(u, r, s), load(at(u, r, s)) * load(at(p, r, s)) / (load(at(um, r, s)) + eps));
}

// The gradient of U needs P / Q. Where U and U' are numbers of ordinary size that is U' / U, and
// P, a product of the size of x, need not be computed again.
template <class C>
constexpr C kOrdinary = static_cast<C>(sizeof(C) == 8 ? 0x1p-400 : 0x1p-60);

// exact[r] = whether the row needs P itself: an element of u or next is 0, tiny, huge, negative or
// NaN. Returns how many rows do. With eps >= kOrdinary the product U P = U' Q cannot underflow in
// the others; with a smaller one every row is exact.
template <class C>
static int64_t mark_exact(Panels<C> u, Panels<C> next, int64_t rows, int64_t columns, C eps,
                          uint8_t* exact) {
  using I = typename Vec<C>::I;
  const int64_t last = (columns - 1) / kWidth<C> * kWidth<C>;
  const auto valid = valid_lanes<C>(columns, last);
  constexpr C low = kOrdinary<C>, high = 1 / kOrdinary<C>;
  int64_t marked = 0;
  for (int64_t r = 0; r < rows; ++r) {
    I bad = {};
    for (int64_t s = 0; s <= last; s += kWidth<C>) {
      const auto a = load(at(u, r, s)), b = load(at(next, r, s));
      const I ordinary = (a >= low) & (a <= high) & (b >= low) & (b <= high);
      bad |= s == last ? ~ordinary & valid : ~ordinary;
    }
    typename Vec<C>::Int any = 0;
    for (int i = 0; i < kWidth<C>; ++i) any |= bad[i];
    exact[r] = any != 0 || !(eps >= low);
    marked += exact[r];
  }
  return marked;
}

// From the gradient of U' to
//   dP = grad U / Q   (over p, which holds P in exact rows),
//   dQ = -grad U' / Q (over um, which holds U M),
//   grad P / Q, the part of the gradient of U that does not pass through Q (over grad).
template <class C>
static void update_rows_backward(Panels<C> u, Panels<C> next, Panels<C> grad, Panels<C> um,
                                 Panels<C> p, const uint8_t* exact, int64_t rows, int64_t columns,
                                 C eps) {
  using V = typename Vec<C>::V;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t s = 0; s < columns; s += kWidth<C>) {
      const V before = load(at(u, r, s)), after = load(at(next, r, s));
      const V incoming = load(at(grad, r, s));
      const V scaled = incoming / (load(at(um, r, s)) + eps);
      store(at(grad, r, s), exact[r] ? scaled * load(at(p, r, s)) : incoming * (after / before));
      store(at(um, r, s), -(scaled * after));
      store(at(p, r, s), scaled * before);
    }
}

// x <- x + x^T for a square matrix.
template <class C>
static void add_transpose(Panels<C> x, int64_t size) {
  for (int64_t r = 0; r < size; ++r)
    for (int64_t s = 0; s <= r; ++s) {
      C *lower = at(x, r, s), *upper = at(x, s, r);
      *lower = *upper = *lower + *upper;
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
