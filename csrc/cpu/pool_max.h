// Max pooling of all levels in one pass over the map, with the position of every maximum, and its
// gradient. The structure is that of pool_mean.h, the sum replaced by a choice.
//
// The choice is that of a scan in row-major order which takes x over best when x > best or x is
// NaN: the first of equal maxima, the last NaN. `wins` states it independently of the order of
// scanning.
#pragma once

#include "pool_mean.h"

namespace attnops::cpu::ATTNOPS_ISA {

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
ATTNOPS_INLINE bool wins_one(C value, int64_t index, C best, int64_t best_index) {
  if (value != value) return best == best || index > best_index;
  return value > best || (value == best && index < best_index);
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

// x [count, H, W], out and argmax [count, cells]. scratch: [1 + bins][W, padded] values, then as
// many indices.
template <class S>
static void max_planes(const PoolPlan& plan, const S* x, S* out, int32_t* argmax, int64_t count,
                       Compute<S>* scratch) {
  using C = Compute<S>;
  using Int = typename Vec<C>::Int;
  const int64_t width = plan.columns.size, stride = round_up(width, kWidth<C>);
  C *band_value = scratch, *bin_value = scratch + stride;
  Int* band_index = reinterpret_cast<Int*>(scratch + (1 + plan.bins) * stride);
  Int* bin_index = band_index + stride;
  for (int64_t w = width; w < stride; ++w) band_value[w] = 0, band_index[w] = 0;
  for (int64_t plane = 0; plane < count;
       ++plane, x += plan.rows.size * width, out += plan.cells, argmax += plan.cells) {
    for (int64_t band = 0; band < plan.rows.segments; ++band) {
      const int64_t top = plan.rows.edges[band], bottom = plan.rows.edges[band + 1];
      for (int64_t w = 0; w < width; w += kWidth<C>) {
        const int64_t column = vector_column<C>(w, width);
        Best<C> best = {load_columns(x + top * width + column, width),
                        lane_numbers<C>() + static_cast<Int>(top * width + column)};
        auto index = best.index;
        for (int64_t r = top + 1; r < bottom; ++r) {
          const auto value = load_columns(x + r * width + column, width);
          index += static_cast<Int>(width);
          const auto wins = (value > best.value) | (value != value);
          best = {wins ? value : best.value, wins ? index : best.index};
        }
        store_best(band_value + column, band_index + column, best);
      }
      for (int64_t level = 0; level < plan.levels; ++level) {
        const int64_t at = level * plan.rows.segments + band;
        for (int64_t bin = plan.rows.cover_first[at]; bin < plan.rows.cover_last[at]; ++bin) {
          const bool start = plan.rows.bin_first[bin] == band;
          for (int64_t w = 0; w < stride; w += kWidth<C>) {
            C* value = bin_value + bin * stride + w;
            Int* index = bin_index + bin * stride + w;
            const Best<C> best = load_best(band_value + w, band_index + w);
            store_best(value, index, start ? best : choose(load_best(value, index), best));
          }
        }
      }
    }
    for (int64_t level = 0; level < plan.levels; ++level) {
      const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const C* value = bin_value + (bin + i) * stride;
          const Int* index = bin_index + (bin + i) * stride;
          int64_t w = plan.columns.bin_start[bin + j], winner = w;
          for (++w; w < plan.columns.bin_end[bin + j]; ++w)
            if (wins_one<C>(value[w], index[w], value[winner], index[winner])) winner = w;
          const int64_t at = plan.level_cell[level] + i * n + j;
          store_one(out + at, value[winner]);
          argmax[at] = static_cast<int32_t>(index[winner]);
        }
    }
  }
}

// x [H, W, plan.channels] from the first of `count` channels on, out and argmax [count, cells].
// scratch: [column segments + cells][count, padded] values, then as many indices.
template <class S>
static void max_channels(const PoolPlan& plan, const S* x, S* out, int32_t* argmax, int64_t count,
                         Compute<S>* scratch) {
  using C = Compute<S>;
  using Int = typename Vec<C>::Int;
  const PoolAxis &rows = plan.rows, &columns = plan.columns;
  const int64_t stride = round_up(count, kWidth<C>), full = count / kWidth<C> * kWidth<C>;
  C *segment_value = scratch, *cell_value = scratch + columns.segments * stride;
  Int* segment_index = reinterpret_cast<Int*>(scratch + (columns.segments + plan.cells) * stride);
  Int* cell_index = segment_index + columns.segments * stride;
  for (int64_t band = 0; band < rows.segments; ++band) {
    for (int64_t h = rows.edges[band]; h < rows.edges[band + 1]; ++h)
      for (int64_t segment = 0; segment < columns.segments; ++segment)
        for (int64_t w = columns.edges[segment]; w < columns.edges[segment + 1]; ++w) {
          const bool first = h == rows.edges[band] && w == columns.edges[segment];
          const S* pixel = x + (h * columns.size + w) * plan.channels;
          for (int64_t c = 0; c < count; c += kWidth<C>) {
            C* value = segment_value + segment * stride + c;
            Int* index = segment_index + segment * stride + c;
            const Best<C> now = {c < full ? load(pixel + c) : load_partial(pixel + c, count - c),
                                 typename Vec<C>::I{} + static_cast<Int>(h * columns.size + w)};
            if (first) {
              store_best(value, index, now);
              continue;
            }
            // Inside a segment pixels come in row-major order.
            const Best<C> best = load_best(value, index);
            const auto wins = (now.value > best.value) | (now.value != now.value);
            store_best(value, index,
                       Best<C>{wins ? now.value : best.value, wins ? now.index : best.index});
          }
        }
    for (int64_t level = 0; level < plan.levels; ++level) {
      const int64_t n = plan.sizes[level], bin = plan.level_bin[level];
      const int64_t at = level * rows.segments + band;
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = rows.cover_first[at]; i < rows.cover_last[at]; ++i) {
          const int64_t cell = (plan.level_cell[level] + (i - bin) * n + j) * stride;
          for (int64_t c = 0; c < stride; c += kWidth<C>) {
            int64_t segment = columns.bin_first[bin + j];
            auto from = [&] {
              return load_best(segment_value + segment * stride + c,
                               segment_index + segment * stride + c);
            };
            Best<C> best = from();
            if (rows.bin_first[i] != band)
              best = choose(best, load_best(cell_value + cell + c, cell_index + cell + c));
            for (++segment; segment < columns.bin_last[bin + j]; ++segment)
              best = choose(best, from());
            store_best(cell_value + cell + c, cell_index + cell + c, best);
          }
        }
    }
  }
  for (int64_t c = 0; c < count; ++c)
    for (int64_t cell = 0; cell < plan.cells; ++cell) {
      store_one(out + c * plan.cells + cell, cell_value[cell * stride + c]);
      argmax[c * plan.cells + cell] = static_cast<int32_t>(cell_index[cell * stride + c]);
    }
}

// One plane: target[argmax * pixel] = sum of the grads of the cells whose maximum it is; target is
// zero before. Cells are visited in order, so the sum does not depend on threads. Reduced precision
// sums in `plane` [H * W], which is zero before and afterwards.
template <class S>
static void scatter_plane(const S* grad, const int32_t* argmax, int64_t cells, S* target,
                          int64_t pixel, Compute<S>* plane) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    for (int64_t i = 0; i < cells; ++i) target[argmax[i] * pixel] += grad[i];
  } else {
    for (int64_t i = 0; i < cells; ++i) plane[argmax[i]] += load_one(grad + i);
    for (int64_t i = 0; i < cells; ++i) store_one(target + argmax[i] * pixel, plane[argmax[i]]);
    for (int64_t i = 0; i < cells; ++i) plane[argmax[i]] = 0;
  }
}

template <class S>
static void max_planes_backward(const PoolPlan& plan, const S* grad, const int32_t* argmax,
                                S* grad_x, int64_t count, Compute<S>* scratch) {
  const int64_t size = plan.rows.size * plan.columns.size;
  for (int64_t plane = 0; plane < count; ++plane) {
    memset(grad_x + plane * size, 0, static_cast<size_t>(size) * sizeof(S));
    scatter_plane(grad + plane * plan.cells, argmax + plane * plan.cells, plan.cells,
                  grad_x + plane * size, 1, scratch);
  }
}

template <class S>
static void max_channels_backward(const PoolPlan& plan, const S* grad, const int32_t* argmax,
                                  S* grad_x, int64_t count, Compute<S>* scratch) {
  const int64_t size = plan.rows.size * plan.columns.size;
  for (int64_t i = 0; i < size; ++i)
    memset(grad_x + i * plan.channels, 0, static_cast<size_t>(count) * sizeof(S));
  for (int64_t c = 0; c < count; ++c)
    scatter_plane(grad + c * plan.cells, argmax + c * plan.cells, plan.cells, grad_x + c,
                  plan.channels, scratch);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
