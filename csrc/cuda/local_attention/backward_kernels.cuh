// Backward of local attention, from grad = d out and the forward's lse. With s, p as in the forward
// and neighbours j = i + o(n):
//
//   dp[i, n] = <grad[i], value[j]>      delta[i] = sum_n p dp      ds = p (dp - delta)
//   dquery[i] = scale * sum_n ds[i, n] key[j]
//   dkey[j] = scale * sum_i ds[i, j] query[i]      dvalue[j] = sum_i p[i, j] grad[i]
//
// The window is symmetric: the positions i that see j are j's own window, and the sums at j are the
// forward's with query and grad in the role of key and value. So both kernels gather, without
// atomics, and compute the scores again: nothing of kh * kw elements a position leaves the block.
//
// Maps as in the forward, grad and dvalue like value, the other gradients like query; lse
// `[B, H, W]`, statistics `[B, H, W, 2]`. Grid as in the forward.
#pragma once

#include <cmath>

#include "products.cuh"

namespace attnops::cuda {

// Both products of the backward, in s_weights: scale * <a, b> of queries and keys, then <a, b> of
// grad and value, where a is at the tile's positions and b at their neighbours. One copy of the
// code serves both. Ends with a barrier.
template <typename T, int kSpan>
__device__ __forceinline__ void correlate_both(const Tile<T>& tile, const T* p_key_a,
                                               const T* p_key_b, const T* p_value_a,
                                               const T* p_value_b, accumulator_t<T> scale) {
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    const bool keys = which == 0;
    const SampleLayout layout = tile.layout(keys);
    const int64_t first = tile.sample * layout.size();
    correlate<T, kSpan>(tile, layout, (keys ? p_key_a : p_value_a) + first,
                        (keys ? p_key_b : p_value_b) + first, keys ? scale : accumulator_t<T>(1),
                        tile.s_weights + which * tile.weights());
  }
}

// What a query position keeps of the first kernel for the second. lse is rounded in proportion to
// the scores; so exp(s - lse) is divided by its own sum, and p adds up to 1 however large they are.
template <typename Acc>
struct alignas(2 * sizeof(Acc)) QueryStatistics {
  Acc sum;
  Acc delta;
};

// dquery and statistics, at the positions of queries. Moved per position, with r as in the forward:
// Ck (1 + 2 r) + Cv (1 + r) elements in, Ck out, lse and statistics.
template <typename T, int kSpan>
__global__ void __launch_bounds__(kLocalThreads, 2)
    local_backward_query_kernel(const T* __restrict__ p_grad, const T* __restrict__ p_query,
                                const T* __restrict__ p_key, const T* __restrict__ p_value,
                                const accumulator_t<T>* __restrict__ p_lse,
                                T* __restrict__ p_dquery,
                                QueryStatistics<accumulator_t<T>>* __restrict__ p_statistics,
                                accumulator_t<T> scale, const __grid_constant__ LocalPlan plan) {
  using Acc = accumulator_t<T>;
  ATTNOPS_DYNAMIC_SHARED(shared);
  const Tile<T> tile = make_tile<T>(plan, 2, shared);
  correlate_both<T, kSpan>(tile, p_query, p_key, p_grad, p_value, scale);

  Acc* s_weights = tile.s_weights;                // scores, then p
  Acc* s_gradients = s_weights + tile.weights();  // dp, then scale * ds
  p_lse += tile.sample * plan.pixels();
  p_statistics += tile.sample * plan.pixels();
  for (int index = threadIdx.x; index < tile.neighbour_stride(); index += blockDim.x) {
    const int pixel = tile.own_pixel(index);
    if (pixel < 0) continue;
    const Acc lse = p_lse[pixel];
    QueryStatistics<Acc> found{0, 0};
    tile.for_each_neighbour(index, [&](int weight, int neighbour) {
      const bool counts = !plan.mask || neighbour >= 0;
      const Acc exponential = counts ? std::exp(s_weights[weight] - lse) : Acc(0);
      s_weights[weight] = exponential;
      found.sum += exponential;
    });
    tile.for_each_neighbour(index, [&](int weight, int) {
      const Acc p = s_weights[weight] / found.sum;
      s_weights[weight] = p;
      found.delta += p * s_gradients[weight];
    });
    tile.for_each_neighbour(index, [&](int weight, int) {
      s_gradients[weight] = scale * s_weights[weight] * (s_gradients[weight] - found.delta);
    });
    p_statistics[pixel] = found;
  }
  const SampleLayout keys = tile.layout(true);
  const int64_t first = tile.sample * keys.size();
  aggregate<T, kSpan>(tile, keys, s_gradients, p_key + first, p_dquery + first);
}

// dkey and dvalue, at the positions of keys; the neighbours of a key are the queries that see
// it. Moved per position: (Ck + Cv) (1 + 2 r) elements in, Ck + Cv out; lse and statistics of
// every neighbour.
template <typename T, int kSpan>
__global__ void __launch_bounds__(kLocalThreads, 2)
    local_backward_key_kernel(const T* __restrict__ p_grad, const T* __restrict__ p_query,
                              const T* __restrict__ p_key, const T* __restrict__ p_value,
                              const accumulator_t<T>* __restrict__ p_lse,
                              const QueryStatistics<accumulator_t<T>>* __restrict__ p_statistics,
                              T* __restrict__ p_dkey, T* __restrict__ p_dvalue,
                              accumulator_t<T> scale, const __grid_constant__ LocalPlan plan) {
  using Acc = accumulator_t<T>;
  ATTNOPS_DYNAMIC_SHARED(shared);
  const Tile<T> tile = make_tile<T>(plan, 2, shared);
  correlate_both<T, kSpan>(tile, p_key, p_query, p_value, p_grad, scale);

  Acc* s_weights = tile.s_weights;                // scores, then scale * ds
  Acc* s_gradients = s_weights + tile.weights();  // dp, then p
  p_lse += tile.sample * plan.pixels();
  p_statistics += tile.sample * plan.pixels();
  for (int index = threadIdx.x; index < tile.neighbour_stride(); index += blockDim.x) {
    tile.for_each_neighbour(index, [&](int weight, int query_pixel) {
      Acc p = 0;
      Acc ds = 0;
      if (query_pixel >= 0) {
        const QueryStatistics<Acc> of_query = p_statistics[query_pixel];
        p = std::exp(s_weights[weight] - p_lse[query_pixel]) / of_query.sum;
        ds = scale * p * (s_gradients[weight] - of_query.delta);
      }
      s_weights[weight] = ds;
      s_gradients[weight] = p;
    });
  }
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    const bool keys = which == 0;
    const SampleLayout layout = tile.layout(keys);
    const int64_t first = tile.sample * layout.size();
    aggregate<T, kSpan>(tile, layout, s_weights + which * tile.weights(),
                        (keys ? p_query : p_grad) + first, (keys ? p_dkey : p_dvalue) + first);
  }
}

}  // namespace attnops::cuda
