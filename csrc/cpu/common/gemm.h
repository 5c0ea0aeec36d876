// Register-blocked matrix products for tiles: C[m, n] (+)= sum_k A[m, k] B[k, n].
//
// Layouts of the operands (kRows x kColumns is the block one call of multiply() keeps in
// registers):
//   B  panels of kColumns columns: [n / kColumns][k][kColumns]; the last panel is padded.
//   C  (internal) the same form: [n / kColumns][m][kColumns], rows padded to kRows.
//   A  any layout whose strides are compile-time constants: element (m, k) of a block at
//      a[m * kRowStride + k * kDepthStride], so that all addresses are one pointer plus constants.
//      After `run` values of k the pointer moves by `jump`, which walks panels along k.
//      kRowStride 0 stands for a row stride known at run time only: a matrix taken as it is.
#pragma once

#include "bfloat16.h"

namespace attnops::cpu::ATTNOPS_ISA {

// The type in which products of elements are added up.
template <class E>
struct SumOf {
  using type = E;
};
template <>
struct SumOf<Pair> {
  using type = float;
};
template <class E>
using Sum = typename SumOf<E>::type;

// Accumulators fill the register file: 24 of 32 (AVX-512), 12 of 16 (AVX2); without fused
// multiply-add a product needs a register of its own, so the baseline keeps 8 of 16.
#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 3;
#elif defined(__AVX2__)
constexpr int kRows = 6, kVectors = 2;
#else
constexpr int kRows = 4, kVectors = 2;
#endif
template <class E>
constexpr int kColumns = kVectors * kWidth<Sum<E>>;

// Products are added up in chains of about this many terms, then the chains: one chain of 512
// anchors would round three times as badly as the BLAS does.
constexpr int64_t kChain = 128;

template <class E>
struct Left {
  const E* data;
  int64_t block_stride;    // elements from one block of kRows rows to the next
  int64_t run, jump;       // `run` values of k per panel, then `jump` elements onwards
  int64_t row_stride = 0;  // where kRowStride is 0
};

template <class C>
struct Panels {
  C* data;
  int64_t stride;  // elements from one panel of kColumns columns to the next
};

template <class C, int kUsed, int kHeight = kRows>
struct Block {
  typename Vec<C>::V v[kHeight][kUsed];
};

// Unrolled, as all loops over a block: others would keep it in memory all the time.
template <class C, int kUsed, int kHeight>
ATTNOPS_INLINE void store_block(const Block<C, kUsed, kHeight>& block,
                                C (&rows)[kHeight][kUsed * kWidth<C>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) store(rows[i] + j * kWidth<C>, block.v[i][j]);
}

template <class C>
ATTNOPS_INLINE void add_product(typename Vec<C>::V& sum, C left, typename Vec<C>::V right) {
  sum += left * right;
}
#if defined(__AVX512F__)
template <class>
ATTNOPS_INLINE void add_product(VecF& sum, Pair left, WordLanes right) {
  add_pair_products(sum, spread(left), right);
}
#endif

template <class E, int kUsed, int kRowStride, int kDepthStride>
ATTNOPS_INLINE void multiply(Block<Sum<E>, kUsed>& block, const E* a, int64_t run, int64_t jump,
                             const E* b, int64_t depth, int64_t row_stride = kRowStride) {
  for (int64_t first = 0; first < depth; first += run, a += jump) {
    const int64_t count = min64(run, depth - first);
    const E* row = a;
    for (int64_t k = 0; k < count; ++k, row += kDepthStride, b += kColumns<E>) {
      decltype(load(b)) right[kUsed];
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) right[j] = load(b + j * kWidth<Sum<E>>);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const E left = row[i * row_stride];
#pragma GCC unroll 4
        for (int j = 0; j < kUsed; ++j) add_product<E>(block.v[i][j], left, right[j]);
      }
    }
  }
}

// One block of an internal product; with add it continues the sums that stand in c.
template <class E, int kUsed, int kRowStride, int kDepthStride>
static void multiply_block(const E* a, int64_t run, int64_t jump, const E* b, int64_t depth,
                           Sum<E>* c, bool add) {
  using C = Sum<E>;
  Block<C, kUsed> block = {};
  multiply<E, kUsed, kRowStride, kDepthStride>(block, a, run, jump, b, depth);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kUsed; ++j) {
      C* target = c + i * kColumns<C> + j * kWidth<C>;
      store(target, add ? load(target) + block.v[i][j] : block.v[i][j]);
    }
}

// Internal product: c (+)= a b for `rows` x `columns`. The panel of b stays in the first-level
// cache while blocks of a stream past it.
template <class E, int kRowStride, int kDepthStride>
static void multiply_panels(Left<E> a, Panels<const E> b, Panels<Sum<E>> c, int64_t rows,
                            int64_t columns, int64_t depth, bool add) {
  constexpr int64_t kW = kWidth<Sum<E>>;
  for (int64_t n = 0; n < columns; n += kColumns<E>) {
    const int64_t panel = n / kColumns<E>;
    const int64_t vectors = (columns - n + kW - 1) / kW;
    for (int64_t m = 0; m < rows; m += kRows) {
      const E* left = a.data + m / kRows * a.block_stride;
      const E* right = b.data + panel * b.stride;
      Sum<E>* out = c.data + panel * c.stride + m * kColumns<E>;
      if (kVectors >= 3 && vectors >= 3)
        multiply_block<E, kVectors, kRowStride, kDepthStride>(left, a.run, a.jump, right, depth,
                                                              out, add);
      else if (vectors >= 2)
        multiply_block<E, 2, kRowStride, kDepthStride>(left, a.run, a.jump, right, depth, out, add);
      else
        multiply_block<E, 1, kRowStride, kDepthStride>(left, a.run, a.jump, right, depth, out, add);
    }
  }
}

// One block of a product that leaves as rows of S: out[m * row_stride + n].
template <class S, int kUsed, int kRowStride, int kDepthStride>
static void multiply_block_out(const Left<Compute<S>>& operand, const Compute<S>* a,
                               const Compute<S>* b, int64_t depth, S* out, int64_t row_stride,
                               int64_t rows, int64_t columns) {
  using C = Compute<S>;
  const int64_t run = operand.run, jump = operand.jump;
  const int64_t left_stride = kRowStride ? kRowStride : operand.row_stride;
  Block<C, kUsed> block = {};
  const int64_t chain = run < kChain ? (kChain + run - 1) / run * run : kChain;
  multiply<C, kUsed, kRowStride, kDepthStride>(block, a, run, jump, b, min64(chain, depth),
                                               left_stride);
  for (int64_t k = chain; k < depth; k += chain) {
    const C* left = run < kChain ? a + k / run * jump : a + k * kDepthStride;
    Block<C, kUsed> link = {};
    multiply<C, kUsed, kRowStride, kDepthStride>(link, left, run, jump, b + k * kColumns<C>,
                                                 min64(chain, depth - k), left_stride);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) block.v[i][j] += link.v[i][j];
  }
  if (rows >= kRows && columns >= kUsed * kWidth<C>) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < kUsed; ++j) store(out + i * row_stride + j * kWidth<C>, block.v[i][j]);
    return;
  }
  // Some rows or columns go by way of memory.
  C sums[kRows][kUsed * kWidth<C>];
  store_block(block, sums);
  for (int i = 0; i < min64(rows, kRows); ++i)
    for (int j = 0; j < kUsed; ++j)
      store_partial(out + i * row_stride + j * kWidth<C>, load(sums[i] + j * kWidth<C>),
                    min64(kWidth<C>, columns - j * kWidth<C>));
}

// Product into rows of S. kRowsOuter: a block of rows of `out` is finished across all columns
// before the next one starts (few, long rows); otherwise a panel of b is. With kRowStride 0 there
// are at least kRows rows: the last block overlaps the one before, since nothing pads the matrix.
template <class S, int kRowStride, int kDepthStride, bool kRowsOuter>
static void multiply_out(Left<Compute<S>> a, Panels<const Compute<S>> b, S* out, int64_t row_stride,
                         int64_t rows, int64_t columns, int64_t depth) {
  using C = Compute<S>;
  const int64_t row_blocks = (rows + kRows - 1) / kRows;
  const int64_t panels = (columns + kColumns<C> - 1) / kColumns<C>;
  for (int64_t index = 0; index < row_blocks * panels; ++index) {
    const int64_t block = kRowsOuter ? index / panels : index % row_blocks;
    const int64_t panel = kRowsOuter ? index % panels : index / row_blocks;
    const int64_t m = kRowStride ? block * kRows : min64(block * kRows, rows - kRows);
    const int64_t n = panel * kColumns<C>;
    const C* left = a.data + (kRowStride ? block * a.block_stride : m * a.row_stride);
    const C* right = b.data + panel * b.stride;
    S* target = out + m * row_stride + n;
    const int64_t vectors = (columns - n + kWidth<C> - 1) / kWidth<C>;
    if (kVectors >= 3 && vectors >= 3)
      multiply_block_out<S, kVectors, kRowStride, kDepthStride>(a, left, right, depth, target,
                                                                row_stride, rows - m, columns - n);
    else if (vectors >= 2)
      multiply_block_out<S, 2, kRowStride, kDepthStride>(a, left, right, depth, target, row_stride,
                                                         rows - m, columns - n);
    else
      multiply_block_out<S, 1, kRowStride, kDepthStride>(a, left, right, depth, target, row_stride,
                                                         rows - m, columns - n);
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
