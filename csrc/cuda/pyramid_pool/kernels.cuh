// Forward of pyramid pooling: out[b, c, s] = mean or max of x[b, c] over bin s of the pyramid.
//
// Every kernel reads x once, for all levels. Rows are cut into strips and columns into pieces at
// the edges of all bins (plan.h), so a bin is a run of strips times a run of pieces.
// The reduction goes columns of a strip -> pieces -> bins along the row -> bins; sums are in the
// accumulator's type and in a fixed order.
//
// Moved per plane: H * W elements in, S out; where a plane is shared by several blocks also
// strips * bins partials out and in (a few per cent of x), merged by pool_combine_kernel.
#pragma once

#include "reduce.cuh"

namespace attnops::cuda {

constexpr int kContiguousThreads = 256;
constexpr int kChannelsLastThreads = 512;
constexpr int kCombineThreads = 256;
constexpr int kCombineTile = 32;

// How a block of pool_contiguous_kernel divides its work.
struct ContiguousTiling {
  int lanes;             // threads side by side along a row
  int groups;            // rows of such threads; each takes whole strips
  int tile;              // columns read at once: lanes * kVec
  int pitch;             // of s_columns; odd, so that a column of it spreads over the banks
  int strips;            // strips a block owns; less than all: the plane is shared
  int bins_pitch;        // of s_bins; odd, >= strips
  int strips_per_round;  // strips that s_columns holds
};

// x `[planes, H, W]` contiguous. Grid (planes, shares of the strips); a block owns `strips` strips
// of one plane. If that is all of them it writes out `[planes, S]` (and argmax `[planes, S]` for
// max), else p_partials `[strips of the plane, bins, planes]`. Shared: s_columns [strips_per_round,
// pitch], s_pieces [pieces, strips_per_round], s_bins [bins, bins_pitch].
template <typename T, int kVec, typename Reduce>
__global__ void __launch_bounds__(kContiguousThreads, 3)
    pool_contiguous_kernel(const T* __restrict__ p_x, T* __restrict__ p_out,
                           int32_t* __restrict__ p_argmax,
                           typename Reduce::Partial* __restrict__ p_partials, int64_t planes,
                           ContiguousTiling tiling, const __grid_constant__ Plan plan) {
  using Partial = typename Reduce::Partial;
  // Narrow loads need more of them in flight.
  constexpr int kDepth = kVec > 1 ? 4 : 8;
  const Axis& rows = plan.rows;
  const Axis& columns = plan.columns;
  const Levels& levels = plan.levels;
  const int width = columns.size;
  const int64_t plane = blockIdx.x;
  const int first_strip = blockIdx.y * tiling.strips;
  const int strips = min(tiling.strips, rows.pieces - first_strip);
  const int lane = threadIdx.x % tiling.lanes;
  const int group = threadIdx.x / tiling.lanes;

  ATTNOPS_DYNAMIC_SHARED(shared);
  Partial* s_columns = reinterpret_cast<Partial*>(shared);
  Partial* s_pieces = s_columns + tiling.strips_per_round * tiling.pitch;
  Partial* s_bins = s_pieces + tiling.strips_per_round * columns.pieces;

  p_x += plane * rows.size * width;
  for (int round = 0; round < strips; round += tiling.strips_per_round) {
    const int count = min(tiling.strips_per_round, strips - round);
    for (int tile = 0; tile < width; tile += tiling.tile) {
      // Columns of the strips: every lane reads down its kVec columns.
      const int column = tile + lane * kVec;
      if (group < tiling.groups && column < width) {
        for (int strip = group; strip < count; strip += tiling.groups) {
          const int row = rows.cut[first_strip + round + strip];
          const int height = rows.cut[first_strip + round + strip + 1] - row;
          Partial partial[kVec];
          reduce_rectangle<Reduce, kDepth>(p_x + static_cast<int64_t>(row) * width + column, width,
                                           0, height, 1, row * width + column, width, 1, partial);
#pragma unroll
          for (int e = 0; e < kVec; ++e) {
            s_columns[strip * tiling.pitch + lane * kVec + e] = partial[e];
          }
        }
      }
      __syncthreads();
      // Pieces of the strips. Neighbouring threads take neighbouring strips of one piece.
      for (int task = threadIdx.x; task < count * columns.pieces; task += blockDim.x) {
        const int strip = task % count;
        const int piece = task / count;
        const int start = max(columns.cut[piece], tile);
        const int stop = min(columns.cut[piece + 1], tile + tiling.tile);
        if (tile > 0 && start >= stop) continue;
        Partial& s_piece = s_pieces[piece * tiling.strips_per_round + strip];
        Partial total = tile > 0 ? s_piece : Reduce::empty();
        for (int w = start; w < stop; ++w) {
          Reduce::merge(total, s_columns[strip * tiling.pitch + w - tile]);
        }
        s_piece = total;
      }
      __syncthreads();
    }
    // Bins along the row, for each strip.
    for (int task = threadIdx.x; task < count * levels.bins; task += blockDim.x) {
      const int strip = task % count;
      const int bin = task / count;
      Partial total = Reduce::empty();
      for (int piece = columns.first[bin]; piece < columns.last[bin]; ++piece) {
        Reduce::merge(total, s_pieces[piece * tiling.strips_per_round + strip]);
      }
      if (p_partials != nullptr) {
        const int64_t strip_of_plane = first_strip + round + strip;
        p_partials[(strip_of_plane * levels.bins + bin) * planes + plane] = total;
      } else {
        s_bins[bin * tiling.bins_pitch + round + strip] = total;
      }
    }
  }
  if (p_partials != nullptr) return;
  __syncthreads();

  for (int s = threadIdx.x; s < levels.cells; s += blockDim.x) {
    const Cell cell = locate_cell(levels, s);
    Partial total = Reduce::empty();
    for (int strip = rows.first[cell.row_bin]; strip < rows.last[cell.row_bin]; ++strip) {
      Reduce::merge(total, s_bins[cell.column_bin * tiling.bins_pitch + strip]);
    }
    total = Reduce::finish(total, count_pixels(plan, cell));
    p_out[plane * levels.cells + s] = narrow<T>(Reduce::value(total));
    if constexpr (Reduce::kHasIndex) p_argmax[plane * levels.cells + s] = Reduce::index(total);
  }
}

// How a block of the channels_last kernels divides its work.
struct ChannelsLastTiling {
  int lanes;          // threads side by side along the channels
  int walkers;        // rows of such threads; each takes whole pieces
  int channel_tiles;  // ceil(C / (lanes * kVec))
};

// x `[B, H, W, C]` (channels_last), C a multiple of kVec. Grid: B * strips * channel tiles, channel
// tiles fastest; a block owns one strip of lanes * kVec channels of a sample and writes
// p_partials `[B, strips, bins, C]`. Shared: s_pieces [pieces, lanes * kVec].
template <typename T, int kVec, typename Reduce>
__global__ void __launch_bounds__(kChannelsLastThreads)
    pool_channels_last_kernel(const T* __restrict__ p_x,
                              typename Reduce::Partial* __restrict__ p_partials, int64_t channels,
                              ChannelsLastTiling tiling, const __grid_constant__ Plan plan) {
  using Partial = typename Reduce::Partial;
  constexpr int kDepth = kVec > 1 ? 4 : 8;
  const Axis& rows = plan.rows;
  const Axis& columns = plan.columns;
  const int width = columns.size;
  const int tile_channels = tiling.lanes * kVec;
  const int64_t block = blockIdx.x / tiling.channel_tiles;
  const int64_t first_channel =
      static_cast<int64_t>(blockIdx.x % tiling.channel_tiles) * tile_channels;
  const int strip = static_cast<int>(block % rows.pieces);
  const int64_t sample = block / rows.pieces;
  const int lane = threadIdx.x % tiling.lanes;
  const int walker = threadIdx.x / tiling.lanes;

  ATTNOPS_DYNAMIC_SHARED(shared);
  Partial* s_pieces = reinterpret_cast<Partial*>(shared);

  const int row = rows.cut[strip];
  const int height = rows.cut[strip + 1] - row;
  const int64_t channel = first_channel + lane * kVec;
  if (channel < channels) {
    const T* p_row = p_x + (sample * rows.size + row) * width * channels + channel;
    for (int piece = walker; piece < columns.pieces; piece += tiling.walkers) {
      const int column = columns.cut[piece];
      Vector<Partial, kVec> partial;
      reduce_rectangle<Reduce, kDepth>(p_row + column * channels, width * channels, channels,
                                       height, columns.cut[piece + 1] - column,
                                       row * width + column, width, 0, partial.value);
      *reinterpret_cast<Vector<Partial, kVec>*>(s_pieces + piece * tile_channels + lane * kVec) =
          partial;
    }
  }
  __syncthreads();

  p_partials += (sample * rows.pieces + strip) * plan.levels.bins * channels + first_channel;
  for (int task = threadIdx.x; task < plan.levels.bins * tile_channels; task += blockDim.x) {
    const int bin = task / tile_channels;
    const int c = task % tile_channels;
    if (first_channel + c >= channels) continue;
    Partial total = Reduce::empty();
    for (int piece = columns.first[bin]; piece < columns.last[bin]; ++piece) {
      Reduce::merge(total, s_pieces[piece * tile_channels + c]);
    }
    p_partials[bin * channels + c] = total;
  }
}

// Merges the strips: p_partials `[B, strips, bins, C]` -> out, argmax `[B, C, S]`.
// Grid: B * ceil(C / 32) * ceil(S / 32), cells fastest; a block owns 32 channels x 32 cells and
// turns them around in shared memory, so that reads (along C) and writes (along S) are both
// coalesced.
template <typename T, typename Reduce>
__global__ void __launch_bounds__(kCombineThreads)
    pool_combine_kernel(const typename Reduce::Partial* __restrict__ p_partials,
                        T* __restrict__ p_out, int32_t* __restrict__ p_argmax, int64_t channels,
                        const __grid_constant__ Plan plan) {
  using Partial = typename Reduce::Partial;
  constexpr int kRows = kCombineThreads / kCombineTile;
  const Levels& levels = plan.levels;
  const int64_t channel_tiles = (channels + kCombineTile - 1) / kCombineTile;
  const int cell_tiles = (levels.cells + kCombineTile - 1) / kCombineTile;
  const int first_cell = static_cast<int>(blockIdx.x % cell_tiles) * kCombineTile;
  const int64_t block = blockIdx.x / cell_tiles;
  const int64_t first_channel = block % channel_tiles * kCombineTile;
  const int64_t sample = block / channel_tiles;
  const int lane = threadIdx.x % kCombineTile;

  ATTNOPS_SHARED_ARRAY(Partial, s_tile, [kCombineTile][kCombineTile + 1]);  // [cell, channel]

  p_partials += sample * plan.rows.pieces * levels.bins * channels + first_channel;
  for (int k = threadIdx.x / kCombineTile; k < kCombineTile; k += kRows) {
    if (first_cell + k >= levels.cells || first_channel + lane >= channels) continue;
    const Cell cell = locate_cell(levels, first_cell + k);
    Partial total = Reduce::empty();
#pragma unroll 4
    for (int strip = plan.rows.first[cell.row_bin]; strip < plan.rows.last[cell.row_bin]; ++strip) {
      Reduce::merge(
          total,
          p_partials[(static_cast<int64_t>(strip) * levels.bins + cell.column_bin) * channels +
                     lane]);
    }
    s_tile[k][lane] = Reduce::finish(total, count_pixels(plan, cell));
  }
  __syncthreads();
  for (int k = threadIdx.x / kCombineTile; k < kCombineTile; k += kRows) {
    const int64_t channel = first_channel + k;
    const int s = first_cell + lane;
    if (s >= levels.cells || channel >= channels) continue;
    const Partial total = s_tile[lane][k];
    const int64_t at = (sample * channels + channel) * levels.cells + s;
    p_out[at] = narrow<T>(Reduce::value(total));
    if constexpr (Reduce::kHasIndex) p_argmax[at] = Reduce::index(total);
  }
}

}  // namespace attnops::cuda
