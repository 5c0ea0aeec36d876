// What the host code and the vector code of local attention share: plain data and function tables.
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
  bool mask, channels_last;
};

// Rows of a map that see each other are row_step apart: row u of phase p is row p + u row_step of
// the map. A strip holds rows [first, last) of one phase and columns [left, right).
struct LocalStrip {
  int64_t phase, first, last, left, right;
};

// Entry points of one instruction set and one element type. Pointers to tensors are to one batch
// item. Scratch is private to the caller and aligned to 64 bytes.
struct LocalKernels {
  // Columns of a forward strip; the last one in a row may be shorter.
  int64_t (*strip_columns)(const LocalShape&);
  int64_t (*scratch_bytes)(const LocalShape&, bool backward);

  // out and lse of a strip.
  void (*forward)(const LocalShape&, const LocalStrip&, const void* query, const void* key,
                  const void* value, void* out, void* lse, void* scratch);

  // Gradients at the positions of a strip, which spans all columns.
  void (*backward)(const LocalShape&, const LocalStrip&, const void* grad, const void* query,
                   const void* key, const void* value, const void* lse, void* dquery, void* dkey,
                   void* dvalue, void* scratch);
};

ATTNOPS_DECLARE_KERNELS(LocalKernels, local_kernels)

}  // namespace attnops::cpu
