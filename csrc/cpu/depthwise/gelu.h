// GELU of vectors and its derivative, by the upper tail of the normal distribution:
//
//   upper(a) = erfc(a / sqrt 2) / 2 for a = |x|      gelu(x) = max(x, 0) - a upper(a)
//
// Nothing cancels, so small results have small errors. For float, upper(a) is read from a table of
// polynomials where permutations of registers are fast (gelu_table.h). Elsewhere it is
// 2^(a P(a)) / 2, where the polynomial P is fitted (weighted minimax, relative error of upper(a)
// 2e-8 near 0) up to 7.5; beyond, where a upper(a) < 1e-12, a P(a) goes on falling. For double,
// with u = 1 - 1 / (1 + slope a), upper(a) = e^(-a^2 / 2) (1 - u) P(u), and P interpolates at
// Chebyshev nodes to 2e-17.
#pragma once

#include "cpu/common/vec.h"
#include "gelu_table.h"

namespace attnops::cpu::ATTNOPS_ISA {

// The larger or the smaller of a constant and a vector, of which NaN stays NaN.
template <class V, class C>
ATTNOPS_INLINE V at_least(C bound, V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) return (V)_mm512_maskz_max_ps(-1, _mm512_set1_ps(bound), (__m512)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4) return (V)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
#endif
  return select(x < bound, V{} + bound, x);
}
template <class V, class C>
ATTNOPS_INLINE V at_most(C bound, V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) return (V)_mm512_maskz_min_ps(-1, _mm512_set1_ps(bound), (__m512)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4) return (V)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
#endif
  return select(x > bound, V{} + bound, x);
}

// series[0] + series[1] x + ...
template <int kCount, class C, class V>
ATTNOPS_INLINE V polynomial(const C (&series)[kCount], V x) {
  V sum = V{} + series[kCount - 1];
#pragma GCC unroll 32
  for (int i = kCount - 2; i >= 0; --i) sum = sum * x + series[i];
  return sum;
}

// |x|, as far as results differ from those in infinity.
ATTNOPS_INLINE VecF gelu_distance(VecF x) {
#if defined(__AVX512F__)
  constexpr float kFar = 15 * kPiece;
#else
  constexpr float kFar = 14;
#endif
  return at_most(kFar, (VecF)((Vec<float>::I)x & 0x7fffffff));
}
ATTNOPS_INLINE VecD gelu_distance(VecD x) { return at_most(39.0, select(x < 0, -x, x)); }

#if defined(__AVX512F__)
ATTNOPS_INLINE VecF normal_upper(VecF a) { return in_pieces(kUpper, a); }
ATTNOPS_INLINE VecF slope_below(VecF a) { return in_pieces(kSlope, a); }
#else
// 2^(y + kPower) for y <= 0 and kPower <= 0; 0 where 2^y is below the normal range.
template <int kPower>
ATTNOPS_INLINE VecF exp2_lanes(VecF y) {
  constexpr float kScale = 1.0f / (1 << -kPower);
  constexpr float kSeries[] = {kScale,
                               kScale * 0.693147203f,
                               kScale * 0.240226479f,
                               kScale * 0.0555033247f,
                               kScale * 0.00961843736f,
                               kScale * 0.00133988744f,
                               kScale * 0.000153533619f};
  constexpr float kShift = 0x1.8p+23f + 127;  // leaves round(y) + 127 in the low bits of the sum
  y = at_least(-127.0f, y);
  const VecF shifted = y + kShift;
  const VecF power = (VecF)((Vec<float>::I)shifted << 23);
  return polynomial(kSeries, y - (shifted - kShift)) * power;
}

// e^(-a^2 / 2)
ATTNOPS_INLINE VecF normal_bell(VecF a) { return exp2_lanes<0>(a * a * -0.72134752044448170f); }
ATTNOPS_INLINE VecF normal_upper(VecF a) {
  constexpr float kSeries[] = {-1.15110467f,     -0.459218847f,    -0.0524366514f,
                               0.00691696803f,   5.21139022e-05f,  -0.000324943465f,
                               9.90631583e-05f,  -1.77910446e-05f, 2.10930495e-06f,
                               -1.62216225e-07f, 7.34611941e-09f,  -1.48745875e-10f};
  return exp2_lanes<-1>(a * polynomial(kSeries, a));
}
ATTNOPS_INLINE VecF slope_below(VecF a) {
  return normal_upper(a) - a * normal_bell(a) * 0.39894228040143268f;
}
#endif

ATTNOPS_INLINE VecD normal_bell(VecD a) { return exp_lanes<double>(-0.5 * a * a); }
ATTNOPS_INLINE VecD normal_upper(VecD a) {
  constexpr double kSlope = 0.28284271247461901;  // 0.4 / sqrt 2
  constexpr double kSeries[] = {0.5,
                                -0.91047395886939064,
                                0.80405208226121194,
                                -0.23339670522940714,
                                -0.13417015006112798,
                                0.063569851674452213,
                                0.047464233626496072,
                                -0.0078688237526226799,
                                -0.018482730720544162,
                                -0.0050268741103955544,
                                0.0030157190353733289,
                                0.0097801651657668694,
                                -0.021405537733220858,
                                0.070607153332934158,
                                -0.18380188798898536,
                                0.37152357972357181,
                                -0.60242457665263738,
                                0.77110070747935333,
                                -0.76691598283362716,
                                0.57993059986747875,
                                -0.32042573836694882,
                                0.12105526615591818,
                                -0.027777203477946686,
                                0.0029087281851668699};
  const VecD inverse = 1 / (1 + kSlope * a);
  return normal_bell(a) * inverse * polynomial(kSeries, 1 - inverse);
}
ATTNOPS_INLINE VecD slope_below(VecD a) {
  return normal_upper(a) - a * normal_bell(a) * 0.39894228040143268;
}

template <class C>
ATTNOPS_INLINE typename Vec<C>::V gelu_lanes(typename Vec<C>::V x) {
  const auto a = gelu_distance(x);
  return at_least((C)0, x) - a * normal_upper(a);
}

// The derivative: the distribution plus x times its density, 1 / sqrt(2 pi) e^(-x^2 / 2).
template <class C>
ATTNOPS_INLINE typename Vec<C>::V gelu_slope_lanes(typename Vec<C>::V x) {
  const auto below = slope_below(gelu_distance(x));
  return select(x > 0, 1 - below, below);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
