// Products of nmf on tensor cores, in float by 3xTF32: every operand is cut in two parts. With
// kExact the left one, of half precision, has no second part.
//
// Sums that tensor cores cut off are kept to one step of the instruction and added up rounded.
#pragma once

#include "cuda/common/mma.cuh"
#include "cuda/common/registers.cuh"
#include "plan.h"

namespace attnops::cuda {

// X of a tile in shared memory: [kNmfTile, depth], element (n, d) at n * depth + (d ^ turn(n)), so
// that fragments along d and along n both hit different banks. Four neighbours stay together.
__device__ __forceinline__ int nmf_turn(int n) { return n % 4 * 8 + n / 4 % 2 * 4; }

// A float4 of the products that warps leave in s_parts [kNmfWarps, kNmfTile, rank].
template <int kRank>
__device__ __forceinline__ int nmf_part(int n, int vector) {
  return n * kRank + 4 * (vector ^ (n % 2 * 4));
}

// The 8 columns of fragment `tile` stand for the columns 32 * (tile / 4) + 4 * turn(column) + tile
// % 4 of a table, so that four fragments are one float4 a lane. turn(2 t + i) = t + 4 i.
__device__ __forceinline__ int nmf_column(int column) { return column / 2 + column % 2 * 4; }

template <bool kExact>
__device__ __forceinline__ void add_product(float (&sum)[4], const uint32_t (&a_big)[4],
                                            const uint32_t (&a_small)[4],
                                            const uint32_t (&b_big)[2],
                                            const uint32_t (&b_small)[2]) {
  float c[4] = {};
  if constexpr (kExact) {
    mma<Tf32>(c, a_big, b_small);
    mma<Tf32>(c, a_big, b_big);
  } else {
    mma_3xtf32(c, a_big, a_small, b_big, b_small);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += c[i];
}

template <bool kExact, int kCount>
__device__ __forceinline__ void split_all(const float (&x)[kCount], uint32_t (&big)[kCount],
                                          uint32_t (&small)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kExact) {
      big[i] = __float_as_uint(x[i]);
      small[i] = 0;
    } else {
      split_finite_tf32(x[i], big[i], small[i]);
    }
  }
}

// One step of 8 along the sum: sum[m][j] += a[m] b[j], the four b[j] of a quad from two rows of
// float4s, after whose use fetch(quad) is called.
template <bool kExact, int kTiles, typename Fetch>
__device__ __forceinline__ void add_step(float (&sum)[2][kTiles][4], const float (&a)[2][4],
                                         const float4 (&rows)[2][kTiles / 4], const Fetch& fetch) {
  uint32_t a_big[2][4], a_small[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) split_all<kExact>(a[m], a_big[m], a_small[m]);
#pragma unroll
  for (int quad = 0; quad < kTiles / 4; ++quad) {
    const float4 row = rows[0][quad], other = rows[1][quad];
    const float b[4][2] = {{row.x, other.x}, {row.y, other.y}, {row.z, other.z}, {row.w, other.w}};
    fetch(quad);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b_big[2], b_small[2];
      split_all<false>(b[j], b_big, b_small);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        add_product<kExact>(sum[m][4 * quad + j], a_big[m], a_small[m], b_big, b_small);
      }
    }
  }
}

// What a lane holds of rows g and g + 8 of fragments 4 * quad + (0 .. 3), at columns 4 * (t + 4 i).
template <int kTiles>
__device__ __forceinline__ float4 four(const float (&sum)[kTiles][4], int quad, int i) {
  return make_float4(sum[4 * quad][i], sum[4 * quad + 1][i], sum[4 * quad + 2][i],
                     sum[4 * quad + 3][i]);
}

// s_parts of every warp: its share of X^T table, over the channels 8 k + (0 .. 7), k = warp modulo
// kNmfWarps. p_table [depth, rank] in global memory.
template <bool kExact, int kTiles>
__device__ __forceinline__ void project_tile(const float* s_x, const float* p_table, int depth,
                                             float* s_parts) {
  constexpr int kRank = 8 * kTiles;
  const int thread = thread_now(), warp = thread / 32, lane = thread % 32, g = lane / 4,
            t = lane % 4;
  float sum[2][kTiles][4] = {};
  float4 rows[2][kTiles / 4];
  const auto load = [&](int k, int quad) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rows[i][quad] = *reinterpret_cast<const float4*>(p_table + (8 * k + t + 4 * i) * kRank +
                                                       32 * quad + 4 * nmf_column(g));
    }
  };
#pragma unroll
  for (int quad = 0; quad < kTiles / 4; ++quad) load(warp, quad);
#pragma unroll 1
  for (int k = warp; k < depth / 8; k += kNmfWarps) {
    float a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = 16 * m + g + i % 2 * 8, d = 8 * k + t + i / 2 * 4;
        a[m][i] = s_x[n * depth + (d ^ nmf_turn(n))];
      }
    }
    const int next = min(k + kNmfWarps, depth / 8 - 1);
    add_step<kExact, kTiles>(sum, a, rows, [&](int quad) { load(next, quad); });
  }
  float* s_part = s_parts + warp * kNmfTile * kRank;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int quad = 0; quad < kTiles / 4; ++quad) {
        *reinterpret_cast<float4*>(
            s_part + nmf_part<kRank>(16 * m + g + i / 2 * 8, 8 * quad + t + i % 2 * 4)) =
            four(sum[m], quad, i);
      }
    }
  }
}

// p_table [depth, rank] = or += X table of this tile; s_table [kNmfTile, rank + 4]. The same thread
// writes the same elements for every tile.
template <bool kExact, int kTiles>
__device__ __forceinline__ void spread_tile(const float* s_x, const float* s_table, int depth,
                                            bool add, float* p_table) {
  constexpr int kRank = 8 * kTiles, kPitch = kRank + 4;
  const int thread = thread_now(), warp = thread / 32, lane = thread % 32, g = lane / 4,
            t = lane % 4;
#pragma unroll 1
  for (int pair = warp; pair < depth / 32; pair += kNmfWarps) {
    float sum[2][kTiles][4] = {};
    // Calls visit(m, i, quad, address) for every float4 of the sums.
    const auto each = [&](const auto& visit) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int quad = 0; quad < kTiles / 4; ++quad) {
            const int d = 32 * pair + 16 * m + g + i / 2 * 8;
            visit(m, i, quad,
                  reinterpret_cast<float4*>(p_table + d * kRank + 32 * quad + 4 * (t + i % 2 * 4)));
          }
        }
      }
    };
    if (add) {
      each([&](int m, int i, int quad, const float4* p_sum) {
        const float4 before = *p_sum;
        sum[m][4 * quad][i] = before.x, sum[m][4 * quad + 1][i] = before.y;
        sum[m][4 * quad + 2][i] = before.z, sum[m][4 * quad + 3][i] = before.w;
      });
    }
#pragma unroll 1
    for (int k = 0; k < kNmfTile / 8; ++k) {
      float4 rows[2][kTiles / 4];
      float a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int quad = 0; quad < kTiles / 4; ++quad) {
          rows[i][quad] = *reinterpret_cast<const float4*>(s_table + (8 * k + t + 4 * i) * kPitch +
                                                           32 * quad + 4 * nmf_column(g));
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = 8 * k + t + i / 2 * 4, d = 32 * pair + 16 * m + g + i % 2 * 8;
          a[m][i] = s_x[n * depth + (d ^ nmf_turn(n))];
        }
      }
      add_step<kExact, kTiles>(sum, a, rows, [](int) {});
    }
    each([&](int m, int i, int quad, float4* p_sum) { *p_sum = four(sum[m], quad, i); });
  }
}

// sum[i] += rows [row .. row + 15] times columns of fragment `first + i`: a(row, k) b(k, column),
// functions of shared memory, over `depth` values of k.
template <int kCount, typename A, typename B>
__device__ __forceinline__ void multiply_small(float (&sum)[kCount][4], int row, int first,
                                               int depth, const A& a_at, const B& b_at) {
  const int lane = thread_now() % 32, g = lane / 4, t = lane % 4;
#pragma unroll 4
  for (int k = 0; k < depth; k += 8) {
    float a[4];
    uint32_t a_big[4], a_small[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = a_at(row + g + i % 2 * 8, k + t + i / 2 * 4);
    split_all<false>(a, a_big, a_small);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float b[2] = {b_at(k + t, 8 * (first + j) + g), b_at(k + t + 4, 8 * (first + j) + g)};
      uint32_t b_big[2], b_small[2];
      split_all<false>(b, b_big, b_small);
      add_product<false>(sum[j], a_big, a_small, b_big, b_small);
    }
  }
}

// s_out = s_rows s_square for a symmetric square; [kNmfTile, rank + 4] and [rank, rank + 4].
template <int kTiles>
__device__ __forceinline__ void multiply_square(const float* s_rows, const float* s_square,
                                                float* s_out) {
  constexpr int kRank = 8 * kTiles, kPitch = kRank + 4, kCount = kTiles / 4;
  const int thread = thread_now(), warp = thread / 32, lane = thread % 32;
  const int row = warp / 4 * 16, first = warp % 4 * kCount;
  float sum[kCount][4] = {};
  multiply_small(
      sum, row, first, kRank, [&](int i, int k) { return s_rows[i * kPitch + k]; },
      [&](int k, int column) { return s_square[column * kPitch + k]; });
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s_out[(row + lane / 4 + i / 2 * 8) * kPitch + 8 * (first + j) + lane % 4 * 2 + i % 2] =
          sum[j][i];
    }
  }
}

// p_square [rank, rank] = or += left^T right; tables [kNmfTile, rank + 4] in shared memory.
template <int kTiles>
__device__ __forceinline__ void gram_tile(const float* s_left, const float* s_right, bool add,
                                          float* p_square) {
  constexpr int kRank = 8 * kTiles, kPitch = kRank + 4, kCount = kTiles / 2;
  const int thread = thread_now(), warp = thread / 32, lane = thread % 32;
  const int row = warp / 2 * 16, first = warp % 2 * kCount;
  if (row >= kRank) return;
  float sum[kCount][4] = {};
  multiply_small(
      sum, row, first, kNmfTile, [&](int i, int k) { return s_left[k * kPitch + i]; },
      [&](int k, int column) { return s_right[k * kPitch + column]; });
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* p_sum =
          p_square + (row + lane / 4 + i / 2 * 8) * kRank + 8 * (first + j) + lane % 4 * 2 + i % 2;
      *p_sum = add ? *p_sum + sum[j][i] : sum[j][i];
    }
  }
}

}  // namespace attnops::cuda
