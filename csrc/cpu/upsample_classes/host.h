// What the host code and the vector code of labels and losses at full resolution share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/resize/score_map.h"

namespace attnops::cpu {

struct ClassMap : ScoreMap {
  int64_t ignore_index;
};

// Entry points of one instruction set and one element type; pointers are to one batch item.
// Targets and labels [H, W], losses and gradients of losses [H, W] and both statistics [H, W] in
// the type of arithmetic. Scratch is private to the caller and aligned to 64 bytes.
struct ClassKernels {
  // `held` rows of gradients of logits: 0 but for the backward.
  int64_t (*scratch_bytes)(const ClassMap&, int64_t held);
  // Output rows [begin, end).
  void (*labels)(const ClassMap&, const void* logits, int64_t* labels, int64_t begin, int64_t end,
                 void* scratch);
  void (*losses)(const ClassMap&, const void* logits, const int64_t* target, void* loss,
                 void* largest, void* rest, int64_t begin, int64_t end, void* scratch);
  // Rows [first, last) of dlogits, from output rows [begin, end): all that read them. grad_lse: the
  // gradient of the pixels' log-sum-exp, null where there is none.
  void (*gradients)(const ClassMap&, const void* grad, const void* grad_lse, const void* logits,
                    const int64_t* target, const void* largest, const void* rest, void* dlogits,
                    int64_t first, int64_t last, int64_t begin, int64_t end, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(ClassKernels, class_kernels)

}  // namespace attnops::cpu
