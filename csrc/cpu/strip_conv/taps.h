// Rows of pixels with the taps of depthwise kernels: convolutions, and gradients by the taps.
//
// A pixel is a vector, one plane a lane, so neighbours along a row and along a column are loaded
// alike and no tap has to be broadcast. Taps are vectors, too: [count][kWidth]. Rows are given as
// arrays of pointers, because they stand in rings.
//
//   out[y, x] = bias + base[y, x] + sum over terms, t of taps[t] in[y, x + t]    along columns
//   out[y, x] = bias + base[y, x] + sum over terms, t of taps[t] in[y + t, x]    along rows
//
// A block of kSlide results stays in registers while up to kMostTaps taps slide over it, so a pixel
// is loaded once for up to kMostTaps products: with 8 results and 7 taps, 21 loads for 56
// multiply-adds.
//
//   sums[t] += sum over y, x of left[y, x] right[y, x + t]    along columns
//   sums[t] += sum over y, x of left[y, x] right[y + t, x]    along rows
//
// The sums of up to kMostTaps taps stay in registers over all pixels, two of each, as one chain of
// additions waits for its last one. Pixels of left are taken kRun at a time in the direction of the
// taps, so that a pixel of right is loaded once for up to kRun products.
#pragma once

#include <type_traits>

#include "cpu/common/vec.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int kSlide = kPieceRows;  // results in the direction of the taps
#if defined(__AVX512F__)
constexpr int kMostTaps = 7;  // of 32 registers
#else
constexpr int kMostTaps = 5;  // of 16
#endif

// Calls body(std::integral_constant<int, count>()) for a count of 1 to kMostTaps - 1.
template <int kCount = 1, class Body>
ATTNOPS_INLINE void for_rest(int64_t count, const Body& body) {
  if constexpr (kCount < kMostTaps) {
    if (count == kCount) return body(std::integral_constant<int, kCount>());
    for_rest<kCount + 1>(count, body);
  }
}

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
  for_rest(
      rest, [&](auto taken) __attribute__((always_inline)) {
        add_taps<C, kAlongRows, decltype(taken)::value>(rows, column, taps, sums);
      });
}

// Results of one row (along columns) or kSlide rows (along rows), pixels [begin, end) rounded up to
// whole blocks. bias: one vector; base: rows like those of the terms, or null; out: rows from
// pixel `begin` on.
template <class C, bool kAlongRows>
static void convolve(const Term<C>* terms, int64_t count, const C* bias, const C* const* base,
                     int64_t begin, int64_t end, C* const* out) {
  using V = typename Vec<C>::V;
  const V start = load(bias);
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

constexpr int kSets = 2, kRun = kMostTaps > 5 ? 4 : 2;

// sum += all pixels of `rows` rows.
template <class C>
static void sum_pixels(const C* const* row, int64_t rows, int64_t columns, double* sum) {
  VecD total[kSets][kWideParts<C>] = {};
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x)
#pragma GCC unroll 2
      for (int i = 0; i < kWideParts<C>; ++i)
        total[x % kSets][i] += load_wide(row[y] + x * kWidth<C> + i * kWidth<double>);
#pragma GCC unroll 2
  for (int i = 0; i < kWideParts<C>; ++i) {
    double* part = sum + i * kWidth<double>;
    store(part, load(part) + (total[0][i] + total[1][i]));
  }
}

// Rows of left, and rows of right from the one (and the pixel) that the first tap meets.
template <class C>
struct Factors {
  const C* const* left;
  const C* const* right;
  int64_t rows, columns;
};

// Pixels [y, y + kRows) x [x, x + kColumns) of left.
template <class C, bool kAlongRows, int kTaps, int kRows, int kColumns>
ATTNOPS_INLINE void add_products(const Factors<C>& f, int64_t y, int64_t x, int64_t tap,
                                 typename Vec<C>::V (&sums)[kSets][kTaps]) {
  constexpr int kLength = kAlongRows ? kRows : kColumns, kOthers = kAlongRows ? kColumns : kRows;
  const C* const* left_rows = f.left + y;
  const C* const* right_rows = f.right + y + (kAlongRows ? tap : 0);
  const int64_t right_x = x + (kAlongRows ? 0 : tap);
#pragma GCC unroll 2
  for (int s = 0; s < kOthers; ++s) {
    typename Vec<C>::V left[kLength];
#pragma GCC unroll 4
    for (int i = 0; i < kLength; ++i) {
      const int row = kAlongRows ? i : s, pixel = kAlongRows ? s : i;
      left[i] = load(left_rows[row] + (x + pixel) * kWidth<C>);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kLength + kTaps - 1; ++n) {
      const int row = kAlongRows ? n : s, pixel = kAlongRows ? s : n;
      const auto right = load(right_rows[row] + (right_x + pixel) * kWidth<C>);
#pragma GCC unroll 4
      for (int i = 0; i < kLength; ++i)
        if (n - i >= 0 && n - i < kTaps) sums[s][n - i] += left[i] * right;
    }
  }
}

template <class C, bool kAlongRows, int kTaps, int kRows>
ATTNOPS_INLINE void add_rows(const Factors<C>& f, int64_t y, int64_t tap,
                             typename Vec<C>::V (&sums)[kSets][kTaps]) {
  constexpr int kColumns = kAlongRows ? kSets : kRun;
  int64_t x = 0;
  for (; x + kColumns <= f.columns; x += kColumns)
    add_products<C, kAlongRows, kTaps, kRows, kColumns>(f, y, x, tap, sums);
  for (; x < f.columns; ++x) add_products<C, kAlongRows, kTaps, kRows, 1>(f, y, x, tap, sums);
}

// The sums of kTaps taps from `tap` on.
template <class C, bool kAlongRows, int kTaps>
static void add_sums(const Factors<C>& f, int64_t tap, double* sums, int64_t step) {
  constexpr int kRows = kAlongRows ? kRun : kSets;
  typename Vec<C>::V total[kSets][kTaps] = {};
  int64_t y = 0;
  for (; y + kRows <= f.rows; y += kRows) add_rows<C, kAlongRows, kTaps, kRows>(f, y, tap, total);
  for (; y < f.rows; ++y) add_rows<C, kAlongRows, kTaps, 1>(f, y, tap, total);
#pragma GCC unroll 8
  for (int t = 0; t < kTaps; ++t) add_wide<C>(total[0][t] + total[1][t], sums + (tap + t) * step);
}

// `step`: elements from the sum of one tap to that of the next, negative where taps are stored in
// the reverse order.
template <class C, bool kAlongRows>
static void sum_taps(const Factors<C>& f, int64_t taps, double* sums, int64_t step) {
  int64_t tap = 0;
  for (; tap + kMostTaps <= taps; tap += kMostTaps)
    add_sums<C, kAlongRows, kMostTaps>(f, tap, sums, step);
  for_rest(
      taps - tap, [&](auto taken) __attribute__((always_inline)) {
        add_sums<C, kAlongRows, decltype(taken)::value>(f, tap, sums, step);
      });
}

}  // namespace attnops::cpu::ATTNOPS_ISA
