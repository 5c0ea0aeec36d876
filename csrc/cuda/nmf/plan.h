// How nmf divides its work: blocks that run together share an item, each owns positions of X and
// rows of the bases.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace attnops::cuda {

constexpr int kNmfThreads = 256;
constexpr int kNmfWarps = kNmfThreads / 32;
constexpr int kNmfTile = 32;       // positions of X in shared memory at a time
constexpr int kNmfChunk = 16;      // rows of the bases that are updated at a time
constexpr int kNmfDepthUnit = 64;  // channels are padded to a multiple, with zeros
constexpr int64_t kNmfMaxRank = 64;
constexpr int64_t kNmfMaxChannels = 1024;

struct NmfProblem {
  int64_t batch;
  int64_t channels;   // D
  int64_t positions;  // N
  int64_t rank;       // R
  bool channels_inner;
  int64_t steps;
  float inv_t;
  float eps;
};

inline bool nmf_supported(const NmfProblem& problem) {
  return problem.rank <= kNmfMaxRank && problem.channels <= kNmfMaxChannels &&
         problem.positions < INT32_MAX - kNmfTile && problem.batch < INT32_MAX &&
         problem.steps < INT32_MAX - 2;
}

// The rank that the kernels compute with: a multiple of 32.
inline int nmf_padded_rank(int64_t rank) { return rank <= 32 ? 32 : 64; }

// Passed to the kernels by value. The `blocks` blocks of an item own `block_tiles` tiles of
// positions and `block_rows` rows of the padded bases each; `items` items are worked on at a time.
struct NmfPlan {
  int batch, channels, positions, rank;
  int padded_rank;  // Rp
  int depth;        // Dp: padded channels
  bool channels_inner;
  bool vectors;  // X is read in pieces of 16 bytes
  int steps;
  float inv_t, eps;
  int tiles, block_tiles, blocks, items, block_rows;

  ATTNOPS_HOST_DEVICE int square() const { return padded_rank * padded_rank; }
  ATTNOPS_HOST_DEVICE int table() const { return depth * padded_rank; }
};

inline int nmf_depth(int64_t channels) {
  const int units = static_cast<int>((channels + kNmfDepthUnit - 1) / kNmfDepthUnit);
  return units * kNmfDepthUnit;
}

// Shared memory of a block: X, the products of all warps, two tables of a tile's size, a square.
inline size_t nmf_shared_bytes(int depth, int padded_rank) {
  const size_t pitch = padded_rank + 4;
  return sizeof(float) * (size_t{kNmfTile} * depth + kNmfWarps * kNmfTile * padded_rank +
                          2 * kNmfTile * pitch + padded_rank * pitch);
}

// `resident`: blocks that the device runs at a time. One block an item needs no other one.
inline NmfPlan plan_nmf(const NmfProblem& problem, bool vectors, int resident) {
  NmfPlan plan{};
  plan.batch = static_cast<int>(problem.batch);
  plan.channels = static_cast<int>(problem.channels);
  plan.positions = static_cast<int>(problem.positions);
  plan.rank = static_cast<int>(problem.rank);
  plan.padded_rank = nmf_padded_rank(problem.rank);
  plan.depth = nmf_depth(problem.channels);
  plan.channels_inner = problem.channels_inner;
  plan.vectors = vectors;
  plan.steps = static_cast<int>(problem.steps);
  plan.inv_t = problem.inv_t;
  plan.eps = problem.eps;
  plan.tiles = (plan.positions + kNmfTile - 1) / kNmfTile;
  plan.items = std::min(plan.batch, std::max(resident, 1));
  const int most = std::min(plan.tiles, std::max(resident / plan.items, 1));
  plan.block_tiles = (plan.tiles + most - 1) / most;
  plan.blocks = (plan.tiles + plan.block_tiles - 1) / plan.block_tiles;
  plan.block_rows = (plan.depth + plan.blocks - 1) / plan.blocks;
  return plan;
}

// Scratch memory of one item, in floats: the padded bases; the sum of a square over all blocks;
// partial sums of every block, of a table and of a square.
struct NmfScratch {
  float* bases;
  float* square;
  float* tables;
  float* squares;
};

ATTNOPS_HOST_DEVICE int64_t nmf_scratch_size(const NmfPlan& plan) {
  return plan.table() + plan.square() + int64_t{plan.blocks} * (plan.table() + plan.square());
}

}  // namespace attnops::cuda
