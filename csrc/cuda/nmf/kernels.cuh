// Forward of nmf: C = softmax(inv_t X^T A); `steps` times C <- C P / (C G + eps), P = X^T A,
// G = A^T A, then A <- A S / (A H + eps), S = X C, H = C^T C; one more update of C.
//
// One cooperative launch does all steps. A block owns positions of an item, whose X [positions, D]
// stays in shared memory where they are one tile (else it is read once a step), and rows of A. Its
// share of S and H goes to scratch memory; after a barrier of the grid every block adds up its rows
// of S and its part of H, in the order of the blocks, and updates its rows of A; after another one
// all blocks read A. G is summed like H while P is computed.
//
// x [B, D, N] or transposed, bases, found [B, D, R], coef [B, N, R]. past_bases [steps or 1, B, D,
// R], past_coef [steps + 2 or 1, B, N, R] float: see RECORD_* of attnops/nmf.py. Moved: X and the
// results once; per step and block A twice (D Rp floats) out of the level-2 cache, and S in and
// out.
//
// Source: Geng et al., Is Attention Better Than Matrix Decomposition? (ICLR 2021), algorithm 1.
#pragma once

#include "block.cuh"

namespace attnops::cuda {

enum class NmfRecord { kNothing, kLast, kAll };

template <typename T>
struct NmfForward {
  const T* x;
  const T* bases;
  T* found;
  T* coef;
  float* past_bases;
  float* past_coef;
  NmfRecord record;
  float* state;  // coefficients [B, N, R], where not all are recorded
  float* scratch;
  unsigned* counters;  // of the items that are worked on together
};

// The coefficients after `updates` updates; 0: of the softmax.
template <typename T>
__device__ __forceinline__ float* nmf_coef(const NmfForward<T>& to, const NmfPlan& plan, int item,
                                           int updates) {
  const int64_t size = int64_t{plan.positions} * plan.rank;
  if (to.record != NmfRecord::kAll) return to.state + item * size;
  return to.past_coef + (int64_t{updates} * plan.batch + item) * size;
}

// Update number `step` of the coefficients of a tile, from P in shared.parts; leaves them in
// shared.left.
template <typename T, int kRank>
__device__ __forceinline__ void update_coef(const NmfForward<T>& to, const NmfPlan& plan,
                                            const NmfShared<kRank>& shared, int item, int tile,
                                            int step) {
  constexpr int kCount = kRank / 8;
  const NmfPlace<kRank> place(plan, tile);
  const int64_t row = int64_t{place.n} * plan.rank;
  float p[kCount], coef[kCount] = {};
  place.gather(shared.parts, p);
  float* p_old = nmf_coef(to, plan, item, step) + row;
  if (step == 0) {
    float most = -INFINITY, sum = 0;
    place.each(plan, [&](int k, int) { most = fmaxf(most, plan.inv_t * p[k]); });
    most = place.row_max(most);
    place.each(plan, [&](int k, int) {
      coef[k] = expf(plan.inv_t * p[k] - most);
      sum += coef[k];
    });
    sum = place.row_sum(sum);
    place.each(plan, [&](int k, int r) {
      coef[k] /= sum;
      p_old[r] = coef[k];
    });
  } else {
    place.each(plan, [&](int k, int r) { coef[k] = p_old[r]; });
  }
  place.write(shared.left, coef);
  __syncthreads();
  multiply_square<kRank / 8>(shared.left, shared.square, shared.right);
  __syncthreads();
  float q[kCount];
  place.read(shared.right, q);
  const bool last = step == plan.steps;
  const int64_t of_item = int64_t{item} * plan.positions * plan.rank + row;
  float* p_new = nmf_coef(to, plan, item, step + 1) + row;
  place.each(plan, [&](int k, int r) {
    if (last && to.record == NmfRecord::kLast) to.past_coef[of_item + r] = coef[k];
    coef[k] = coef[k] * p[k] / (q[k] + plan.eps);
    p_new[r] = coef[k];
    if (last) to.coef[of_item + r] = narrow<T>(coef[k]);
  });
  place.write(shared.left, coef);
  __syncthreads();
}

// Rows of the bases after `step` updates, and their Gram matrix into this block's square. Before
// the first, they are read from the input; else shared.square gets H when `barrier` lets it.
template <typename T, int kRank>
__device__ __forceinline__ void update_bases(const NmfForward<T>& to, const NmfPlan& plan,
                                             const NmfShared<kRank>& shared,
                                             const NmfScratch& scratch, int item, int block,
                                             int step, GridBarrier& barrier) {
  float *s_sums = shared.rows(0), *s_old = shared.rows(1), *s_new = shared.rows(2);
  const int64_t of_item = int64_t{item} * plan.channels * plan.rank;
  const int begin = block * plan.block_rows;
  const int end = min(begin + plan.block_rows, plan.depth);
  const bool is_result = step == plan.steps;
  float* p_past = nullptr;
  if (to.record == NmfRecord::kAll && step > 0) {
    p_past = to.past_bases + int64_t{step - 1} * plan.batch * plan.channels * plan.rank + of_item;
  } else if (to.record == NmfRecord::kLast && is_result) {
    p_past = to.past_bases + of_item;
  }
  RowGram<kRank> gram;
  int first = begin;
  do {
    const int rows = max(min(kNmfChunk, end - first), 0), count = rows * kRank;
    if (step > 0) {
      sum_parts(scratch.tables + first * kRank, plan.table(), plan.blocks, count / 4, shared.sums(),
                [&](int v, float4 sum) { reinterpret_cast<float4*>(s_sums)[v] = sum; });
      for (int e = thread_now(); e < count; e += kNmfThreads) {
        s_old[e] = scratch.bases[first * kRank + e];
      }
      if (first == begin) {
        barrier.await();
        load_square<kRank>(scratch.square, shared.square);
      }
      __syncthreads();
    }
    for (int e = thread_now(); e < count; e += kNmfThreads) {
      const int d = first + e / kRank, r = e % kRank;
      float value = 0;
      if (d < plan.channels && r < plan.rank) {
        const int64_t at = of_item + int64_t{d} * plan.rank + r;
        if (step == 0) {
          value = widen(to.bases[at]);
        } else {
          const float q = dot_row<kRank>(s_old + e - r, shared.square + r);
          value = s_old[e] * s_sums[e] / (q + plan.eps);
        }
        if (p_past != nullptr) p_past[int64_t{d} * plan.rank + r] = value;
        if (is_result) to.found[at] = narrow<T>(value);
      }
      s_new[e] = value;
      scratch.bases[first * kRank + e] = value;
    }
    __syncthreads();
    gram.add(s_new, s_new, rows);
    __syncthreads();
    first += kNmfChunk;
  } while (first < end);
  gram.write(scratch.squares + int64_t{block} * plan.square());
}

// Grid: items * blocks of the plan.
template <typename T, int kRank>
__global__ void __launch_bounds__(kNmfThreads, 1)
    nmf_forward_kernel(const NmfForward<T> to, const __grid_constant__ NmfPlan plan) {
  constexpr bool kExact = sizeof(T) == 2;
  constexpr int kTiles = kRank / 8;
  ATTNOPS_DYNAMIC_SHARED(memory);
  const NmfShared<kRank> shared(memory, plan.depth);
  const int slot = blockIdx.x / plan.blocks, block = blockIdx.x % plan.blocks;
  const NmfScratch scratch = nmf_scratch(plan, to.scratch, slot);
  float* p_table = scratch.tables + int64_t{block} * plan.table();
  float* p_square = scratch.squares + int64_t{block} * plan.square();
  const int tile_begin = block * plan.block_tiles;
  const int tile_end = min(tile_begin + plan.block_tiles, plan.tiles);
  GridBarrier barrier(to.counters + slot, plan.blocks);

  for (int item = slot; item < plan.batch; item += plan.items) {
    const T* p_x = to.x + int64_t{item} * plan.channels * plan.positions;
    if (item != slot) barrier.wait();  // the bases of the last item have been read
    const bool stays = plan.block_tiles == 1;
    if (stays) load_tile(p_x, plan, tile_begin * kNmfTile, shared.x);
    update_bases(to, plan, shared, scratch, item, block, 0, barrier);
    barrier.wait();
    for (int step = 0; step <= plan.steps; ++step) {
      sum_squares(scratch.squares, scratch.square, plan.square(), plan.blocks, block,
                  shared.sums());
      barrier.arrive();
      for (int tile = tile_begin; tile < tile_end; ++tile) {
        if (!stays) {
          load_tile(p_x, plan, tile * kNmfTile, shared.x);
          __syncthreads();
        }
        project_tile<kExact, kTiles>(shared.x, scratch.bases, plan.depth, shared.parts);
        if (tile == tile_begin) {
          barrier.await();
          load_square<kRank>(scratch.square, shared.square);
        }
        __syncthreads();
        update_coef(to, plan, shared, item, tile, step);
        if (step == plan.steps) continue;
        gram_tile<kTiles>(shared.left, shared.left, tile > tile_begin, p_square);
        spread_tile<kExact, kTiles>(shared.x, shared.left, plan.depth, tile > tile_begin, p_table);
        __syncthreads();
      }
      if (step == plan.steps) break;
      barrier.wait();
      sum_squares(scratch.squares, scratch.square, plan.square(), plan.blocks, block,
                  shared.sums());
      barrier.arrive();
      update_bases(to, plan, shared, scratch, item, block, step + 1, barrier);
      barrier.wait();
    }
  }
}

}  // namespace attnops::cuda
