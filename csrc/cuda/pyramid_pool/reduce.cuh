// The two reductions of pyramid pooling, as what a bin keeps of the pixels seen so far ("partial").
// Merging partials in any grouping gives the same maximum, and sums in a fixed order.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/common/element.cuh"
#include "plan.h"

namespace attnops::cuda {

template <typename Acc>
struct Mean {
  static constexpr bool kHasIndex = false;
  using Partial = Acc;

  static __device__ __forceinline__ Partial empty() { return 0; }
  // The state before the first pixel, which has `index`, of a run in row-major order.
  static __device__ __forceinline__ Partial start(int) { return 0; }
  static __device__ __forceinline__ void add(Partial& partial, Acc value, int) { partial += value; }
  static __device__ __forceinline__ void merge(Partial& into, const Partial& other) {
    into += other;
  }
  static __device__ __forceinline__ Partial finish(const Partial& partial, int count) {
    return partial / static_cast<Acc>(count);
  }
  static __device__ __forceinline__ Acc value(const Partial& partial) { return partial; }
  static __device__ __forceinline__ int index(const Partial&) { return 0; }
};

// As F.adaptive_max_pool2d: the first of equal maxima in row-major order, but the last NaN.
template <typename Acc>
struct Max {
  static constexpr bool kHasIndex = true;
  struct alignas(2 * sizeof(Acc)) Partial {
    Acc value;
    int index;  // h * W + w
  };

  static __device__ __forceinline__ Partial empty() { return {-INFINITY, INT32_MAX}; }
  static __device__ __forceinline__ Partial start(int index) { return {-INFINITY, index}; }
  static __device__ __forceinline__ void add(Partial& partial, Acc value, int index) {
    if (value > partial.value || value != value) partial = {value, index};
  }
  static __device__ __forceinline__ void merge(Partial& into, const Partial& other) {
    const bool into_nan = into.value != into.value;
    const bool other_nan = other.value != other.value;
    const bool replace = other_nan ? !into_nan || other.index > into.index
                                   : other.value > into.value ||
                                         (other.value == into.value && other.index < into.index);
    if (replace) into = other;
  }
  static __device__ __forceinline__ Partial finish(const Partial& partial, int) { return partial; }
  static __device__ __forceinline__ Acc value(const Partial& partial) { return partial.value; }
  static __device__ __forceinline__ int index(const Partial& partial) { return partial.index; }
};

// Where cell s of the S cells of a plane lies.
struct Cell {
  int row_bin;     // among the bins of all levels
  int column_bin;  // likewise
};

__device__ __forceinline__ Cell locate_cell(const Levels& levels, int s) {
  int level = 0;
  int bin = 0;
  int n = levels.size[0];
  while (s >= n * n) {
    s -= n * n;
    bin += n;
    n = levels.size[++level];
  }
  return {bin + s / n, bin + s % n};
}

// Pixels of a cell.
__device__ __forceinline__ int count_pixels(const Plan& plan, Cell cell) {
  const Axis& rows = plan.rows;
  const Axis& columns = plan.columns;
  return (rows.cut[rows.last[cell.row_bin]] - rows.cut[rows.first[cell.row_bin]]) *
         (columns.cut[columns.last[cell.column_bin]] - columns.cut[columns.first[cell.column_bin]]);
}

// Reduces a rectangle of `height` x `width` positions, each kVec elements side by side, into
// partial[kVec], with kDepth loads in flight. p points at the first position; `index` is its number
// h * W + w in the plane and `index_step` what the elements of a position add to it (1: they are
// columns, 0: they are channels).
template <typename Reduce, int kDepth, typename T, int kVec>
__device__ __forceinline__ void reduce_rectangle(const T* __restrict__ p, int64_t row_stride,
                                                 int64_t column_stride, int height, int width,
                                                 int index, int row_index_stride, int index_step,
                                                 typename Reduce::Partial (&partial)[kVec]) {
#pragma unroll
  for (int e = 0; e < kVec; ++e) partial[e] = Reduce::start(index + e * index_step);
  int row = 0;
  int column = 0;
  while (row < height) {
    Vector<T, kVec> loaded[kDepth];
    int loaded_index[kDepth];
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      loaded_index[k] = -1;
      if (row < height) {
        loaded[k] = *reinterpret_cast<const Vector<T, kVec>*>(p + row * row_stride +
                                                              column * column_stride);
        loaded_index[k] = index + row * row_index_stride + column;
        if (++column == width) {
          column = 0;
          ++row;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      if (loaded_index[k] >= 0) {
#pragma unroll
        for (int e = 0; e < kVec; ++e) {
          Reduce::add(partial[e], widen(loaded[k].value[e]), loaded_index[k] + e * index_step);
        }
      }
    }
  }
}

}  // namespace attnops::cuda
