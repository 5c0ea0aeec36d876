// What the pooling kernels share: buffers, and the transposition between [channels, cells] outside
// and [cells, channels] inside, where vectors run along the channels.
#pragma once

#include "cpu/common/vec.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// First column of the vector that holds column w: the last vector of a row is moved left so that it
// ends with the row, and does some columns twice.
template <class C>
ATTNOPS_INLINE int64_t vector_column(int64_t w, int64_t width) {
  return max64(0, min64(w, width - kWidth<C>));
}

// x [rows, lanes] -> out [count, rows], count <= lanes. Both sides of x are padded to whole
// vectors.
template <class S>
static void store_transposed(const Compute<S>* x, int64_t rows, int64_t lanes, int64_t count,
                             S* out) {
  using C = Compute<S>;
  C square[kWidth<C> * kWidth<C>];
  for (int64_t c = 0; c < count; c += kWidth<C>)
    for (int64_t r = 0; r < rows; r += kWidth<C>) {
      transpose_square(x + r * lanes + c, lanes, square, kWidth<C>);
      for (int64_t i = 0; i < min64(kWidth<C>, count - c); ++i) {
        S* target = out + (c + i) * rows + r;
        if (rows - r >= kWidth<C>)
          store(target, load(square + i * kWidth<C>));
        else
          store_partial(target, load(square + i * kWidth<C>), rows - r);
      }
    }
}

// x [count, rows] -> out [rows, lanes], count <= lanes, zeros beyond. Rows of out are padded to
// whole vectors.
template <class S>
static void load_transposed(const S* x, int64_t rows, int64_t lanes, int64_t count,
                            Compute<S>* out) {
  using C = Compute<S>;
  C square[kWidth<C> * kWidth<C>];
  for (int64_t c = 0; c < lanes; c += kWidth<C>)
    for (int64_t r = 0; r < rows; r += kWidth<C>) {
      for (int64_t i = 0; i < kWidth<C>; ++i) {
        const S* source = x + (c + i) * rows + r;
        store(square + i * kWidth<C>, c + i >= count          ? typename Vec<C>::V{}
                                      : rows - r >= kWidth<C> ? load(source)
                                                              : load_partial(source, rows - r));
      }
      transpose_square(square, kWidth<C>, out + r * lanes + c, lanes);
    }
}

// Buffers of pooling for `lanes` channels at a time, elements of C. Bands and columns are for
// contiguous planes only: bands [bands][lanes][width], columns [width][lanes].
template <class C>
struct PoolBuffers {
  int64_t width;                                       // padded
  int64_t segments = 0, cells, bands, columns, total;  // offsets

  PoolBuffers(const PoolPlan& plan, int64_t lanes, bool channels_last) {
    width = round_up(plan.columns.size, kWidth<C>);
    cells = plan.columns.segments * lanes;
    bands = cells + round_up(plan.cells, kWidth<C>) * lanes;
    columns = bands + (channels_last ? 0 : plan.rows.segments * lanes * width);
    total = columns + (channels_last ? 0 : width * lanes);
  }
};

}  // namespace attnops::cpu::ATTNOPS_ISA
