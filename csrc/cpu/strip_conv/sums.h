// Gradients of depthwise kernels by their taps, on rows of pixels as in taps.h:
//
//   sums[t] += sum over y, x of left[y, x] right[y, x + t]    along columns
//   sums[t] += sum over y, x of left[y, x] right[y + t, x]    along rows
//
// The sums of up to kMostTaps taps stay in registers over all pixels, two of each, as one chain of
// additions waits for its last one. Pixels of left are taken kRun at a time in the direction of the
// taps, so that a pixel of right is loaded once for up to kRun products.
#pragma once

#include "taps.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int kSets = 2, kRun = kMostTaps > 5 ? 4 : 2;

// Sums over more than a few rows are kept in double: kParts vectors of it for every pixel.
template <class C>
constexpr int kParts = kWidth<C> / kWidth<double>;

ATTNOPS_INLINE VecD load_wide(const double* p) { return load(p); }
ATTNOPS_INLINE VecD load_wide(const float* p) {
  typedef float Lanes __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Lanes*>(p), VecD);
}

// sum += v
template <class C>
ATTNOPS_INLINE void add_wide(typename Vec<C>::V v, double* sum) {
  C lanes[kWidth<C>];
  store(lanes, v);
  for (int64_t i = 0; i < kWidth<C>; i += kWidth<double>)
    store(sum + i, load(sum + i) + load_wide(lanes + i));
}

// sum += all pixels of `rows` rows.
template <class C>
static void sum_pixels(const C* const* row, int64_t rows, int64_t columns, double* sum) {
  VecD total[kSets][kParts<C>] = {};
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t x = 0; x < columns; ++x)
#pragma GCC unroll 2
      for (int i = 0; i < kParts<C>; ++i)
        total[x % kSets][i] += load_wide(row[y] + x * kWidth<C> + i * kWidth<double>);
#pragma GCC unroll 2
  for (int i = 0; i < kParts<C>; ++i) {
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
  switch (taps - tap) {
    case 1:
      return add_sums<C, kAlongRows, 1>(f, tap, sums, step);
    case 2:
      return add_sums<C, kAlongRows, 2>(f, tap, sums, step);
    case 3:
      return add_sums<C, kAlongRows, 3>(f, tap, sums, step);
    case 4:
      return add_sums<C, kAlongRows, 4>(f, tap, sums, step);
    case 5:
      if (kMostTaps > 5) return add_sums<C, kAlongRows, 5>(f, tap, sums, step);
      return;
    case 6:
      if (kMostTaps > 6) return add_sums<C, kAlongRows, 6>(f, tap, sums, step);
      return;
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
