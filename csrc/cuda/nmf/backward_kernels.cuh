// Backward of nmf through every recorded update, or through the last one of the coefficients alone.
//
// With U' = U P / Q, Q = U M + eps and the gradient dU' of U':
//   dP = dU' U / Q,  dQ = -dU' U' / Q,  dU = dU' P / Q + dQ M,  dM = U^T dQ
// and a Gram matrix M = V^T V passes V (dM + dM^T) on. For the coefficients C, P = X^T A and
// M = G = A^T A; for the bases A, P = X C and M = H = C^T C. dX is a sum of products of two tables
// an update, which are kept for dx_kernel.cuh.
//
// One cooperative launch goes back through all updates, as the forward goes through them: between
// two barriers of the grid a block takes its positions back through an update of C, and between the
// next two its rows of A through the update before it.
//
// Moved: X once, or once an update where a block owns more than a tile; per update and block four
// tables of the bases' size (two in, two partial sums out) by way of the level-2 cache, and eight
// of its positions' coefficients.
#pragma once

#include "block.cuh"

namespace attnops::cuda {

template <typename T>
struct NmfBackward {
  const T* x;
  const T* bases;           // [B, D, R]
  const T* grad_bases;      // or null
  const T* grad_coef;       // [B, N, R], or null
  const float* past_bases;  // [steps, B, D, R], or of one_step [1, B, D, R]
  const float* past_coef;   // [steps + 2, B, N, R], or of one_step [1, B, N, R]
  T* dbases;                // of one_step not written
  float* left;              // [B, 2 steps + 1, Dp, Rp]: A after s updates; dP of the updates of A
  float* right;             // [B, 2 steps + 1, tiles * kNmfTile, Rp]: dP of C; C from slot 1 on
  float* scratch;
  unsigned* counters;
  bool one_step;
};

// Scratch memory of an item: partial sums of every block of X dP and X C, and of two squares; the
// sums of those; the gradients of bases and coefficients so far.
struct NmfBackwardScratch {
  float *tables, *squares, *square, *dbases, *dcoef;
};

ATTNOPS_HOST_DEVICE int64_t nmf_right_table(const NmfPlan& plan) {
  return int64_t{plan.tiles} * kNmfTile * plan.padded_rank;
}
ATTNOPS_HOST_DEVICE int64_t nmf_backward_scratch_size(const NmfPlan& plan) {
  return (2 * int64_t{plan.blocks} + 1) * plan.table() +
         2 * (int64_t{plan.blocks} + 1) * plan.square() + nmf_right_table(plan);
}

__device__ __forceinline__ NmfBackwardScratch nmf_backward_scratch(const NmfPlan& plan,
                                                                   float* p_scratch, int slot) {
  float* tables = p_scratch + slot * nmf_backward_scratch_size(plan);
  float* squares = tables + 2 * int64_t{plan.blocks} * plan.table();
  float* square = squares + 2 * int64_t{plan.blocks} * plan.square();
  float* dbases = square + 2 * plan.square();
  return {tables, squares, square, dbases, dbases + plan.table()};
}

// Where the work of a block stands.
template <typename T>
struct NmfBackwardWork {
  NmfBackwardScratch scratch;
  float* left;   // of the item
  float* right;  // of the item
  int item, block;

  // Number `which` (0, 1) of this block's partial sums.
  __device__ __forceinline__ float* table(const NmfPlan& plan, int which) const {
    return scratch.tables + (int64_t{which} * plan.blocks + block) * plan.table();
  }
  __device__ __forceinline__ float* square(const NmfPlan& plan, int which) const {
    return scratch.squares + (2 * int64_t{block} + which) * plan.square();
  }
};

// Copies this block's rows of all bases, padded, and of the gradient; the Gram matrix of the last.
template <typename T, int kRank>
__device__ __forceinline__ void begin_bases(const NmfBackward<T>& to, const NmfPlan& plan,
                                            const NmfShared<kRank>& shared,
                                            const NmfBackwardWork<T>& work) {
  const int64_t size = int64_t{plan.channels} * plan.rank;
  const int begin = work.block * plan.block_rows;
  const int end = min(begin + plan.block_rows, plan.depth);
  const int steps = to.one_step ? 0 : plan.steps;
  RowGram<kRank> gram;
  for (int first = begin; first < end; first += kNmfChunk) {
    const int rows = min(kNmfChunk, end - first);
    for (int e = thread_now(); e < rows * kRank; e += kNmfThreads) {
      const int d = first + e / kRank, r = e % kRank;
      const bool inside = d < plan.channels && r < plan.rank;
      const int64_t at = work.item * size + int64_t{d} * plan.rank + r;
      float value = 0;
      for (int s = 0; s <= steps; ++s) {
        if (inside) {
          value = to.one_step ? to.past_bases[at]
                  : s == 0    ? widen(to.bases[at])
                              : to.past_bases[(s - 1) * plan.batch * size + at];
        }
        work.left[int64_t{s} * plan.table() + first * kRank + e] = value;
      }
      shared.rows(0)[e] = value;
      work.scratch.dbases[first * kRank + e] =
          inside && to.grad_bases != nullptr ? widen(to.grad_bases[at]) : 0.0f;
    }
    __syncthreads();
    gram.add(shared.rows(0), shared.rows(0), rows);
    __syncthreads();
  }
  gram.write(work.square(plan, 1));
  for (int e = thread_now(); e < plan.square(); e += kNmfThreads) work.square(plan, 0)[e] = 0;
}

// Update number `slot` + 1 of the coefficients of a tile, whose X is in shared.x. The sums of dH
// and G are read from scratch when `barrier` lets the first tile.
template <typename T, int kRank>
__device__ __forceinline__ void coef_backward(const NmfBackward<T>& to, const NmfPlan& plan,
                                              const NmfShared<kRank>& shared,
                                              const NmfBackwardWork<T>& work, int tile, int slot,
                                              bool add, GridBarrier& barrier) {
  constexpr bool kExact = sizeof(T) == 2;
  constexpr int kTiles = kRank / 8, kCount = kRank / 8;
  const bool ends = to.one_step || slot == plan.steps;
  const NmfPlace<kRank> place(plan, tile);
  const int64_t coefs = int64_t{plan.batch} * plan.positions * plan.rank;
  const int64_t row = (int64_t{work.item} * plan.positions + place.n) * plan.rank;
  const float* p_coef = to.past_coef + slot * coefs + row;
  const float* p_next = p_coef + coefs;
  const auto read = [&](const float* p_row, float(&value)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) value[k] = 0;
    place.each(plan, [&](int k, int r) { value[k] = p_row[r]; });
  };
  float* p_grad = work.scratch.dcoef + place.n * kRank;
  float grad[kCount] = {}, x[kCount];

  // What comes to the result of this update; kept in memory while its registers are needed.
  if (!ends) {
    read(p_next, x);
    place.write(shared.left, x);
    const float* p_factor = work.left + int64_t{plan.steps + 1 + slot} * plan.table();
    project_tile<kExact, kTiles>(shared.x, p_factor, plan.depth, shared.parts);
  } else {
    place.each(plan, [&](int k, int r) {
      p_grad[r] = to.grad_coef != nullptr ? widen(to.grad_coef[row + r]) : 0.0f;
    });
  }
  if (!add) barrier.await();
  if (!ends) {
    load_square<kRank>(work.scratch.square, shared.square, true);
    __syncthreads();
    multiply_square<kTiles>(shared.left, shared.square, shared.right);
    place.gather(shared.parts, x);
    __syncthreads();
    place.read(shared.right, grad);
    place.each(plan, [&](int k, int r) { p_grad[r] += x[k] + grad[k]; });
    __syncthreads();
  }

  // dP, dQ, and what goes on to the coefficients before.
  read(p_coef, x);
  place.write(shared.left, x);
  load_square<kRank>(work.scratch.square + plan.square(), shared.square);
  if (!to.one_step) {
    project_tile<kExact, kTiles>(shared.x, work.left + int64_t{slot} * plan.table(), plan.depth,
                                 shared.parts);
  }
  __syncthreads();
  multiply_square<kTiles>(shared.left, shared.square, shared.right);
  if (!to.one_step) place.gather(shared.parts, x);
  __syncthreads();
  float q[kCount], coef[kCount], next[kCount] = {};
  float dp[kCount] = {}, dq[kCount] = {}, dcoef[kCount] = {};
  place.read(shared.right, q);
  place.read(shared.left, coef);
  if (!to.one_step) read(p_next, next);
  read(p_grad, grad);
  place.each(plan, [&](int k, int) {
    const float scaled = grad[k] / (q[k] + plan.eps);
    dp[k] = scaled * coef[k];
    dq[k] = -(scaled * next[k]);
    if (!to.one_step) dcoef[k] = scaled * x[k];
  });
  float* s_dq = shared.parts;
  float* s_dp = shared.parts + kNmfTile * shared.kPitch;
  if (!to.one_step) {
    place.write(s_dq, dq);
    __syncthreads();
    multiply_square<kTiles>(s_dq, shared.square, shared.right);
    __syncthreads();
    place.read(shared.right, q);
    float delta = 0;
    place.each(plan, [&](int k, int r) {
      dcoef[k] += q[k];
      delta += coef[k] * dcoef[k];
      if (slot > 0) p_grad[r] = dcoef[k];
    });
    delta = place.row_sum(delta);
    if (slot == 0) {
      place.each(plan, [&](int k, int) { dp[k] += plan.inv_t * (coef[k] * (dcoef[k] - delta)); });
    }
    place.write(s_dp, dp);
  }
#pragma unroll
  for (int v = 0; v < place.kVectors; ++v) {
    const auto store = [&](int table, const float(&value)[kCount]) {
      *reinterpret_cast<float4*>(work.right + table * nmf_right_table(plan) + place.n * kRank +
                                 place.column(v)) =
          make_float4(value[4 * v], value[4 * v + 1], value[4 * v + 2], value[4 * v + 3]);
    };
    store(slot, dp);
    if (slot > 0) store(plan.steps + slot, coef);
  }
  __syncthreads();
  if (to.one_step) return;

  gram_tile<kTiles>(shared.left, s_dq, add, work.square(plan, 0));
  spread_tile<kExact, kTiles>(shared.x, s_dp, plan.depth, add, work.table(plan, 0));
  if (slot > 0) {
    gram_tile<kTiles>(shared.left, shared.left, add, work.square(plan, 1));
    spread_tile<kExact, kTiles>(shared.x, shared.left, plan.depth, add, work.table(plan, 1));
  }
  __syncthreads();
}

// Update number `slot` of this block's rows of the bases; 0: there is none, only what the update of
// the coefficients has left to do. The sums of dG and H are read when `barrier` lets it.
template <typename T, int kRank>
__device__ __forceinline__ void bases_backward(const NmfBackward<T>& to, const NmfPlan& plan,
                                               const NmfShared<kRank>& shared,
                                               const NmfBackwardWork<T>& work, int slot,
                                               GridBarrier& barrier) {
  const int begin = work.block * plan.block_rows;
  const int end = min(begin + plan.block_rows, plan.depth);
  float *s_grad = shared.rows(0), *s_sums = shared.rows(1), *s_next = shared.rows(2);
  float *s_before = shared.rows(3), *s_dq = shared.rows(4);
  float *s_dg = shared.rows(6), *s_h = shared.square;
  const float* p_next = work.left + int64_t{slot} * plan.table();
  RowGram<kRank> gram, dgram;
  int first = begin;
  do {
    const int rows = max(min(kNmfChunk, end - first), 0), count = rows * kRank;
    const int at = first * kRank;
    sum_parts(work.scratch.tables + at, plan.table(), plan.blocks, count / 4, shared.sums(),
              [&](int v, float4 sum) { reinterpret_cast<float4*>(s_grad)[v] = sum; });
    if (slot > 0) {
      sum_parts(work.scratch.tables + int64_t{plan.blocks} * plan.table() + at, plan.table(),
                plan.blocks, count / 4, shared.sums(),
                [&](int v, float4 sum) { reinterpret_cast<float4*>(s_sums)[v] = sum; });
    }
    for (int e = thread_now(); e < count; e += kNmfThreads) {
      s_next[e] = p_next[at + e];
      if (slot > 0) s_before[e] = p_next[at + e - plan.table()];
    }
    if (first == begin) {
      barrier.await();
      load_square<kRank>(work.scratch.square, s_dg, true);
      load_square<kRank>(work.scratch.square + plan.square(), s_h);
    }
    __syncthreads();
    for (int e = thread_now(); e < count; e += kNmfThreads) {
      const int d = first + e / kRank, r = e % kRank;
      const bool inside = d < plan.channels && r < plan.rank;
      const float grad =
          work.scratch.dbases[at + e] + s_grad[e] + dot_row<kRank>(s_next + e - r, s_dg + r);
      if (slot == 0) {
        if (inside) {
          to.dbases[(int64_t{work.item} * plan.channels + d) * plan.rank + r] = narrow<T>(grad);
        }
        continue;
      }
      const float q = dot_row<kRank>(s_before + e - r, s_h + r) + plan.eps;
      const float scaled = inside ? grad / q : 0.0f;
      work.left[int64_t{plan.steps + slot} * plan.table() + at + e] = scaled * s_before[e];
      s_dq[e] = -(scaled * s_next[e]);
      s_sums[e] = scaled * s_sums[e];
    }
    __syncthreads();
    if (slot > 0) {
      for (int e = thread_now(); e < count; e += kNmfThreads) {
        const int r = e % kRank;
        work.scratch.dbases[at + e] = s_sums[e] + dot_row<kRank>(s_dq + e - r, s_h + r);
      }
      dgram.add(s_before, s_dq, rows);
      gram.add(s_before, s_before, rows);
    }
    __syncthreads();
    first += kNmfChunk;
  } while (first < end);
  dgram.write(work.square(plan, 0));
  gram.write(work.square(plan, 1));
}

// Grid: items * blocks of the plan.
template <typename T, int kRank>
__global__ void __launch_bounds__(kNmfThreads, 1)
    nmf_backward_kernel(const NmfBackward<T> to, const __grid_constant__ NmfPlan plan) {
  ATTNOPS_DYNAMIC_SHARED(memory);
  const NmfShared<kRank> shared(memory, plan.depth);
  const int slot = blockIdx.x / plan.blocks, block = blockIdx.x % plan.blocks;
  const int steps = to.one_step ? 0 : plan.steps;
  const int tile_begin = block * plan.block_tiles;
  const int tile_end = min(tile_begin + plan.block_tiles, plan.tiles);
  GridBarrier barrier(to.counters + slot, plan.blocks);
  NmfBackwardWork<T> work{nmf_backward_scratch(plan, to.scratch, slot), nullptr, nullptr, 0, block};

  for (int item = slot; item < plan.batch; item += plan.items) {
    work.item = item;
    work.left = to.left + int64_t{item} * (2 * steps + 1) * plan.table();
    work.right = to.right + int64_t{item} * (2 * steps + 1) * nmf_right_table(plan);
    const T* p_x = to.x + int64_t{item} * plan.channels * plan.positions;
    const auto add_squares = [&] {
      sum_squares(work.scratch.squares, work.scratch.square, 2 * plan.square(), plan.blocks, block,
                  shared.sums());
      barrier.arrive();
    };
    if (item != slot) barrier.wait();  // what the last item left has been read
    const bool stays = plan.block_tiles == 1;
    if (stays && !to.one_step) load_tile(p_x, plan, tile_begin * kNmfTile, shared.x);
    begin_bases(to, plan, shared, work);
    barrier.wait();
    for (int update = steps; update >= 0; --update) {
      add_squares();
      for (int tile = tile_begin; tile < tile_end; ++tile) {
        if (!stays && !to.one_step) {
          load_tile(p_x, plan, tile * kNmfTile, shared.x);
          __syncthreads();
        }
        coef_backward(to, plan, shared, work, tile, update, tile > tile_begin, barrier);
      }
      if (to.one_step) break;
      barrier.wait();
      add_squares();
      bases_backward(to, plan, shared, work, update, barrier);
      if (update > 0) barrier.wait();
    }
  }
}

}  // namespace attnops::cuda
