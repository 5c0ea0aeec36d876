// The two sums of local attention over a tile, in forward and backward alike. With o(n) the offset
// of tap n, and b zero outside the map:
//
//   correlate:  weights[n, i] = scale * sum over c of a[c, i] * b[c, i + o(n)]
//   aggregate:  out[c, i] = sum over n of weights[n, i] * b[c, i + o(n)]
//
// Channels pass through shared memory, STAGED vectors of 16 bytes of every position at a time.
#pragma once

#include "tile.cuh"

namespace attnops::cuda {

// The whole vector is read at once.
template <typename T>
__device__ __forceinline__ void widen_channels(const Channels<T>* s_from,
                                               accumulator_t<T> (&wide)[WIDTH<T>]) {
  const Channels<T> channels = *s_from;
#pragma unroll
  for (int e = 0; e < WIDTH<T>; ++e) wide[e] = widen(channels.value[e]);
}

// bfloat16 is the upper half of a float: one operation an element, on pairs of them.
template <>
__device__ __forceinline__ void widen_channels<__nv_bfloat16>(const Channels<__nv_bfloat16>* s_from,
                                                              float (&wide)[WIDTH<__nv_bfloat16>]) {
  const Channels<__nv_bfloat16> channels = *s_from;
#pragma unroll
  for (int e = 0; e < WIDTH<__nv_bfloat16>; e += 2) {
    unsigned pair;
    memcpy(&pair, channels.value + e, sizeof(pair));
    wide[e] = __uint_as_float(pair << 16);
    wide[e + 1] = __uint_as_float(pair & 0xFFFF0000u);
  }
}

// 16-byte vectors of channels that are left, at most those of one stage.
template <typename T>
__device__ __forceinline__ int staged_vectors(int channels, int channel) {
  return min(STAGED, (channels - channel + WIDTH<T> - 1) / WIDTH<T>);
}

// Adds the products of WIDTH channels of a run's RUN positions and the SPAN neighbours of each, in
// one row of the window. Neighbouring positions share neighbours: RUN + SPAN - 1 in all.
template <typename T, int SPAN>
__device__ __forceinline__ void add_products(const Channels<T>* s_own, const Channels<T>* s_halo,
                                             int step, accumulator_t<T> (&sums)[SPAN][RUN]) {
  using Acc = accumulator_t<T>;
  Acc own[RUN][WIDTH<T>];
#pragma unroll
  for (int i = 0; i < RUN; ++i) widen_channels<T>(s_own + i * step, own[i]);
#pragma unroll
  for (int t = 0; t < RUN + SPAN - 1; ++t) {
    Acc neighbour[WIDTH<T>];
    widen_channels<T>(s_halo + t * step, neighbour);
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
      const int tap = t - i;
      if (tap < 0 || tap >= SPAN) continue;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e) sums[tap][i] += own[i][e] * neighbour[e];
    }
  }
}

// s_weights [taps, runs, RUN] <- scale * products of `a` at the tile's positions and `b` at their
// neighbours. A thread owns a run and SPAN columns of one row of the window: RUN * SPAN sums in
// registers over all channels. Ends with a barrier.
template <typename T, int SPAN>
__device__ __forceinline__ void correlate(const Tile<T>& tile, const SampleLayout& layout,
                                          const T* p_a, const T* p_b, accumulator_t<T> scale,
                                          accumulator_t<T>* s_weights) {
  using Acc = accumulator_t<T>;
  const LocalPlan& plan = tile.plan;
  const int spans = plan.kernel_width / SPAN;
  const int runs = plan.runs();
  const int units = runs * plan.kernel_height * spans;
  for (int first = 0; first < units; first += blockDim.x) {
    const int unit = first + threadIdx.x;
    const bool busy = unit < units;
    const int run = unit % runs;
    const int tap_row = unit / runs / spans;
    const int tap_column = unit / runs % spans * SPAN;
    const Channels<T>* s_own = tile.s_channels + tile.own_position(run);
    const Channels<T>* s_halo = tile.s_channels + tile.halo_position(run) +
                                tap_row * plan.halo_pitch + tap_column * plan.tile_images;
    Acc sums[SPAN][RUN] = {};
    for (int channel = 0; channel < layout.channels; channel += STAGED * WIDTH<T>) {
      const int vectors = staged_vectors<T>(layout.channels, channel);
      tile.stage(layout, p_b, p_a, channel, vectors);
      __syncthreads();
      if (busy) {
#pragma unroll 1
        for (int vector = 0; vector < vectors; ++vector) {
          add_products<T, SPAN>(s_own + vector * plan.plane, s_halo + vector * plan.plane,
                                plan.tile_images, sums);
        }
      }
      __syncthreads();
    }
    if (busy) {
      auto* s_sums = reinterpret_cast<Vector<Acc, RUN>*>(s_weights) + run;
#pragma unroll
      for (int tap = 0; tap < SPAN; ++tap) {
        Vector<Acc, RUN> scaled;
#pragma unroll
        for (int i = 0; i < RUN; ++i) scaled.value[i] = scale * sums[tap][i];
        s_sums[(tap_row * plan.kernel_width + tap_column + tap) * runs] = scaled;
      }
    }
  }
  __syncthreads();
}

// Adds the weighted neighbours of a run in one row of the window, SPAN columns of it.
template <typename T, int SPAN>
__device__ __forceinline__ void add_neighbours(const Vector<accumulator_t<T>, RUN>* s_weights,
                                               int tap_stride, const Channels<T>* s_halo, int step,
                                               accumulator_t<T> (&sums)[RUN][WIDTH<T>]) {
  using Acc = accumulator_t<T>;
  Vector<Acc, RUN> weights[SPAN];
#pragma unroll
  for (int tap = 0; tap < SPAN; ++tap) weights[tap] = s_weights[tap * tap_stride];
#pragma unroll
  for (int t = 0; t < RUN + SPAN - 1; ++t) {
    Acc neighbour[WIDTH<T>];
    widen_channels<T>(s_halo + t * step, neighbour);
#pragma unroll
    for (int i = 0; i < RUN; ++i) {
      const int tap = t - i;
      if (tap < 0 || tap >= SPAN) continue;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e) sums[i][e] += weights[tap].value[i] * neighbour[e];
    }
  }
}

// `out` at the tile's positions <- neighbours in `b` weighted by s_weights [taps, runs, RUN]. A
// thread owns a run and one vector of channels, over all taps. The sums go through shared
// memory, so that both layouts are written as they are read. Its first barrier also stands between
// whoever wrote the weights and their use; calls may follow each other.
template <typename T, int SPAN>
__device__ __forceinline__ void aggregate(const Tile<T>& tile, const SampleLayout& layout,
                                          const accumulator_t<T>* s_weights, const T* p_b,
                                          T* p_out) {
  using Acc = accumulator_t<T>;
  const LocalPlan& plan = tile.plan;
  const int runs = plan.runs();
  const auto* s_taps = reinterpret_cast<const Vector<Acc, RUN>*>(s_weights);
  for (int channel = 0; channel < layout.channels; channel += STAGED * WIDTH<T>) {
    const int vectors = staged_vectors<T>(layout.channels, channel);
    tile.stage(layout, p_b, static_cast<const T*>(nullptr), channel, vectors);
    __syncthreads();
    const int vector = threadIdx.x % STAGED;
    for (int run = threadIdx.x / STAGED; run < runs && vector < vectors;
         run += blockDim.x / STAGED) {
      Channels<T>* s_plane = tile.s_channels + vector * plan.plane;
      const Channels<T>* s_halo = s_plane + tile.halo_position(run);
      Acc sums[RUN][WIDTH<T>] = {};
      int tap = run;
#pragma unroll 1
      for (int row = 0; row < plan.kernel_height; ++row) {
#pragma unroll 1
        for (int column = 0; column < plan.kernel_width; column += SPAN, tap += SPAN * runs) {
          add_neighbours<T, SPAN>(s_taps + tap, runs,
                                  s_halo + row * plan.halo_pitch + column * plan.tile_images,
                                  plan.tile_images, sums);
        }
      }
      Channels<T>* s_own = s_plane + tile.own_position(run);
#pragma unroll
      for (int i = 0; i < RUN; ++i) {
        Channels<T> narrowed;
#pragma unroll
        for (int e = 0; e < WIDTH<T>; ++e) narrowed.value[e] = narrow<T>(sums[i][e]);
        s_own[i * plan.tile_images] = narrowed;
      }
    }
    __syncthreads();
    tile.store_own(layout, p_out, channel, vectors);
  }
}

}  // namespace attnops::cuda
