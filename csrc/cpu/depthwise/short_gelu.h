// GELU for results that are rounded to bfloat16 at once: x times the normal distribution, which is
// read from a table of cubic polynomials.
//
// Piece n lies around (n - 16) kShortPiece; its coefficient of x^i is table[i][n]. They are fitted
// for the least error in relation to the distribution, which is at most 2^-10. In the outermost
// pieces, where |x| > 4.4, the result is 0 or x, which it is to within 2.2e-5.
#pragma once

#include "cpu/depthwise/gelu.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)

constexpr float kShortPiece = 39.0f / 128;

alignas(64) constexpr float kDistribution[4][32] = {
    {0.0f,       0.0f,        0.011656625f, 0.028870333f, 0.06364001f, 0.12454168f, 0.21584025f,
     0.3306317f, 0.4475198f,  0.5370972f,   0.5780811f,   0.57199746f, 0.54209715f, 0.5150764f,
     0.5025802f, 0.5000807f,  0.5f,         0.49992543f,  0.49751282f, 0.48525777f, 0.45848322f,
     0.4284598f, 0.42159876f, 0.46129572f,  0.5496261f,   0.6658703f,  0.7808121f,  0.8728287f,
     0.9346187f, 0.97014123f, 0.98785686f,  1.0f},
    {0.0f,         0.0f,         0.007683932f, 0.020269416f, 0.04771387f, 0.09993783f, 0.18562092f,
     0.30456218f,  0.43968418f,  0.55663913f,  0.61774194f,  0.6058179f,  0.53977305f, 0.46390316f,
     0.41552252f,  0.40008494f,  0.39894053f,  0.4000156f,   0.41505057f, 0.46279293f, 0.5383353f,
     0.60491365f,  0.618267f,    0.5589002f,   0.44319674f,  0.30838776f, 0.18891528f, 0.1022899f,
     0.049141396f, 0.021017333f, 0.008025733f, 0.0f},
    {0.0f,           0.0f,         0.0016929603f, 0.0047608335f, 0.011983503f,   0.026915638f,
     0.05372993f,    0.0948291f,   0.14692566f,   0.19786218f,   0.22825168f,    0.22051148f,
     0.17179158f,    0.100543275f, 0.03770887f,   0.0054580495f, 5.5997555e-07f, -0.005216875f,
     -0.03692413f,   -0.0993225f,  -0.17060909f,  -0.21991688f,  -0.22853826f,   -0.19892125f,
     -0.14836523f,   -0.09622264f, -0.054809887f, -0.027616559f, -0.01237344f,   -0.004949409f,
     -0.0017729822f, 0.0f},
    {0.0f,           0.0f,          0.00012464338f, 0.0003739742f,  0.0010077409f,
     0.0024313298f,  0.0052295155f, 0.009965502f,   0.016664647f,   0.024064682f,
     0.02910679f,    0.02744116f,   0.015439172f,   -0.0069379555f, -0.03431737f,
     -0.057148937f,  -0.0661944f,   -0.057411287f,  -0.03474554f,   -0.0073822998f,
     0.01511624f,    0.027311161f,  0.029158834f,   0.024229826f,   0.016861118f,
     0.010134581f,   0.005347453f,  0.0025009192f,  0.0010432301f,  0.0003898172f,
     0.00013088627f, 0.0f}};

// x = gelu(x), of several vectors at a time: each is a long chain.
template <int kCount>
ATTNOPS_INLINE void short_gelu(VecF* x) {
  constexpr int kNearer = 2;  // the argument of less distance from 0, with the sign of the first
  constexpr float kFar = 15.4f * kShortPiece;
  // Leaves the number of the piece in the low bits of the sum.
  constexpr float kShift = 0x1.8p+23f + 16;
  VecF near[kCount], sum[kCount];
  __m512i piece[kCount];
  const auto coefficient = [&](int i, int p) __attribute__((always_inline)) {
    return (VecF)_mm512_maskz_permutex2var_ps(-1, (__m512)load(kDistribution[i]), piece[p],
                                              (__m512)load(kDistribution[i] + 16));
  };
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p)
    near[p] = (VecF)_mm512_maskz_range_ps(-1, (__m512)x[p], _mm512_set1_ps(kFar), kNearer);
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) piece[p] = (__m512i)(near[p] * (1 / kShortPiece) + kShift);
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) sum[p] = coefficient(3, p);
#pragma GCC unroll 3
  for (int i = 2; i >= 0; --i)
#pragma GCC unroll 8
    for (int p = 0; p < kCount; ++p) sum[p] = sum[p] * near[p] + coefficient(i, p);
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) x[p] *= sum[p];
}

#endif

// x = gelu(x) of neighbours, to be rounded to factors of type A.
template <class A, class V, int kCount>
ATTNOPS_INLINE void factor_gelu(V (&x)[kCount]) {
  using C = Compute<A>;
#if defined(__AVX512F__)
  if constexpr (sizeof(A) < sizeof(C)) {
    constexpr int kTogether = kCount < 4 ? kCount : 4;
#pragma GCC unroll 2
    for (int p = 0; p < kCount; p += kTogether) short_gelu<kTogether>(x + p);
    return;
  }
#endif
#pragma GCC unroll 8
  for (int p = 0; p < kCount; ++p) x[p] = gelu_lanes<C>(x[p]);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
