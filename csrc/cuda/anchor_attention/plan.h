// How anchor attention divides its work: a block owns 128 positions, or 128 channels of a gradient
// of the anchors, and all anchors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace attnops::cuda {

constexpr int kAnchorThreads = 128;
constexpr int kAnchorRows = 128;       // of a block; a warp owns 32 of them
constexpr int kAnchorStepBytes = 128;  // terms of a sum, or channels of an output, at a time
constexpr int64_t kMaxAnchors = 112;   // more scores of a warp's rows do not fit its registers
constexpr int kSlabTiles = 512;        // tiles of positions whose probabilities are kept at a time
constexpr int kGradientBlocks = 264;   // wanted: two for each multiprocessor of the largest GPUs

struct AnchorProblem {
  int64_t batch;
  int64_t key_channels;    // Ck
  int64_t value_channels;  // Cv
  int64_t positions;       // N
  int64_t anchors;         // S
  bool channels_inner;
  bool has_bias;
  double scale;
};

inline bool anchor_attention_supported(const AnchorProblem& problem) {
  constexpr int64_t kMost = INT32_MAX - kAnchorRows;
  return problem.anchors <= kMaxAnchors && problem.positions < kMost &&
         problem.key_channels < kMost && problem.value_channels < kMost && problem.batch < kMost;
}

// The number of anchors that the kernels compute with.
inline int padded_anchors(int64_t anchors) { return anchors <= 64 ? 64 : 112; }

// Passed to the kernels by value.
struct AnchorPlan {
  int batch, key_channels, value_channels, positions, anchors;
  bool channels_inner;
  float scale;
  bool query_wide, value_wide;  // maps of Ck and of Cv channels are accessed in 16 bytes
  int table_bytes;              // as wide are rows of key and value read
  int tiles;                    // of positions
};

// Of the backward. Positions pass in slabs: `slab_tiles` tiles of `items` batch items at a time.
// Gradients of the anchors are summed up in `splits` parts of `split_tiles` tiles each.
struct AnchorBackwardPlan {
  AnchorPlan forward;
  bool has_bias;
  int items, slab_tiles;
  int key_blocks, value_blocks;  // of kAnchorRows channels
  int splits, split_tiles;

  ATTNOPS_HOST_DEVICE int rows() const { return (key_blocks + value_blocks) * kAnchorRows + 1; }
};

inline AnchorPlan plan_anchor_attention(const AnchorProblem& problem) {
  AnchorPlan plan{};
  plan.batch = static_cast<int>(problem.batch);
  plan.key_channels = static_cast<int>(problem.key_channels);
  plan.value_channels = static_cast<int>(problem.value_channels);
  plan.positions = static_cast<int>(problem.positions);
  plan.anchors = static_cast<int>(problem.anchors);
  plan.channels_inner = problem.channels_inner;
  plan.scale = static_cast<float>(problem.scale);
  plan.tiles = (plan.positions + kAnchorRows - 1) / kAnchorRows;
  return plan;
}

// The split depends on shapes alone: sums are the same on every device.
inline AnchorBackwardPlan plan_anchor_attention_backward(const AnchorProblem& problem,
                                                         int slab_tiles = kSlabTiles) {
  AnchorBackwardPlan plan{};
  plan.forward = plan_anchor_attention(problem);
  plan.has_bias = problem.has_bias;
  plan.items = std::min(std::max(slab_tiles / plan.forward.tiles, 1), plan.forward.batch);
  plan.slab_tiles = std::min(plan.forward.tiles, slab_tiles);
  const auto blocks = [](int channels) { return (channels + kAnchorRows - 1) / kAnchorRows; };
  plan.key_blocks = blocks(plan.forward.key_channels);
  plan.value_blocks = blocks(plan.forward.value_channels);
  const int wanted = kGradientBlocks / ((plan.key_blocks + plan.value_blocks) * plan.items);
  const int most = std::min(std::max(wanted, 1), plan.slab_tiles);
  plan.split_tiles = (plan.slab_tiles + most - 1) / most;
  plan.splits = (plan.slab_tiles + plan.split_tiles - 1) / plan.split_tiles;
  return plan;
}

}  // namespace attnops::cuda
