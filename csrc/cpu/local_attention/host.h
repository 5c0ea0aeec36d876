// Local attention: every position attends to a dilated window around it.
//
//   scores[i, n] = scale <query[i], key[i + n]>      n: neighbour in the window
//   p[i, n] = softmax_n scores[i, n]                 out[i] = sum_n p[i, n] value[i + n]
//
// and, with dp[i, n] = <grad[i], value[i + n]> and ds = p (dp - sum_n p dp),
//
//   dquery[i] = scale sum_n ds[i, n] key[i + n]
//   dkey[j] = scale sum_n ds[j - n, n] query[j - n]     dvalue[j] = sum_n p[j - n, n] grad[j - n]
//
// Rows that see each other are those of one phase of the dilation. The rows of all maps, phase by
// phase, are cut into one run for every worker, a run into pieces (host.cpp), a piece into groups
// of rows (kernels.cpp). A group is done some channels at a time: they are packed into tiles
// (maps.h) that meet the scores of the group (window.h), all in the second-level cache; a block of
// scores stays in registers. softmax.h is the pointwise part. Here: what host and kernels share.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace attnops::cpu {

// One batch item: query and key [key_channels, height, width], value [value_channels, height,
// width]; channels_last: all maps have contiguous channels. The window holds rows x columns
// neighbours, both odd, row_step and column_step apart; those that are outside the map for every
// position are not in it but counted in `unreachable`.
struct LocalShape {
  int64_t key_channels, value_channels, height, width;
  int64_t rows, columns, row_step, column_step;
  int64_t unreachable;
  double scale;
  bool mask_border, channels_last;
};

// Rows of a map that see each other are row_step apart: row u of phase p is row p + u row_step of
// the map. A piece holds rows [first, last) of one phase and columns [left, right).
struct LocalPiece {
  int64_t phase, first, last, left, right;
};

// Entry points of one instruction set and one element type. Pointers to tensors are to one batch
// item. Scratch is private to the caller and aligned to 64 bytes.
struct LocalKernels {
  // Columns of a forward piece; the last one in a row may be shorter.
  int64_t (*piece_columns)(const LocalShape&);
  int64_t (*scratch_bytes)(const LocalShape&, bool backward);

  // out and lse of a piece.
  void (*forward)(const LocalShape&, const LocalPiece&, const void* query, const void* key,
                  const void* value, void* out, void* lse, void* scratch);

  // Gradients at the positions of a piece, which spans all columns.
  void (*backward)(const LocalShape&, const LocalPiece&, const void* grad, const void* query,
                   const void* key, const void* value, const void* lse, void* dquery, void* dkey,
                   void* dvalue, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(LocalKernels, local_kernels)

}  // namespace attnops::cpu
