// Products of small matrices on tensor cores, and the loads of their fragments.
//
// mma<T>(c, a, b): c += a b for a warp, in float: a [16, K] with rows, b [K, 8] with columns along
// K; K = kMmaDepth<T>: 16 for __half and __nv_bfloat16, 8 for Tf32. All lanes call it together.
// With g = lane / 4, t = lane % 4, a lane holds
//   c[i]       row g + 8 (i / 2), column 2 t + i % 2,
//   halves     a[i]: row g + 8 (i % 2), elements k = 2 t + 8 (i / 2) (low half) and k + 1,
//              b[i]: column g, k = 2 t + 8 i and k + 1,
//   Tf32       a[i]: row g + 8 (i % 2), k = t + 4 (i / 2);  b[i]: column g, k = t + 4 i.
// Products are exact; sums are cut off, not rounded, to float: long sums are added up in parts.
//
// float by 3xTF32: split_tf32 gives the two parts of a number, mma_3xtf32 the three products that
// matter; the relative error of a product is about 2^-21. split_finite_tf32 is faster.
//
// load_matrices<N>(r, row): N = 1, 2, 4 matrices of 8 x 8 16-bit elements from shared memory; lane
// 8 m + i gives the address of row i of matrix m, a multiple of 16 bytes. r[m] of a lane: row g,
// elements 2 t and 2 t + 1 of matrix m; with kTransposed elements (2 t, g) and (2 t + 1, g). So the
// blocks (row, k) = (0, 0), (8, 0), (0, 8), (8, 8) of a stored [row][k] are an a; of b, the blocks
// k = 0, 8 of a stored [column][k], or transposed of a stored [k][column].
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "launch.h"

namespace attnops::cuda {

// The element type of products of floats whose mantissas were rounded to 10 bits.
struct Tf32;

template <typename T>
constexpr int kMmaDepth = std::is_same_v<T, Tf32> ? 8 : 16;

}  // namespace attnops::cuda

#if defined(ATTNOPS_EMULATION)

#include "cuda_emulation_instructions.h"

#else

namespace attnops::cuda {

#define ATTNOPS_MMA(shape_and_types)                                              \
  asm volatile("mma.sync.aligned." shape_and_types                                \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Tf32>) {
    ATTNOPS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (std::is_same_v<T, __half>) {
    ATTNOPS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>, "mma takes __half, __nv_bfloat16 or Tf32");
    ATTNOPS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  }
}
#undef ATTNOPS_MMA

// c += a b with the products of both parts of each but those of two small ones.
__device__ __forceinline__ void mma_3xtf32(float (&c)[4], const uint32_t (&a_big)[4],
                                           const uint32_t (&a_small)[4], const uint32_t (&b_big)[2],
                                           const uint32_t (&b_small)[2]) {
  mma<Tf32>(c, a_small, b_big);
  mma<Tf32>(c, a_big, b_small);
  mma<Tf32>(c, a_big, b_big);
}

// The nearest number with 10 bits of mantissa, as a float's bits.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

template <int kCount, bool kTransposed = false>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
#define ATTNOPS_LDMATRIX(form, registers, address, ...)                                          \
  if constexpr (kTransposed) {                                                                   \
    asm volatile("ldmatrix.sync.aligned.m8n8." form ".trans.shared.b16 " registers ", [" address \
                 "];"                                                                            \
                 : __VA_ARGS__                                                                   \
                 : "r"(at)                                                                       \
                 : "memory");                                                                    \
  } else {                                                                                       \
    asm volatile("ldmatrix.sync.aligned.m8n8." form ".shared.b16 " registers ", [" address "];"  \
                 : __VA_ARGS__                                                                   \
                 : "r"(at)                                                                       \
                 : "memory");                                                                    \
  }
  if constexpr (kCount == 1) {
    ATTNOPS_LDMATRIX("x1", "{%0}", "%1", "=r"(r[0]));
  } else if constexpr (kCount == 2) {
    ATTNOPS_LDMATRIX("x2", "{%0, %1}", "%2", "=r"(r[0]), "=r"(r[1]));
  } else {
    ATTNOPS_LDMATRIX("x4", "{%0, %1, %2, %3}", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
                     "=r"(r[3]));
  }
#undef ATTNOPS_LDMATRIX
}

}  // namespace attnops::cuda

#endif

namespace attnops::cuda {

// x = big + small, but for 2^-22 of it; both as operands of mma<Tf32>. What is not finite is all in
// big.
__device__ __forceinline__ void split_tf32(float x, uint32_t& big, uint32_t& small) {
  big = to_tf32(x);
  const float rest = x - __uint_as_float(big);
  small = to_tf32(rest - rest == 0.0f ? rest : 0.0f);
}

// The same in five operations of the FMA pipe instead of a dozen: numbers that are not finite, or
// beyond 2^114, become NaN.
__device__ __forceinline__ void split_finite_tf32(float x, uint32_t& big, uint32_t& small) {
  // 8193 x keeps 24 bits: 8192 x from it leaves the upper 11 of x, without an error.
  const float upper = fmaf(-8192.0f, x, x * 8193.0f);
  const float rest = x - upper;
  big = __float_as_uint(upper);
  small = __float_as_uint(fmaf(-8192.0f, rest, rest * 8193.0f));
}

}  // namespace attnops::cuda
