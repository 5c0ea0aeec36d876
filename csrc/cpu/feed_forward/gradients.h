// Sums over pixels, for the gradients of weights. Pixels of a chunk of hidden channels are
// kFeedForwardChunk elements apart.
#pragma once

#include "cpu/common/gemm.h"
#include "cpu/common/tiles.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// What the pixels' side of products becomes where sums run over pixels: a pixel, or a pair of them.
template <class A>
struct TermOf {
  using type = A;
};
template <>
struct TermOf<BFloat16> {
  using type = Pair;
};
template <class A>
using Term = typename TermOf<A>::type;

template <class E>
constexpr bool kIsPair = false;
template <>
constexpr bool kIsPair<Pair> = true;

// Terms of a row of pixels; the last pair may be half of one. For tiles rows are filled up with
// pairs of zeros.
constexpr int64_t kTilePairs = kTileDepth / 2;
template <class E>
ATTNOPS_INLINE int64_t row_terms(const FeedForwardShape& s) {
  return s.width;
}
template <>
inline int64_t row_terms<Pair>(const FeedForwardShape& s) {
  return round_up((s.width + 1) / 2, s.tiles ? kTilePairs : 1);
}

template <class E, int kUsed>
static void add_outer_block(const E* left, int64_t stride, const E* right, int64_t terms,
                            Sum<E>* sums) {
  using C = Sum<E>;
  Block<C, kUsed> block = {};
  for (int64_t p = 0; p < terms; ++p) {
    decltype(load(right)) v[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) v[j] = load(right + p * kFeedForwardChunk + j * kWidth<C>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const E factor = left[p * stride + i];
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) add_product<E>(block.v[i][j], factor, v[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) {
      C* target = sums + i * kFeedForwardChunk + j * kWidth<C>;
      store(target, load(target) + block.v[i][j]);
    }
}

#if defined(__AVX512F__)
// In tiles: left [terms / 16][rows][16], right [terms][kFeedForwardChunk].
struct OuterTileProduct {
  const Pair *left, *right;
  int64_t terms, rows;
  float* sums;

  template <int kM, int kN>
  void run(int64_t m, int64_t n) const {
    constexpr int64_t kRow = kFeedForwardChunk * static_cast<int64_t>(sizeof(float));
    float* target = sums + m * kFeedForwardChunk + n;
    TileStores stores;
    load_tile_block<kM, kN>(target, kFeedForwardChunk);
    for (int64_t p = 0; p < terms; p += kTilePairs) {
      stores.expect(1);
      const Pair *a = left + p * rows + m * kTilePairs, *b = right + p * kFeedForwardChunk + n;
      multiply_tile_block<kM, kN>({a, a + kTileRows * kTilePairs}, sizeof(VecF), {b, b + kTileRows},
                                  kRow);
    }
    store_tile_block<kM, kN>(target, kFeedForwardChunk);
  }
};
#endif

// sums[m, n] += sum_p left[p, m] right[p, n], left in rows of `stride`. Rows of sums are there, and
// elements behind the last of left can be read, for whole blocks of kRows. In tiles of AMX, where
// the shape says so, left is turned (turn_pairs).
template <class E>
static void add_outer_products([[maybe_unused]] const FeedForwardShape& shape, const E* left,
                               int64_t stride, const E* right, int64_t terms, int64_t rows,
                               int64_t columns, Sum<E>* sums) {
#if defined(__AVX512F__)
  if constexpr (kIsPair<E>) {
    if (shape.tiles)
      return for_tile_blocks<true>(rows, columns, OuterTileProduct{left, right, terms, rows, sums});
  }
#endif
  constexpr int64_t kW = kWidth<Sum<E>>;
  for (int64_t p = 0; p < terms; p += kChain) {
    const int64_t count = min64(kChain, terms - p);
    for (int64_t m = 0; m < rows; m += kRows)
      for (int64_t n = 0; n < columns;) {
        const E *from = left + p * stride + m, *with = right + p * kFeedForwardChunk + n;
        Sum<E>* to = sums + m * kFeedForwardChunk + n;
        const int64_t vectors = (columns - n) / kW;
        if (kVectors >= 3 && vectors >= 3 && vectors != 4) {
          add_outer_block<E, kVectors>(from, stride, with, count, to);
          n += kVectors * kW;
        } else if (vectors >= 2) {
          add_outer_block<E, 2>(from, stride, with, count, to);
          n += 2 * kW;
        } else {
          add_outer_block<E, 1>(from, stride, with, count, to);
          n += kW;
        }
      }
  }
}

#if defined(__AVX512F__)
// Pairs of neighbouring pixels of a row of `width`, `stride` elements apart.
template <class S>
static void pair_pixels(const S* row, int64_t stride, int64_t width, int64_t channels, Pair* out) {
  for (int64_t x = 0; x < width; x += 2, row += 2 * stride, out += stride)
    for (int64_t c = 0; c < channels; c += kWidth<float>)
      store_pairs(out + c, load(row + c), x + 1 < width ? load(row + stride + c) : VecF{});
}

// The same of a row in groups of 16 pairs, filled up with zeros: out [groups][channels][16], so
// that the pairs of a channel stand beside each other.
static void turn_pairs(const BFloat16* row, int64_t stride, int64_t width, int64_t channels,
                       Pair* out) {
  const auto halves = [&](int64_t x, int64_t c) __attribute__((always_inline)) {
    HalfLanes lanes = {};
    if (x < width) memcpy(&lanes, row + x * stride + c, sizeof(lanes));
    return __builtin_convertvector(lanes, WordLanes);
  };
  for (int64_t x = 0; x < width; x += kTileDepth, out += channels * kTilePairs)
    for (int64_t c = 0; c < channels; c += kTileRows) {
      VecF pairs[kTilePairs];
#pragma GCC unroll 16
      for (int i = 0; i < kTilePairs; ++i)
        pairs[i] = (VecF)(halves(x + 2 * i, c) | halves(x + 2 * i + 1, c) << 16);
      transpose_steps<float>(pairs);
#pragma GCC unroll 16
      for (int i = 0; i < kTilePairs; ++i)
        memcpy(out + (c + i) * kTilePairs, &pairs[i], sizeof(pairs[i]));
    }
}
#endif

// Rows [kFirst, kLast) of the taps: sums[3 i + j] += sum_x dz[x] hidden[i][x + j].
template <int kFirst, int kLast, class C>
static void add_row_sums(const C* dz, const C* const (&hidden)[3], int64_t width, int64_t channels,
                         double* sums) {
  using V = typename Vec<C>::V;
  constexpr int64_t kPixel = kFeedForwardChunk;
  for (int64_t c = 0; c < channels; c += kWidth<C>) {
    V part[3][3] = {}, before[3], here[3], total = {};
#pragma GCC unroll 3
    for (int i = kFirst; i < kLast; ++i) {
      before[i] = load(hidden[i] + c);
      here[i] = load(hidden[i] + kPixel + c);
    }
    for (int64_t x = 0; x < width; ++x) {
      const V g = load(dz + x * kPixel + c);
      total += g;
#pragma GCC unroll 3
      for (int i = kFirst; i < kLast; ++i) {
        const V after = load(hidden[i] + (x + 2) * kPixel + c);
        part[i][0] += g * before[i];
        part[i][1] += g * here[i];
        part[i][2] += g * after;
        before[i] = here[i];
        here[i] = after;
      }
    }
#pragma GCC unroll 3
    for (int i = kFirst; i < kLast; ++i)
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) add_wide<C>(part[i][j], sums + (3 * i + j) * kPixel + c);
    add_wide<C>(total, sums + 9 * kPixel + c);
  }
}

// sums [10][kFeedForwardChunk] += those by the taps, and the sum of dz, of a row. Rows that the
// kernel sees begin a column before dz; null outside the map.
template <class C>
static void add_tap_sums(const C* dz, const C* const (&hidden)[3], int64_t width, int64_t channels,
                         double* sums) {
  if (hidden[0] && hidden[2])
    add_row_sums<0, 3>(dz, hidden, width, channels, sums);
  else if (hidden[2])
    add_row_sums<1, 3>(dz, hidden, width, channels, sums);
  else if (hidden[0])
    add_row_sums<0, 2>(dz, hidden, width, channels, sums);
  else
    add_row_sums<1, 2>(dz, hidden, width, channels, sums);
}

// sums += those of `count` pixels.
template <class C>
static void add_pixel_sums(const C* pixels, int64_t count, int64_t channels, double* sums) {
  for (int64_t c = 0; c < channels; c += kWidth<C>) {
    typename Vec<C>::V parts[4] = {};
    int64_t p = 0;
    for (; p + 4 <= count; p += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) parts[i] += load(pixels + (p + i) * kFeedForwardChunk + c);
    for (; p < count; ++p) parts[0] += load(pixels + p * kFeedForwardChunk + c);
    add_wide<C>((parts[0] + parts[1]) + (parts[2] + parts[3]), sums + c);
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
