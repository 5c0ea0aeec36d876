// Gradient of mean pooling. All pixels of a cell of the union of edges get the same sum, so a row
// of them is built once for the rows between two edges (a band) and copied.
#pragma once

#include "pyramid_pool.h"
#include "vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

// grad [count, cells] -> grad_x [count, H, W]. A pixel of a union cell gets the same sum, so one
// row is built for a band and copied. scratch: [cells + bins] and a row of S.
template <class S>
static void mean_planes_backward(const PoolPlan& plan, const S* grad, S* grad_x, int64_t count,
                                 Compute<S>* scratch) {
  using C = Compute<S>;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  C* shares = scratch;
  C* bin_sums = shares + plan.cells;
  S* row = reinterpret_cast<S*>(bin_sums + plan.bins);
  for (int64_t plane = 0; plane < count; ++plane, grad += plan.cells) {
    for (int64_t cell = 0; cell < plan.cells; ++cell)
      shares[cell] = load_one(grad + cell) / static_cast<C>(plan.pixels[cell]);
    for (int64_t band = 0; band < rows.segments; ++band) {
      for (int64_t level = 0; level < plan.levels; ++level) {
        const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
        const int64_t at = level * rows.segments + band;
        const C* share = shares + plan.level_cell[level];
        for (int64_t j = 0; j < n; ++j) {
          C sum = 0;
          for (int64_t i = rows.cover_first[at]; i < rows.cover_last[at]; ++i)
            sum += share[(i - bin) * n + j];
          bin_sums[bin + j] = sum;
        }
      }
      for (int64_t segment = 0; segment < columns.segments; ++segment) {
        C sum = 0;
        for (int64_t level = 0; level < plan.levels; ++level) {
          const int64_t at = level * columns.segments + segment;
          for (int64_t j = columns.cover_first[at]; j < columns.cover_last[at]; ++j)
            sum += bin_sums[j];
        }
        S value;
        store_one(&value, sum);
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w)
          row[w] = value;
      }
      for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h, grad_x += columns.size)
        memcpy(grad_x, row, static_cast<size_t>(columns.size) * sizeof(S));
    }
  }
}

// grad [count, cells] -> grad_x [H, W, plan.channels] from the first of `count` channels on.
// scratch: [cells + bins][count, padded], then segments as S likewise.
template <class S>
static void mean_channels_backward(const PoolPlan& plan, const S* grad, S* grad_x, int64_t count,
                                   Compute<S>* scratch) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const int64_t stride = round_up(count, kWidth<C>);
  C* shares = scratch;
  C* bin_sums = shares + plan.cells * stride;
  S* values = reinterpret_cast<S*>(bin_sums + plan.bins * stride);
  memset(shares, 0, static_cast<size_t>(plan.cells * stride) * sizeof(C));
  for (int64_t c = 0; c < count; ++c)
    for (int64_t cell = 0; cell < plan.cells; ++cell)
      shares[cell * stride + c] =
          load_one(grad + c * plan.cells + cell) / static_cast<C>(plan.pixels[cell]);
  for (int64_t band = 0; band < rows.segments; ++band) {
    for (int64_t level = 0; level < plan.levels; ++level) {
      const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
      const int64_t at = level * rows.segments + band;
      for (int64_t j = 0; j < n; ++j)
        for (int64_t c = 0; c < stride; c += kWidth<C>) {
          V sum = {};
          for (int64_t i = rows.cover_first[at]; i < rows.cover_last[at]; ++i)
            sum += load(shares + (plan.level_cell[level] + (i - bin) * n + j) * stride + c);
          store(bin_sums + (bin + j) * stride + c, sum);
        }
    }
    for (int64_t segment = 0; segment < columns.segments; ++segment)
      for (int64_t c = 0; c < stride; c += kWidth<C>) {
        V sum = {};
        for (int64_t level = 0; level < plan.levels; ++level) {
          const int64_t at = level * columns.segments + segment;
          for (int64_t j = columns.cover_first[at]; j < columns.cover_last[at]; ++j)
            sum += load(bin_sums + j * stride + c);
        }
        store(values + segment * stride + c, sum);
      }
    for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h)
      for (int64_t segment = 0; segment < columns.segments; ++segment)
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w)
          memcpy(grad_x + (h * columns.size + w) * plan.channels, values + segment * stride,
                 static_cast<size_t>(count) * sizeof(S));
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
