// Forward of local attention. At every position i, with neighbours i + o(n):
//
//   p[n] = softmax over n of scale * <query[i], key[i + o(n)]>
//   out[i] = sum over n of p[n] * value[i + o(n)]
//
// A neighbour outside the map has score and value 0, or is left out (mask).
//
// query, key `[B, Ck, H, W]`, value, out `[B, Cv, H, W]`: contiguous or channels_last; lse
// `[B, H, W]`: logarithm of the softmax's denominator.
//
// Grid: one block a tile (plan.h), all channels of it; scores and weights of the
// tile stay in shared memory. Moved per position: Ck (1 + r) + Cv (1 + r) elements and lse, where r
// is the size of the halo over that of the tile, about 1.8 to 2.5; what r has above 1 comes from L2
// mostly, because neighbouring tiles run at the same time.
//
// Source: Li et al., Global Aggregation then Local Distribution (TIP 2021), eq. (6) and (7).
#pragma once

#include <cmath>

#include "products.cuh"

namespace attnops::cuda {

// Scores in s_weights become weights; writes lse. A thread owns a position.
template <typename T>
__device__ __forceinline__ void normalise(const Tile<T>& tile, accumulator_t<T>* p_lse) {
  using Acc = accumulator_t<T>;
  const bool mask = tile.plan.mask;
  Acc* s_weights = tile.s_weights;
  for (int index = threadIdx.x; index < tile.neighbour_stride(); index += blockDim.x) {
    const int pixel = tile.own_pixel(index);
    if (pixel < 0) continue;
    Acc largest = -INFINITY;
    tile.for_each_neighbour(index, [&](int weight, int neighbour) {
      if (mask && neighbour < 0) return;
      const Acc score = s_weights[weight];
      if (score > largest) largest = score;
    });
    Acc sum = 0;
    tile.for_each_neighbour(index, [&](int weight, int neighbour) {
      const bool counts = !mask || neighbour >= 0;
      const Acc exponential = counts ? std::exp(s_weights[weight] - largest) : Acc(0);
      s_weights[weight] = exponential;
      sum += exponential;
    });
    const Acc inverse = 1 / sum;
    tile.for_each_neighbour(index, [&](int weight, int) { s_weights[weight] *= inverse; });
    p_lse[tile.sample * tile.plan.pixels() + pixel] = largest + std::log(sum);
  }
}

template <typename T, int kSpan>
__global__ void __launch_bounds__(kLocalThreads, 2)
    local_forward_kernel(const T* __restrict__ p_query, const T* __restrict__ p_key,
                         const T* __restrict__ p_value, T* __restrict__ p_out,
                         accumulator_t<T>* __restrict__ p_lse, accumulator_t<T> scale,
                         const __grid_constant__ LocalPlan plan) {
  ATTNOPS_DYNAMIC_SHARED(shared);
  const Tile<T> tile = make_tile<T>(plan, 1, shared);
  const SampleLayout keys = tile.layout(true);
  const SampleLayout values = tile.layout(false);
  const int64_t first_key = tile.sample * keys.size();
  const int64_t first_value = tile.sample * values.size();

  correlate<T, kSpan>(tile, keys, p_query + first_key, p_key + first_key, scale, tile.s_weights);
  normalise(tile, p_lse);
  aggregate<T, kSpan>(tile, values, tile.s_weights, p_value + first_value, p_out + first_value);
}

}  // namespace attnops::cuda
