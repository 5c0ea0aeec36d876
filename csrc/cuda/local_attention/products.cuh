// The two sums of local attention over a tile, in forward and backward alike. With o(n) the offset
// of neighbour n, and b zero outside the map:
//
//   correlate:  weights[n, i] = scale * sum over c of a[c, i] * b[c, i + o(n)]
//   aggregate:  out[c, i] = sum over n of weights[n, i] * b[c, i + o(n)]
//
// Channels pass through shared memory, kStaged vectors of 16 bytes of every position at a time.
#pragma once

#include "tile.cuh"

namespace attnops::cuda {

// The whole vector is read at once.
template <typename T>
__device__ __forceinline__ void widen_channels(const Channels<T>* s_from,
                                               accumulator_t<T> (&wide)[kWidth<T>]) {
  const Channels<T> channels = *s_from;
#pragma unroll
  for (int e = 0; e < kWidth<T>; ++e) wide[e] = widen(channels.value[e]);
}

// bfloat16 is the upper half of a float: one operation an element, on pairs of them.
template <>
__device__ __forceinline__ void widen_channels<__nv_bfloat16>(
    const Channels<__nv_bfloat16>* s_from, float (&wide)[kWidth<__nv_bfloat16>]) {
  const Channels<__nv_bfloat16> channels = *s_from;
#pragma unroll
  for (int e = 0; e < kWidth<__nv_bfloat16>; e += 2) {
    unsigned pair;
    memcpy(&pair, channels.value + e, sizeof(pair));
    wide[e] = __uint_as_float(pair << 16);
    wide[e + 1] = __uint_as_float(pair & 0xFFFF0000u);
  }
}

// 16-byte vectors of channels that are left, at most those of one stage.
template <typename T>
__device__ __forceinline__ int staged_vectors(int channels, int channel) {
  return min(kStaged, (channels - channel + kWidth<T> - 1) / kWidth<T>);
}

// Adds the products of kWidth channels of a run's kRun positions and the kSpan neighbours of each,
// in one row of the window. Neighbouring positions share neighbours: kRun + kSpan - 1 in all.
template <typename T, int kSpan>
__device__ __forceinline__ void add_products(const Channels<T>* s_own, const Channels<T>* s_halo,
                                             int step, accumulator_t<T> (&sums)[kSpan][kRun]) {
  using Acc = accumulator_t<T>;
  Acc own[kRun][kWidth<T>];
#pragma unroll
  for (int i = 0; i < kRun; ++i) widen_channels<T>(s_own + i * step, own[i]);
#pragma unroll
  for (int t = 0; t < kRun + kSpan - 1; ++t) {
    Acc neighbour[kWidth<T>];
    widen_channels<T>(s_halo + t * step, neighbour);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int n = t - i;
      if (n < 0 || n >= kSpan) continue;
#pragma unroll
      for (int e = 0; e < kWidth<T>; ++e) sums[n][i] += own[i][e] * neighbour[e];
    }
  }
}

// s_weights [neighbours, runs, kRun] <- scale * products of `a` at the tile's positions and `b` at
// their neighbours. A thread owns a run and kSpan columns of one row of the window: kRun * kSpan
// sums in registers over all channels. Ends with a barrier.
template <typename T, int kSpan>
__device__ __forceinline__ void correlate(const Tile<T>& tile, const SampleLayout& layout,
                                          const T* p_a, const T* p_b, accumulator_t<T> scale,
                                          accumulator_t<T>* s_weights) {
  using Acc = accumulator_t<T>;
  const LocalPlan& plan = tile.plan;
  const int spans = plan.kernel_width / kSpan;
  const int runs = plan.runs();
  const int units = runs * plan.kernel_height * spans;
  for (int first = 0; first < units; first += blockDim.x) {
    const int unit = first + threadIdx.x;
    const bool busy = unit < units;
    const int run = unit % runs;
    const int window_row = unit / runs / spans;
    const int window_column = unit / runs % spans * kSpan;
    const Channels<T>* s_own = tile.s_channels + tile.own_position(run);
    const Channels<T>* s_halo = tile.s_channels + tile.halo_position(run) +
                                window_row * plan.halo_pitch + window_column * plan.tile_images;
    Acc sums[kSpan][kRun] = {};
    for (int channel = 0; channel < layout.channels; channel += kStaged * kWidth<T>) {
      const int vectors = staged_vectors<T>(layout.channels, channel);
      tile.stage(layout, p_b, p_a, channel, vectors);
      __syncthreads();
      if (busy) {
#pragma unroll 1
        for (int vector = 0; vector < vectors; ++vector) {
          add_products<T, kSpan>(s_own + vector * plan.plane, s_halo + vector * plan.plane,
                                 plan.tile_images, sums);
        }
      }
      __syncthreads();
    }
    if (busy) {
      auto* s_sums = reinterpret_cast<Vector<Acc, kRun>*>(s_weights) + run;
#pragma unroll
      for (int neighbour = 0; neighbour < kSpan; ++neighbour) {
        Vector<Acc, kRun> scaled;
#pragma unroll
        for (int i = 0; i < kRun; ++i) scaled.value[i] = scale * sums[neighbour][i];
        s_sums[(window_row * plan.kernel_width + window_column + neighbour) * runs] = scaled;
      }
    }
  }
  __syncthreads();
}

// Adds the weighted neighbours of a run in one row of the window, kSpan columns of it.
template <typename T, int kSpan>
__device__ __forceinline__ void add_neighbours(const Vector<accumulator_t<T>, kRun>* s_weights,
                                               int neighbour_stride, const Channels<T>* s_halo,
                                               int step,
                                               accumulator_t<T> (&sums)[kRun][kWidth<T>]) {
  using Acc = accumulator_t<T>;
  Vector<Acc, kRun> weights[kSpan];
#pragma unroll
  for (int neighbour = 0; neighbour < kSpan; ++neighbour)
    weights[neighbour] = s_weights[neighbour * neighbour_stride];
#pragma unroll
  for (int t = 0; t < kRun + kSpan - 1; ++t) {
    Acc neighbour[kWidth<T>];
    widen_channels<T>(s_halo + t * step, neighbour);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int n = t - i;
      if (n < 0 || n >= kSpan) continue;
#pragma unroll
      for (int e = 0; e < kWidth<T>; ++e) sums[i][e] += weights[n].value[i] * neighbour[e];
    }
  }
}

// `out` at the tile's positions <- neighbours in `b` weighted by s_weights [neighbours, runs,
// kRun]. A thread owns a run and one vector of channels, over all neighbours. The sums go through
// shared memory, so that both layouts are written as they are read. Its first barrier also stands
// between whoever wrote the weights and their use; calls may follow each other.
template <typename T, int kSpan>
__device__ __forceinline__ void aggregate(const Tile<T>& tile, const SampleLayout& layout,
                                          const accumulator_t<T>* s_weights, const T* p_b,
                                          T* p_out) {
  using Acc = accumulator_t<T>;
  const LocalPlan& plan = tile.plan;
  const int runs = plan.runs();
  const auto* s_runs = reinterpret_cast<const Vector<Acc, kRun>*>(s_weights);
  for (int channel = 0; channel < layout.channels; channel += kStaged * kWidth<T>) {
    const int vectors = staged_vectors<T>(layout.channels, channel);
    tile.stage(layout, p_b, static_cast<const T*>(nullptr), channel, vectors);
    __syncthreads();
    const int vector = threadIdx.x % kStaged;
    for (int run = threadIdx.x / kStaged; run < runs && vector < vectors;
         run += blockDim.x / kStaged) {
      Channels<T>* s_plane = tile.s_channels + vector * plan.plane;
      const Channels<T>* s_halo = s_plane + tile.halo_position(run);
      Acc sums[kRun][kWidth<T>] = {};
      int neighbour = run;
#pragma unroll 1
      for (int row = 0; row < plan.kernel_height; ++row) {
#pragma unroll 1
        for (int column = 0; column < plan.kernel_width;
             column += kSpan, neighbour += kSpan * runs) {
          add_neighbours<T, kSpan>(s_runs + neighbour, runs,
                                   s_halo + row * plan.halo_pitch + column * plan.tile_images,
                                   plan.tile_images, sums);
        }
      }
      Channels<T>* s_own = s_plane + tile.own_position(run);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        Channels<T> narrowed;
#pragma unroll
        for (int e = 0; e < kWidth<T>; ++e) narrowed.value[e] = narrow<T>(sums[i][e]);
        s_own[i * plan.tile_images] = narrowed;
      }
    }
    __syncthreads();
    tile.store_own(layout, p_out, channel, vectors);
  }
}

}  // namespace attnops::cuda
