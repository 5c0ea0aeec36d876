// Splitting floats into the parts that float_parts.h says.
#pragma once

#include "bfloat16.h"
#include "float_parts.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)

// The next part of v, in the upper half of words, of which the rest stays.
ATTNOPS_INLINE WordLanes take_part(VecF& v) {
  const WordLanes part = ((WordLanes)v + 0x8000u) & 0xffff0000u;
  v -= (VecF)part;
  return part;
}

// Parts of two vectors, `low` first, one `apart` from the other.
ATTNOPS_INLINE void store_parts(BFloat16* p, int64_t apart, VecF low, VecF high) {
  constexpr HalfLanesPair kUpper = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
#pragma GCC unroll 3
  for (int i = 0; i < kFloatParts; ++i) {
    const bool rest = i + 1 == kFloatParts;
    const WordLanes first = rest ? (WordLanes)low : take_part(low);
    const WordLanes second = rest ? (WordLanes)high : take_part(high);
    const HalfLanesPair part =
        __builtin_shuffle((HalfLanesPair)first, (HalfLanesPair)second, kUpper);
    memcpy(p + i * apart, &part, sizeof(part));
  }
}
ATTNOPS_INLINE void store_parts(BFloat16* p, int64_t apart, VecF v) {
#pragma GCC unroll 3
  for (int i = 0; i < kFloatParts; ++i) {
    const WordLanes part = i + 1 == kFloatParts ? (WordLanes)v : take_part(v);
    const HalfLanes lanes = __builtin_convertvector(part >> 16, HalfLanes);
    memcpy(p + i * apart, &lanes, sizeof(lanes));
  }
}

#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
