// What the host code and the vector code of merging score maps share.
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
