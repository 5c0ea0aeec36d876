// SiLU, x / (1 + exp(-x)).
#pragma once

#include "cpu/common/vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class C>
ATTNOPS_INLINE typename Vec<C>::V silu_lanes(typename Vec<C>::V x) {
  return x / (C(1) + exp_lanes<C>(-x));
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
