// SiLU, x / (1 + exp(-x)).
#pragma once

#include <type_traits>

#include "cpu/common/vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
// x / below, for below >= 1. Division takes several times as long as the reciprocal, right to
// 2^-14, and a step from there, which leaves about a rounding. Past the limit results are as good
// as zero.
ATTNOPS_INLINE VecF quick_quotient(VecF x, VecF below) {
  const VecF limit = broadcast<float>(0x1p125f);
  below = select(below > limit, limit, below);
  const VecF inverse = (VecF)_mm512_maskz_rcp14_ps(-1, (__m512)below);
  return x * (inverse + inverse * (1.0f - inverse * below));
}
#endif

template <class C>
ATTNOPS_INLINE typename Vec<C>::V silu_lanes(typename Vec<C>::V x) {
  const typename Vec<C>::V below = C(1) + exp_lanes<C>(-x);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<C, float>) return quick_quotient(x, below);
#endif
  return x / below;
}

#if defined(__AVX512F__)
// x = silu(x) of several vectors, for results that are rounded to bfloat16 at once: the reciprocal
// is right to 2^-14.
template <int kCount>
ATTNOPS_INLINE void short_silu(VecF* x) {
  VecF below[kCount];
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) below[p] = 1.0f + exp_lanes<float>(-x[p]);
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) x[p] *= (VecF)_mm512_maskz_rcp14_ps(-1, (__m512)below[p]);
}
#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
