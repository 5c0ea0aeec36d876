// Products of tiles with weights in panels: C[m, n] (+)= sum_k A[m, k] B[k, n].
//
// A stands in rows of `stride` elements, rows padded to whole blocks of kRows; B in panels, as
// host.h says. A piece of a panel stays in the first-level cache while rows of A stream past it.
#pragma once

#include "cpu/common/gemm.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int64_t kWinogradDepth = 256;  // terms that are added up before they join the others

// Products begin with k pairs of bfloat16 or single floats.
template <class S>
constexpr int64_t kWinogradPair = sizeof(S) == 2 ? 2 : 1;

template <int kUsed>
ATTNOPS_INLINE void multiply_winograd(Block<float, kUsed>& block, const float* a, int64_t stride,
                                      const float* b, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k, b += kWinogradPanel) {
    VecF right[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) right[j] = load(b + j * kWidth<float>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const float left = a[i * stride + k];
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) block.v[i][j] += left * right[j];
    }
  }
}

#if defined(__AVX512F__)
// The instructions of AVX512_BF16 are written out, because the rest of this file has to run without
// them.
template <int kUsed>
ATTNOPS_INLINE void multiply_winograd(Block<float, kUsed>& block, const BFloat16* a, int64_t stride,
                                      const BFloat16* b, int64_t depth) {
  for (int64_t k = 0; k < depth; k += 2, b += 2 * kWinogradPanel) {
    VecF right[kUsed];
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j)
      right[j] = load(reinterpret_cast<const float*>(b) + j * kWidth<float>);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      int32_t pair;
      memcpy(&pair, a + i * stride + k, sizeof(pair));
      const __m512i left = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) {
        VecF sum = block.v[i][j];  // of its own: what asm names in an array stays in memory
        asm("vdpbf16ps\t{%2, %1, %0|%0, %1, %2}" : "+v"(sum) : "v"(left), "v"(right[j]));
        block.v[i][j] = sum;
      }
    }
  }
}
#endif

template <class S, int kUsed>
static void winograd_block(const S* a, int64_t stride, const S* b, int64_t depth, float* c,
                           int64_t c_stride, bool add) {
  Block<float, kUsed> block = {};
  multiply_winograd<kUsed>(block, a, stride, b, depth);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) {
      float* target = c + i * c_stride + j * kWidth<float>;
      store(target, add ? load(target) + block.v[i][j] : block.v[i][j]);
    }
}

// One of the 16 products, for `rows` tiles; c in rows of c_stride.
template <class S>
static void multiply_tiles(const S* a, int64_t stride, const S* b, int64_t depth, int64_t panels,
                           int64_t rows, float* c, int64_t c_stride) {
  constexpr int64_t kStep = kVectors * kWidth<float>, kPair = kWinogradPair<S>;
  constexpr int64_t kDepth = kWinogradDepth * kPair;
  static_assert(kWinogradPanel % kStep == 0, "a panel is whole blocks");
  for (int64_t k = 0; k < depth; k += kDepth)
    for (int64_t n = 0; n < panels * kWinogradPanel; n += kStep) {
      const S* right = b + (n / kWinogradPanel * depth + k) * kWinogradPanel;
      right += n % kWinogradPanel * kPair;
      for (int64_t m = 0; m < rows; m += kRows)
        winograd_block<S, kVectors>(a + m * stride + k, stride, right, min64(kDepth, depth - k),
                                    c + m * c_stride + n, c_stride, k > 0);
    }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
