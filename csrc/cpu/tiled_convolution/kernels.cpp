// Products of blocks of positions and results in tiles.
#include "cpu/common/tiles.h"
#include "cpu/depthwise/activate.h"
#include "cpu/depthwise/short_gelu.h"
#include "lay_out.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
namespace {

class Product {
 public:
  Product(const ConvolutionShape& s, const ConvolutionBlock& block,
          const ConvolutionArguments& args, const LaidOut& from, float* sums)
      : s_(s), block_(block), args_(args), waiting_(sums) {
    takes_as_it_is_ = from.data == nullptr;
    const char* const data = static_cast<const char*>(takes_as_it_is_ ? args.x : from.data);
    const int64_t first = from.first * s.pitch();
    if (takes_as_it_is_)
      x_ = {data, 0, s.channels * kHalf, s.channels * kHalf, kLine};
    else if (s.side == 1)
      x_ = {data, first, s.channel_steps() * s.parts * kLine, kLine, s.parts * kStep * kLine};
    else
      x_ = {data, first - kStep, kLine, kLine, from.positions(s) * s.parts * kLine};
    first_pixel_ = from.item * s.pixels;
    for (int64_t tap = 0; tap < s.taps(); ++tap) {
      const int64_t i = tap / s.side - s.side / 2, j = tap % s.side;
      // Of phases a tap sees the odd one before the result, the even one at it, the odd one at it.
      const bool halves = s.stride == 2;
      const int64_t dx = j - s.side / 2;
      moved_[tap] = halves ? (i < 0 ? -s.pitch() : 0) + (dx < 0 ? -1 : 0) + s.pad()
                           : (i * s.pitch() + j) * s.dilation;
      phase_[tap] = halves ? (i != 0) * 2 + (dx != 0) : 0;
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
      if (from + kStep <= 0 || from >= end) continue;
      const int64_t phase = phase_[tap] * s_.channel_steps() * x_.channel_bytes;
      taps_[seen_++] = {phase + moved_[tap] * x_.bytes, tap * s_.parts * kStep * kLine};
    }
  }

  // Which pixels the positions from `begin` on are, of those from `first` on; whether any are.
  bool place(int64_t begin, int64_t first) {
    int64_t row = begin / s_.pitch(), column = begin % s_.pitch(), any = 0;
    for (int64_t i = 0; i < kStep; ++row, column = 0) {
      const int64_t run = min64(kStep - i, s_.pitch() - column);
      const int64_t left = s_.pixels - row * s_.width;
      const int64_t results = min64(left, s_.width) - column;
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
      const char* weight = static_cast<const char*>(args_.weight) +
                           (n * terms + block_.first_channel % terms) * s_.weight_step() * kHalf;
      const char* x = x_.data + (begin - x_.first) * x_.position_bytes +
                      block_.first_channel * x_.channel_bytes;
      // The next pixels of a map as it is are asked for with the first results.
      const bool asks = takes_as_it_is_ && n == block_.first_output;
      const bool asks_for_floats = s_.side == 1 && s_.parts > 1;
      TileStores stores;
      asked_ = {block_.is_last ? 0 : kStep, n * kStep, nullptr};
      for (int64_t c = block_.first_channel; c < block_.last_channel; ++c) {
        if (asks)
          for (int64_t i = 0; i < kStep; ++i) __builtin_prefetch(x + (kStep + i) * x_.bytes, 0, 2);
        if (asks_for_floats) ask_for_floats_of(begin + kStep, c, n);
        add_taps(x, weight, rows, stores);
        ask_for_sums(sums, c);
        x += x_.channel_bytes;
        weight += s_.weight_step() * kHalf;
      }
      finish();
      if (block_.is_last) {
        sums = sums_[turn_ ^= 1];
        written_ = {0, n * kStep, sums};
      }
      store_tile_block<2, 2>(sums, kStep);
    }
  }

  inline __attribute__((always_inline)) void add_taps(const char* x, const char* weight,
                                                      int64_t rows, TileStores& stores) {
    for (int64_t tap = 0; tap < seen_; ++tap) {
      const char* const from = x + taps_[tap].distance;
      const char* const with = weight + taps_[tap].weight;
      const char *const below = from + kTileRows * x_.bytes, *const next = with + kTileRows * kLine;
      stores.expect(s_.parts == 1 ? 1 : kPartProducts);
      if (s_.parts == 1)
        multiply_tile_block<2, 2>({from, below}, x_.bytes, {with, next}, kLine);
      else
        multiply_tile_parts<2, 2>({from, below}, x_.channel_bytes / kFloatParts, x_.bytes,
                                  {with, next}, kStep * kLine, kLine);
      write_rows(rows);
      ask_for_rows(rows);
    }
  }

  // A share, for results n, of a step of channels of the pixels that are laid out next.
  void ask_for_floats_of(int64_t first, int64_t channel, int64_t n) const {
    const int64_t share = (kStep + outputs() - 1) / outputs();
    const int64_t begin = first + (n - block_.first_output) * share;
    const int64_t end = min64(min64(begin + share, first + kStep), s_.pixels);
    const float* const x = static_cast<const float*>(args_.x) + channel * kStep;
    for (int64_t i = begin; i < end; ++i) {
      const float* const line = x + (first_pixel_ + i) * s_.channels;
      __builtin_prefetch(line, 0, 2);
      __builtin_prefetch(line + kStep / 2, 0, 2);
    }
  }

  // Results leave a few rows at a time, while the next ones are multiplied, and what is added to
  // them is asked for before.
  inline __attribute__((always_inline)) void ask_for_rows(int64_t count) {
    if (args_.residual == nullptr && args_.gate == nullptr) return;
    for (const int64_t last = min64(asked_.row + count, kStep); asked_.row < last; ++asked_.row) {
      const int64_t at = places_[asked_.row] * s_.outputs + asked_.n;
      if (places_[asked_.row] < 0) continue;
      ask_for_line(args_.gate, at, s_.parts > 1);
      ask_for_line(args_.residual, at, s_.float_out);
    }
  }

  // 32 elements of a map, or nothing.
  static inline __attribute__((always_inline)) void ask_for_line(const void* map, int64_t at,
                                                                 bool is_float) {
    if (map == nullptr) return;
    const int64_t bytes = is_float ? sizeof(float) : kHalf;
    const char* const line = static_cast<const char*>(map) + at * bytes;
    __builtin_prefetch(line);
    if (is_float) __builtin_prefetch(line + kLine);
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
        if (s_.parts > 1)
          multiply_gate<float>(v, these, at);
        else
          multiply_gate<BFloat16>(v, these, at);
      }
      if (args_.residual != nullptr) {
        if (s_.float_out)
          add_residual<float>(v, these, at);
        else
          add_residual<BFloat16>(v, these, at);
      }
      if (s_.activation == Activation::kRelu)
        for (VecF& part : v) part = select(part < 0.0f, VecF{}, part);
      if (s_.parts > 1)
        activate_in_full(v);
      else if (s_.activation == Activation::kGelu)
        short_gelu<2>(v);
      else if (s_.activation == Activation::kSilu)
        short_silu<2>(v);
      put(v, these, at);
    }
  }

  // GELU and SiLU to the precision of float.
  inline __attribute__((always_inline)) void activate_in_full(VecF (&v)[2]) const {
    if (s_.activation == Activation::kGelu)
      for (VecF& part : v) part = gelu_lanes<float>(part);
    if (s_.activation == Activation::kSilu)
      for (VecF& part : v) part = silu_lanes<float>(part);
  }

  template <class S>
  inline __attribute__((always_inline)) void multiply_gate(VecF (&v)[2], const Outputs& these,
                                                           int64_t at) const {
    const S* const gate = static_cast<const S*>(args_.gate) + at;
    these.each([&](int i, int64_t lanes) __attribute__((always_inline)) {
      v[i] *= load_lanes(gate + i * kVector, lanes);
    });
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
  // Factors of the positions from `first` on, a step of them in steps of `position_bytes` for each:
  // tiles of channels `channel_bytes` apart, rows of a tile `bytes` apart.
  struct Positions {
    const char* data;
    int64_t first, position_bytes, bytes, channel_bytes;
  };
  Positions x_{};
  bool takes_as_it_is_;
  int64_t first_pixel_;
  int64_t moved_[9];  // positions from a result to the pixel that a tap sees
  int64_t phase_[9];  // of the map, in which it sees it
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
