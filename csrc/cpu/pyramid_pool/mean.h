// Mean pooling of all levels in one pass over the map.
//
// The edges of the bins of all levels cut rows into bands and columns into segments; a segment of a
// band lies inside or outside of every cell of the pyramid as a whole. So pixels are added up to
// segments once, and segments go to the few cells that hold them. Vectors run along the channels: a
// channels_last map has them there, for contiguous planes the sums of bands are transposed.
#pragma once

#include "transposed.h"

namespace attnops::cpu::ATTNOPS_ISA {

// sums[w] = sum of x[r, w] over `height` rows of `width`. Rows are read from end to end, in the
// order of memory, as the hardware prefetches them. Columns beyond the last whole vector are summed
// in a vector that ends with the row; sums are padded to whole vectors.
template <class S>
ATTNOPS_INLINE void sum_rows(const S* x, int64_t height, int64_t width, Compute<S>* sums) {
  using C = Compute<S>;
  typename Vec<C>::V tail = {};
  if (width < kWidth<C>) {
    for (int64_t r = 0; r < height; ++r) tail += load_partial(x + r * width, width);
    store(sums, tail);
    return;
  }
  const int64_t full = width / kWidth<C> * kWidth<C>;
  for (int64_t w = 0; w < full; w += kWidth<C>) store(sums + w, load(x + w));
  if (full < width) tail = load(x + width - kWidth<C>);
  for (int64_t r = 1; r < height; ++r) {
    x += width;
    for (int64_t w = 0; w < full; w += kWidth<C>) store(sums + w, load(sums + w) + load(x + w));
    if (full < width) tail += load(x + width - kWidth<C>);
  }
  if (full < width) store(sums + width - kWidth<C>, tail);
}

// Adds the segments of a band [column segments, lanes] to the cells [cells, lanes] that hold them.
template <class C>
ATTNOPS_INLINE void fold_means(const PoolPlan& plan, int64_t band, const C* segments, C* cells,
                               int64_t lanes) {
  for (int64_t level = 0; level < plan.levels; ++level) {
    const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
    const int64_t at = level * plan.rows.segments + band;
    for (int64_t i = plan.rows.cover_first[at]; i < plan.rows.cover_last[at]; ++i) {
      const bool start = plan.rows.bin_first[i] == band;
      C* cell = cells + (plan.level_cell[level] + (i - bin) * n) * lanes;
      for (int64_t j = 0; j < n; ++j, cell += lanes) {
        const C* begin = segments + plan.columns.bin_first[bin + j] * lanes;
        const C* end = segments + plan.columns.bin_last[bin + j] * lanes;
        for (int64_t c = 0; c < lanes; c += kWidth<C>) {
          auto sum = start ? typename Vec<C>::V{} : load(cell + c);
          for (const C* p = begin; p < end; p += lanes) sum += load(p + c);
          store(cell + c, sum);
        }
      }
    }
  }
}

// out [count, cells] = cells [cells, lanes] / pixels.
template <class S>
static void write_means(const PoolPlan& plan, Compute<S>* cells, int64_t lanes, int64_t count,
                        S* out) {
  using C = Compute<S>;
  for (int64_t cell = 0; cell < plan.cells; ++cell)
    for (int64_t c = 0; c < lanes; c += kWidth<C>)
      store(cells + cell * lanes + c,
            load(cells + cell * lanes + c) / static_cast<C>(plan.pixels[cell]));
  store_transposed(cells, plan.cells, lanes, count, out);
}

// x [count, H, W], out [count, cells]; kWidth planes at a time.
template <class S>
static void mean_contiguous(const PoolPlan& plan, const S* x, S* out, int64_t count,
                            Compute<S>* scratch) {
  using C = Compute<S>;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const PoolBuffers<C> buffers(plan, kWidth<C>, false);
  C *segments = scratch, *cells = scratch + buffers.cells;
  C *bands = scratch + buffers.bands, *turned = scratch + buffers.columns;
  for (int64_t done = 0; done < count; done += kWidth<C>) {
    const int64_t planes = min64(kWidth<C>, count - done);
    for (int64_t plane = 0; plane < planes; ++plane, x += rows.size * columns.size)
      for (int64_t band = 0; band < rows.segments; ++band)
        sum_rows(x + rows.edges[band] * columns.size, rows.edges[band + 1] - rows.edges[band],
                 columns.size, bands + (band * kWidth<C> + plane) * buffers.width);
    for (int64_t band = 0; band < rows.segments; ++band) {
      for (int64_t w = 0; w < columns.size; w += kWidth<C>)
        transpose_square(bands + band * kWidth<C> * buffers.width + w, buffers.width,
                         turned + w * kWidth<C>, kWidth<C>);
      for (int64_t segment = 0; segment < columns.segments; ++segment) {
        typename Vec<C>::V sum = {};
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w)
          sum += load(turned + w * kWidth<C>);
        store(segments + segment * kWidth<C>, sum);
      }
      fold_means(plan, band, segments, cells, kWidth<C>);
    }
    write_means(plan, cells, kWidth<C>, planes, out + done * plan.cells);
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
template <class S>
static void mean_channels_last(const PoolPlan& plan, const S* x, S* out, int64_t count,
                               Compute<S>* scratch) {
  using C = Compute<S>;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const int64_t lanes = round_up(count, kWidth<C>), pixel = plan.channels;
  const PoolBuffers<C> buffers(plan, lanes, true);
  C *segments = scratch, *cells = scratch + buffers.cells;
  for (int64_t band = 0; band < rows.segments; ++band) {
    for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h)
      for (int64_t segment = 0; segment < columns.segments; ++segment) {
        C* sum = segments + segment * lanes;
        bool first = h == rows.edges[band];
        int64_t w = columns.edges[segment];
        for (; w + 4 <= columns.edges[segment + 1]; w += 4, first = false)
          add_pixels<S, 4>(sum, x + (h * columns.size + w) * pixel, pixel, count, first);
        for (; w < columns.edges[segment + 1]; ++w, first = false)
          add_pixels<S, 1>(sum, x + (h * columns.size + w) * pixel, pixel, count, first);
      }
    fold_means(plan, band, segments, cells, lanes);
  }
  write_means(plan, cells, lanes, count, out);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
