// Products of x in bfloat16 with factors that are rounded to it, where the processor multiplies
// pairs. All other arithmetic of nmf stays float.
//
// A product's terms stand in pairs, so a tile of x stands twice: pairs of channels
// [channels / 2][kTile] for sums over the channels, and pairs of positions [channels][kTile / 2]
// for sums over the positions. Together they take the memory of a tile of floats.
#pragma once

#include "cpu/common/bfloat16.h"
#include "memory.h"
#include "products.h"

#if defined(__AVX512F__)

namespace attnops::cpu::ATTNOPS_ISA {

// `count` pairs from p on, the others zero.
ATTNOPS_INLINE WordLanes load_pairs(const BFloat16* p, int64_t count) {
  WordLanes words = {};
  memcpy(&words, p, static_cast<size_t>(min64(kWidth<float>, count)) * sizeof(Pair));
  return words;
}

// rows[i] is stored at out + i * stride, turned.
ATTNOPS_INLINE void store_turned(VecF (&rows)[kWidth<float>], Pair* out, int64_t stride,
                                 int64_t count) {
  transpose_steps<float>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<float>; ++i)
    if (i < count) memcpy(out + i * stride, &rows[i], sizeof(rows[i]));
}

// Positions [first, first + count) of x [positions, channels], an even number of channels, to both
// forms of a tile; positions up to the next multiple of 32 are zero, and so are channels up to
// rows.
static void pack_pairs(const NmfShape& shape, const BFloat16* x, int64_t first, int64_t count,
                       int64_t rows, Pair* tile) {
  constexpr int64_t kW = kWidth<float>, kRow = kTile / 2;
  const int64_t channels = shape.channels;
  Pair* by_position = tile + channels / 2 * kTile;
  for (int64_t n = 0; n < count; n += 2 * kW)
    for (int64_t d = 0; d < channels; d += 2 * kW) {
      const int64_t pairs = (channels - d) / 2;
      WordLanes read[2 * kW];
      for (int64_t i = 0; i < 2 * kW; ++i)
        read[i] =
            n + i < count ? load_pairs(x + (first + n + i) * channels + d, pairs) : WordLanes{};
      VecF turned[kW];
      for (int64_t half = 0; half < 2 * kW; half += kW) {
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i) turned[i] = (VecF)read[half + i];
        store_turned(turned, tile + d / 2 * kTile + n + half, kTile, pairs);
      }
      Pair* out = by_position + d * kRow + n / 2;
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        turned[i] = (VecF)((read[2 * i] & 0xffffu) | (read[2 * i + 1] << 16));
      store_turned(turned, out, 2 * kRow, pairs);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        turned[i] = (VecF)((read[2 * i] >> 16) | (read[2 * i + 1] & 0xffff0000u));
      store_turned(turned, out + kRow, 2 * kRow, pairs);
    }
  memset(by_position + channels * kRow, 0,
         static_cast<size_t>((rows - channels) * kRow) * sizeof(Pair));
}

// Rows of panels to rows of pairs, the missing one behind an odd number zero; with `rest`, what
// rounding takes away, rounded itself.
static void round_to_pairs(Panels<float> x, int64_t rows, int64_t columns, bool rest,
                           Panels<Pair> out) {
  const auto halves = [&](int64_t r, int64_t s) __attribute__((always_inline)) {
    const VecF exact = load(at(x, r, s));
    const WordLanes words = __builtin_convertvector(rounded(exact), WordLanes);
    if (!rest) return words;
    return __builtin_convertvector(rounded(exact - (VecF)(words << 16)), WordLanes);
  };
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t s = 0; s < columns; s += kWidth<float>) {
      WordLanes words = halves(r, s);
      if (r + 1 < rows) words |= halves(r + 1, s) << 16;
      memcpy(at(out, r / 2, s), &words, sizeof(words));
    }
}

// What update_coef multiplies x by, as `WideTiles` in forward.h. Behind the scratch of the layout
// stand the bases, what rounding takes from them, and the coefficients of a tile. The rest of the
// bases is multiplied too where their products go into the softmax, whose inv_t may be large.
class PairTiles {
 public:
  static int64_t scratch(const NmfLayout<float>& layout) {
    return layout.bases + layout.buffer / 2;
  }
  static void pack(const NmfShape& shape, const void* x, int64_t first, int64_t count, int64_t rows,
                   float* tile) {
    pack_pairs(shape, static_cast<const BFloat16*>(x), first, count, rows,
               reinterpret_cast<Pair*>(tile));
  }

  PairTiles(const NmfShape& shape, const NmfMemory<float>& memory, bool for_softmax)
      : shape_(shape),
        memory_(memory),
        for_softmax_(for_softmax),
        bases_{reinterpret_cast<Pair*>(memory.scratch + memory.layout.scratch),
               memory.layout.rows / 2 * kColumns<Pair>},
        rest_{bases_.data + memory.layout.bases / 2, bases_.stride},
        coef_{rest_.data + memory.layout.bases / 2, kTile / 2 * kColumns<Pair>} {
    const Panels<float> bases = memory.rows_at(0);
    round_to_pairs(bases, shape.channels, shape.rank, false, bases_);
    if (for_softmax) round_to_pairs(bases, shape.channels, shape.rank, true, rest_);
  }

  void take(int64_t n, int64_t count) {
    tile_ = reinterpret_cast<const Pair*>(memory_.tile<PairTiles>(shape_, n, count));
  }
  void to_positions(Panels<float> out, int64_t count) const {
    const int64_t depth = shape_.channels / 2, rank = shape_.rank;
    tile_to_positions(tile_, depth, bases_, out, count, rank, false);
    if (for_softmax_) tile_to_positions(tile_, depth, rest_, out, count, rank, true);
  }
  void to_channels(Panels<float> coef, Panels<float> out, int64_t count, bool add) const {
    round_to_pairs(coef, count, shape_.rank, false, coef_);
    tile_to_channels(tile_ + shape_.channels / 2 * kTile, shape_.channels, coef_, out,
                     (count + 1) / 2, shape_.rank, add);
  }

 private:
  const NmfShape& shape_;
  const NmfMemory<float>& memory_;
  const bool for_softmax_;
  const Panels<Pair> bases_, rest_, coef_;
  const Pair* tile_ = nullptr;
};

}  // namespace attnops::cpu::ATTNOPS_ISA

#endif
