// Labels and cross-entropy at full resolution of logits z = resize(logits) at a smaller one:
//
//   label = argmax_k z_k    loss = log sum_k exp(z_k) - z_target
//   dz_k = grad (exp(z_k - log sum) - [k = target])    dlogits = resize^T(dz)
//
// Threads take runs of output rows, and in the backward runs of rows of logits with all output rows
// that read them, gathered in a fixed order. For an output row the two rows of logits that it reads
// are blended to [w][classes], which the first-level cache holds; every pixel then blends two of
// its columns and is finished: no resized map exists. Labels that four logits agree about are known
// without a blend.
//
// host.cpp makes the tables of the resize and deals out rows; resize/class_rows.h blends rows and
// gathers gradients; labels.h finds labels, kernels.cpp losses and gradients. Here: what host and
// kernels share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/resize/score_map.h"

namespace attnops::cpu {

struct ClassesShape : ScoreMap {
  int64_t ignore_index;
};

// Entry points of one instruction set and one element type; pointers are to one batch item.
// Targets and labels [H, W], losses and gradients of losses [H, W] and both statistics [H, W] in
// the type of arithmetic. Scratch is private to the caller and aligned to 64 bytes.
struct ClassesKernels {
  // `held` rows of gradients of logits: 0 but for the backward.
  int64_t (*scratch_bytes)(const ClassesShape&, int64_t held);
  // Output rows [begin, end).
  void (*labels)(const ClassesShape&, const void* logits, int64_t* labels, int64_t begin,
                 int64_t end, void* scratch);
  void (*losses)(const ClassesShape&, const void* logits, const int64_t* target, void* loss,
                 void* largest, void* rest, int64_t begin, int64_t end, void* scratch);
  // Rows [first, last) of dlogits, from output rows [begin, end): all that read them. grad_lse: the
  // gradient of the pixels' log-sum-exp, null where there is none.
  void (*gradients)(const ClassesShape&, const void* grad, const void* grad_lse, const void* logits,
                    const int64_t* target, const void* largest, const void* rest, void* dlogits,
                    int64_t first, int64_t last, int64_t begin, int64_t end, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(ClassesKernels, classes_kernels)

}  // namespace attnops::cpu
