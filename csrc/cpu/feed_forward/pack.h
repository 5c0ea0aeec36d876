// Packing of weights, in the form that host.h says.
#pragma once

#include "pixels.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Type of panels for a type of maps.
template <class S>
struct PanelOf {
  using type = Compute<S>;
};
template <>
struct PanelOf<BFloat16> {
  using type = BFloat16;
};
template <class S>
using Panel = typename PanelOf<S>::type;

// Columns of a row from memory: a vector, or as many pairs of bfloat16.
template <class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_columns(const S* p, int64_t count) {
  return load_lanes(p, count);
}
ATTNOPS_INLINE VecF load_columns(const BFloat16* p, int64_t count) {
  VecF pairs = {};
  constexpr int64_t kLanes = 2 * kWidth<float>;
  memcpy(&pairs, p, static_cast<size_t>(min64(kLanes, count)) * sizeof(*p));
  return pairs;
}

template <class S>
static void pack_panels(const S* matrix, int64_t rows, int64_t columns, int64_t padded,
                        int64_t first, int64_t last, Panel<S>* out) {
  using C = Compute<S>;
  constexpr int64_t kW = kWidth<C>, kTogether = sizeof(C) / sizeof(Panel<S>);
  for (int64_t row = first * kPanelRows; row < last * kPanelRows; row += kW) {
    Panel<S>* panel = out + row / kPanelRows * kPanelRows * padded + row % kPanelRows * kTogether;
    for (int64_t k = 0; k < padded; k += kW * kTogether) {
      typename Vec<C>::V v[kW];
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        v[i] = row + i < rows && k < columns
                   ? load_columns(matrix + (row + i) * columns + k, columns - k)
                   : typename Vec<C>::V{};
      transpose_steps<C>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        if (k + i * kTogether < padded)
          memcpy(panel + (k + i * kTogether) * kPanelRows, &v[i], sizeof(v[i]));
    }
  }
}

template <class S>
struct PackingEntries {
  static void panels(const void* matrix, int64_t rows, int64_t columns, int64_t padded,
                     int64_t first, int64_t last, void* out) {
    pack_panels(static_cast<const S*>(matrix), rows, columns, padded, first, last,
                static_cast<Panel<S>*>(out));
  }
  static void values(const void* from, int64_t step, int64_t count, void* out) {
    for (int64_t i = 0; i < count; ++i)
      static_cast<Compute<S>*>(out)[i] = load_one(static_cast<const S*>(from) + i * step);
  }
  static constexpr FeedForwardPacking kernels = {sizeof(S), sizeof(Panel<S>), sizeof(Compute<S>),
                                                 panels, values};
};

}  // namespace attnops::cpu::ATTNOPS_ISA
