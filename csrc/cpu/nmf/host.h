// Non-negative matrix factorisation by multiplicative updates: X [D, N] is about A C^T.
//
//   C_0 = softmax(inv_t X^T A_0)
//   C_{u+1} = C_u (X^T A_u) / (C_u A_u^T A_u + eps)
//   A_{u+1} = A_u (X C_{u+1}) / (A_u C_{u+1}^T C_{u+1} + eps)
//
// Threads take whole batch items where there are enough, else shares of an item's positions, whose
// partial sums are added up in order (workspace.h, workspace.cpp). X is read once for each update
// of C, in tiles that stay in the second-level cache between their two products. Per step and
// position forward does 2 D R + 2 R^2 multiply-adds, backward 4 D R + 5 R^2.
//
// host.cpp orders the updates; memory.h lays out a share's memory, pack.h and products.h feed
// common/gemm.h, pairs.h multiplies in bfloat16, tiled.h and tile_products.h in tiles of AMX,
// update.h is the pointwise part, forward.h and backward.h are the steps of a share, kernels.cpp
// lists them. Here: what host and kernels share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// One batch item: x [channels, positions], bases [channels, rank], coefficients [positions, rank].
// channels_inner: x and its gradient have contiguous channels.
struct NmfShape {
  int64_t channels, positions, rank;
  double inv_t, eps;
  bool channels_inner;
};

// Memory, in bytes: `state` of an item, `partial` and `scratch` of a share, `tile` of a packed tile
// of x.
struct NmfBytes {
  int64_t state, partial, scratch, tile;
};

// Shares begin at multiples of this many channels.
constexpr int64_t kNmfRowUnit = 48;

// Share `index` of the `count` shares of an item: positions [first, last) and channels
// [row, row_end). All memory of the kernels' own is aligned to 64 bytes.
struct NmfShare {
  const void* x;
  void* packed;    // tiles of these positions, or null: every pass packs its own
  void* state;     // the bases, in panels
  void* partials;  // sums of all shares of the item, one after the other
  void* scratch;
  int64_t index, count, first, last, row, row_end;
};

// Rows [channels, rank] of bases: in the element type, or those of a step in the type of
// arithmetic. The other pointer is null.
struct NmfBases {
  const void* given;
  const void* step;
};

// One update of the coefficients. Rows are [positions, rank] in the type of arithmetic, `out` in
// the element type; pointers other than from may be null.
struct NmfCoefStep {
  const void* from;  // null: the softmax, which also goes to `initial`
  void *initial, *to, *out;
  bool last;  // no update of the bases follows
};

// Backward of one update of the coefficients. Rows are as above, grad in the element type.
struct NmfCoefGradient {
  const void *coef, *next;  // before and after the update
  const void* grad;         // of the result, with `last`; may be null
  void* state;              // gradient of `next` on entry (not with `last`), then of `coef`
  void* dx;                 // in the type of arithmetic; written with `last`, else added to
  bool first, last;         // the update after the softmax; the one after the last bases
};

// Entry points of one instruction set and one element type. Work on all shares of an item has to
// be finished before the next function is called for one of them.
struct NmfKernels {
  int64_t tile;  // positions of a tile

  NmfBytes (*bytes)(const NmfShape&, bool backward);

  // Packs the tiles of the share's positions; null where a packed tile has no bytes.
  void (*pack)(const NmfShape&, const NmfShare&);

  // Takes the bases over; with no steps to follow they also go to past and out (else null).
  void (*start)(const NmfShape&, const NmfShare&, const void* bases, void* past, void* out);
  void (*update_coef)(const NmfShape&, const NmfShare&, const NmfCoefStep&);
  // The new bases also go to past [channels, rank] and out; both may be null.
  void (*update_bases)(const NmfShape&, const NmfShare&, void* past, void* out);

  // The backward, null where there is none.

  // Takes over the last bases and their gradient, which may be null. `before`: the bases one step
  // earlier, both null if there are none.
  void (*start_backward)(const NmfShape&, const NmfShare&, NmfBases bases, NmfBases before,
                         const void* grad) = nullptr;
  void (*coef_backward)(const NmfShape&, const NmfShare&, const NmfCoefGradient&) = nullptr;
  // Goes on from the gradient of the bases after a step to that of the bases before it.
  void (*bases_backward)(const NmfShape&, const NmfShare&, NmfBases bases,
                         NmfBases before) = nullptr;
  void (*finish_bases)(const NmfShape&, const NmfShare&, void* dbases) = nullptr;
  // dx of the share's positions, from the type of arithmetic to the element type.
  void (*finish_x)(const NmfShape&, const NmfShare&, const void* from, void* dx) = nullptr;

  // dx alone, in the element type, of one update with constant bases (those of start_backward) and
  // constant coefficients before it.
  void (*one_step_backward)(const NmfShape&, const NmfShare&, const void* coef, const void* grad,
                            void* dx) = nullptr;
};

ATTNOPS_DECLARE_KERNELS(NmfKernels, nmf_kernels)

// How x in bfloat16 is multiplied: in float, in pairs of terms or in tiles of AMX, for an even
// number of channels and for whole tiles of them, the inner ones.
enum class NmfProducts { kFloat, kPairs, kTiles };
constexpr int64_t kNmfTileChannels = 32;

// Entry points of the forward alone, for x in bfloat16 and factors in float.
#define ATTNOPS_DECLARE_MIXED_NMF(isa)                       \
  namespace isa {                                            \
  const NmfKernels& mixed_nmf_kernels(NmfProducts products); \
  }
ATTNOPS_DECLARE_MIXED_NMF(baseline)
ATTNOPS_DECLARE_MIXED_NMF(avx2)
ATTNOPS_DECLARE_MIXED_NMF(avx512)
#undef ATTNOPS_DECLARE_MIXED_NMF

}  // namespace attnops::cpu
