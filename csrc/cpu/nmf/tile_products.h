// Products of nmf in tiles of AMX, of operands that are rounded to bfloat16, and their rounding.
//
// A right operand and the sums stand in panels, as in pack.h. The depth of a product is padded with
// zeros on both sides, to whole tiles; rows and columns are padded with anything.
#pragma once

#include "cpu/common/tiles.h"
#include "pack.h"

#if defined(__AVX512F__)

namespace attnops::cpu::ATTNOPS_ISA {

// A left operand: rows of 32 terms in a row, `row` elements apart, and the next 32 terms `step`
// elements on.
template <class T>
struct Lines {
  T* data;
  int64_t row, step;
  operator Lines<const T>() const { return {data, row, step}; }
};
template <class T>
ATTNOPS_INLINE T* at(Lines<T> x, int64_t row, int64_t column) {
  return x.data + column / kTileDepth * x.step + row * x.row + column % kTileDepth;
}

// Two factors.
struct TileFactors {
  Lines<const BFloat16> left;
  Panels<Pair> right;
};

// What the next block reads, x and the coefficients, is asked for while this one is multiplied: it
// comes from the last-level cache.
class Ahead {
 public:
  Ahead(const BFloat16* x, int64_t x_count, const float* coef, int64_t coef_count)
      : next_{reinterpret_cast<const char*>(x), reinterpret_cast<const char*>(coef)},
        end_{reinterpret_cast<const char*>(x + x_count),
             reinterpret_cast<const char*>(coef + coef_count)} {}

  inline __attribute__((always_inline)) void step() {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      if (next_[i] >= end_[i]) continue;
#pragma GCC unroll 4
      for (int64_t line = 0; line < kLines; ++line)
        __builtin_prefetch(next_[i] + line * kLine, 0, 2);
      next_[i] += kLines * kLine;
    }
  }

 private:
  static constexpr int64_t kLines = 4, kLine = 64;
  const char *next_[2], *end_[2];
};

// out (+)= the sum of products of equal sizes.
template <int kCount>
struct TileSum {
  const TileFactors (&factors)[kCount];
  Panels<float> out;
  int64_t depth;
  bool add;
  Ahead& ahead;

  static constexpr int64_t kBytes = kColumns<float> * sizeof(float);

  template <int kM, int kN>
  void run(int64_t m, int64_t n) const {
    float* const sums[2] = {at(out, m, n), at(out, m, n + kTileRows)};
    float* const below[2] = {sums[0] + kTileRows * kColumns<float>,
                             sums[1] + kTileRows * kColumns<float>};
    if (add) {
      load_tile<0>(sums[0], kBytes);
      if (kN > 1) load_tile<1>(sums[1], kBytes);
      if (kM > 1) load_tile<2>(below[0], kBytes);
      if (kM > 1 && kN > 1) load_tile<3>(below[1], kBytes);
    } else {
      clear_tile_block<kM, kN>();
    }
    TileStores stores;
    for (const TileFactors& f : factors) {
      const BFloat16* a = at(f.left, m, 0);
      const int64_t row_bytes = f.left.row * static_cast<int64_t>(sizeof(BFloat16));
      const Pair *b = at(f.right, 0, n), *next = at(f.right, 0, n + kTileRows);
      for (int64_t k = 0; k < depth; k += kTileDepth) {
        stores.expect(1);
        multiply_tile_block<kM, kN>({a, a + kTileRows * f.left.row}, row_bytes, {b, next}, kBytes);
        ahead.step();
        a += f.left.step;
        b += kTileDepth / 2 * kColumns<Pair>;
        next += kTileDepth / 2 * kColumns<Pair>;
      }
    }
    store_tile<0>(sums[0], kBytes);
    if (kN > 1) store_tile<1>(sums[1], kBytes);
    if (kM > 1) store_tile<2>(below[0], kBytes);
    if (kM > 1 && kN > 1) store_tile<3>(below[1], kBytes);
  }
};

template <int kCount>
static void multiply_tiles(const TileFactors (&factors)[kCount], Panels<float> out, int64_t rows,
                           int64_t columns, int64_t depth, bool add, Ahead& ahead) {
  for_tile_blocks<false>(rows, columns, TileSum<kCount>{factors, out, depth, add, ahead});
}

ATTNOPS_INLINE void store_words(void* p, WordLanes words) { memcpy(p, &words, sizeof(words)); }

ATTNOPS_INLINE WordLanes rounded_pairs(VecF even, VecF odd) {
  constexpr HalfLanesPair kTurns = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (WordLanes)__builtin_shuffle(rounded(even, odd), kTurns);
}
// Pairs of terms, and of what rounding takes from them.
struct Split {
  WordLanes rounded, rest;
};
template <bool kDoubled = false>
ATTNOPS_INLINE Split split(VecF even, VecF odd) {
  const WordLanes words = rounded_pairs(even, odd);
  const VecF rest = even - (VecF)(words << 16), other = odd - (VecF)(words & 0xffff0000u);
  if (kDoubled) return {words, rounded_pairs(rest + rest, other + other)};
  return {words, rounded_pairs(rest, other)};
}

}  // namespace attnops::cpu::ATTNOPS_ISA

#endif
