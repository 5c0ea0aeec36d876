// What is around the chunks of the backward: maps of pixels, packing, the sums of all runs.
#pragma once

#include "chunk.h"
#include "pack.h"

namespace attnops::cpu::ATTNOPS_ISA {

// S: type of maps, A: of the factors of products.
template <class S, class A>
class FeedForwardGradients {
 public:
  using C = Compute<S>;
  using E = Term<A>;
  using V = typename Vec<C>::V;
  static constexpr int64_t kW = kWidth<C>, kChunk = kFeedForwardChunk;

  static bool is_pixels(const FeedForwardShape& s, int64_t channels) {
    return sizeof(S) == sizeof(A) && s.channels_last && channels % kPanelRows == 0 &&
           channels % kRows == 0 && s.width % (s.tiles ? kTileRows : kRows) == 0;
  }
  static void to_pixels(const FeedForwardShape& s, int64_t channels, const FeedForwardRange& range,
                        const void* map, void* pixels) {
    const int64_t padded = padded_to_panels(channels), plane = s.height * s.width;
    const int64_t first = range.first * s.width, count = (range.last - range.first) * s.width;
    const S* x = static_cast<const S*>(map) + range.item * plane * channels;
    A* out = static_cast<A*>(pixels) + (range.item * plane + first) * padded;
    if (!s.channels_last) {
      planes_to_pixels(
          x + first, plane, count,
          channels, [&](int64_t at, int64_t c, V v) __attribute__((always_inline)) {
            store(out + at * padded + c, v);
          });
      return;
    }
    for (int64_t at = 0; at < count; ++at)
      for (int64_t c = 0; c < padded; c += kW)
        store_factor(
            out + at * padded + c,
            c < channels ? load_lanes(x + (first + at) * channels + c, channels - c) : V{});
  }
  static constexpr bool kPairs = sizeof(A) < sizeof(C);

  static int64_t pairs(const FeedForwardShape& s) {
    return kPairs ? s.height * row_terms<E>(s) : 0;
  }
  static void to_pairs(const FeedForwardShape& s, int64_t channels, const FeedForwardRange& range,
                       const void* pixels, void* out) {
    if constexpr (kPairs) {
      const int64_t padded = padded_to_panels(channels);
      for (int64_t y = range.first; y < range.last; ++y) {
        const int64_t row = range.item * s.height + y;
        const A* from = static_cast<const A*>(pixels) + row * s.width * padded;
        E* to = static_cast<E*>(out) + row * row_terms<E>(s) * padded;
        if (s.tiles)
          turn_pairs(from, padded, s.width, padded, to);
        else
          pair_pixels(from, padded, s.width, padded, to);
      }
    }
  }
  static void from_pixels(const FeedForwardShape& s, int64_t channels,
                          const FeedForwardRange& range, void* pixels, int64_t maps, int64_t stride,
                          void* map) {
    const int64_t padded = padded_to_panels(channels), plane = s.height * s.width;
    const int64_t first = range.first * s.width, count = (range.last - range.first) * s.width;
    const int64_t offset = (range.item * plane + first) * padded;
    C* sum = static_cast<C*>(pixels) + offset;
    for (int64_t i = 1; i < maps; ++i) {
      const C* other = reinterpret_cast<C*>(static_cast<char*>(pixels) + i * stride) + offset;
      for (int64_t k = 0; k < count * padded; k += kW)
        store(sum + k, load(sum + k) + load(other + k));
    }
    S* out = static_cast<S*>(map) + range.item * plane * channels;
    if (!s.channels_last) return pixels_to_planes(sum, padded, count, channels, out + first, plane);
    for (int64_t at = 0; at < count; ++at)
      for (int64_t c = 0; c < channels; c += kW)
        store_lanes(out + (first + at) * channels + c, load(sum + at * padded + c), channels - c);
  }

  static int64_t scratch_bytes(const FeedForwardShape& s) {
    Arena arena(nullptr);
    FeedForwardGradients(s, arena);
    return arena.bytes();
  }
  static int64_t sums_bytes(const FeedForwardShape& s) {
    Arena arena(nullptr);
    ChunkSums<C>::in(s, arena);
    return arena.bytes();
  }
  static void run(const FeedForwardShape& s, const FeedForwardSources& sources, int64_t chunk,
                  const FeedForwardRange* ranges, int64_t count, const FeedForwardPixels& pixels,
                  bool add, void* sums, void* scratch) {
    Arena arena(scratch), results(sums);
    FeedForwardGradients own(s, arena);
    memset(sums, 0, static_cast<size_t>(sums_bytes(s)));
    const ChunkMaps<C, A> maps = {
        static_cast<const A*>(pixels.grad), static_cast<const A*>(pixels.x),
        static_cast<const E*>(pixels.grad_terms), static_cast<const E*>(pixels.x_terms),
        static_cast<C*>(pixels.dx)};
#if defined(__AVX512F__)
    const TileRegisters tiles(sizeof(A) == 2 && s.tiles);
#endif
    own.rows_.run(own.packed(sources, chunk), ranges, count, maps, add,
                  ChunkSums<C>::in(s, results));
  }
  static void sum_outputs(const FeedForwardShape& s, const FeedForwardRange* ranges, int64_t count,
                          const FeedForwardPixels& pixels, double* sums) {
    const int64_t padded = s.padded_outputs();
    memset(sums, 0, static_cast<size_t>(padded) * sizeof(double));
    for (const FeedForwardRange* range = ranges; range < ranges + count; ++range)
      for (int64_t y = range->first; y < range->last; ++y) {
        const A* row =
            static_cast<const A*>(pixels.grad) + (range->item * s.height + y) * s.width * padded;
        for (int64_t c = 0; c < padded; c += kW) {
          V sum = {};
          for (int64_t at = 0; at < s.width; ++at) sum += load(row + at * padded + c);
          add_wide<C>(sum, sums + c);
        }
      }
  }

  static void reduce(const FeedForwardShape& s, int64_t hidden, int64_t chunk, const void* sums,
                     int64_t runs, int64_t stride, const FeedForwardTargets& targets) {
    // The sums of the first run stand where those of others are, some bytes later.
    Arena arena(const_cast<void*>(sums));
    const ChunkSums<C> first = ChunkSums<C>::in(s, arena);
    const auto total = [&](const C* p) __attribute__((always_inline)) {
      V sum = load(p);
      for (int64_t run = 1; run < runs; ++run)
        sum += load(reinterpret_cast<const C*>(reinterpret_cast<const char*>(p) + run * stride));
      return sum;
    };
    const int64_t begin = chunk * kChunk, count = min64(kChunk, hidden - begin);
    S* expand = static_cast<S*>(targets.expand) + begin * s.channels;
    for (int64_t c = 0; c < s.channels; c += kW)
      for (int64_t d = 0; d < count; d += kW) {
        V v[kW];
        for (int64_t i = 0; i < kW; ++i) v[i] = total(first.expand + (c + i) * kChunk + d);
        transpose_steps<C>(v);
#pragma GCC unroll 16
        for (int i = 0; i < kW; ++i)
          if (d + i < count) store_lanes(expand + (d + i) * s.channels + c, v[i], s.channels - c);
      }
    S* contract = static_cast<S*>(targets.contract) + begin;
    for (int64_t k = 0; k < s.outputs; ++k)
      for (int64_t d = 0; d < count; d += kW)
        store_lanes(contract + k * hidden + d, total(first.contract + k * kChunk + d), count - d);
    for (int64_t row = 0; row < kInnerRows; ++row) {
      S* out = row < 9 ? static_cast<S*>(targets.depthwise) + begin * 9 + row
                       : static_cast<S*>(row == 9 ? targets.depthwise_bias : targets.expand_bias);
      if (out == nullptr) continue;
      for (int64_t d = 0; d < count; ++d) {
        double sum = 0;
        for (int64_t run = 0; run < runs; ++run)
          sum += *reinterpret_cast<const double*>(
              reinterpret_cast<const char*>(first.inner + row * kChunk + d) + run * stride);
        store_one(out + (row < 9 ? d * 9 : begin + d), static_cast<C>(sum));
      }
    }
  }
  static void reduce_outputs(const FeedForwardShape& s, const double* sums, int64_t runs,
                             void* out) {
    for (int64_t k = 0; k < s.outputs; ++k) {
      double sum = 0;
      for (int64_t run = 0; run < runs; ++run) sum += sums[run * s.padded_outputs() + k];
      store_one(static_cast<S*>(out) + k, static_cast<C>(sum));
    }
  }

  static constexpr FeedForwardBackwardKernels kernels = {
      sizeof(A), sizeof(C),     kW > kRows ? kW : kRows, is_pixels,  to_pixels, pairs,
      to_pairs,  from_pixels,   scratch_bytes,           sums_bytes, run,       sum_outputs,
      reduce,    reduce_outputs};

 private:
  FeedForwardGradients(const FeedForwardShape& s, Arena& arena)
      : s_(s),
        expand_(arena.take<A>(kChunk * s.padded_channels())),
        contract_(arena.take<A>(kChunk * s.padded_outputs())),
        turned_(arena.take<A>(kChunk * s.padded_channels())),
        rows_(s, arena) {}

  ChunkWeights<C, A> packed(const FeedForwardSources& sources, int64_t chunk) {
    const int64_t begin = chunk * kChunk, channels = min64(kChunk, sources.hidden - begin);
    const int64_t count = padded_to_panels(channels);
    const S* expand = static_cast<const S*>(sources.expand) + begin * s_.channels;
    const S* contract = static_cast<const S*>(sources.contract) + begin;
    pack_panels(expand, channels, s_.channels, s_.padded_channels(), 0, count / kPanelRows,
                expand_);
    pack_turned(contract, sources.hidden, s_.outputs, channels, s_.padded_outputs(), contract_);
    pack_turned(expand, s_.channels, channels, s_.channels, count, turned_);
    return {count,
            expand_,
            contract_,
            turned_,
            static_cast<const C*>(sources.inner) + begin,
            s_.hidden_stride()};
  }

  const FeedForwardShape& s_;
  A *expand_, *contract_, *turned_;
  FeedForwardChunk<C, A> rows_;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
