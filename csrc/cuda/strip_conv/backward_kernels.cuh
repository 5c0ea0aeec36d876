// Backward of strip convolutions (kernels.cuh). With g the gradient of out, and for
// every strip s h_s = horizontal_s(a) + b_h:
//
//   gh_s = vertical_s^T(g), zero outside the map           gradient of h_s
//   da = g + sum over s of horizontal_s^T(gh_s)            gradient of a
//   dx = local^T(da)
//   dtaps: of the local kernel from da and x, of a row from gh_s and a, of a column from g and h_s
//   dbiases: sums of da; of gh_s and g for every strip
//
// Maps and parameters as in the forward; a and h_s are computed again, and all of them stay in
// shared memory.
//
// strip_backward_map_kernel: one block a tile of a few channels, writes dx. Moved per element: one
// write and r reads, r as in the forward.
// strip_backward_taps_kernel: one block a slice of the tiles of a few channels; adds up what its
// tiles give, in their order, in p_partials `[slices, C, T + 1 + 2 * strips]`. Moved per element:
// about 2 r reads.
// strip_backward_reduce_kernel: adds up the slices in a fixed order; a block owns kWarp sums.
#pragma once

#include "tile.cuh"

namespace attnops::cuda {

constexpr int kReduceParts = 8;  // of the slices, for every sum
constexpr int kReduceThreads = kWarp * kReduceParts;

// gh: the transposed column of `taps` taps applied to s_grad, whose first row is plan.reach_y rows
// above that of `area`, and whose columns are those of `area`. `area` begins (above, left) of the
// tile. Zero outside the map.
template <typename Acc>
__device__ __forceinline__ void apply_column_transposed(const StripTile& tile, Acc* s_grad,
                                                        const Acc* s_taps, int taps, StripArea area,
                                                        int above, int left,
                                                        Acc* s_grad_horizontal) {
  const StripPlan& plan = tile.plan;
  const StripPlane<Acc> from = tile.plane(s_grad, area);
  const StripPlane<Acc> to = tile.plane(s_grad_horizontal, area);
  const int lanes = plan.lanes;
  tile.for_each(area.columns, area.rows / kStripRun, [&](int column, int run) {
    const int row = run * kStripRun;
    const int map_row = tile.y - above + row, map_column = tile.x - left + column;
    Acc sums[kStripRun] = {};
    if (map_row < plan.height && map_row + kStripRun > 0 && tile.is_inside(0, map_column)) {
      correlate_run(sums, from.at(plan.reach_y - taps / 2 + row, column), from.row,
                    s_taps + (taps - 1) * lanes, -lanes, taps);
    }
#pragma unroll
    for (int j = 0; j < kStripRun; ++j) {
      *to.at(row + j, column) = tile.is_inside(map_row + j, map_column) ? sums[j] : Acc(0);
    }
  });
}

// da += the transposed row of `taps` taps applied to gh, which has plan.reach_x columns more than
// `area` to either side. `area` begins (above, left) of the tile; da stays zero outside the map.
template <typename Acc>
__device__ __forceinline__ void add_row_transposed(const StripTile& tile, Acc* s_grad_horizontal,
                                                   const Acc* s_taps, int taps, StripArea area,
                                                   int above, int left, Acc* s_grad_local) {
  const StripPlan& plan = tile.plan;
  const StripPlane<Acc> from =
      tile.plane(s_grad_horizontal, StripArea{area.rows, area.columns + 2 * plan.reach_x});
  const StripPlane<Acc> to = tile.plane(s_grad_local, area);
  const int lanes = plan.lanes;
  tile.for_each(area.rows, area.columns / kStripRun, [&](int row, int run) {
    const int column = run * kStripRun;
    const int map_row = tile.y - above + row, map_column = tile.x - left + column;
    if (map_row < 0 || map_row >= plan.height) return;
    Acc sums[kStripRun] = {};
    correlate_run(sums, from.at(row, plan.reach_x - taps / 2 + column), from.column,
                  s_taps + (taps - 1) * lanes, -lanes, taps);
#pragma unroll
    for (int j = 0; j < kStripRun; ++j) {
      if (tile.is_inside(map_row, map_column + j)) *to.at(row, column + j) += sums[j];
    }
  });
}

template <typename T>
__global__ void __launch_bounds__(kStripThreads, 2)
    strip_backward_map_kernel(const T* __restrict__ p_grad, T* __restrict__ p_grad_x,
                              const __grid_constant__ StripParameters<const T> parameters,
                              const __grid_constant__ StripPlan plan) {
  using Acc = accumulator_t<T>;
  ATTNOPS_DYNAMIC_SHARED(shared);
  const StripTile tile = make_strip_tile(plan);
  const int lanes = plan.lanes;
  const int above = plan.kernel_height / 2, left = plan.kernel_width / 2;
  Acc* s_parameters = reinterpret_cast<Acc*>(shared);  // [taps + kernels, lanes]
  Acc* s_grad_local = s_parameters + plan.parameters() * lanes;
  Acc* s_grad_horizontal = s_grad_local + plan.grad_local().size() * lanes;
  Acc* s_grad = s_grad_horizontal + plan.grad_horizontal().size() * lanes;

  tile.load_parameters(parameters, s_parameters);
  tile.load(p_grad, plan.grad_out(), above + plan.reach_y, left + plan.reach_x, s_grad);
  tile.load(p_grad, plan.grad_local(), above, left, s_grad_local);
  const Acc* s_taps = s_parameters + plan.kernel_height * plan.kernel_width * lanes + tile.lane();
  for (int s = 0; s < plan.strips; ++s) {
    __syncthreads();
    apply_column_transposed(tile, s_grad, s_taps + plan.rows[s] * lanes, plan.columns[s],
                            plan.grad_horizontal(), above, left + plan.reach_x, s_grad_horizontal);
    __syncthreads();
    add_row_transposed(tile, s_grad_horizontal, s_taps, plan.rows[s], plan.grad_local(), above,
                       left, s_grad_local);
    s_taps += (plan.rows[s] + plan.columns[s]) * lanes;
  }
  __syncthreads();

  // kStripRun rows of a column of dx; taps are read backwards.
  const int column = threadIdx.x / lanes % plan.tile_columns;
  const int row = threadIdx.x / lanes / plan.tile_columns * kStripRun;
  if (row >= plan.tile_rows || tile.channel() >= plan.channels) return;
  if (!tile.is_inside(tile.y + row, tile.x + column)) return;
  const StripPlane<Acc> from = tile.plane(s_grad_local, plan.grad_local());
  const Acc* s_last =
      s_parameters + (plan.kernel_height * plan.kernel_width - 1) * lanes + tile.lane();
  Acc sums[kStripRun] = {};
  for (int k = 0; k < plan.kernel_width; ++k) {
    correlate_run(sums, from.at(row, column + k), from.row, s_last - k * lanes,
                  -plan.kernel_width * lanes, plan.kernel_height);
  }
#pragma unroll
  for (int j = 0; j < kStripRun; ++j) {
    if (tile.y + row + j < plan.height) {
      p_grad_x[tile.offset(tile.y + row + j, tile.x + column)] = narrow<T>(sums[j]);
    }
  }
}

// What is summed up for a kernel's taps: over the rows l and columns i of the tile that lie in the
// map, grad(l, i) * map(l + k, i + t) for tap t of the kernel's row k. For a column of taps, both
// planes are transposed, and so are lines and length.
struct TapSums {
  int lines;
  int length;
  int tap_rows;
  int taps;       // of a row
  int first_tap;  // where the sums go among a channel's
  int bias;       // where the sum of grad goes
};

// p_partials: sums of the tile's first channel, to which this adds (or which it sets, if is_first).
// A thread multiplies one line by kStripRun taps, then lines are added up in order.
template <typename Acc>
__device__ __forceinline__ void sum_taps(const StripTile& tile, const TapSums& of,
                                         const StripPlane<Acc>& grad, const StripPlane<Acc>& map,
                                         Acc* s_sums, bool is_first, Acc* p_partials) {
  const StripPlan& plan = tile.plan;
  const int threads = blockDim.x;
  const int line_threads = of.lines * plan.lanes;
  const int chunks_at_once = threads / line_threads;
  const int row_chunks = (of.taps + kStripRun - 1) / kStripRun;
  const int chunks = of.tap_rows * row_chunks;
  const int line = threadIdx.x % line_threads / plan.lanes;
  for (int first = 0; first < chunks; first += chunks_at_once) {
    const int chunk = first + threadIdx.x / line_threads;
    if (chunk < min(first + chunks_at_once, chunks)) {
      const int tap = chunk % row_chunks * kStripRun;
      const int needed = of.length + of.taps - 1 - tap;  // positions of the map from this tap on
      const Acc* s_map = map.at(line + chunk / row_chunks, tap);
      const Acc* s_grad = grad.at(line, 0);
      Acc sums[kStripRun] = {};
      Acc total = 0;
      Acc window[kStripRun];
#pragma unroll
      for (int j = 0; j < kStripRun - 1; ++j) {
        window[j] = j < needed ? s_map[j * map.column] : Acc(0);
      }
      s_map += (kStripRun - 1) * map.column;
#pragma unroll 4
      for (int i = 0; i < of.length; ++i, s_map += map.column, s_grad += grad.column) {
        window[kStripRun - 1] = i + kStripRun - 1 < needed ? *s_map : Acc(0);
        const Acc factor = *s_grad;
        total += factor;
#pragma unroll
        for (int j = 0; j < kStripRun; ++j) sums[j] += factor * window[j];
#pragma unroll
        for (int j = 0; j < kStripRun - 1; ++j) window[j] = window[j + 1];
      }
#pragma unroll
      for (int j = 0; j < kStripRun; ++j) s_sums[j * threads + threadIdx.x] = sums[j];
      s_sums[kStripRun * threads + threadIdx.x] = total;
    }
    __syncthreads();
    const int found = min(chunks_at_once, chunks - first) * (kStripRun + 1) * plan.lanes;
    for (int index = threadIdx.x; index < found; index += threads) {
      const int j = index / plan.lanes % (kStripRun + 1);
      const int part = index / plan.lanes / (kStripRun + 1);
      const int tap = (first + part) % row_chunks * kStripRun + j;
      const bool is_total = j == kStripRun;
      if (is_total ? first + part != 0 : tap >= of.taps) continue;
      if (tile.channel() >= plan.channels) continue;
      const Acc* s_line = s_sums + j * threads + part * line_threads + tile.lane();
      Acc sum = 0;
      for (int k = 0; k < of.lines; ++k, s_line += plan.lanes) sum += *s_line;
      const int at =
          is_total ? of.bias : of.first_tap + (first + part) / row_chunks * of.taps + tap;
      Acc* p_sum = p_partials + tile.lane() * plan.parameters() + at;
      *p_sum = is_first ? sum : *p_sum + sum;
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kStripThreads, 2)
    strip_backward_taps_kernel(const T* __restrict__ p_grad, const T* __restrict__ p_x,
                               accumulator_t<T>* __restrict__ p_partials,
                               const __grid_constant__ StripParameters<const T> parameters,
                               const __grid_constant__ StripPlan plan) {
  using Acc = accumulator_t<T>;
  ATTNOPS_DYNAMIC_SHARED(shared);
  const int lanes = plan.lanes;
  const int group = blockIdx.x % plan.groups;
  const int64_t slice = blockIdx.x / plan.groups;
  Acc* s_parameters = reinterpret_cast<Acc*>(shared);  // [taps + kernels, lanes]
  Acc* s_local = s_parameters + plan.parameters() * lanes;
  Acc* s_row = s_local + plan.local().size() * lanes;  // h_s, then gh_s
  Acc* s_grad_local = s_row + plan.row_results() * lanes;
  Acc* s_map = s_grad_local + plan.own().size() * lanes;  // x, then g, then x
  Acc* s_sums = s_map + plan.source().size() * lanes;
  Acc* p_sums = p_partials + (slice * plan.channels + int64_t{group} * lanes) * plan.parameters();
  const int local_taps = plan.kernel_height * plan.kernel_width;
  const int above = plan.kernel_height / 2, left = plan.kernel_width / 2;
  const StripArea own_and_kernel{plan.tile_rows + plan.kernel_height - 1,
                                 plan.tile_columns + plan.kernel_width - 1};

  const int64_t begin = slice * plan.tiles / plan.slices;
  const int64_t end = (slice + 1) * plan.tiles / plan.slices;
  for (int64_t index = begin; index < end; ++index) {
    const StripTile tile = make_strip_tile(plan, index, group);
    const bool is_first = index == begin;
    const int rows = min(plan.tile_rows, plan.height - tile.y);
    const int columns = min(plan.tile_columns, plan.width - tile.x);
    if (is_first) tile.load_parameters(parameters, s_parameters);
    tile.load(p_x, plan.source(), plan.reach_y + above, plan.reach_x + left, s_map);
    tile.load(p_grad, plan.own(), 0, 0, s_grad_local);
    __syncthreads();
    apply_local(tile, s_map, s_parameters, s_local);
    __syncthreads();
    tile.load(p_grad, plan.own_grad_out(), plan.reach_y, plan.reach_x, s_map);

    const StripPlane<Acc> local = tile.plane(s_local, plan.local());
    const StripPlane<Acc> grad = tile.plane(s_map, plan.own_grad_out());
    int first_tap = local_taps;
    for (int s = 0; s < plan.strips; ++s) {
      const int row_taps = plan.rows[s], column_taps = plan.columns[s];
      const int bias = plan.taps + 1 + 2 * s;
      const Acc* s_row_taps = s_parameters + first_tap * lanes + tile.lane();
      const Acc* s_column_taps = s_row_taps + row_taps * lanes;
      apply_row(tile, s_local, s_row_taps, row_taps, s_parameters[bias * lanes + tile.lane()],
                column_taps / 2, s_row);
      __syncthreads();
      const StripPlane<Acc> horizontal = tile.plane(s_row, plan.horizontal());
      const TapSums of_column{columns, rows, 1, column_taps, first_tap + row_taps, bias + 1};
      sum_taps(tile, of_column, grad.from(plan.reach_y, plan.reach_x).transposed(),
               horizontal.transposed(), s_sums, is_first, p_sums);
      apply_column_transposed(tile, s_map, s_column_taps, column_taps, plan.own_grad_horizontal(),
                              0, plan.reach_x, s_row);
      __syncthreads();
      add_row_transposed(tile, s_row, s_row_taps, row_taps, plan.own(), 0, 0, s_grad_local);
      const StripPlane<Acc> grad_horizontal = tile.plane(s_row, plan.own_grad_horizontal());
      const TapSums of_row{rows, columns, 1, row_taps, first_tap, bias};
      sum_taps(tile, of_row, grad_horizontal.from(0, plan.reach_x),
               local.from(plan.reach_y, plan.reach_x - row_taps / 2), s_sums, is_first, p_sums);
      first_tap += row_taps + column_taps;
    }
    __syncthreads();
    tile.load(p_x, own_and_kernel, above, left, s_map);
    __syncthreads();
    const TapSums of_local{rows, columns, plan.kernel_height, plan.kernel_width, 0, plan.taps};
    sum_taps(tile, of_local, tile.plane(s_grad_local, plan.own()),
             tile.plane(s_map, own_and_kernel), s_sums, is_first, p_sums);
  }
}

template <typename T>
__global__ void __launch_bounds__(kReduceThreads)
    strip_backward_reduce_kernel(const accumulator_t<T>* __restrict__ p_partials, int slices,
                                 const __grid_constant__ StripParameters<T> gradients,
                                 const __grid_constant__ StripPlan plan) {
  using Acc = accumulator_t<T>;
  ATTNOPS_SHARED_ARRAY(Acc, s_sums, [kReduceParts][kWarp]);
  const int parameters = plan.parameters();
  const int64_t sums = static_cast<int64_t>(plan.channels) * parameters;
  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  Acc sum = 0;
  if (index < sums) {
    for (int64_t slice = part; slice < slices; slice += kReduceParts) {
      sum += p_partials[slice * sums + index];
    }
  }
  s_sums[part][lane] = sum;
  __syncthreads();
  if (part != 0 || index >= sums) return;
  for (int k = 1; k < kReduceParts; ++k) sum += s_sums[k][lane];
  const int64_t channel = index / parameters;
  int which = static_cast<int>(index % parameters), kernel = 0;
  if (which >= plan.taps) {
    T* p_bias = gradients.biases[which - plan.taps];
    if (p_bias != nullptr) p_bias[channel] = narrow<T>(sum);
    return;
  }
  while (which >= plan.taps_of(kernel)) which -= plan.taps_of(kernel++);
  gradients.weights[kernel][channel * plan.taps_of(kernel) + which] = narrow<T>(sum);
}

}  // namespace attnops::cuda
