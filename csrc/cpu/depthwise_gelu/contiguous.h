// Depthwise kernels on contiguous planes: vectors run along the rows.
//
// A strip of a plane stands in a buffer with zeros around it, so that no tap meets a border:
//   out[r, x] = sum_ij taps[i, j] in[r + i, x + j]        sums[i, j] += sum_rx g[r, x] in[r + i, x
//   + j]
// Four rows of results are computed at a time, and a vector of the buffer serves all that see it.
#pragma once

#include "cpu/common/vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int kRowBlock = 4;     // rows of results at a time
constexpr int64_t kSumRows = 8;  // rows that are summed in C before the sums move on to double

// A kernel [height, width]; its taps follow each other `step` apart, negative where it is turned
// around.
template <class C>
struct ContiguousKernel {
  int64_t height, width;
  const C* taps;
  int64_t step;
};

// Row r, column x (from the left margin on) is data[r * stride + x].
template <class C>
struct PaddedRows {
  C* data;
  int64_t stride;

  // Vectors past the last column of `columns` and its margins are written and read.
  static int64_t stride_for(int64_t columns, int64_t side) {
    return odd_lines<C>(round_up(columns, kWidth<C>) + 2 * side + kWidth<C>);
  }
  C* row(int64_t r) const { return data + r * stride; }

  // Zeros around `columns` columns of rows [0, rows).
  void clear_margins(int64_t rows, int64_t columns, int64_t side) const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t x = 0; x < side; ++x) row(r)[x] = 0;
      for (int64_t x = side + columns; x < stride; ++x) row(r)[x] = 0;
    }
  }
};

// Rows [y, y + count) of a plane [height, width] to the buffer's first rows, with a margin of
// `side`; rows outside the plane are zeros. Margins stay as they are.
template <class S>
static void pad_rows(const S* plane, int64_t height, int64_t width, int64_t y, int64_t count,
                     int64_t side, PaddedRows<Compute<S>> out) {
  using C = Compute<S>;
  for (int64_t r = 0; r < count; ++r) {
    C* to = out.row(r) + side;
    const bool inside = y + r >= 0 && y + r < height;
    const S* from = plane + (y + r) * width;
    for (int64_t x = 0; x < width; x += kWidth<C>)
      store(to + x,
            inside ? load_lanes(from + x, min64(kWidth<C>, width - x)) : typename Vec<C>::V{});
  }
}

// kRows rows of results, columns [0, columns) in whole vectors: emit(row, x, vector). kSize: of a
// square kernel, or 0.
template <class C, int kSize, int kRows, class Emit>
ATTNOPS_INLINE void convolve_block(const ContiguousKernel<C>& kernel, PaddedRows<const C> in,
                                   int64_t columns, const Emit& emit) {
  using V = typename Vec<C>::V;
  // A small kernel stays in registers.
  V taps[kSize > 0 ? kSize * kSize : 1] = {};
  for (int t = 0; t < kSize * kSize; ++t) taps[t] = broadcast<C>(kernel.taps[t * kernel.step]);
  for (int64_t x = 0; x < columns; x += kWidth<C>) {
    V sums[kRows] = {};
    if constexpr (kSize > 0) {
#pragma GCC unroll 8
      for (int n = 0; n < kRows + kSize - 1; ++n)
#pragma GCC unroll 8
        for (int j = 0; j < kSize; ++j) {
          const V right = load(in.data + n * in.stride + x + j);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r)
            if (n - r >= 0 && n - r < kSize) sums[r] += taps[(n - r) * kSize + j] * right;
        }
    } else {
      // A row of taps at a time: large kernels add up in short chains.
      for (int64_t i = 0; i < kernel.height; ++i) {
        V part[kRows] = {};
        for (int64_t j = 0; j < kernel.width; ++j) {
          const C tap = kernel.taps[(i * kernel.width + j) * kernel.step];
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r)
            part[r] += tap * load(in.data + (i + r) * in.stride + x + j);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r] += part[r];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) emit(r, x, sums[r]);
  }
}

// `rows` rows of results: emit(row, x, vector).
template <class C, class Emit>
static void convolve_contiguous(const ContiguousKernel<C>& kernel, PaddedRows<const C> in,
                                int64_t rows, int64_t columns, const Emit& emit) {
  const auto run = [&](auto size) __attribute__((always_inline)) {
    constexpr int kSize = decltype(size)::value;
    int64_t r = 0;
    const auto from = [&](int64_t first) { return PaddedRows<const C>{in.row(first), in.stride}; };
    const auto emit_from = [&](int64_t first) {
      return [&emit, first ](int64_t i, int64_t x, typename Vec<C>::V v)
          __attribute__((always_inline)) {
        emit(first + i, x, v);
      };
    };
    for (; r + kRowBlock <= rows; r += kRowBlock)
      convolve_block<C, kSize, kRowBlock>(kernel, from(r), columns, emit_from(r));
    for (; r < rows; ++r) convolve_block<C, kSize, 1>(kernel, from(r), columns, emit_from(r));
  };
  if (kernel.height == 3 && kernel.width == 3)
    run(std::integral_constant<int, 3>());
  else
    run(std::integral_constant<int, 0>());
}

// sums [height * width + 1][kWidth] += those by the taps, and the sum of g. g: from its first
// column on, zero in the lanes past its last.
template <class C>
static void sum_contiguous(const ContiguousKernel<C>& kernel, PaddedRows<const C> g,
                           PaddedRows<const C> in, int64_t rows, int64_t columns, double* sums) {
  using V = typename Vec<C>::V;
  const int64_t taps = kernel.height * kernel.width;
  for (int64_t first = 0; first < rows; first += kSumRows) {
    const int64_t end = min64(rows, first + kSumRows);
    V total = {};
    for (int64_t r = first; r < end; ++r)
      for (int64_t x = 0; x < columns; x += kWidth<C>) total += load(g.row(r) + x);
    add_wide<C>(total, sums + taps * kWidth<C>);
    for (int64_t i = 0; i < kernel.height; ++i) {
      double* row_sums = sums + i * kernel.width * kWidth<C>;
      if (kernel.width == 3) {
        V part[3] = {};
        for (int64_t r = first; r < end; ++r)
          for (int64_t x = 0; x < columns; x += kWidth<C>) {
            const V left = load(g.row(r) + x);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) part[j] += left * load(in.row(r + i) + x + j);
          }
        for (int j = 0; j < 3; ++j) add_wide<C>(part[j], row_sums + j * kWidth<C>);
        continue;
      }
      for (int64_t j = 0; j < kernel.width; ++j) {
        V part = {};
        for (int64_t r = first; r < end; ++r)
          for (int64_t x = 0; x < columns; x += kWidth<C>)
            part += load(g.row(r) + x) * load(in.row(r + i) + x + j);
        add_wide<C>(part, row_sums + j * kWidth<C>);
      }
    }
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
