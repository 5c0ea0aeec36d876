// Max pooling of all levels in one pass over the map, with the position of every maximum, and its
// gradient. The structure is that of mean.h, the sum replaced by a choice.
//
// The choice is that of a scan in row-major order which takes x over best when x > best or x is
// NaN: the first of equal maxima, the last NaN. `wins` states it independently of the order of
// scanning.
#pragma once

#include "transposed.h"

namespace attnops::cpu::ATTNOPS_ISA {

template <class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_columns(const S* row, int64_t width) {
  return width >= kWidth<Compute<S>> ? load(row) : load_partial(row, width);
}

template <class C>
struct Best {
  typename Vec<C>::V value;
  typename Vec<C>::I index;
};

template <class C>
ATTNOPS_INLINE Best<C> choose(Best<C> best, Best<C> x) {
  const auto nan = x.value != x.value, best_nan = best.value != best.value;
  const auto wins = (nan & (~best_nan | (x.index > best.index))) | (x.value > best.value) |
                    ((x.value == best.value) & (x.index < best.index));
  return {wins ? x.value : best.value, wins ? x.index : best.index};
}

template <class C>
ATTNOPS_INLINE Best<C> load_best(const C* value, const typename Vec<C>::Int* index) {
  return {load(value), *reinterpret_cast<const typename Vec<C>::IU*>(index)};
}

template <class C>
ATTNOPS_INLINE void store_best(C* value, typename Vec<C>::Int* index, Best<C> best) {
  store(value, best.value);
  *reinterpret_cast<typename Vec<C>::IU*>(index) = best.index;
}

template <class C>
ATTNOPS_INLINE typename Vec<C>::I lane_numbers() {
  typename Vec<C>::I lanes = {};
  for (int i = 0; i < kWidth<C>; ++i) lanes[i] = i;
  return lanes;
}

// values[w], index[w] = maximum of `height` rows of x from row `top` on.
template <class S>
ATTNOPS_INLINE void max_rows(const S* x, int64_t top, int64_t height, int64_t width,
                             Compute<S>* values, typename Vec<Compute<S>>::Int* index) {
  using C = Compute<S>;
  using Int = typename Vec<C>::Int;
  for (int64_t w = 0; w < width; w += kWidth<C>) {
    const int64_t column = vector_column<C>(w, width);
    const S* p = x + top * width + column;
    Best<C> best = {load_columns(p, width),
                    lane_numbers<C>() + static_cast<Int>(top * width + column)};
    auto now = best.index;
    for (int64_t r = 1; r < height; ++r) {
      p += width;
      now += static_cast<Int>(width);
      const auto value = load_columns(p, width);
      const auto wins = (value > best.value) | (value != value);
      best = {wins ? value : best.value, wins ? now : best.index};
    }
    store_best(values + column, index + column, best);
  }
}

// Values and indices of the same buffer.
template <class C>
struct BestBuffer {
  C* value;
  typename Vec<C>::Int* index;

  Best<C> get(int64_t at) const { return load_best(value + at, index + at); }
  void set(int64_t at, Best<C> best) const { store_best(value + at, index + at, best); }
};

// Offers the segments of a band [column segments, lanes] to the cells [cells, lanes] that hold
// them.
template <class C>
ATTNOPS_INLINE void fold_maxima(const PoolPlan& plan, int64_t band, BestBuffer<C> segments,
                                BestBuffer<C> cells, int64_t lanes) {
  for (int64_t level = 0; level < plan.levels; ++level) {
    const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
    const int64_t at = level * plan.rows.segments + band;
    for (int64_t i = plan.rows.cover_first[at]; i < plan.rows.cover_last[at]; ++i)
      for (int64_t j = 0; j < n; ++j) {
        const int64_t cell = (plan.level_cell[level] + (i - bin) * n + j) * lanes;
        const int64_t first = plan.columns.bin_first[bin + j];
        for (int64_t c = 0; c < lanes; c += kWidth<C>) {
          Best<C> best = segments.get(first * lanes + c);
          if (plan.rows.bin_first[i] != band) best = choose(best, cells.get(cell + c));
          for (int64_t segment = first + 1; segment < plan.columns.bin_last[bin + j]; ++segment)
            best = choose(best, segments.get(segment * lanes + c));
          cells.set(cell + c, best);
        }
      }
  }
}

template <class S>
static void write_maxima(const PoolPlan& plan, BestBuffer<Compute<S>> cells, int64_t lanes,
                         int64_t count, S* out, int32_t* argmax) {
  store_transposed(cells.value, plan.cells, lanes, count, out);
  for (int64_t c = 0; c < count; ++c)
    for (int64_t cell = 0; cell < plan.cells; ++cell)
      argmax[c * plan.cells + cell] = static_cast<int32_t>(cells.index[cell * lanes + c]);
}

// x [count, H, W], out and argmax [count, cells]; kWidth planes at a time. scratch: the buffers for
// values, then for indices.
template <class S>
static void max_contiguous(const PoolPlan& plan, const S* x, S* out, int32_t* argmax, int64_t count,
                           Compute<S>* scratch) {
  using C = Compute<S>;
  using Int = typename Vec<C>::Int;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const PoolBuffers<C> buffers(plan, kWidth<C>, false);
  auto buffer = [&](int64_t offset) {
    return BestBuffer<C>{scratch + offset,
                         reinterpret_cast<Int*>(scratch + buffers.total) + offset};
  };
  const BestBuffer<C> segments = buffer(0), cells = buffer(buffers.cells);
  const BestBuffer<C> bands = buffer(buffers.bands), turned = buffer(buffers.columns);
  for (int64_t done = 0; done < count; done += kWidth<C>) {
    const int64_t planes = min64(kWidth<C>, count - done);
    for (int64_t plane = 0; plane < planes; ++plane, x += rows.size * columns.size)
      for (int64_t band = 0; band < rows.segments; ++band) {
        const int64_t at = (band * kWidth<C> + plane) * buffers.width;
        max_rows(x, rows.edges[band], rows.edges[band + 1] - rows.edges[band], columns.size,
                 bands.value + at, bands.index + at);
      }
    for (int64_t band = 0; band < rows.segments; ++band) {
      for (int64_t w = 0; w < columns.size; w += kWidth<C>) {
        const int64_t at = band * kWidth<C> * buffers.width + w;
        transpose_square(bands.value + at, buffers.width, turned.value + w * kWidth<C>, kWidth<C>);
        // A transposition moves bits, whatever they mean.
        transpose_square(reinterpret_cast<const C*>(bands.index + at), buffers.width,
                         reinterpret_cast<C*>(turned.index + w * kWidth<C>), kWidth<C>);
      }
      for (int64_t segment = 0; segment < columns.segments; ++segment) {
        Best<C> best = turned.get(columns.edges[segment] * kWidth<C>);
        for (int64_t w = columns.edges[segment] + 1; w < columns.edges[segment + 1]; ++w)
          best = choose(best, turned.get(w * kWidth<C>));
        segments.set(segment * kWidth<C>, best);
      }
      fold_maxima(plan, band, segments, cells, kWidth<C>);
    }
    write_maxima(plan, cells, kWidth<C>, planes, out + done * plan.cells,
                 argmax + done * plan.cells);
  }
}

// x [H, W, plan.channels] from the first of `count` channels on, out and argmax [count, cells].
// scratch: the buffers for values, then for indices.
template <class S>
static void max_channels_last(const PoolPlan& plan, const S* x, S* out, int32_t* argmax,
                              int64_t count, Compute<S>* scratch) {
  using C = Compute<S>;
  using Int = typename Vec<C>::Int;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const int64_t lanes = round_up(count, kWidth<C>), full = count / kWidth<C> * kWidth<C>;
  const PoolBuffers<C> buffers(plan, lanes, true);
  Int* index = reinterpret_cast<Int*>(scratch + buffers.total);
  const BestBuffer<C> segments = {scratch, index};
  const BestBuffer<C> cells = {scratch + buffers.cells, index + buffers.cells};
  for (int64_t band = 0; band < rows.segments; ++band) {
    for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h)
      for (int64_t segment = 0; segment < columns.segments; ++segment)
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w) {
          const bool first = h == rows.edges[band] && w == columns.edges[segment];
          const S* pixel = x + (h * columns.size + w) * plan.channels;
          const auto now = typename Vec<C>::I{} + static_cast<Int>(h * columns.size + w);
          for (int64_t c = 0; c < count; c += kWidth<C>) {
            const auto value = c < full ? load(pixel + c) : load_partial(pixel + c, count - c);
            Best<C> best = {value, now};
            if (!first) {
              // Inside a segment pixels come in row-major order.
              best = segments.get(segment * lanes + c);
              const auto wins = (value > best.value) | (value != value);
              best = {wins ? value : best.value, wins ? now : best.index};
            }
            segments.set(segment * lanes + c, best);
          }
        }
    fold_maxima(plan, band, segments, cells, lanes);
  }
  write_maxima(plan, cells, lanes, count, out, argmax);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
