// Backward of anchor attention: probabilities p computed anew from the saved lse.
//
//   dp[n, s] = sum over c of grad[c, n] value[c, s]    ds = p (dp - sum over s of p dp)
//   dquery = scale key ds^T    dkey = scale query ds    dvalue = grad p    dbias = sum over n of ds
//
// The sums over positions do not fit beside the scores of a block, and making scores anew for every
// block of channels would cost C / 128 times the products. So positions pass in slabs of bounded
// size, whose p and ds are kept: score_gradient_kernel writes them, and dquery;
// anchor_gradient_kernel sums up parts of dkey, dvalue and dbias; after the last slab
// reduce_parts_kernel adds the parts, in order: no atomics.
#pragma once

#include "kernels.cuh"

namespace attnops::cuda {

template <typename T>
struct AnchorBackward {
  const T* grad;     // [B, Cv, N], or [B, N, Cv] with channels_inner
  const T* query;    // [B, Ck, N], or [B, N, Ck]
  const T* key;      // [B, Ck, S]
  const T* value;    // [B, Cv, S]
  const T* bias;     // [B, S], or null
  const float* lse;  // [B, N]
  T* dquery;         // as query
  T* dkey;           // [B, Ck, S]
  T* dvalue;         // [B, Cv, S]
  T* dbias;          // [B, S], or null
  T* p;              // [items, slab_tiles * kAnchorRows, kAnchors]: p of a slab, in scored order
  T* ds;             // likewise
  float* sums;       // [items, slab_tiles, kAnchors]: sums of ds over the positions of a tile
  float* parts;      // [items, splits, rows, kAnchors]: of dkey, dvalue and, in the last row, dbias
};

// Where a slab stands.
struct Slab {
  int first_item, first_tile, items, tiles;
  bool add;  // to the parts of earlier slabs
};

// Scores are written as lanes hold them: the column of an anchor in a row of scores, and the anchor
// of a column. Four columns of a lane stand for two neighbours in either of two tiles.
ATTNOPS_HOST_DEVICE int scored_anchor(int column) {
  return column / 16 * 16 + column % 4 / 2 * 8 + column % 16 / 4 * 2 + column % 2;
}

// Calls visit(x, address) for fours of a lane's scores, of rows [row, + 32) of `p_rows`: x[i] is
// what stands there.
template <typename T, int kAnchors, typename Visit>
__device__ __forceinline__ void each_four(T* p_rows, const Visit& visit) {
  const Place at;
  p_rows += (32 * at.warp + at.g) * kAnchors + 4 * at.t;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int pair = 0; pair < kAnchors / 16; ++pair) {
        const int offset = (16 * m + 8 * half) * kAnchors + 16 * pair;
        visit(m, half, pair, reinterpret_cast<Vector<T, 4>*>(p_rows + offset));
      }
    }
  }
}

template <typename T, int kAnchors>
__device__ __forceinline__ void write_scores(const Scores<kAnchors>& x, T* p_rows) {
  each_four<T, kAnchors>(p_rows, [&](int m, int half, int pair, Vector<T, 4>* p_four) {
    Vector<T, 4> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.value[i] = narrow<T>(x[m][2 * pair + i / 2][2 * half + i % 2]);
    *p_four = four;
  });
}

// Grid: items * tiles of the slab; a block owns kAnchorRows positions. Moved: query, grad and
// dquery once, p and ds of the slab; the anchors out of the level-2 cache, key twice.
template <typename T, int kAnchors>
__global__ void __launch_bounds__(kAnchorThreads, 2)
    score_gradient_kernel(const AnchorBackward<T> to, const Slab slab,
                          const __grid_constant__ AnchorPlan plan) {
  ATTNOPS_DYNAMIC_SHARED(memory);
  T* s_memory = reinterpret_cast<T*>(memory);
  const auto item = [&] { return slab.first_item + int64_t{block_now() / slab.tiles}; };
  const auto row = [&] {
    return (slab.first_tile + static_cast<int>(block_now() % slab.tiles)) * kAnchorRows;
  };
  const auto rows_of = [&](T* p_slab) {
    return p_slab + int64_t{block_now()} * (kAnchorRows * kAnchors);
  };
  Scores<kAnchors> x;
  {
    accumulate<T, kAnchors>(
        positions_of(plan, to.query, item(), plan.key_channels, plan.query_wide),
        anchors_of(plan, to.key, item(), plan.key_channels), row(), 0, plan.key_channels, s_memory,
        x);
    scale_scores<T, kAnchors>(plan, to.bias == nullptr ? nullptr : to.bias + item() * plan.anchors,
                              x);
    float lse[2][2], sum[2][2];
    const Place at;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int position = row() + 32 * at.warp + 16 * m + 8 * half + at.g;
        lse[m][half] = position < plan.positions ? to.lse[item() * plan.positions + position] : 0;
      }
    }
    // The rounding of lse is a common factor of a row, which its sum takes out again.
    normalize<kAnchors>(lse, sum, x);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (row() + 32 * at.warp + 16 * m + 8 * half + at.g < plan.positions) continue;
#pragma unroll
        for (int j = 0; j < kAnchors / 8; ++j) x[m][j][2 * half] = x[m][j][2 * half + 1] = 0;
      }
    }
    write_scores<T, kAnchors>(x, rows_of(to.p));
  }

  accumulate<T, kAnchors>(positions_of(plan, static_cast<const T*>(to.grad), item(),
                                       plan.value_channels, plan.value_wide),
                          anchors_of(plan, to.value, item(), plan.value_channels), row(), 0,
                          plan.value_channels, s_memory, x);
  // Beyond the last anchor p is 0. Where the gradient of a position is not finite, so that 0 times
  // dp is not 0, its whole row is NaN anyway.
  float delta[2][2] = {};
  each_four<T, kAnchors>(rows_of(to.p), [&](int m, int half, int pair, const Vector<T, 4>* p_four) {
    const Vector<T, 4> p = *p_four;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      delta[m][half] += widen(p.value[i]) * x[m][2 * pair + i / 2][2 * half + i % 2];
    }
  });
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) delta[m][half] = row_sum(delta[m][half]);
  }
  __threadfence_block();  // else the compiler keeps what it has read of p
  // Beyond the last position values that are not finite make dp NaN, and ds counts for all.
  const Place at;
  const int first_row = row();
  each_four<T, kAnchors>(rows_of(to.p), [&](int m, int half, int pair, const Vector<T, 4>* p_four) {
    const bool inside = first_row + 32 * at.warp + 16 * m + 8 * half + at.g < plan.positions;
    const Vector<T, 4> p = *p_four;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& ds = x[m][2 * pair + i / 2][2 * half + i % 2];
      ds = inside ? widen(p.value[i]) * (ds - delta[m][half]) : 0.0f;
    }
  });
  write_scores<T, kAnchors>(x, rows_of(to.ds));

  if (to.bias != nullptr) {
    float* s_sums = reinterpret_cast<float*>(memory);  // [warps, kAnchors]
#pragma unroll
    for (int j = 0; j < kAnchors / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float sum = x[0][j][i] + x[0][j][i + 2] + (x[1][j][i] + x[1][j][i + 2]);
#pragma unroll
        for (int bits = 4; bits < 32; bits *= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, bits);
        if (at.g == 0) s_sums[at.warp * kAnchors + 8 * j + 2 * at.t + i] = sum;
      }
    }
    __syncthreads();
    if (at.thread < kAnchors) {
      float sum = 0;
      for (int warp = 0; warp < 4; ++warp) sum += s_sums[warp * kAnchors + at.thread];
      to.sums[int64_t{block_now()} * kAnchors + at.thread] = sum;
    }
    __syncthreads();
  }
  multiply(
      Weights<T, kAnchors>(x), plan.key_channels,
      [&] { return anchors_of(plan, to.key, item(), plan.key_channels); },
      [&] { return output_of(plan, to.dquery, item(), plan.key_channels, plan.query_wide); }, row,
      plan.scale, s_memory);
}

// parts = or += query ds and grad p over the positions of a split; sums of ds.
//
// Grid: items * splits * blocks, a block for every kAnchorRows channels of the key, then of the
// value, then, with a bias, one for its row. Moved: the maps once; p and ds once for every block,
// by way of the level-2 cache.
template <typename T, int kAnchors>
__global__ void __launch_bounds__(kAnchorThreads, 2)
    anchor_gradient_kernel(const AnchorBackward<T> to, const Slab slab,
                           const __grid_constant__ AnchorBackwardPlan plan) {
  ATTNOPS_DYNAMIC_SHARED(memory);
  const AnchorPlan& forward = plan.forward;
  const int blocks = plan.key_blocks + plan.value_blocks, programs = blocks + plan.has_bias;
  const int block = blockIdx.x % programs, split = blockIdx.x / programs % plan.splits;
  const int slot = blockIdx.x / (programs * plan.splits);
  const int begin = split * plan.split_tiles, end = min(begin + plan.split_tiles, slab.tiles);
  float* p_part = to.parts + ((int64_t{slot} * plan.splits + split) * plan.rows() +
                              int64_t{block} * kAnchorRows) *
                                 kAnchors;
  if (block == blocks) {
    const int column = threadIdx.x;
    if (column >= kAnchors) return;
    float sum = slab.add ? p_part[column] : 0.0f;
    const float* p_sums = to.sums + int64_t{slot} * slab.tiles * kAnchors;
    const int anchor = scored_anchor(scored_anchor(column));
#pragma unroll 8
    for (int tile = begin; tile < end; ++tile) sum += p_sums[tile * kAnchors + anchor];
    p_part[column] = sum;
    return;
  }
  const bool of_key = block < plan.key_blocks;
  const int channels = of_key ? forward.key_channels : forward.value_channels;
  // Positions of the slab are the terms: maps start at the slab's first.
  const int first = slab.first_tile * kAnchorRows;
  const T* p_map = (of_key ? to.query : to.grad) +
                   (slab.first_item + int64_t{slot}) * channels * forward.positions +
                   int64_t{first} * (forward.channels_inner ? channels : 1);
  const MapView<T> map{p_map,
                       forward.channels_inner ? channels : forward.positions,
                       channels,
                       forward.positions - first,
                       !forward.channels_inner,
                       of_key ? forward.query_wide : forward.value_wide};
  const int64_t slab_rows = int64_t{slab.tiles} * kAnchorRows;
  const TableView<T> table{(of_key ? to.ds : to.p) + slot * slab_rows * kAnchors, kAnchors,
                           slab.tiles * kAnchorRows, kAnchors, kAccessBytes};
  Scores<kAnchors> sum;
  accumulate<T, kAnchors>(map, table, (of_key ? block : block - plan.key_blocks) * kAnchorRows,
                          begin * kAnchorRows, end * kAnchorRows, reinterpret_cast<T*>(memory),
                          sum);
  if (slab.add) {
    each_four<float, kAnchors>(p_part, [&](int m, int half, int pair, const Vector<float, 4>* p) {
      const Vector<float, 4> before = *p;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[m][2 * pair + i / 2][2 * half + i % 2] += before.value[i];
      }
    });
  }
  write_scores<float, kAnchors>(sum, p_part);
}

// dkey = scale * the sum over splits of its parts; dvalue and dbias likewise, without scale.
//
// Grid: items * ceil(rows * kAnchors / 4 / kAnchorThreads); a thread owns four columns of a row.
// Reads the parts once, in order: the sum is the same in every run.
template <typename T, int kAnchors>
__global__ void __launch_bounds__(kAnchorThreads)
    reduce_parts_kernel(const AnchorBackward<T> to, int first_item, int programs,
                        const __grid_constant__ AnchorBackwardPlan plan) {
  const AnchorPlan& forward = plan.forward;
  const int slot = blockIdx.x / programs, rows = plan.rows();
  const int64_t item = first_item + slot;
  const int four = blockIdx.x % programs * kAnchorThreads + threadIdx.x;
  const int row = four / (kAnchors / 4), column = four % (kAnchors / 4) * 4;
  const int key_rows = plan.key_blocks * kAnchorRows, value_row = row - key_rows;
  const bool of_key = row < key_rows, of_bias = row == rows - 1;
  const bool inside = of_key    ? row < forward.key_channels
                      : of_bias ? plan.has_bias
                                : value_row < forward.value_channels;
  if (row >= rows || !inside) return;
  const float* p_part = to.parts + (int64_t{slot} * plan.splits * rows + row) * kAnchors + column;
  float sum[4] = {};
#pragma unroll 4
  for (int split = 0; split < plan.splits; ++split) {
    const auto part = *reinterpret_cast<const Vector<float, 4>*>(p_part);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part.value[i];
    p_part += int64_t{rows} * kAnchors;
  }
  T* p_to = of_key    ? to.dkey + (item * forward.key_channels + row) * forward.anchors
            : of_bias ? to.dbias + item * forward.anchors
                      : to.dvalue + (item * forward.value_channels + value_row) * forward.anchors;
  const float factor = of_key ? forward.scale : 1.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int anchor = scored_anchor(scored_anchor(column + i));
    if (anchor < forward.anchors) p_to[anchor] = narrow<T>(factor * sum[i]);
  }
}

}  // namespace attnops::cuda
