// Products in bfloat16, of processors with AVX512_BF16. Its instructions are written out, because
// the rest of a file has to run on processors without them.
#pragma once

#include "vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Two neighbouring terms, the lower half first: an element of products whose k counts pairs.
struct Pair {
  uint32_t bits;
};

#if defined(__AVX512F__)
ATTNOPS_INLINE WordLanes load(const Pair* p) {
  WordLanes words;
  memcpy(&words, p, sizeof(words));
  return words;
}
ATTNOPS_INLINE WordLanes spread(Pair pair) { return WordLanes{} + pair.bits; }

ATTNOPS_INLINE void add_pair_products(VecF& sums, WordLanes left, WordLanes right) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
}

ATTNOPS_INLINE HalfLanes rounded(VecF v) {
  HalfLanes lanes;
  asm("vcvtneps2bf16 %1, %0" : "=v"(lanes) : "v"(v));
  return lanes;
}
// Two vectors, `low` first.
typedef uint16_t HalfLanesPair __attribute__((vector_size(kVectorBytes)));
ATTNOPS_INLINE HalfLanesPair rounded(VecF low, VecF high) {
  HalfLanesPair lanes;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(lanes) : "v"(low), "v"(high));
  return lanes;
}
#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
