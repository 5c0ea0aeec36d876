// The entry points of strip convolutions; compiled once per instruction set.
#include "backward.h"
#include "forward.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// Scratch memory of a worker, unless the kernels ask for more: what a second-level cache holds.
constexpr int64_t kScratchBytes = 1 << 20;

// out [channels, length] = the sums of all pieces. sums [pieces][stride] pixels, those of interest
// from `first` on. total [channels * length] is scratch.
template <class S>
static void reduce_sums(const MapSizes& maps, const StripPiece* pieces, int64_t count,
                        const double* sums, int64_t stride, int64_t first, int64_t length,
                        double* total, S* out) {
  constexpr int kW = kWidth<Compute<S>>;
  for (int64_t i = 0; i < maps.channels * length; ++i) total[i] = 0;
  for (int64_t piece = 0; piece < count; ++piece) {
    const LaneGroup<S> group(maps, pieces[piece].group);
    const double* from = sums + (piece * stride + first) * kW;
    for (int64_t lane = 0; lane < group.lanes(); ++lane)
      for (int64_t i = 0; i < length; ++i)
        total[group.channel(lane) * length + i] += from[i * kW + lane];
  }
  for (int64_t i = 0; i < maps.channels * length; ++i)
    store_one(out + i, static_cast<Compute<S>>(total[i]));
}

template <class S>
struct StripEntries {
  using C = Compute<S>;

  static int64_t tile_columns(const StripShape& s, bool backward) {
    const int64_t width = round_up(s.maps.width, kWidth<C>);
    for (int64_t tiles = 1;; ++tiles) {
      const int64_t columns = round_up((width + tiles - 1) / tiles, kWidth<C>);
      if (columns <= 4 * kWidth<C> || scratch_bytes(s, columns, backward) <= kScratchBytes)
        return columns;
    }
  }
  static int64_t scratch_bytes(const StripShape& s, int64_t columns, bool backward) {
    return backward ? StripBackward<S>(s, columns, nullptr).bytes()
                    : StripForward<S>(s, columns, nullptr).bytes();
  }
  static void forward(const StripShape& s, const StripPiece& piece, const StripSources& parameters,
                      const void* x, void* out, void* scratch) {
    StripForward<S>(s, piece.right - piece.left, scratch)
        .run(piece, parameters, static_cast<const S*>(x), static_cast<S*>(out));
  }
  static void backward(const StripShape& s, const StripPiece& piece, const StripSources& parameters,
                       const void* grad, const void* x, void* dx, double* sums, void* scratch) {
    StripBackward<S>(s, piece.right - piece.left, scratch)
        .run(piece, parameters, static_cast<const S*>(grad), static_cast<const S*>(x),
             static_cast<S*>(dx), sums);
  }
  static void reduce(const StripShape& s, const StripPiece* pieces, int64_t count,
                     const double* sums, const StripTargets& gradients, double* totals) {
    const int64_t stride = s.taps + s.kernels();
    int64_t first = 0;
    for (int64_t i = 0; i < s.kernels(); first += s.taps_of(i++)) {
      reduce_sums<S>(s.maps, pieces, count, sums, stride, first, s.taps_of(i), totals,
                     static_cast<S*>(gradients.weights[i]));
      if (gradients.biases[i] != nullptr)
        reduce_sums<S>(s.maps, pieces, count, sums, stride, s.taps + i, 1, totals,
                       static_cast<S*>(gradients.biases[i]));
    }
  }
  static constexpr StripKernels kernels = {kWidth<C>, tile_columns, scratch_bytes,
                                           forward,   backward,     reduce};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(StripKernels, strip_kernels, StripEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
