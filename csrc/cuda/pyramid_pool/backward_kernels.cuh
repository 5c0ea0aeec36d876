// Backward of pyramid pooling. Every kernel gathers, without atomics.
//
// Mean: grad_x[b, c, h, w] = sum over the bins that hold (h, w) of grad[b, c, s] / pixels(s). The
// sum is the same for all pixels of a (row strip, column piece), see plan.h, and is
// built in two steps: over the row bins that hold the strip, then over the column bins that hold
// the piece. Moved per plane: S elements in (once per strip for channels_last), H * W elements out.
//
// Max: grad_x is zero but for the pixels that are a maximum of some bin.
#pragma once

#include "cuda/common/element.cuh"
#include "kernels.cuh"
#include "plan.h"

namespace attnops::cuda {

constexpr int kSpreadThreads = 256;
constexpr int kScatterThreads = 256;

// The bins [first, last] of one level that hold an input. The division is in 32 bits where it can
// be.
struct BinRange {
  uint8_t first;
  uint8_t last;
};

__device__ __forceinline__ BinRange bins_holding(int input, int n, int size) {
  if (size < INT32_MAX / kMaxBins) {
    const unsigned scaled = static_cast<unsigned>(input) * n;
    return {static_cast<uint8_t>(scaled / size), static_cast<uint8_t>((scaled + n - 1) / size)};
  }
  return {static_cast<uint8_t>(first_bin_of(input, n, size)),
          static_cast<uint8_t>(last_bin_of(input, n, size))};
}

// Tables in shared memory: threads of a warp would read different entries of a Plan, which constant
// memory serves one by one.

// s_ranges[k * levels + level]: the bins of `level` that hold piece `first_piece + k` of the axis.
__device__ __forceinline__ void find_ranges(const Levels& levels, const Axis& axis, int first_piece,
                                            int pieces, BinRange* s_ranges) {
  for (int task = threadIdx.x; task < levels.count * pieces; task += blockDim.x) {
    const int piece = first_piece + task / levels.count;
    const int level = task % levels.count;
    s_ranges[task] = bins_holding(axis.cut[piece], levels.size[level], axis.size);
  }
}

// s_lengths[bin]: inputs of the bin, for the bins of all levels.
__device__ __forceinline__ void find_lengths(const Levels& levels, const Axis& axis,
                                             int* s_lengths) {
  for (int bin = threadIdx.x; bin < levels.bins; bin += blockDim.x) {
    s_lengths[bin] = axis.cut[axis.last[bin]] - axis.cut[axis.first[bin]];
  }
}

// Sum over the row bins `range` of a level of grad / pixels, for one column bin of `length`
// columns. p_grad points at the first of the level's n x n cells in that column, s_row_lengths at
// the first of its row bins.
template <typename T>
__device__ __forceinline__ accumulator_t<T> sum_row_bins(const T* __restrict__ p_grad,
                                                         BinRange range, int n,
                                                         const int* s_row_lengths, int length) {
  using Acc = accumulator_t<T>;
  Acc sum = 0;
  for (int i = range.first; i <= range.last; ++i) {
    sum += widen(p_grad[i * n]) / static_cast<Acc>(length * s_row_lengths[i]);
  }
  return sum;
}

// How a block of the contiguous backward divides its work.
struct SpreadTiling {
  int lanes;
  int groups;
  int strips;        // a block owns
  int strips_pitch;  // of s_rows; odd, >= strips
  int pieces_pitch;  // of s_values; odd, >= pieces
};

// grad `[planes, S]` -> grad_x `[planes, H, W]`. Grid (planes, shares of the strips); a block owns
// `strips` strips of one plane. Shared: s_rows [bins, strips_pitch] (sums over row bins), s_values
// [strips, pieces_pitch] (final values), s_cut [pieces + 1], lengths of row and of column bins,
// ranges of strips and of pieces.
template <typename T, int kVec>
__global__ void __launch_bounds__(kSpreadThreads, 3)
    spread_contiguous_kernel(const T* __restrict__ p_grad, T* __restrict__ p_grad_x,
                             SpreadTiling tiling, const __grid_constant__ Plan plan) {
  using Acc = accumulator_t<T>;
  const Axis& rows = plan.rows;
  const Axis& columns = plan.columns;
  const Levels& levels = plan.levels;
  const int width = columns.size;
  const int64_t plane = blockIdx.x;
  const int first_strip = blockIdx.y * tiling.strips;
  const int strips = min(tiling.strips, rows.pieces - first_strip);

  ATTNOPS_DYNAMIC_SHARED(shared);
  Acc* s_rows = reinterpret_cast<Acc*>(shared);
  Acc* s_values = s_rows + levels.bins * tiling.strips_pitch;
  int* s_cut = reinterpret_cast<int*>(s_values + tiling.strips * tiling.pieces_pitch);
  int* s_row_lengths = s_cut + columns.pieces + 1;
  int* s_column_lengths = s_row_lengths + levels.bins;
  BinRange* s_row_ranges = reinterpret_cast<BinRange*>(s_column_lengths + levels.bins);
  BinRange* s_column_ranges = s_row_ranges + levels.count * tiling.strips;

  find_ranges(levels, rows, first_strip, strips, s_row_ranges);
  find_ranges(levels, columns, 0, columns.pieces, s_column_ranges);
  find_lengths(levels, rows, s_row_lengths);
  find_lengths(levels, columns, s_column_lengths);
  for (int k = threadIdx.x; k <= columns.pieces; k += blockDim.x) s_cut[k] = columns.cut[k];
  __syncthreads();

  p_grad += plane * levels.cells;
  for (int task = threadIdx.x; task < levels.bins * strips; task += blockDim.x) {
    const int strip = task % strips;
    const int bin = task / strips;
    int level = 0;
    int first_bin = 0;
    int first_cell = 0;
    int n = levels.size[0];
    while (bin >= first_bin + n) {
      first_bin += n;
      first_cell += n * n;
      n = levels.size[++level];
    }
    s_rows[bin * tiling.strips_pitch + strip] = sum_row_bins(
        p_grad + first_cell + bin - first_bin, s_row_ranges[strip * levels.count + level], n,
        s_row_lengths + first_bin, s_column_lengths[bin]);
  }
  __syncthreads();

  for (int task = threadIdx.x; task < columns.pieces * strips; task += blockDim.x) {
    const int strip = task % strips;
    const int piece = task / strips;
    Acc sum = 0;
    for (int level = 0, first_bin = 0; level < levels.count; first_bin += levels.size[level++]) {
      const BinRange range = s_column_ranges[piece * levels.count + level];
      for (int j = range.first; j <= range.last; ++j) {
        sum += s_rows[(first_bin + j) * tiling.strips_pitch + strip];
      }
    }
    s_values[strip * tiling.pieces_pitch + piece] = sum;
  }
  __syncthreads();

  const int lane = threadIdx.x % tiling.lanes;
  const int group = threadIdx.x / tiling.lanes;
  if (group >= tiling.groups) return;
  p_grad_x += plane * rows.size * width;
  for (int column = lane * kVec; column < width; column += tiling.lanes * kVec) {
    // The pieces of this thread's columns: the last one that starts at or before the first column,
    // then onwards.
    int piece[kVec];
    int low = 0;
    for (int high = columns.pieces; high - low > 1;) {
      const int middle = (low + high) / 2;
      if (s_cut[middle] <= column) {
        low = middle;
      } else {
        high = middle;
      }
    }
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      if (column + e >= s_cut[low + 1]) ++low;
      piece[e] = low;
    }
    for (int strip = group; strip < strips; strip += tiling.groups) {
      Vector<T, kVec> value;
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        value.value[e] = narrow<T>(s_values[strip * tiling.pieces_pitch + piece[e]]);
      }
      const int stop = rows.cut[first_strip + strip + 1];
      for (int row = rows.cut[first_strip + strip]; row < stop; ++row) {
        *reinterpret_cast<Vector<T, kVec>*>(p_grad_x + static_cast<int64_t>(row) * width + column) =
            value;
      }
    }
  }
}

// grad `[B, C, S]` -> grad_x `[B, H, W, C]`, C a multiple of kVec. Grid: B * strips * channel
// tiles, channel tiles fastest; a block owns one strip of lanes * kVec channels of a sample.
// Shared: s_rows [bins, lanes * kVec] (sums over row bins), lengths of row and of column bins,
// ranges of the pieces.
template <typename T, int kVec>
__global__ void __launch_bounds__(kSpreadThreads, 3)
    spread_channels_last_kernel(const T* __restrict__ p_grad, T* __restrict__ p_grad_x,
                                int64_t channels, ChannelsLastTiling tiling,
                                const __grid_constant__ Plan plan) {
  using Acc = accumulator_t<T>;
  const Axis& rows = plan.rows;
  const Axis& columns = plan.columns;
  const Levels& levels = plan.levels;
  const int width = columns.size;
  const int tile_channels = tiling.lanes * kVec;
  const int64_t block = blockIdx.x / tiling.channel_tiles;
  const int64_t first_channel =
      static_cast<int64_t>(blockIdx.x % tiling.channel_tiles) * tile_channels;
  const int strip = static_cast<int>(block % rows.pieces);
  const int64_t sample = block / rows.pieces;
  const int row = rows.cut[strip];
  const int height = rows.cut[strip + 1] - row;

  ATTNOPS_DYNAMIC_SHARED(shared);
  Acc* s_rows = reinterpret_cast<Acc*>(shared);
  int* s_row_lengths = reinterpret_cast<int*>(s_rows + levels.bins * tile_channels);
  int* s_column_lengths = s_row_lengths + levels.bins;
  BinRange* s_ranges = reinterpret_cast<BinRange*>(s_column_lengths + levels.bins);

  find_ranges(levels, columns, 0, columns.pieces, s_ranges);
  find_lengths(levels, rows, s_row_lengths);
  find_lengths(levels, columns, s_column_lengths);
  __syncthreads();

  p_grad += (sample * channels + first_channel) * levels.cells;
  for (int level = 0, first_bin = 0, first_cell = 0; level < levels.count; ++level) {
    const int n = levels.size[level];
    const BinRange range = bins_holding(row, n, rows.size);
    for (int task = threadIdx.x; task < n * tile_channels; task += blockDim.x) {
      const int column = task % n;
      const int c = task / n;
      if (first_channel + c >= channels) continue;
      s_rows[(first_bin + column) * tile_channels + c] =
          sum_row_bins(p_grad + static_cast<int64_t>(c) * levels.cells + first_cell + column, range,
                       n, s_row_lengths + first_bin, s_column_lengths[first_bin + column]);
    }
    first_bin += n;
    first_cell += n * n;
  }
  __syncthreads();

  const int lane = threadIdx.x % tiling.lanes;
  const int64_t channel = first_channel + lane * kVec;
  if (channel >= channels) return;
  T* p_row = p_grad_x + (sample * rows.size + row) * width * channels + channel;
  for (int piece = threadIdx.x / tiling.lanes; piece < columns.pieces; piece += tiling.walkers) {
    Acc sum[kVec] = {};
    for (int level = 0, first_bin = 0; level < levels.count; first_bin += levels.size[level++]) {
      const BinRange range = s_ranges[piece * levels.count + level];
      for (int j = range.first; j <= range.last; ++j) {
        const auto term = *reinterpret_cast<const Vector<Acc, kVec>*>(
            s_rows + (first_bin + j) * tile_channels + lane * kVec);
#pragma unroll
        for (int e = 0; e < kVec; ++e) sum[e] += term.value[e];
      }
    }
    Vector<T, kVec> value;
#pragma unroll
    for (int e = 0; e < kVec; ++e) value.value[e] = narrow<T>(sum[e]);
    for (int h = 0; h < height; ++h) {
      for (int column = columns.cut[piece]; column < columns.cut[piece + 1]; ++column) {
        *reinterpret_cast<Vector<T, kVec>*>(p_row + (static_cast<int64_t>(h) * width + column) *
                                                        channels) = value;
      }
    }
  }
}

// Max. grad, argmax `[planes, S]` -> grad_x, zero before, `[B, C, H, W]` contiguous or
// channels_last. Grid: ceil(planes * S / 256); a thread owns one cell. All cells with the same
// maximum hold that pixel, so they are found from the pixel; the first of them writes the sum for
// all.
template <typename T>
__global__ void __launch_bounds__(kScatterThreads)
    scatter_max_kernel(const T* __restrict__ p_grad, const int32_t* __restrict__ p_argmax,
                       T* __restrict__ p_grad_x, int64_t planes, int64_t channels, int height,
                       int width, bool channels_last, const __grid_constant__ Levels levels) {
  const int64_t task = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (task >= planes * levels.cells) return;
  const int64_t plane = task / levels.cells;
  const int cell = static_cast<int>(task % levels.cells);
  p_grad += plane * levels.cells;
  p_argmax += plane * levels.cells;
  const int pixel = p_argmax[cell];
  const int h = pixel / width;
  const int w = pixel % width;
  // Not from the forward of a map of this size.
  if (pixel < 0 || h >= height) return;

  accumulator_t<T> sum = 0;
  for (int level = 0, first_cell = 0; level < levels.count; ++level) {
    const int n = levels.size[level];
    const BinRange row_bins = bins_holding(h, n, height);
    const BinRange column_bins = bins_holding(w, n, width);
    for (int i = row_bins.first; i <= row_bins.last; ++i) {
      for (int j = column_bins.first; j <= column_bins.last; ++j) {
        const int other = first_cell + i * n + j;
        if (p_argmax[other] != pixel) continue;
        if (other < cell) return;
        sum += widen(p_grad[other]);
      }
    }
    first_cell += n * n;
  }
  const int64_t at = channels_last
                         ? (plane / channels * height * width + pixel) * channels + plane % channels
                         : plane * height * width + pixel;
  p_grad_x[at] = narrow<T>(sum);
}

}  // namespace attnops::cuda
