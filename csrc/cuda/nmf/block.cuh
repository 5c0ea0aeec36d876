// What forward and backward of nmf share: the memory of a block, and its place in the grid.
#pragma once

#include "cuda/common/grid.cuh"
#include "tile.cuh"

namespace attnops::cuda {

// Shared memory of a block (nmf_shared_bytes); while rows of the bases are worked on, the rooms for
// products of warps hold sums of partial sums and chunks of rows instead.
template <int kRank>
struct NmfShared {
  static constexpr int kPitch = kRank + 4;
  static constexpr int kRows = kNmfChunk * kRank;
  float* x;       // [kNmfTile, depth]
  float* parts;   // [kNmfWarps, kNmfTile, kRank]
  float* left;    // [kNmfTile, kPitch]
  float* right;   // [kNmfTile, kPitch]
  float* square;  // [kRank, kPitch]

  __device__ __forceinline__ NmfShared(unsigned char* shared, int depth)
      : x(reinterpret_cast<float*>(shared)),
        parts(x + kNmfTile * depth),
        left(parts + kNmfWarps * kNmfTile * kRank),
        right(left + kNmfTile * kPitch),
        square(right + kNmfTile * kPitch) {}

  __device__ __forceinline__ float4* sums() const { return reinterpret_cast<float4*>(parts); }
  // Number k of the chunks of rows [kNmfChunk, kRank]; there are at least six.
  __device__ __forceinline__ float* rows(int k) const {
    return parts + 4 * kNmfThreads + k * kRows;
  }
};

__device__ __forceinline__ NmfScratch nmf_scratch(const NmfPlan& plan, float* p_scratch, int slot) {
  float* bases = p_scratch + slot * nmf_scratch_size(plan);
  float* square = bases + plan.table();
  float* tables = square + plan.square();
  return {bases, square, tables, tables + int64_t{plan.blocks} * plan.table()};
}

// A thread's elements of a tile [kNmfTile, rank]: row threadIdx.x / 8, float4s 8 apart.
template <int kRank>
struct NmfPlace {
  static constexpr int kVectors = kRank / 32;
  int thread = thread_now();
  int row = thread / 8;
  int n;  // the position
  bool inside;

  __device__ __forceinline__ NmfPlace(const NmfPlan& plan, int tile)
      : n(tile * kNmfTile + row), inside(n < plan.positions) {}

  __device__ __forceinline__ int column(int v) const { return 4 * (thread % 8) + 32 * v; }

  // Sum over the warps' parts, in their order.
  __device__ __forceinline__ void gather(const float* s_parts, float (&x)[4 * kVectors]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int warp = 0; warp < kNmfWarps; ++warp) {
        add_to(sum, *reinterpret_cast<const float4*>(s_parts + warp * kNmfTile * kRank +
                                                     nmf_part<kRank>(row, thread % 8 + 8 * v)));
      }
      x[4 * v] = sum.x, x[4 * v + 1] = sum.y, x[4 * v + 2] = sum.z, x[4 * v + 3] = sum.w;
    }
  }

  // Of a table in shared memory [kNmfTile, kRank + 4].
  __device__ __forceinline__ void read(const float* s_table, float (&x)[4 * kVectors]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const float4 four = *reinterpret_cast<const float4*>(s_table + row * (kRank + 4) + column(v));
      x[4 * v] = four.x, x[4 * v + 1] = four.y, x[4 * v + 2] = four.z, x[4 * v + 3] = four.w;
    }
  }
  __device__ __forceinline__ void write(float* s_table, const float (&x)[4 * kVectors]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<float4*>(s_table + row * (kRank + 4) + column(v)) =
          make_float4(x[4 * v], x[4 * v + 1], x[4 * v + 2], x[4 * v + 3]);
    }
  }

  // Calls visit(element of this thread, rank index) for those that exist.
  template <typename Visit>
  __device__ __forceinline__ void each(const NmfPlan& plan, const Visit& visit) const {
    if (!inside) return;
#pragma unroll
    for (int k = 0; k < 4 * kVectors; ++k) {
      const int r = column(k / 4) + k % 4;
      if (r < plan.rank) visit(k, r);
    }
  }

  // Over the 8 threads of a row.
  __device__ __forceinline__ static float row_sum(float x) {
#pragma unroll
    for (int bits = 1; bits < 8; bits *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, bits);
    return x;
  }
  __device__ __forceinline__ static float row_max(float x) {
#pragma unroll
    for (int bits = 1; bits < 8; bits *= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, bits));
    return x;
  }
};

}  // namespace attnops::cuda
