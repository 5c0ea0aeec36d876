// Merging score maps of several resolutions:
//
//   out = sum over s of w_s v_s, the mean of v_s, or their maximum; v_s = resize(scores[s])
//   dlogits_s = w_s (dw_s - sum over t of w_t dw_t), dw_s = <grad, v_s>    dv_s = w_s grad
//
// with w the softmax of the logits over scales. Threads take runs of output rows, and in the
// backward runs of rows of a map with all output rows that read them, so every gradient is gathered
// by one worker in a fixed order. For an output row the two rows of a map that it reads are blended
// to [w][classes], which the first-level cache holds, and every pixel blends two columns of that
// and adds the result to its own; no resized map exists.
//
// host.cpp makes the tables of the resize and deals out rows; resize/class_rows.h blends rows and
// gathers gradients; kernels.cpp merges a row. Here: what host and kernels share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/resize/score_map.h"

namespace attnops::cpu {

// The numbers are those of the op's argument.
enum class Merge { kAttention = 0, kMean = 1, kMax = 2 };

// Maps of one batch item: scores[s] is maps[s], logits (kAttention) [scales, H, W], the result
// [classes, H, W], all in one layout.
struct MergeShape {
  int64_t classes, height, width, scales;
  bool channels_last;
  Merge reduce;
  const ScoreMap* maps;  // [scales]
};

// Entry points of one instruction set and one element type. Scratch is private to the caller and
// aligned to 64 bytes.
struct MergeKernels {
  // `held`: rows of gradients of a map, 0 but for score_gradients.
  int64_t (*scratch_bytes)(const MergeShape&, int64_t held);
  // Output rows [begin, end).
  void (*merge)(const MergeShape&, const void* const* scores, const void* logits, void* out,
                int64_t begin, int64_t end, void* scratch);
  void (*logit_gradients)(const MergeShape&, const void* grad, const void* const* scores,
                          const void* logits, void* dlogits, int64_t begin, int64_t end,
                          void* scratch);
  // Rows [first, last) of the gradient of map `scale`, from output rows [begin, end): all that read
  // them.
  void (*score_gradients)(const MergeShape&, int64_t scale, const void* grad,
                          const void* const* scores, const void* logits, void* dscores,
                          int64_t first, int64_t last, int64_t begin, int64_t end, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(MergeKernels, merge_kernels)

}  // namespace attnops::cpu
