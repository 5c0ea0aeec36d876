// Mean pooling of all levels in one pass over the map, and its gradient.
//
// Rows between two neighbouring row edges (a band) belong to the same bins, so they are added up
// once and the sum goes to every bin that holds the band; columns likewise. Contiguous planes put
// columns along the vectors and finish the rows first, channels_last maps put channels along the
// vectors and finish the columns of a band first.
#pragma once

#include "pyramid_pool.h"
#include "vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

// First column of the vector that holds column w: the last vector of a row is moved left so that it
// ends with the row. Writes through it repeat values, so they must not accumulate.
template <class C>
ATTNOPS_INLINE int64_t vector_column(int64_t w, int64_t width) {
  return max64(0, min64(w, width - kWidth<C>));
}

template <class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_columns(const S* row, int64_t width) {
  return width >= kWidth<Compute<S>> ? load(row) : load_partial(row, width);
}

template <class C>
ATTNOPS_INLINE C run_sum(const C* x, int64_t count) {
  C total = 0;
  int64_t i = 0;
  if (count >= 2 * kWidth<C>) {
    typename Vec<C>::V sum = load(x);
    for (i = kWidth<C>; i + kWidth<C> <= count; i += kWidth<C>) sum += load(x + i);
    total = lane_sum<C>(sum);
  }
  for (; i < count; ++i) total += x[i];
  return total;
}

// Pixels in a cell of a level: row bin times column bin.
ATTNOPS_INLINE int64_t pixels(const PoolPlan& plan, int64_t row_bin, int64_t column_bin) {
  return (plan.rows.bin_end[row_bin] - plan.rows.bin_start[row_bin]) *
         (plan.columns.bin_end[column_bin] - plan.columns.bin_start[column_bin]);
}

// x [count, H, W], out [count, cells]. scratch: [1 + bins][W, padded].
template <class S>
static void mean_planes(const PoolPlan& plan, const S* x, S* out, int64_t count,
                        Compute<S>* scratch) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const int64_t width = plan.columns.size, stride = round_up(width, kWidth<C>);
  C* band_sum = scratch;
  C* bin_sums = scratch + stride;
  for (int64_t w = width; w < stride; ++w) band_sum[w] = 0;
  for (int64_t plane = 0; plane < count; ++plane, x += plan.rows.size * width, out += plan.cells) {
    for (int64_t band = 0; band < plan.rows.segments; ++band) {
      const S* first = x + plan.rows.edges[band] * width;
      const int64_t height = plan.rows.edges[band + 1] - plan.rows.edges[band];
      for (int64_t w = 0; w < width; w += kWidth<C>) {
        const int64_t column = vector_column<C>(w, width);
        V sum = {};
        for (int64_t r = 0; r < height; ++r) sum += load_columns(first + r * width + column, width);
        store(band_sum + column, sum);
      }
      for (int64_t level = 0; level < plan.levels; ++level) {
        const int64_t at = level * plan.rows.segments + band;
        for (int64_t bin = plan.rows.cover_first[at]; bin < plan.rows.cover_last[at]; ++bin) {
          C* sums = bin_sums + bin * stride;
          const bool start = plan.rows.bin_first[bin] == band;
          for (int64_t w = 0; w < stride; w += kWidth<C>) {
            const V sum = load(band_sum + w);
            store(sums + w, start ? sum : load(sums + w) + sum);
          }
        }
      }
    }
    for (int64_t level = 0; level < plan.levels; ++level) {
      const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
      S* cells = out + plan.level_cell[level];
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const int64_t begin = plan.columns.bin_start[bin + j];
          const C sum =
              run_sum(bin_sums + (bin + i) * stride + begin, plan.columns.bin_end[bin + j] - begin);
          store_one(cells + i * n + j, sum / static_cast<C>(pixels(plan, bin + i, bin + j)));
        }
    }
  }
}

// sum (+)= pixels of `count` channels, `pixel` elements apart.
template <class S, int kPixels>
ATTNOPS_INLINE void add_pixels(Compute<S>* sum, const S* x, int64_t pixel, int64_t count,
                               bool first) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const int64_t full = count / kWidth<C> * kWidth<C>;
  for (int64_t c = 0; c < count; c += kWidth<C>) {
    V total = first ? V{} : load(sum + c);
#pragma GCC unroll 4
    for (int i = 0; i < kPixels; ++i)
      total += c < full ? load(x + i * pixel + c) : load_partial(x + i * pixel + c, count - c);
    store(sum + c, total);
  }
}

// x [H, W, plan.channels] from the first of `count` channels on, out [count, cells].
// scratch: [column segments + cells][count, padded].
template <class S>
static void mean_channels(const PoolPlan& plan, const S* x, S* out, int64_t count,
                          Compute<S>* scratch) {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const int64_t stride = round_up(count, kWidth<C>), pixel = plan.channels;
  C* segment_sums = scratch;
  C* cell_sums = scratch + columns.segments * stride;
  for (int64_t band = 0; band < rows.segments; ++band) {
    for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h)
      for (int64_t segment = 0; segment < columns.segments; ++segment) {
        C* sum = segment_sums + segment * stride;
        bool first = h == rows.edges[band];
        int64_t w = columns.edges[segment];
        for (; w + 4 <= columns.edges[segment + 1]; w += 4, first = false)
          add_pixels<S, 4>(sum, x + (h * columns.size + w) * pixel, pixel, count, first);
        for (; w < columns.edges[segment + 1]; ++w, first = false)
          add_pixels<S, 1>(sum, x + (h * columns.size + w) * pixel, pixel, count, first);
      }
    for (int64_t level = 0; level < plan.levels; ++level) {
      const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
      const int64_t at = level * rows.segments + band;
      for (int64_t j = 0; j < n; ++j) {
        const C* begin = segment_sums + columns.bin_first[bin + j] * stride;
        const C* end = segment_sums + columns.bin_last[bin + j] * stride;
        for (int64_t i = rows.cover_first[at]; i < rows.cover_last[at]; ++i) {
          C* cell = cell_sums + (plan.level_cell[level] + (i - bin) * n + j) * stride;
          const bool start = rows.bin_first[i] == band;
          for (int64_t c = 0; c < stride; c += kWidth<C>) {
            V sum = start ? V{} : load(cell + c);
            for (const C* p = begin; p < end; p += stride) sum += load(p + c);
            store(cell + c, sum);
          }
        }
      }
    }
  }
  for (int64_t level = 0; level < plan.levels; ++level) {
    const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
    for (int64_t cell = 0; cell < n * n; ++cell) {
      const int64_t at = plan.level_cell[level] + cell;
      const C size = static_cast<C>(pixels(plan, bin + cell / n, bin + cell % n));
      for (int64_t c = 0; c < count; ++c)
        store_one(out + c * plan.cells + at, cell_sums[at * stride + c] / size);
    }
  }
}

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
    for (int64_t level = 0; level < plan.levels; ++level) {
      const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
      for (int64_t cell = 0; cell < n * n; ++cell) {
        const int64_t at = plan.level_cell[level] + cell;
        shares[at] =
            load_one(grad + at) / static_cast<C>(pixels(plan, bin + cell / n, bin + cell % n));
      }
    }
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
  for (int64_t level = 0; level < plan.levels; ++level) {
    const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
    for (int64_t cell = 0; cell < n * n; ++cell) {
      const int64_t at = plan.level_cell[level] + cell;
      const C size = static_cast<C>(pixels(plan, bin + cell / n, bin + cell % n));
      for (int64_t c = 0; c < stride; ++c)
        shares[at * stride + c] = c < count ? load_one(grad + c * plan.cells + at) / size : 0;
    }
  }
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
