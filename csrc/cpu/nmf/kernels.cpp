// The entry points of nmf; compiled once per instruction set.
#include "backward.h"
#include "pairs.h"
#include "tiled.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// F: element type of the factors.
template <class F, class Tiles>
struct NmfForward {
  using C = Compute<F>;

  static NmfBytes bytes(const NmfShape& shape, bool backward) {
    const NmfLayout<C> layout(shape, backward);
    constexpr int64_t size = sizeof(C);
    return {layout.state * size, layout.partial * size,
            (layout.scratch + Tiles::scratch(layout)) * size, layout.tile_rows * kTile * size};
  }
  static void pack(const NmfShape& shape, const NmfShare& share) {
    const int64_t rows = NmfLayout<C>(shape, false).tile_rows;
    C* tile = static_cast<C*>(share.packed);
    for (int64_t n = share.first; n < share.last; n += kTile, tile += rows * kTile)
      Tiles::pack(shape, share.x, n, min64(kTile, share.last - n), rows, tile);
  }
  static void start(const NmfShape& shape, const NmfShare& share, const void* bases, void* past,
                    void* out) {
    ATTNOPS_ISA::start(shape, share, static_cast<const F*>(bases), static_cast<C*>(past),
                       static_cast<F*>(out));
  }
  static void update_bases(const NmfShape& shape, const NmfShare& share, void* past, void* out) {
    ATTNOPS_ISA::update_bases(shape, share, static_cast<C*>(past), static_cast<F*>(out));
  }

  static constexpr NmfKernels kernels = {kTile,       bytes, pack, start, update_coef<F, Tiles>,
                                         update_bases};
};

template <class S>
struct NmfEntries {
  using C = Compute<S>;
  using Forward = NmfForward<S, WideTiles<S>>;

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
                                         Forward::bytes,
                                         Forward::pack,
                                         Forward::start,
                                         update_coef<S, WideTiles<S>>,
                                         Forward::update_bases,
                                         start_backward,
                                         coef_backward<S>,
                                         bases_backward<S>,
                                         finish_bases,
                                         finish_x,
                                         one_step_backward};
};

#if defined(__AVX512F__)
// Every pass reads x itself.
struct NmfInTiles {
  using Forward = NmfForward<float, PairTiles>;

  static NmfBytes bytes(const NmfShape& shape, bool backward) {
    const NmfLayout<float> layout(shape, backward);
    constexpr int64_t size = sizeof(float);
    return {layout.state * size, layout.partial * size,
            (layout.scratch + TiledMemory(shape, layout, nullptr).size) * size, 0};
  }
  static constexpr NmfKernels kernels = {
      kTile, bytes, nullptr, Forward::start, update_coef_in_tiles, Forward::update_bases};
};
#endif

}  // namespace

ATTNOPS_DEFINE_KERNELS(NmfKernels, nmf_kernels, NmfEntries)

const NmfKernels& mixed_nmf_kernels([[maybe_unused]] NmfProducts products) {
#if defined(__AVX512F__)
  if (products == NmfProducts::kTiles) return NmfInTiles::kernels;
  if (products == NmfProducts::kPairs) return NmfForward<float, PairTiles>::kernels;
#endif
  return NmfForward<float, WideTiles<BFloat16>>::kernels;
}

}  // namespace attnops::cpu::ATTNOPS_ISA
