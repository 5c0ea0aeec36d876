// Convolutions of rows of pixels with the taps of depthwise kernels.
//
// A pixel is a vector, one plane a lane, so neighbours along a row and along a column are loaded
// alike and no tap has to be broadcast. Taps are vectors, too: [count][kWidth].
//
//   out[y, x] = shift + base[y, x] + sum over terms, t of taps[t] in[y, x + t]    along columns
//   out[y, x] = shift + base[y, x] + sum over terms, t of taps[t] in[y + t, x]    along rows
//
// Rows are given as arrays of pointers, because they stand in rings. A block of kSlide results
// stays in registers while up to kMostTaps taps slide over it, so a pixel is loaded once for up to
// kMostTaps products: with 8 results and 7 taps, 21 loads for 56 multiply-adds.
#pragma once

#include "cpu/common/vec.h"
#include "cpu/depthwise/shape.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int kSlide = kPieceRows;  // results in the direction of the taps
#if defined(__AVX512F__)
constexpr int kMostTaps = 7;  // of 32 registers
#else
constexpr int kMostTaps = 5;  // of 16
#endif

// Terms are added up in chains of about this many products, then the chains: fewer roundings of
// large sums.
constexpr int64_t kChain = 16;

// One run of taps: rows as the result asks for them, from the pixel that the first tap meets.
template <class C>
struct Term {
  const C* const* rows;
  const C* taps;
  int64_t count;
};

// sums += kTaps taps.
template <class C, bool kAlongRows, int kTaps>
ATTNOPS_INLINE void add_taps(const C* const* rows, int64_t column, const C* taps,
                             typename Vec<C>::V (&sums)[kSlide]) {
  typename Vec<C>::V weights[kTaps];
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) weights[t] = load(taps + t * kWidth<C>);
#pragma GCC unroll 16
  for (int n = 0; n < kSlide + kTaps - 1; ++n) {
    const auto in = load(rows[kAlongRows ? n : 0] + column + (kAlongRows ? 0 : n * kWidth<C>));
#pragma GCC unroll 8
    for (int i = 0; i < kSlide; ++i)
      if (n - i >= 0 && n - i < kTaps) sums[i] += weights[n - i] * in;
  }
}

template <class C, bool kAlongRows>
ATTNOPS_INLINE void add_term(const Term<C>& term, int64_t column,
                             typename Vec<C>::V (&sums)[kSlide]) {
  const C* const* rows = term.rows;
  const C* taps = term.taps;
  int64_t rest = term.count;
  auto advance = [&](int64_t count) {
    if (kAlongRows)
      rows += count;
    else
      column += count * kWidth<C>;
    taps += count * kWidth<C>;
    rest -= count;
  };
  for (; rest >= kMostTaps; advance(kMostTaps))
    add_taps<C, kAlongRows, kMostTaps>(rows, column, taps, sums);
  switch (rest) {
    case 1:
      return add_taps<C, kAlongRows, 1>(rows, column, taps, sums);
    case 2:
      return add_taps<C, kAlongRows, 2>(rows, column, taps, sums);
    case 3:
      return add_taps<C, kAlongRows, 3>(rows, column, taps, sums);
    case 4:
      return add_taps<C, kAlongRows, 4>(rows, column, taps, sums);
    case 5:
      if (kMostTaps > 5) return add_taps<C, kAlongRows, 5>(rows, column, taps, sums);
      return;
    case 6:
      if (kMostTaps > 6) return add_taps<C, kAlongRows, 6>(rows, column, taps, sums);
      return;
  }
}

// Results of one row (along columns) or kSlide rows (along rows), pixels [begin, end) rounded up to
// whole blocks. shift: one vector; base: rows like those of the terms, or null; out: rows from
// pixel `begin` on.
template <class C, bool kAlongRows>
static void convolve(const Term<C>* terms, int64_t count, const C* shift, const C* const* base,
                     int64_t begin, int64_t end, C* const* out) {
  using V = typename Vec<C>::V;
  const V start = load(shift);
  for (int64_t x = begin; x < end; x += kAlongRows ? 1 : kSlide) {
    V sums[kSlide] = {}, chain[kSlide] = {};
    int64_t taps = 0;
    for (int64_t i = 0; i < count; ++i) {
      add_term<C, kAlongRows>(terms[i], x * kWidth<C>, chain);
      taps += terms[i].count;
      if (taps < kChain && i + 1 < count) continue;
#pragma GCC unroll 8
      for (int r = 0; r < kSlide; ++r) {
        sums[r] += chain[r];
        chain[r] = V{};
      }
      taps = 0;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kSlide; ++i) {
      const int row = kAlongRows ? i : 0, pixel = kAlongRows ? 0 : i;
      V result = sums[i] + start;
      if (base != nullptr) result += load(base[row] + (x + pixel) * kWidth<C>);
      store(out[row] + (x - begin + pixel) * kWidth<C>, result);
    }
  }
}

// Turns a kernel around: a convolution with the result is the transposed convolution.
template <class C>
static void reverse_taps(C* taps, int64_t count) {
  for (int64_t i = 0; i < count / 2; ++i) {
    C *a = taps + i * kWidth<C>, *b = taps + (count - 1 - i) * kWidth<C>;
    const auto first = load(a);
    store(a, load(b));
    store(b, first);
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
