// The taps and biases of strip convolutions for the planes of a group, and what both directions
// need to know of their sizes.
#pragma once

#include "rows.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

// How far a pixel sees to the side and up or down.
struct StripReach {
  int64_t local_side, local_up;  // of the local kernel
  int64_t side = 0, up = 0;      // of the longest row and column

  explicit StripReach(const StripShape& s)
      : local_side(s.kernel_width / 2), local_up(s.kernel_height / 2) {
    for (int64_t i = 0; i < s.strips; ++i) {
      side = max64(side, s.rows[i] / 2);
      up = max64(up, s.columns[i] / 2);
    }
  }
};

// Index of the first tap of the row of a strip; those of its column follow.
ATTNOPS_INLINE int64_t row_tap(const StripShape& s, int64_t strip) {
  int64_t tap = s.kernel_height * s.kernel_width;
  for (int64_t i = 0; i < strip; ++i) tap += s.rows[i] + s.columns[i];
  return tap;
}
ATTNOPS_INLINE int64_t column_tap(const StripShape& s, int64_t strip) {
  return row_tap(s, strip) + s.rows[strip];
}

template <class S>
class StripParameters {
 public:
  using C = Compute<S>;

  StripParameters(Arena& arena, const StripShape& s)
      : shape_(s),
        taps_(arena.take<C>(round_up(s.taps, kWidth<C>) * kWidth<C>)),
        shifts_(arena.take<C>(round_up(s.shifts(), kWidth<C>) * kWidth<C>)) {}

  void pack(const LaneGroup<S>& group, const S* taps, const S* shifts) const {
    group.pack_parameters(taps, shape_.taps, taps_);
    group.pack_parameters(shifts, shape_.shifts(), shifts_);
  }
  // Turns the convolutions into their transposes.
  void reverse() const {
    reverse_taps(taps_, shape_.kernel_height * shape_.kernel_width);
    for (int64_t i = 0; i < shape_.strips; ++i) {
      reverse_taps(tap(row_tap(shape_, i)), shape_.rows[i]);
      reverse_taps(tap(column_tap(shape_, i)), shape_.columns[i]);
    }
  }
  C* tap(int64_t i) const { return taps_ + i * kWidth<C>; }
  C* shift(int64_t i) const { return shifts_ + i * kWidth<C>; }

 private:
  const StripShape& shape_;
  C *taps_, *shifts_;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
