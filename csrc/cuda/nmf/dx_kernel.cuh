// dX of nmf: the sum over i of left[i] right[i]^T.
//
// left [B, tables, Dp, Rp], right [B, tables, Np, Rp] float; dx [B, D, N] or transposed. Grid: B *
// ceil(N / 128) * ceil(D / 128), a block owns 128 x 128 elements of an item. It multiplies on
// tensor cores by 3xTF32, 32 columns of the tables at a time, which are copied while those before
// are multiplied. Moved: dx once; the tables D / 128 and N / 128 times, by way of the level-2
// cache.
#pragma once

#include "cuda/common/copy.cuh"
#include "tile.cuh"

namespace attnops::cuda {

constexpr int kDxSide = 128;  // of a block's part of dx
constexpr int kDxStep = 32;   // columns of the tables
constexpr int kDxPitch = kDxStep + 4;
constexpr int kDxStage = 2 * kDxSide * kDxPitch;
constexpr int kDxOutPitch = kDxSide + 4;
constexpr size_t kDxSharedBytes = sizeof(float) * 2 * kDxStage;
static_assert(kDxSide * kDxOutPitch <= 2 * kDxStage, "the result fits where the stages were");

struct NmfDxPlan {
  int channels, positions;
  int depth, padded_positions, padded_rank, tables;
  int row_tiles, column_tiles;  // of D and of N
  bool channels_inner, vectors;
};

// Copies columns [32 chunk, + 32) of the rows that a block owns into a stage [2, side, pitch].
__device__ __forceinline__ void start_chunk(const NmfDxPlan& plan, const float* p_left,
                                            const float* p_right, int row, int column, int chunk,
                                            float* s_stage) {
  const int per_table = plan.padded_rank / kDxStep;
  const int64_t table = chunk / per_table;
  const int offset = chunk % per_table * kDxStep;
  p_left += table * plan.depth * plan.padded_rank + offset;
  p_right += table * plan.padded_positions * plan.padded_rank + offset;
  constexpr int kPieces = kDxStep / 4;
  for (int piece = thread_now(); piece < 2 * kDxSide * kPieces; piece += kNmfThreads) {
    const int line = piece / kPieces, start = piece % kPieces * 4;
    const bool is_left = line < kDxSide;
    const int at = is_left ? row + line : column + line - kDxSide;
    const bool inside = at < (is_left ? plan.depth : plan.padded_positions);
    const float* p_from =
        (is_left ? p_left : p_right) + int64_t{inside ? at : 0} * plan.padded_rank + start;
    copy_async<16>(s_stage + line * kDxPitch + start, p_from, inside ? 16 : 0);
  }
  commit_copies();
}

template <typename T, int kVec>
__device__ __forceinline__ void store_dx(const NmfDxPlan& plan, const float* s_out, int row,
                                         int column, T* p_dx) {
  const int line_at = plan.channels_inner ? column : row;
  const int start_at = plan.channels_inner ? row : column;
  const int lines = plan.channels_inner ? plan.positions : plan.channels;
  const int64_t along = plan.channels_inner ? plan.channels : plan.positions;
  for (int piece = thread_now(); piece < kDxSide * kDxSide / kVec; piece += kNmfThreads) {
    const int line = piece / (kDxSide / kVec), start = piece % (kDxSide / kVec) * kVec;
    if (line_at + line >= lines || start_at + start >= along) continue;
    Vector<T, kVec> x;
#pragma unroll
    for (int k = 0; k < kVec; ++k) x.value[k] = narrow<T>(s_out[line * kDxOutPitch + start + k]);
    *reinterpret_cast<Vector<T, kVec>*>(p_dx + (line_at + line) * along + start_at + start) = x;
  }
}

template <typename T>
__global__ void __launch_bounds__(kNmfThreads, 1)
    nmf_dx_kernel(const float* p_left, const float* p_right, T* p_dx,
                  const __grid_constant__ NmfDxPlan plan) {
  ATTNOPS_DYNAMIC_SHARED(memory);
  float* s_stages = reinterpret_cast<float*>(memory);
  const int column = blockIdx.x % plan.column_tiles * kDxSide;
  const int row = blockIdx.x / plan.column_tiles % plan.row_tiles * kDxSide;
  const int64_t item = blockIdx.x / (plan.column_tiles * plan.row_tiles);
  p_left += item * plan.tables * plan.depth * plan.padded_rank;
  p_right += item * plan.tables * plan.padded_positions * plan.padded_rank;
  p_dx += item * plan.channels * plan.positions;

  // A warp owns 32 rows and 64 columns.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 64;
  float sum[2][8][4] = {};
  const int chunks = plan.tables * (plan.padded_rank / kDxStep);
  start_chunk(plan, p_left, p_right, row, column, 0, s_stages);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) {
      start_chunk(plan, p_left, p_right, row, column, chunk + 1,
                  s_stages + (chunk + 1) % 2 * kDxStage);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();
    const float* s_left = s_stages + chunk % 2 * kDxStage + warp_row * kDxPitch;
    const float* s_right = s_stages + chunk % 2 * kDxStage + (kDxSide + warp_column) * kDxPitch;
#pragma unroll 1
    for (int k = 0; k < kDxStep; k += 8) {
      uint32_t a_big[2][4], a_small[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        float a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[i] = s_left[(16 * m + g + i % 2 * 8) * kDxPitch + k + t + i / 2 * 4];
        }
        split_all<false>(a, a_big[m], a_small[m]);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float* s_b = s_right + (8 * j + g) * kDxPitch + k + t;
        const float b[2] = {s_b[0], s_b[4]};
        uint32_t b_big[2], b_small[2];
        split_all<false>(b, b_big, b_small);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          add_product<false>(sum[m][j], a_big[m], a_small[m], b_big, b_small);
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = warp_row + 16 * m + g + i / 2 * 8, n = warp_column + 8 * j + 2 * t + i % 2;
        s_stages[plan.channels_inner ? n * kDxOutPitch + d : d * kDxOutPitch + n] = sum[m][j][i];
      }
    }
  }
  __syncthreads();
  if (plan.vectors) {
    store_dx<T, kAccessBytes / static_cast<int>(sizeof(T))>(plan, s_stages, row, column, p_dx);
  } else {
    store_dx<T, 1>(plan, s_stages, row, column, p_dx);
  }
}

}  // namespace attnops::cuda
