// What the kernels of strip convolutions share: a block's tile, loads of an area around it, and
// correlation along an axis in shared memory.
#pragma once

#include "cuda/common/element.cuh"
#include "plan.h"

namespace attnops::cuda {

// One lane's positions of an area in shared memory; `s` points at its first one.
template <typename Acc>
struct StripPlane {
  Acc* s;
  int row;     // from a position to the one below
  int column;  // from a position to the next

  __device__ __forceinline__ Acc* at(int y, int x) const { return s + y * row + x * column; }
  // The same plane from another position on, and with rows and columns exchanged.
  __device__ __forceinline__ StripPlane from(int y, int x) const { return {at(y, x), row, column}; }
  __device__ __forceinline__ StripPlane transposed() const { return {s, column, row}; }
};

// A tile of one group of channels, and this thread's share: channel `lane` of it.
struct StripTile {
  const StripPlan& plan;
  int y;  // of the tile's first position in the map
  int x;
  int first_channel;
  int64_t sample;

  __device__ __forceinline__ int lane() const { return threadIdx.x & (plan.lanes - 1); }
  __device__ __forceinline__ int channel() const { return first_channel + lane(); }

  __device__ __forceinline__ bool is_inside(int row, int column) const {
    return static_cast<unsigned>(row) < static_cast<unsigned>(plan.height) &&
           static_cast<unsigned>(column) < static_cast<unsigned>(plan.width);
  }

  // Where this thread's channel has a position of the map, in elements.
  __device__ __forceinline__ int64_t offset(int row, int column) const {
    const int64_t width = plan.width;
    if (plan.channels_last) {
      return ((sample * plan.height + row) * width + column) * plan.channels + channel();
    }
    return ((sample * plan.channels + channel()) * plan.height + row) * width + column;
  }

  template <typename Acc>
  __device__ __forceinline__ StripPlane<Acc> plane(Acc* s_area, StripArea area) const {
    return {s_area + lane(), area.pitch() * plan.lanes, plan.lanes};
  }

  // Calls function(fast, slow) for this lane's share of [slow_count, fast_count]: neighbouring
  // threads have neighbouring `fast`.
  template <typename Function>
  __device__ __forceinline__ void for_each(int fast_count, int slow_count,
                                           const Function& function) const {
    const int unit = threadIdx.x / plan.lanes;
    const int units = blockDim.x / plan.lanes;
    const int fast_step = units % fast_count;
    const int slow_step = units / fast_count;
    int fast = unit % fast_count;
    for (int slow = unit / fast_count; slow < slow_count; slow += slow_step) {
      function(fast, slow);
      fast += fast_step;
      if (fast >= fast_count) {
        fast -= fast_count;
        ++slow;
      }
    }
  }

  // An area of a map whose first position lies (above, left) of the tile's; zeros outside the map.
  template <typename T>
  __device__ __forceinline__ void load(const T* __restrict__ p_map, StripArea area, int above,
                                       int left, accumulator_t<T>* s_area) const {
    const StripPlane<accumulator_t<T>> to = plane(s_area, area);
    const bool exists = channel() < plan.channels;
    for_each(area.columns, area.rows, [&](int column, int row) {
      const int map_row = y - above + row, map_column = x - left + column;
      const bool inside = exists && is_inside(map_row, map_column);
      *to.at(row, column) =
          inside ? widen(p_map[offset(map_row, map_column)]) : accumulator_t<T>(0);
    });
  }

  // All taps, then the biases of all kernels, 0 where there is none -> s_parameters
  // `[taps + kernels, lanes]`.
  template <typename T>
  __device__ __forceinline__ void load_parameters(const StripParameters<const T>& parameters,
                                                  accumulator_t<T>* s_parameters) const {
    accumulator_t<T>* s_taps = s_parameters;
    for (int kernel = 0; kernel < plan.kernels(); ++kernel) {
      const int taps = plan.taps_of(kernel);
      load_parameter(parameters.weights[kernel], taps, s_taps);
      load_parameter(parameters.biases[kernel], 1,
                     s_parameters + (plan.taps + kernel) * plan.lanes);
      s_taps += taps * plan.lanes;
    }
  }

  // `[C, count]` -> s_to `[count, lanes]`.
  template <typename T>
  __device__ __forceinline__ void load_parameter(const T* __restrict__ p_from, int count,
                                                 accumulator_t<T>* s_to) const {
    for (int index = threadIdx.x; index < count * plan.lanes; index += blockDim.x) {
      const int which = index % count;
      const int64_t of = first_channel + index / count;
      const bool exists = p_from != nullptr && of < plan.channels;
      s_to[which * plan.lanes + index / count] =
          exists ? widen(p_from[of * count + which]) : accumulator_t<T>(0);
    }
  }
};

// Tile `tile` of all samples', for group `group` of channels.
__device__ __forceinline__ StripTile make_strip_tile(const StripPlan& plan, int64_t tile,
                                                     int group) {
  const int tiles = plan.row_tiles * plan.column_tiles;
  const int within = static_cast<int>(tile % tiles);
  return {plan, within / plan.column_tiles * plan.tile_rows,
          within % plan.column_tiles * plan.tile_columns, group * plan.lanes, tile / tiles};
}

// The tile of a block that has one of its own. Blocks that follow each other share what they read:
// sectors of channels_last maps, halos of contiguous ones.
__device__ __forceinline__ StripTile make_strip_tile(const StripPlan& plan) {
  if (plan.channels_last) {
    return make_strip_tile(plan, blockIdx.x / plan.groups, blockIdx.x % plan.groups);
  }
  const unsigned tiles = plan.row_tiles * plan.column_tiles;
  const unsigned planes = blockIdx.x / tiles;  // of sample and group
  return make_strip_tile(plan, int64_t{planes / plan.groups} * tiles + blockIdx.x % tiles,
                         planes % plan.groups);
}

// sums[j] += sum over t of taps[t] * in[j + t], both at their strides.
template <typename Acc>
__device__ __forceinline__ void correlate_run(Acc (&sums)[kStripRun], const Acc* s_in,
                                              int in_stride, const Acc* s_taps, int tap_stride,
                                              int taps) {
  Acc window[kStripRun];
#pragma unroll
  for (int j = 0; j < kStripRun - 1; ++j, s_in += in_stride) window[j] = *s_in;
#pragma unroll 4
  for (int t = 0; t < taps; ++t, s_in += in_stride, s_taps += tap_stride) {
    window[kStripRun - 1] = *s_in;
    const Acc tap = *s_taps;
#pragma unroll
    for (int j = 0; j < kStripRun; ++j) sums[j] += tap * window[j];
#pragma unroll
    for (int j = 0; j < kStripRun - 1; ++j) window[j] = window[j + 1];
  }
}

// a = local kernel of s_source + bias, on plan.local(); zero outside the map.
template <typename Acc>
__device__ __forceinline__ void apply_local(const StripTile& tile, Acc* s_source,
                                            const Acc* s_parameters, Acc* s_local) {
  const StripPlan& plan = tile.plan;
  const StripArea area = plan.local();
  const StripPlane<Acc> from = tile.plane(s_source, plan.source());
  const StripPlane<Acc> to = tile.plane(s_local, area);
  const Acc* s_taps = s_parameters + tile.lane();
  const Acc bias = s_taps[plan.taps * plan.lanes];
  tile.for_each(area.columns, area.rows / kStripRun, [&](int column, int run) {
    const int row = run * kStripRun;
    const int map_row = tile.y - plan.reach_y + row, map_column = tile.x - plan.reach_x + column;
    Acc sums[kStripRun] = {bias, bias, bias, bias};
    if (map_row < plan.height && map_row + kStripRun > 0 && tile.is_inside(0, map_column)) {
      for (int k = 0; k < plan.kernel_width; ++k) {
        correlate_run(sums, from.at(row, column + k), from.row, s_taps + k * plan.lanes,
                      plan.kernel_width * plan.lanes, plan.kernel_height);
      }
    }
#pragma unroll
    for (int j = 0; j < kStripRun; ++j) {
      *to.at(row + j, column) = tile.is_inside(map_row + j, map_column) ? sums[j] : Acc(0);
    }
  });
}

// The row of `taps` taps applied to s_local, plus bias, where a column of `reach` to either side
// reads it: rows -reach to tile_rows + reach, from the first row of s_horizontal on. Zero outside
// the map.
template <typename Acc>
__device__ __forceinline__ void apply_row(const StripTile& tile, Acc* s_local, const Acc* s_taps,
                                          int taps, Acc bias, int reach, Acc* s_horizontal) {
  const StripPlan& plan = tile.plan;
  const StripPlane<Acc> from = tile.plane(s_local, plan.local());
  const StripPlane<Acc> to = tile.plane(s_horizontal, plan.horizontal());
  tile.for_each(plan.tile_rows + 2 * reach, plan.tile_columns / kStripRun, [&](int row, int run) {
    const int column = run * kStripRun;
    const int map_row = tile.y - reach + row;
    Acc sums[kStripRun] = {bias, bias, bias, bias};
    if (tile.is_inside(map_row, tile.x + column)) {
      correlate_run(sums, from.at(plan.reach_y - reach + row, plan.reach_x - taps / 2 + column),
                    from.column, s_taps, plan.lanes, taps);
    }
#pragma unroll
    for (int j = 0; j < kStripRun; ++j) {
      *to.at(row, column + j) = tile.is_inside(map_row, tile.x + column + j) ? sums[j] : Acc(0);
    }
  });
}

}  // namespace attnops::cuda
