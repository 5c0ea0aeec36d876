// Gradient of mean pooling. All pixels of a segment of a band (see mean.h) get the same sum,
// so it is computed once, a row of pixels is built for the rows of a band, and copied. Vectors run
// along the channels up to there, as in the forward direction.
#pragma once

#include "transposed.h"

namespace attnops::cpu::ATTNOPS_ISA {

// shares [cells, lanes] = grad [count, cells] / pixels.
template <class S>
static void load_shares(const PoolPlan& plan, const S* grad, int64_t lanes, int64_t count,
                        Compute<S>* shares) {
  using C = Compute<S>;
  load_transposed(grad, plan.cells, lanes, count, shares);
  for (int64_t cell = 0; cell < plan.cells; ++cell)
    for (int64_t c = 0; c < lanes; c += kWidth<C>)
      store(shares + cell * lanes + c,
            load(shares + cell * lanes + c) / static_cast<C>(plan.pixels[cell]));
}

// segments [column segments, lanes] of a band: the sum of the shares of all cells that hold them.
// bins [bins, lanes] takes the sums over the rows of cells.
template <class C>
ATTNOPS_INLINE void spread_shares(const PoolPlan& plan, int64_t band, const C* shares, C* bins,
                                  C* segments, int64_t lanes) {
  using V = typename Vec<C>::V;
  for (int64_t level = 0; level < plan.levels; ++level) {
    const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
    const int64_t at = level * plan.rows.segments + band;
    const C* share = shares + plan.level_cell[level] * lanes;
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < lanes; c += kWidth<C>) {
        V sum = {};
        for (int64_t i = plan.rows.cover_first[at]; i < plan.rows.cover_last[at]; ++i)
          sum += load(share + ((i - bin) * n + j) * lanes + c);
        store(bins + (bin + j) * lanes + c, sum);
      }
  }
  for (int64_t segment = 0; segment < plan.columns.segments; ++segment)
    for (int64_t c = 0; c < lanes; c += kWidth<C>) {
      V sum = {};
      for (int64_t level = 0; level < plan.levels; ++level) {
        const int64_t at = level * plan.columns.segments + segment;
        for (int64_t j = plan.columns.cover_first[at]; j < plan.columns.cover_last[at]; ++j)
          sum += load(bins + j * lanes + c);
      }
      store(segments + segment * lanes + c, sum);
    }
}

// grad [count, cells] -> grad_x [count, H, W]; kWidth planes at a time. scratch: PoolBuffers, then
// bins [bins, kWidth].
template <class S>
static void mean_contiguous_backward(const PoolPlan& plan, const S* grad, S* grad_x, int64_t count,
                                     Compute<S>* scratch) {
  using C = Compute<S>;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const PoolBuffers<C> buffers(plan, kWidth<C>, false);
  C *segments = scratch, *shares = scratch + buffers.cells, *bins = scratch + buffers.total;
  C *bands = scratch + buffers.bands, *turned = scratch + buffers.columns;
  for (int64_t done = 0; done < count; done += kWidth<C>) {
    const int64_t planes = min64(kWidth<C>, count - done);
    load_shares(plan, grad + done * plan.cells, kWidth<C>, planes, shares);
    for (int64_t band = 0; band < rows.segments; ++band) {
      spread_shares(plan, band, shares, bins, segments, kWidth<C>);
      for (int64_t segment = 0; segment < columns.segments; ++segment) {
        const auto value = load(segments + segment * kWidth<C>);
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w)
          store(turned + w * kWidth<C>, value);
      }
      for (int64_t w = 0; w < columns.size; w += kWidth<C>)
        transpose_square(turned + w * kWidth<C>, kWidth<C>,
                         bands + band * kWidth<C> * buffers.width + w, buffers.width);
    }
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t band = 0; band < rows.segments; ++band) {
        const C* row = bands + (band * kWidth<C> + plane) * buffers.width;
        for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h, grad_x += columns.size) {
          if (columns.size < kWidth<C>) {
            store_partial(grad_x, load(row), columns.size);
            continue;
          }
          for (int64_t w = 0; w < columns.size; w += kWidth<C>) {
            const int64_t column = vector_column<C>(w, columns.size);
            store(grad_x + column, load(row + column));
          }
        }
      }
  }
}

// grad [count, cells] -> grad_x [H, W, plan.channels] from the first of `count` channels on.
// scratch: PoolBuffers, then bins [bins, lanes], then segments as S.
template <class S>
static void mean_channels_last_backward(const PoolPlan& plan, const S* grad, S* grad_x,
                                        int64_t count, Compute<S>* scratch) {
  using C = Compute<S>;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const int64_t lanes = round_up(count, kWidth<C>);
  const PoolBuffers<C> buffers(plan, lanes, true);
  C *segments = scratch, *shares = scratch + buffers.cells, *bins = scratch + buffers.total;
  S* values = reinterpret_cast<S*>(bins + plan.bins * lanes);
  load_shares(plan, grad, lanes, count, shares);
  for (int64_t band = 0; band < rows.segments; ++band) {
    spread_shares(plan, band, shares, bins, segments, lanes);
    for (int64_t i = 0; i < columns.segments * lanes; i += kWidth<C>)
      store(values + i, load(segments + i));
    for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h)
      for (int64_t segment = 0; segment < columns.segments; ++segment)
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w)
          memcpy(grad_x + (h * columns.size + w) * plan.channels, values + segment * lanes,
                 static_cast<size_t>(count) * sizeof(S));
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
