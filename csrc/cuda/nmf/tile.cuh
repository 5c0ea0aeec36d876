// Loads of nmf's tiles, and sums over the blocks of an item.
#pragma once

#include "cuda/common/element.cuh"
#include "products.cuh"

namespace attnops::cuda {

// s_x [kNmfTile, depth]: the positions from `first` on of one item of x, zero where there are none.
template <typename T, int kVec>
__device__ __forceinline__ void load_tile(const T* __restrict__ p_x, const NmfPlan& plan, int first,
                                          float* s_x) {
  const int64_t channels = plan.channels, positions = plan.positions;
  const int along = (plan.channels_inner ? plan.depth : kNmfTile) / kVec;  // pieces of a line
  const int lines = plan.channels_inner ? kNmfTile : plan.depth;
#pragma unroll 4
  for (int piece = thread_now(); piece < along * lines; piece += kNmfThreads) {
    const int line = piece / along, start = piece % along * kVec;
    Vector<T, kVec> x{};
    if (plan.channels_inner) {
      if (first + line < positions && start < channels) {
        x = *reinterpret_cast<const Vector<T, kVec>*>(p_x + (first + line) * channels + start);
      }
      if constexpr (kVec % 4 == 0) {
#pragma unroll
        for (int k = 0; k < kVec; k += 4) {
          *reinterpret_cast<float4*>(s_x + line * plan.depth + ((start + k) ^ nmf_turn(line))) =
              make_float4(widen(x.value[k]), widen(x.value[k + 1]), widen(x.value[k + 2]),
                          widen(x.value[k + 3]));
        }
      } else {
        s_x[line * plan.depth + (start ^ nmf_turn(line))] = widen(x.value[0]);
      }
    } else {
      if (line < channels && first + start < positions) {
        x = *reinterpret_cast<const Vector<T, kVec>*>(p_x + line * positions + first + start);
      }
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        s_x[(start + k) * plan.depth + (line ^ nmf_turn(start + k))] = widen(x.value[k]);
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void load_tile(const T* p_x, const NmfPlan& plan, int first,
                                          float* s_x) {
  if (plan.vectors) {
    load_tile<T, kAccessBytes / static_cast<int>(sizeof(T))>(p_x, plan, first, s_x);
  } else {
    load_tile<T, 1>(p_x, plan, first, s_x);
  }
}

__device__ __forceinline__ void add_to(float4& sum, const float4& x) {
  sum.x += x.x;
  sum.y += x.y;
  sum.z += x.z;
  sum.w += x.w;
}

// Calls store(v, sum over parts of the float4 v of p_parts [parts, stride]) for v < count. Threads
// divide the parts; the order of the sum is fixed. s_sums: kNmfThreads float4s.
template <typename Store>
__device__ __forceinline__ void sum_parts(const float* p_parts, int stride, int parts, int count,
                                          float4* s_sums, const Store& store) {
  int lanes = 64;
  while (lanes > 8 && lanes / 2 >= count) lanes /= 2;
  const int thread = thread_now(), groups = kNmfThreads / lanes;
  const int lane = thread % lanes, group = thread / lanes;
  for (int first = 0; first < count; first += lanes) {
    const int v = first + lane;
    float4 sum = make_float4(0, 0, 0, 0);
    if (v < count) {
#pragma unroll 16
      for (int part = group; part < parts; part += groups) {
        add_to(sum, *reinterpret_cast<const float4*>(p_parts + int64_t{part} * stride + 4 * v));
      }
    }
    s_sums[thread] = sum;
    __syncthreads();
    for (int half = groups / 2; half > 0; half /= 2) {
      if (group < half) {
        add_to(sum, s_sums[thread + half * lanes]);
        s_sums[thread] = sum;
      }
      __syncthreads();
    }
    if (group == 0 && v < count) store(v, sum);
  }
  __syncthreads();
}

// This block's share of p_sum [size] = the sum of p_parts [blocks, size].
__device__ __forceinline__ void sum_squares(const float* p_parts, float* p_sum, int size,
                                            int blocks, int block, float4* s_sums) {
  const int share = (size / 4 + blocks - 1) / blocks, first = block * share;
  const int count = max(min(share, size / 4 - first), 0);
  sum_parts(p_parts + 4 * first, size, blocks, count, s_sums,
            [&](int v, float4 sum) { reinterpret_cast<float4*>(p_sum)[first + v] = sum; });
}

// s_square [rank, rank + 4] = p_square [rank, rank], plus its transpose if asked for.
template <int kRank>
__device__ __forceinline__ void load_square(const float* p_square, float* s_square,
                                            bool symmetrize = false) {
  for (int e = thread_now(); e < kRank * kRank; e += kNmfThreads) {
    const int i = e / kRank, j = e % kRank;
    s_square[i * (kRank + 4) + j] = p_square[e] + (symmetrize ? p_square[j * kRank + i] : 0.0f);
  }
}

// A row of shared memory times a column of a square [kRank, kRank + 4].
template <int kRank>
__device__ __forceinline__ float dot_row(const float* s_row, const float* s_column) {
  float sum = 0;
#pragma unroll 8
  for (int k = 0; k < kRank; ++k) sum += s_row[k] * s_column[k * (kRank + 4)];
  return sum;
}

// sum += left^T right over `rows` rows [rows, kRank] of shared memory; a thread holds some columns
// of one row of the square.
template <int kRank>
struct RowGram {
  static constexpr int kVectors = kRank * kRank / kNmfThreads / 4;
  static constexpr int kAcross = kRank / 4 / kVectors;  // threads of a row
  float4 sum[kVectors] = {};

  __device__ __forceinline__ void add(const float* s_left, const float* s_right, int rows) {
    const int thread = thread_now(), i = thread / kAcross, j = thread % kAcross;
    for (int row = 0; row < rows; ++row) {
      const float left = s_left[row * kRank + i];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const float4 right =
            *reinterpret_cast<const float4*>(s_right + row * kRank + 4 * (j + v * kAcross));
        add_to(sum[v], make_float4(left * right.x, left * right.y, left * right.z, left * right.w));
      }
    }
  }
  __device__ __forceinline__ void write(float* p_square) const {
    const int thread = thread_now(), i = thread / kAcross, j = thread % kAcross;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<float4*>(p_square + i * kRank + 4 * (j + v * kAcross)) = sum[v];
    }
  }
};

}  // namespace attnops::cuda
