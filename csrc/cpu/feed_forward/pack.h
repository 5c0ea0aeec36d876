// Packing of weights, in the form that host.h says.
#pragma once

#include "pixels.h"
#include "products.h"

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

// Columns of a row from memory: a vector, or as many pairs.
template <int64_t kTogether, class S>
ATTNOPS_INLINE typename Vec<Compute<S>>::V load_columns(const S* p, int64_t count) {
  if constexpr (kTogether == 1) {
    return load_lanes(p, count);
  } else {
    VecF pairs = {};
    memcpy(&pairs, p, static_cast<size_t>(min64(2 * kWidth<float>, count)) * sizeof(*p));
    return pairs;
  }
}

// Panels [first, last), of B, of a matrix.
template <class S, class B>
static void pack_panels(const S* matrix, int64_t rows, int64_t columns, int64_t padded,
                        int64_t first, int64_t last, B* out) {
  using C = Compute<S>;
  constexpr int64_t kW = kWidth<C>, kTogether = sizeof(C) / sizeof(B);
  for (int64_t row = first * kPanelRows; row < last * kPanelRows; row += kW) {
    B* panel = out + row / kPanelRows * kPanelRows * padded + row % kPanelRows * kTogether;
    for (int64_t k = 0; k < padded; k += kW * kTogether) {
      typename Vec<C>::V v[kW];
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        v[i] = row + i < rows && k < columns
                   ? load_columns<kTogether>(matrix + (row + i) * columns + k, columns - k)
                   : typename Vec<C>::V{};
      transpose_steps<C>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kW; ++i)
        if (k + i * kTogether < padded)
          memcpy(panel + (k + i * kTogether) * kPanelRows, &v[i], sizeof(v[i]));
    }
  }
}

// Panels, of B, of the transpose of a matrix [rows, columns] in rows of `stride`, as of one with
// `padded` rows.
template <class S, class B>
static void pack_turned(const S* matrix, int64_t stride, int64_t rows, int64_t columns,
                        int64_t padded, B* out) {
  constexpr int64_t kW = kWidth<Compute<S>>, kTogether = sizeof(Compute<S>) / sizeof(B);
  for (int64_t n = 0; n < padded_to_panels(columns); n += kW) {
    B* panel = out + n / kPanelRows * kPanelRows * padded + n % kPanelRows * kTogether;
    const auto row = [&](int64_t k) __attribute__((always_inline)) {
      return k < rows && n < columns ? load_lanes(matrix + k * stride + n, columns - n)
                                     : typename Vec<Compute<S>>::V{};
    };
    for (int64_t k = 0; k < padded; k += kTogether)
      if constexpr (kTogether == 1)
        store(panel + k * kPanelRows, row(k));
      else
        store_pairs(panel + k * kPanelRows, row(k), row(k + 1));
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
