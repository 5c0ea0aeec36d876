// The entry points of nmf; compiled once per instruction set.
#include "backward.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

template <class S>
struct NmfEntries {
  using C = Compute<S>;

  static NmfBytes bytes(const NmfShape& shape, bool backward) {
    const NmfLayout<C> layout(shape, backward);
    constexpr int64_t size = sizeof(C);
    return {layout.state * size, layout.partial * size, layout.scratch * size,
            layout.tile_rows * kTile * size};
  }
  static void pack(const NmfShape& shape, const NmfShare& share) {
    const int64_t rows = NmfLayout<C>(shape, false).tile_rows;
    C* tile = static_cast<C*>(share.packed);
    for (int64_t n = share.first; n < share.last; n += kTile, tile += rows * kTile)
      pack_tile(shape, static_cast<const S*>(share.x), n, min64(kTile, share.last - n), rows, tile);
  }
  static void start(const NmfShape& shape, const NmfShare& share, const void* bases, void* past,
                    void* out) {
    ATTNOPS_ISA::start(shape, share, static_cast<const S*>(bases), static_cast<C*>(past),
                       static_cast<S*>(out));
  }
  static void update_bases(const NmfShape& shape, const NmfShare& share, void* past, void* out) {
    ATTNOPS_ISA::update_bases(shape, share, static_cast<C*>(past), static_cast<S*>(out));
  }
  static void start_backward(const NmfShape& shape, const NmfShare& share, NmfBases bases,
                             NmfBases before, const void* grad) {
    ATTNOPS_ISA::start_backward(shape, share, bases, before, static_cast<const S*>(grad));
  }
  static void finish_bases(const NmfShape& shape, const NmfShare& share, void* dbases) {
    ATTNOPS_ISA::finish_bases(shape, share, static_cast<S*>(dbases));
  }
  static void finish_x(const NmfShape& shape, const NmfShare& share, const void* from, void* dx) {
    ATTNOPS_ISA::finish_x(shape, share, static_cast<const C*>(from), static_cast<S*>(dx));
  }
  static void one_step_backward(const NmfShape& shape, const NmfShare& share, const void* coef,
                                const void* grad, void* dx) {
    ATTNOPS_ISA::one_step_backward(shape, share, static_cast<const C*>(coef),
                                   static_cast<const S*>(grad), static_cast<C*>(dx));
  }
  static constexpr NmfKernels kernels = {kTile,
                                         bytes,
                                         pack,
                                         start,
                                         update_coef<S>,
                                         update_bases,
                                         start_backward,
                                         coef_backward<S>,
                                         bases_backward<S>,
                                         finish_bases,
                                         finish_x,
                                         one_step_backward};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(NmfKernels, nmf_kernels, NmfEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
