// Forward of anchor attention.
//
//   scores[n, s] = scale sum over c of query[c, n] key[c, s] + bias[s]
//   out[c, n] = sum over s of softmax_s(scores[n, s]) value[c, s]
//
// Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
// section 3.2: the anchors are the pyramid-pooled positions of a map.
#pragma once

#include "products.cuh"

namespace attnops::cuda {

template <typename T>
struct AnchorForward {
  const T* query;  // [B, Ck, N], or [B, N, Ck] with channels_inner
  const T* key;    // [B, Ck, S]
  const T* value;  // [B, Cv, S]
  const T* bias;   // [B, S], or null
  T* out;          // [B, Cv, N], or [B, N, Cv]
  float* lse;      // [B, N]: log of the sum of exp(scores)
};

// Positions and channels of a map of one batch item, as rows and terms.
template <typename T>
__device__ __forceinline__ MapView<T> positions_of(const AnchorPlan& plan, const T* p_map,
                                                   int64_t item, int channels, bool wide) {
  return {p_map + item * channels * plan.positions,
          plan.channels_inner ? channels : plan.positions,
          plan.positions,
          channels,
          plan.channels_inner,
          wide};
}

template <typename T>
__device__ __forceinline__ TableView<T> anchors_of(const AnchorPlan& plan, const T* p_table,
                                                   int64_t item, int channels) {
  return {p_table + item * channels * plan.anchors, plan.anchors, channels, plan.anchors,
          plan.table_bytes};
}

template <typename T>
__device__ __forceinline__ OutView<T> output_of(const AnchorPlan& plan, T* p_map, int64_t item,
                                                int channels, bool wide) {
  return {p_map + item * channels * plan.positions, plan.positions, channels, plan.channels_inner,
          wide};
}

// Over the 4 lanes of a row.
template <typename Combine>
__device__ __forceinline__ float over_row(float x, const Combine& combine) {
  x = combine(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return combine(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
  return over_row(x, [](float a, float b) { return a + b; });
}

// Calls visit(m, j, i, anchor) for every score of this lane.
template <int kAnchors, typename Visit>
__device__ __forceinline__ void each_score(const Visit& visit) {
  const int t = thread_now() % 4;
#pragma unroll
  for (int j = 0; j < kAnchors / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int m = 0; m < 2; ++m) visit(m, j, i, 8 * j + 2 * t + i % 2);
    }
  }
}

// x = scale x + bias[anchor]; minus infinity beyond the last anchor.
template <typename T, int kAnchors>
__device__ __forceinline__ void scale_scores(const AnchorPlan& plan, const T* p_bias,
                                             Scores<kAnchors>& x) {
  const int t = thread_now() % 4;
#pragma unroll
  for (int j = 0; j < kAnchors / 8; ++j) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int anchor = 8 * j + 2 * t + k;
      const bool inside = anchor < plan.anchors;
      const float bias = inside && p_bias != nullptr ? widen(p_bias[anchor]) : 0.0f;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = k; i < 4; i += 2) {
          x[m][j][i] = inside ? fmaf(x[m][j][i], plan.scale, bias) : -INFINITY;
        }
      }
    }
  }
}

// x = exp(x - shift[m][half]) over its sum; sum[m][half] = that sum.
template <int kAnchors>
__device__ __forceinline__ void normalize(const float (&shift)[2][2], float (&sum)[2][2],
                                          Scores<kAnchors>& x) {
#pragma unroll
  for (int m = 0; m < 2; ++m) sum[m][0] = sum[m][1] = 0;
  each_score<kAnchors>([&](int m, int j, int i, int) {
    x[m][j][i] = __expf(x[m][j][i] - shift[m][i / 2]);
    sum[m][i / 2] += x[m][j][i];
  });
  float factor[2][2];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[m][half] = row_sum(sum[m][half]);
      factor[m][half] = 1.0f / sum[m][half];
    }
  }
  each_score<kAnchors>([&](int m, int j, int i, int) { x[m][j][i] *= factor[m][i / 2]; });
}

// Grid: B * ceil(N / kAnchorRows); a block owns kAnchorRows positions, a warp 32 of them with all
// their scores in registers: one pass, no running maximum. Moved: query and out once; key and
// value, S (Ck + Cv) elements a block, out of the level-2 cache.
template <typename T, int kAnchors>
__global__ void __launch_bounds__(kAnchorThreads, 2)
    anchor_attention_kernel(const AnchorForward<T> to, const __grid_constant__ AnchorPlan plan) {
  ATTNOPS_DYNAMIC_SHARED(memory);
  T* s_memory = reinterpret_cast<T*>(memory);
  const auto item = [&] { return static_cast<int64_t>(block_now() / plan.tiles); };
  const auto row = [&] { return static_cast<int>(block_now() % plan.tiles) * kAnchorRows; };
  Scores<kAnchors> x;
  accumulate<T, kAnchors>(positions_of(plan, to.query, item(), plan.key_channels, plan.query_wide),
                          anchors_of(plan, to.key, item(), plan.key_channels), row(), 0,
                          plan.key_channels, s_memory, x);
  scale_scores<T, kAnchors>(plan, to.bias == nullptr ? nullptr : to.bias + item() * plan.anchors,
                            x);

  float largest[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, sum[2][2];
  each_score<kAnchors>(
      [&](int m, int j, int i, int) { largest[m][i / 2] = fmaxf(largest[m][i / 2], x[m][j][i]); });
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[m][half] = over_row(largest[m][half], [](float a, float b) { return fmaxf(a, b); });
    }
  }
  normalize<kAnchors>(largest, sum, x);
  const Place at;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int position = row() + 32 * at.warp + 16 * m + 8 * half + at.g;
      if (at.t == 0 && position < plan.positions) {
        to.lse[item() * plan.positions + position] = largest[m][half] + logf(sum[m][half]);
      }
    }
  }
  multiply(
      Weights<T, kAnchors>(x), plan.value_channels,
      [&] { return anchors_of(plan, to.value, item(), plan.value_channels); },
      [&] { return output_of(plan, to.out, item(), plan.value_channels, plan.value_wide); }, row,
      1.0f, s_memory);
}

}  // namespace attnops::cuda
