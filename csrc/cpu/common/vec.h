// Vectors of the instruction set that this translation unit is compiled for.
//
// GCC/Clang vector extensions carry the arithmetic, so one source serves every instruction set.
// Everything lives in the namespace of the instruction set (-DATTNOPS_ISA=...): a function with a
// shared name could be merged by the linker with its twin for a newer machine. For the same reason
// the kernels use no inline functions or templates of the standard library.
//
// Half and BFloat16 are storage: they turn into float when loaded and are rounded to nearest even
// when stored.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "dtype.h"

#ifndef ATTNOPS_ISA
#error "compile with -DATTNOPS_ISA=<name>"
#endif

#define ATTNOPS_INLINE static inline __attribute__((always_inline))

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Type of arithmetic for a storage type.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// Vec<C>::V is a register of C, Vec<C>::I the integers of equal width (masks, indices), Vec<C>::U
// the unaligned V that may alias memory of any type.
template <class C>
struct Vec;
template <>
struct Vec<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  typedef float U __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t IU __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  using Int = int32_t;
  static constexpr int kWidth = kVectorBytes / 4;
};
template <>
struct Vec<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
  typedef double U __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t IU __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  using Int = int64_t;
  static constexpr int kWidth = kVectorBytes / 8;
};
using VecF = Vec<float>::V;
using VecD = Vec<double>::V;
template <class C>
constexpr int kWidth = Vec<C>::kWidth;

ATTNOPS_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
ATTNOPS_INLINE int64_t max64(int64_t a, int64_t b) { return a < b ? b : a; }
constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// At least so many elements, an odd number of cache lines: rows at such a stride spread over all
// cache sets.
template <class C>
constexpr int64_t odd_lines(int64_t elements) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(C));
  return ((elements + kLine - 1) / kLine | 1) * kLine;
}

template <class C>
ATTNOPS_INLINE typename Vec<C>::V broadcast(C value) {
  return typename Vec<C>::V{} + value;
}

// 16-bit lanes beside the 32-bit lanes of a register.
typedef uint16_t HalfLanes __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t HalfLanesU __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
typedef uint32_t WordLanes __attribute__((vector_size(kVectorBytes)));

ATTNOPS_INLINE WordLanes select_words(WordLanes mask, WordLanes yes, WordLanes no) {
  return (mask & yes) | (~mask & no);
}

// --- loads -------------------------------------------------------------------------------------

ATTNOPS_INLINE VecF load(const float* p) { return *reinterpret_cast<const Vec<float>::U*>(p); }
ATTNOPS_INLINE VecD load(const double* p) { return *reinterpret_cast<const Vec<double>::U*>(p); }

ATTNOPS_INLINE VecF load(const BFloat16* p) {
  const HalfLanes raw = *reinterpret_cast<const HalfLanesU*>(p);
  return (VecF)(__builtin_convertvector(raw, WordLanes) << 16);
}

ATTNOPS_INLINE VecF load(const Half* p) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_cvtph_ps(-1, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const WordLanes raw = __builtin_convertvector(*reinterpret_cast<const HalfLanesU*>(p), WordLanes);
  const WordLanes shifted = (raw & 0x7fffu) << 13;
  // Normal numbers: exponent bias 15 becomes 127. Infinity and NaN: exponent 31 becomes 255.
  WordLanes bits = shifted + (112u << 23);
  bits += (WordLanes)((raw & 0x7c00u) == 0x7c00u) & (112u << 23);
  // Subnormals: 2^-14 + mantissa * 2^-24, less the 2^-14, is exact.
  const VecF small = (VecF)(shifted + (113u << 23)) - 0x1p-14f;
  bits = select_words((WordLanes)((raw & 0x7c00u) == 0u), (WordLanes)small, bits);
  return (VecF)(bits | ((raw & 0x8000u) << 16));
#endif
}

// First `count` lanes from memory, the others zero; never touches memory beyond them.
template <class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_partial(const S* p, int64_t count) {
  S lanes[kWidth<Compute<S>>] = {};
  memcpy(lanes, p, static_cast<size_t>(count) * sizeof(S));
  return load(lanes);
}

#if defined(__AVX512F__)
ATTNOPS_INLINE VecF load_partial(const float* p, int64_t count) {
  return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
ATTNOPS_INLINE VecD load_partial(const double* p, int64_t count) {
  return (VecD)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
}
#endif

// --- stores ------------------------------------------------------------------------------------

ATTNOPS_INLINE void store(float* p, VecF v) { *reinterpret_cast<Vec<float>::U*>(p) = v; }
ATTNOPS_INLINE void store(double* p, VecD v) { *reinterpret_cast<Vec<double>::U*>(p) = v; }

ATTNOPS_INLINE void store(BFloat16* p, VecF v) {
  const WordLanes bits = (WordLanes)v;
  const WordLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const WordLanes nan = (WordLanes)(v != v);
  *reinterpret_cast<HalfLanesU*>(p) =
      __builtin_convertvector(select_words(nan, (WordLanes{} + 0x7fc0u), rounded), HalfLanes);
}

ATTNOPS_INLINE void store(Half* p, VecF v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(-1, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const WordLanes bits = (WordLanes)v;
  const WordLanes magnitude = bits & 0x7fffffffu;
  // Bias 127 becomes 15, rounded to nearest even; a carry into the exponent is the right result.
  const WordLanes normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the addition of 0.5 leaves the rounded subnormal mantissa in the low bits.
  const WordLanes small = (WordLanes)((VecF)magnitude + 0.5f) - 0x3f000000u;
  WordLanes out = select_words((WordLanes)((VecF)magnitude < 0x1p-14f), small, normal);
  out = select_words((WordLanes)((VecF)magnitude >= 65536.0f), WordLanes{} + 0x7c00u, out);
  out = select_words((WordLanes)(v != v), WordLanes{} + 0x7e00u, out);
  *reinterpret_cast<HalfLanesU*>(p) =
      __builtin_convertvector(out | ((bits >> 16) & 0x8000u), HalfLanes);
#endif
}

template <class S>
ATTNOPS_INLINE void store_partial(S* p, typename Vec<Compute<S>>::V v, int64_t count) {
  S lanes[kWidth<Compute<S>>];
  store(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(count) * sizeof(S));
}

#if defined(__AVX512F__)
ATTNOPS_INLINE void store_partial(float* p, VecF v, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
ATTNOPS_INLINE void store_partial(double* p, VecD v, int64_t count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << count) - 1), (__m512d)v);
}
#endif

// As many lanes as there are, of `count` elements.
template <class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_lanes(const S* p, int64_t count) {
  return count >= kWidth<Compute<S>> ? load(p) : load_partial(p, count);
}
template <class S>
ATTNOPS_INLINE void store_lanes(S* p, typename Vec<Compute<S>>::V v, int64_t count) {
  if (count >= kWidth<Compute<S>>)
    store(p, v);
  else
    store_partial(p, v, count);
}

// One element, with the conversions of the vector forms.
template <class S>
ATTNOPS_INLINE Compute<S> load_one(const S* p) {
  return load_partial(p, 1)[0];
}
ATTNOPS_INLINE float load_one(const float* p) { return *p; }
ATTNOPS_INLINE double load_one(const double* p) { return *p; }
template <class S>
ATTNOPS_INLINE void store_one(S* p, Compute<S> value) {
  store_partial(p, broadcast<Compute<S>>(value), 1);
}
ATTNOPS_INLINE void store_one(float* p, float value) { *p = value; }
ATTNOPS_INLINE void store_one(double* p, double value) { *p = value; }

// --- lane-wise choice and reductions -----------------------------------------------------------

ATTNOPS_INLINE VecF select(Vec<float>::I mask, VecF yes, VecF no) { return mask ? yes : no; }
ATTNOPS_INLINE VecD select(Vec<double>::I mask, VecD yes, VecD no) { return mask ? yes : no; }

// Sums over more than a few rows are kept in double: kWideParts vectors of it for every vector of
// C.
template <class C>
constexpr int kWideParts = kWidth<C> / kWidth<double>;

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

template <class C, class V>
ATTNOPS_INLINE C lane_sum(V v) {
  C lanes[kWidth<C>];
  store(lanes, v);
  for (int half = kWidth<C> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <class C, class V>
ATTNOPS_INLINE C lane_max(V v) {
  C lanes[kWidth<C>];
  store(lanes, v);
  for (int half = kWidth<C> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] < lanes[i + half] ? lanes[i + half] : lanes[i];
  return lanes[0];
}

// --- transposition ------------------------------------------------------------------------------

// One step of a transposition by butterflies: swaps lanes with bit kBit set in the first vector of
// a pair with lanes without it in the second.
template <class C, int kBit, int... kLane>
ATTNOPS_INLINE void swap_lanes(typename Vec<C>::V& a, typename Vec<C>::V& b,
                               std::integer_sequence<int, kLane...>) {
  constexpr int kW = kWidth<C>;
  const auto low = __builtin_shufflevector(a, b, (kLane & kBit ? kW + kLane - kBit : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kBit ? kW + kLane : kLane + kBit)...);
  a = low;
}

template <class C, int kBit = 1>
ATTNOPS_INLINE void transpose_steps(typename Vec<C>::V (&rows)[kWidth<C>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<C>; ++i)
    if (!(i & kBit))
      swap_lanes<C, kBit>(rows[i], rows[i + kBit], std::make_integer_sequence<int, kWidth<C>>());
  if constexpr (2 * kBit < kWidth<C>) transpose_steps<C, 2 * kBit>(rows);
}

// out[j * out_stride + i] = x[i * x_stride + j] for a square of kWidth x kWidth.
template <class C>
ATTNOPS_INLINE void transpose_square(const C* x, int64_t x_stride, C* out, int64_t out_stride) {
  typename Vec<C>::V rows[kWidth<C>];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<C>; ++i) rows[i] = load(x + i * x_stride);
  transpose_steps<C>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<C>; ++i) store(out + i * out_stride, rows[i]);
}

// --- exponential -------------------------------------------------------------------------------

template <class C>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;  // short enough that n * kLn2High is exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kShift = 0x1.8p+23f;
  static constexpr float kLowest = -104.0f, kHighest = 89.0f;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1;
  static constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kShift = 0x1.8p+52;
  static constexpr double kLowest = -746.0, kHighest = 710.0;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
};

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2 and the Taylor series of e^r, whose
// remainder is below a tenth of a unit in the last place. Results below the normal range are
// rounded once. -inf gives 0, NaN stays NaN.
template <class C>
ATTNOPS_INLINE typename Vec<C>::V exp_series(typename Vec<C>::V x, typename Vec<C>::V n) {
  using K = ExpConstants<C>;
  const auto r = (x - n * K::kLn2High) - n * K::kLn2Low;
  double factorial[K::kDegree + 1] = {1.0};
  for (int i = 1; i <= K::kDegree; ++i) factorial[i] = factorial[i - 1] * i;
  auto series = broadcast<C>(static_cast<C>(1.0 / factorial[K::kDegree]));
#pragma GCC unroll 16
  for (int i = K::kDegree - 1; i >= 0; --i)
    series = series * r + static_cast<C>(1.0 / factorial[i]);
  return series;
}

#if defined(__AVX512F__)

// The bounds come first: of a bound and NaN the instructions return their second operand.
ATTNOPS_INLINE VecF exp_of(VecF x) {
  using K = ExpConstants<float>;
  x = (VecF)_mm512_maskz_max_ps(-1, _mm512_set1_ps(K::kLowest), (__m512)x);
  x = (VecF)_mm512_maskz_min_ps(-1, _mm512_set1_ps(K::kHighest), (__m512)x);
  const __m512 n =
      _mm512_maskz_roundscale_ps(-1, (__m512)(x * K::kLog2E), _MM_FROUND_TO_NEAREST_INT);
  return (VecF)_mm512_maskz_scalef_ps(-1, (__m512)exp_series<float>(x, (VecF)n), n);
}
ATTNOPS_INLINE VecD exp_of(VecD x) {
  using K = ExpConstants<double>;
  x = (VecD)_mm512_maskz_max_pd(-1, _mm512_set1_pd(K::kLowest), (__m512d)x);
  x = (VecD)_mm512_maskz_min_pd(-1, _mm512_set1_pd(K::kHighest), (__m512d)x);
  const __m512d n =
      _mm512_maskz_roundscale_pd(-1, (__m512d)(x * K::kLog2E), _MM_FROUND_TO_NEAREST_INT);
  return (VecD)_mm512_maskz_scalef_pd(-1, (__m512d)exp_series<double>(x, (VecD)n), n);
}
template <class C>
ATTNOPS_INLINE typename Vec<C>::V exp_lanes(typename Vec<C>::V x) {
  return exp_of(x);
}

#else

// 2^n is applied in two factors, of which the first one never leaves the normal range.
template <class C>
ATTNOPS_INLINE typename Vec<C>::V exp_lanes(typename Vec<C>::V x) {
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  using K = ExpConstants<C>;
  x = select(x < K::kLowest, broadcast<C>(K::kLowest), x);
  x = select(x > K::kHighest, broadcast<C>(K::kHighest), x);
  // Adding 1.5 * 2^mantissa leaves round(x / ln 2) in the low bits of the sum.
  const V shifted = x * K::kLog2E + K::kShift;
  const V series = exp_series<C>(x, shifted - K::kShift);
  const I power = (I)shifted - (I)broadcast<C>(K::kShift);
  const I half = power >> 1;
  const V low = (V)((half + K::kBias) << K::kMantissa);
  const V high = (V)((power - half + K::kBias) << K::kMantissa);
  return series * low * high;
}

#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
