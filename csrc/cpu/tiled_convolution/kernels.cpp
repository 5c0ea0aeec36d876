// Laying maps out by 32 channels, and products of blocks of positions and results in tiles.
#include "cpu/common/tiles.h"
#include "cpu/depthwise/short_gelu.h"
#include "cpu/depthwise/silu.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
namespace {

constexpr int64_t kStep = kConvolutionStep;
constexpr int64_t kVector = kWidth<float>;
constexpr int64_t kHalf = sizeof(BFloat16);
constexpr int64_t kLine = kStep * kHalf;
static_assert(kStep == 2 * kTileRows && kStep == kTileDepth, "a step is whole tiles");

// 32 channels of a pixel, of which `count` are there.
ATTNOPS_INLINE void copy_line(const BFloat16* from, int64_t count, BFloat16* to) {
  HalfLanesPair lanes = {};
  if (count >= kStep)
    memcpy(&lanes, from, sizeof(lanes));
  else
    memcpy(&lanes, from, static_cast<size_t>(count) * sizeof(BFloat16));
  memcpy(to, &lanes, sizeof(lanes));
}

ATTNOPS_INLINE void copy_line(const float* from, int64_t count, BFloat16* to) {
  const VecF low = load_lanes(from, min64(count, kVector));
  const VecF high = count > kVector ? load_lanes(from + kVector, count - kVector) : VecF{};
  const HalfLanesPair lanes = rounded(low, high);
  memcpy(to, &lanes, sizeof(lanes));
}

void clear_lines(BFloat16* to, int64_t count) { memset(to, 0, static_cast<size_t>(count * kLine)); }

template <class S>
void lay_out_rows(const ConvolutionShape& s, const S* x, int64_t first, int64_t last,
                  const LaidOut& to) {
  const int64_t pitch = s.pitch(), pad = s.pad(), apart = to.positions(s) * kStep;
  for (int64_t row = first; row < last; ++row) {
    BFloat16* line = static_cast<BFloat16*>(to.data) + (kStep + (row - to.first) * pitch) * kStep;
    for (int64_t step = 0; step < s.channel_steps(); ++step) {
      BFloat16* begin = line + step * apart;
      if (row == to.first) clear_lines(begin - kStep * kStep, kStep + pad);
      clear_lines(begin + pitch * kStep, row == to.last - 1 ? 2 * pad + kStep : pad);
    }
    line += pad * kStep;
    const S* pixel = x + (to.item * s.height + row) * s.width * s.channels;
    for (int64_t at = 0; at < s.width; ++at, pixel += s.channels, line += kStep)
      for (int64_t c = 0; c < s.channels; c += kStep)
        copy_line(pixel + c, s.channels - c, line + c / kStep * apart);
  }
}

void lay_out(const ConvolutionShape& s, const void* x, int64_t first, int64_t last,
             const LaidOut& to) {
  if (s.float_in)
    lay_out_rows(s, static_cast<const float*>(x), first, last, to);
  else
    lay_out_rows(s, static_cast<const BFloat16*>(x), first, last, to);
}

class Product {
 public:
  Product(const ConvolutionShape& s, const ConvolutionBlock& block,
          const ConvolutionArguments& args, const LaidOut& from, float* sums)
      : s_(s), block_(block), args_(args), waiting_(sums) {
    if (from.data == nullptr)
      x_ = {static_cast<const char*>(args.x), 0, s.channels * kHalf, kLine};
    else
      x_ = {static_cast<const char*>(from.data), from.first * s.pitch() - kStep, kLine,
            from.positions(s) * kLine};
    takes_as_it_is_ = from.data == nullptr;
    first_pixel_ = from.item * s.height * s.width;
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t i = tap / s.side - s.side / 2, j = tap % s.side;
      moved_[tap] = (i * s.pitch() + j) * s.dilation;
    }
  }

  // Steps [first, last) of the item's positions.
  void run(int64_t first, int64_t last) {
    for (int64_t step = first; step < last; ++step) {
      // A map as it is ends with its last pixel: its last step begins before.
      const int64_t begin =
          takes_as_it_is_ ? min64(step * kStep, s_.positions() - kStep) : step * kStep;
      finish();  // what stands in the places
      see(begin);
      if (place(begin, step * kStep)) multiply(begin);
      waiting_ += waiting_ == nullptr ? 0 : outputs() * kStep * kStep;
    }
    finish();
  }

 private:
  // Of results [n, n + 32), of which `lanes` are there.
  struct Outputs {
    int64_t lanes;
    VecF bias[2] = {}, factor[2] = {};

    inline __attribute__((always_inline)) Outputs(const ConvolutionArguments& args, int64_t n,
                                                  int64_t count)
        : lanes(count) {
      each([&](int i, int64_t there) __attribute__((always_inline)) {
        if (args.bias != nullptr) bias[i] = load_lanes(args.bias + n + i * kVector, there);
        if (args.factor != nullptr) factor[i] = load_lanes(args.factor + n + i * kVector, there);
      });
    }
    // body(vector, lanes of it)
    template <class Body>
    inline __attribute__((always_inline)) void each(const Body& body) const {
      body(0, lanes);
      if (lanes > kVector) body(1, lanes - kVector);
    }
  };

  int64_t outputs() const { return block_.last_output - block_.first_output; }

  // The taps that see some of the map, from positions `begin` on.
  void see(int64_t begin) {
    seen_ = 0;
    const int64_t end = s_.positions() + s_.pad();
    for (int64_t tap = 0; tap < s_.taps(); ++tap) {
      const int64_t from = begin + moved_[tap];
      if (from + kStep > 0 && from < end)
        taps_[seen_++] = {moved_[tap] * x_.bytes, tap * kStep * kStep};
    }
  }

  // Which pixels the positions from `begin` on are, of those from `first` on; whether any are.
  bool place(int64_t begin, int64_t first) {
    int64_t row = begin / s_.pitch(), column = begin % s_.pitch(), any = 0;
    for (int64_t i = 0; i < kStep; ++row, column = 0) {
      const int64_t run = min64(kStep - i, s_.pitch() - column);
      const int64_t results = row < s_.height ? s_.width - column : 0;
      const int64_t pixel = first_pixel_ + row * s_.width + column, skipped = first - begin - i;
      for (int64_t k = 0; k < run; ++k) {
        const bool is_result = k < results && k >= skipped;
        places_[i + k] = is_result ? pixel + k : -1;
        any += is_result;
      }
      i += run;
    }
    return any > 0;
  }

  void multiply(int64_t begin) {
    const int64_t steps = (block_.last_channel - block_.first_channel) * seen_;
    const int64_t rows = (kStep + steps - 1) / steps, terms = s_.group_channel_steps();
    for (int64_t n = block_.first_output; n < block_.last_output; ++n) {
      float* sums =
          waiting_ == nullptr ? nullptr : waiting_ + (n - block_.first_output) * kStep * kStep;
      if (block_.is_first)
        clear_tile_block<2, 2>();
      else
        load_tile_block<2, 2>(sums, kStep);
      const BFloat16* weight = static_cast<const BFloat16*>(args_.weight) +
                               (n * terms + block_.first_channel % terms) * s_.weight_step();
      const char* x =
          x_.data + (begin - x_.first) * x_.bytes + block_.first_channel * x_.channel_bytes;
      // The next pixels of a map as it is are asked for with the first results.
      const bool asks = takes_as_it_is_ && n == block_.first_output;
      TileStores stores;
      asked_ = {block_.is_last ? 0 : kStep, n * kStep, nullptr};
      for (int64_t c = block_.first_channel; c < block_.last_channel; ++c) {
        stores.expect(seen_);
        if (asks)
          for (int64_t i = 0; i < kStep; ++i) __builtin_prefetch(x + (kStep + i) * x_.bytes, 0, 2);
        add_taps(x, weight, rows);
        ask_for_sums(sums, c);
        x += x_.channel_bytes;
        weight += s_.weight_step();
      }
      finish();
      if (block_.is_last) {
        sums = sums_[turn_ ^= 1];
        written_ = {0, n * kStep, sums};
      }
      store_tile_block<2, 2>(sums, kStep);
    }
  }

  inline __attribute__((always_inline)) void add_taps(const char* x, const BFloat16* weight,
                                                      int64_t rows) {
    for (int64_t tap = 0; tap < seen_; ++tap) {
      const char* from = x + taps_[tap].distance;
      const BFloat16* with = weight + taps_[tap].weight;
      multiply_tile_block<2, 2>({from, from + kTileRows * x_.bytes}, x_.bytes,
                                {with, with + kTileRows * kStep}, kLine);
      write_rows(rows);
      ask_for_rows(rows);
    }
  }

  // Results leave a few rows at a time, while the next ones are multiplied, and what is added to
  // them is asked for before.
  inline __attribute__((always_inline)) void ask_for_rows(int64_t count) {
    if (args_.residual == nullptr && args_.gate == nullptr) return;
    for (const int64_t last = min64(asked_.row + count, kStep); asked_.row < last; ++asked_.row) {
      const int64_t at = places_[asked_.row] * s_.outputs + asked_.n;
      if (places_[asked_.row] < 0) continue;
      if (args_.gate != nullptr) __builtin_prefetch(static_cast<const BFloat16*>(args_.gate) + at);
      if (args_.residual == nullptr) continue;
      const int64_t bytes = s_.float_out ? sizeof(float) : kHalf;
      const char* const residual = static_cast<const char*>(args_.residual) + at * bytes;
      __builtin_prefetch(residual);
      if (s_.float_out) __builtin_prefetch(residual + kLine);
    }
  }

  // A share of the sums that come next, for one step of channels.
  void ask_for_sums(const float* sums, int64_t channel) {
    if (sums == nullptr) return;
    constexpr int64_t kSums = kStep * kStep;
    const int64_t steps = block_.last_channel - block_.first_channel;
    const int64_t share = (kSums / kVector + steps - 1) / steps * kVector;
    const int64_t first = (channel - block_.first_channel) * share;
    for (int64_t i = first; i < min64(first + share, kSums); i += kVector)
      __builtin_prefetch(sums + kSums + i, 0, 2);
  }

  inline __attribute__((always_inline)) void write_rows(int64_t count) {
    const int64_t n = written_.n, first = written_.row, last = min64(first + count, kStep);
    if (first >= last) return;
    written_.row = last;
    const float* sums = written_.sums + first * kStep;
    const Outputs these(args_, n, min64(kStep, s_.outputs - n));
    for (int64_t row = first; row < last; ++row, sums += kStep) {
      const int64_t at = places_[row] * s_.outputs + n;
      if (places_[row] < 0) continue;
      VecF v[2] = {load(sums) + these.bias[0], load(sums + kVector) + these.bias[1]};
      if (args_.gate != nullptr) {
        const BFloat16* const gate = static_cast<const BFloat16*>(args_.gate) + at;
        these.each([&](int i, int64_t lanes) __attribute__((always_inline)) {
          v[i] *= load_lanes(gate + i * kVector, lanes);
        });
      }
      if (args_.residual != nullptr) {
        if (s_.float_out)
          add_residual<float>(v, these, at);
        else
          add_residual<BFloat16>(v, these, at);
      }
      if (s_.activation == Activation::kRelu)
        for (VecF& part : v) part = select(part < 0.0f, VecF{}, part);
      if (s_.activation == Activation::kGelu) short_gelu<2>(v);
      if (s_.activation == Activation::kSilu) short_silu<2>(v);
      put(v, these, at);
    }
  }

  template <class S>
  inline __attribute__((always_inline)) void add_residual(VecF (&v)[2], const Outputs& these,
                                                          int64_t at) const {
    const S* const residual = static_cast<const S*>(args_.residual) + at;
    these.each([&](int i, int64_t lanes) __attribute__((always_inline)) {
      VecF term = load_lanes(residual + i * kVector, lanes);
      if (args_.factor != nullptr) term *= these.factor[i];
      v[i] += term;
    });
  }

  inline __attribute__((always_inline)) void put(const VecF (&v)[2], const Outputs& these,
                                                 int64_t at) const {
    if (s_.float_out) {
      float* const out = static_cast<float*>(args_.out) + at;
      these.each([&](int i, int64_t lanes) __attribute__((always_inline)) {
        store_lanes(out + i * kVector, v[i], lanes);
      });
      return;
    }
    const HalfLanesPair halves = rounded(v[0], v[1]);
    BFloat16* const out = static_cast<BFloat16*>(args_.out) + at;
    if (these.lanes == kStep)
      memcpy(out, &halves, sizeof(halves));
    else
      memcpy(out, &halves, static_cast<size_t>(these.lanes) * sizeof(BFloat16));
  }

  void finish() { write_rows(kStep); }

  // The next row, of 32, of results [n, n + 32).
  struct Rows {
    int64_t row, n;
    const float* sums;
  };

  const ConvolutionShape& s_;
  const ConvolutionBlock& block_;
  const ConvolutionArguments& args_;
  float* waiting_;  // sums of these positions between two blocks of channels, or null
  // Factors of the positions from `first` on: tiles of channels `channel_bytes` apart, rows of a
  // tile `bytes` apart.
  struct Positions {
    const char* data;
    int64_t first, bytes, channel_bytes;
  };
  Positions x_{};
  bool takes_as_it_is_;
  int64_t first_pixel_;
  int64_t moved_[9];  // positions from a result to the pixel that a tap sees
  // Of a tap: from a result to the pixel that it sees, in bytes, and from weights to its own.
  struct Tap {
    int64_t distance, weight;
  };
  Tap taps_[9];
  int64_t seen_ = 0;
  int64_t places_[kStep];
  Rows written_ = {kStep, 0, nullptr}, asked_ = {kStep, 0, nullptr};
  int turn_ = 0;
  alignas(64) float sums_[2][kStep * kStep];
};

void multiply(const ConvolutionShape& s, const ConvolutionBlock& block,
              const ConvolutionArguments& args, const LaidOut& from, int64_t first, int64_t last,
              float* sums) {
  const TileRegisters tiles(true);
  Product(s, block, args, from, sums).run(first, last);
}

void scale(const ConvolutionShape& s, const void* weight, const void* scale, int64_t first,
           int64_t last, void* scaled) {
  const BFloat16* const factors = static_cast<const BFloat16*>(scale);
  const BFloat16* from = static_cast<const BFloat16*>(weight);
  BFloat16* to = static_cast<BFloat16*>(scaled);
  const int64_t step = kStep * kStep, begin = first * s.channel_steps() * step;
  from += begin;
  to += begin;
  // A line holds a pair of channels for 16 results.
  for (int64_t tile = first * s.channel_steps(); tile < last * s.channel_steps(); ++tile)
    for (int64_t line = 0; line < kStep; ++line, from += kStep, to += kStep) {
      const int64_t channel = tile % s.channel_steps() * kStep + line % kTileRows * 2;
      const int64_t there = min64(2, s.channels - channel);
      const VecF two = there > 0 ? load_lanes(factors + channel, there) : VecF{};
      VecF pairs;
      for (int i = 0; i < kVector; ++i) pairs[i] = two[i % 2];
      const HalfLanesPair lanes =
          rounded(pairs * load_lanes(from, kVector), pairs * load_lanes(from + kVector, kVector));
      memcpy(to, &lanes, sizeof(lanes));
    }
}

constexpr ConvolutionKernels kKernels = {scale, lay_out, multiply};

}  // namespace

const ConvolutionKernels* convolution_in_tiles() { return &kKernels; }
#else
const ConvolutionKernels* convolution_in_tiles() { return nullptr; }
#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
