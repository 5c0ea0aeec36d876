// Rows of max pooling; compiled once per instruction set.
#include "cpu/common/vec.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// The elements before, at and behind place `middle`, of those that there are.
struct Window {
  int64_t places[3];

  Window(int64_t middle, int64_t size)
      : places{max64(middle - 1, 0), min64(middle, size - 1), min64(middle + 1, size - 1)} {}
};

template <class S>
struct MaxPoolEntries {
  using C = Compute<S>;

  static void run(const MaxPoolShape& s, const void* x, int64_t first, int64_t last, void* out) {
    for (int64_t row = first; row < last; ++row) {
      const Window rows(row * s.stride, s.height);
      for (int64_t column = 0; column < s.out_width; ++column) {
        const Window columns(column * s.stride, s.width);
        S* const result = static_cast<S*>(out) + (row * s.out_width + column) * s.channels;
        for (int64_t c = 0; c < s.channels; c += kWidth<C>) {
          const int64_t lanes = min64(kWidth<C>, s.channels - c);
          typename Vec<C>::V most = {};
          for (int i = 0; i < 9; ++i) {
            const int64_t place = rows.places[i / 3] * s.width + columns.places[i % 3];
            const auto v = load_lanes(static_cast<const S*>(x) + place * s.channels + c, lanes);
            most = i == 0 ? v : select((v > most) | (v != v), v, most);
          }
          store_lanes(result + c, most, lanes);
        }
      }
    }
  }

  static constexpr MaxPoolKernels kernels = {run};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(MaxPoolKernels, max_pool_kernels, MaxPoolEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
