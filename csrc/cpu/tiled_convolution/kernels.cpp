// Laying maps out by 32 channels, and products of blocks of positions and results in tiles.
#include "cpu/common/tiles.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX512F__)
namespace {

constexpr int64_t kStep = kConvolutionStep;
constexpr int64_t kVector = kWidth<float>;
constexpr int64_t kLine = kStep * static_cast<int64_t>(sizeof(BFloat16));
static_assert(kStep == 2 * kTileRows && kStep == kTileDepth, "a step is whole tiles");

// 32 channels of a pixel, of which `count` are there.
ATTNOPS_INLINE void copy_line(const BFloat16* from, int64_t count, BFloat16* to) {
  typedef uint16_t Lanes __attribute__((vector_size(kLine)));
  Lanes lanes = {};
  if (count >= kStep)
    memcpy(&lanes, from, sizeof(lanes));
  else
    memcpy(&lanes, from, static_cast<size_t>(count) * sizeof(BFloat16));
  memcpy(to, &lanes, sizeof(lanes));
}

void clear_lines(BFloat16* to, int64_t count) { memset(to, 0, static_cast<size_t>(count * kLine)); }

void lay_out(const ConvolutionShape& s, const void* x, int64_t first, int64_t last,
             void* laid_out) {
  const int64_t pitch = s.pitch(), pad = s.pad(), all = s.laid_out();
  for (int64_t step = 0; step < s.channel_steps(); ++step)
    for (int64_t row = first; row < last; ++row) {
      const int64_t item = row / s.height, y = row % s.height;
      BFloat16* line = static_cast<BFloat16*>(laid_out) +
                       ((step * s.batch + item) * all + kStep + y * pitch) * kStep;
      if (y == 0) clear_lines(line - kStep * kStep, kStep);
      if (y == s.height - 1) clear_lines(line + pitch * kStep, pad + kStep);
      clear_lines(line, pad);
      const BFloat16* pixel =
          static_cast<const BFloat16*>(x) + row * s.width * s.channels + step * kStep;
      line += pad * kStep;
      for (int64_t at = 0; at < s.width; ++at, pixel += s.channels, line += kStep)
        copy_line(pixel, s.channels - step * kStep, line);
    }
}

// Factors of the positions from one on: tiles of channels `channel_bytes` apart, rows of a tile
// `bytes` apart.
struct Positions {
  const char* data;
  int64_t bytes, channel_bytes;
};

class Product {
 public:
  Product(const ConvolutionShape& s, const ConvolutionBlock& block,
          const ConvolutionArguments& args, const void* laid_out, float* sums)
      : s_(s), block_(block), args_(args), waiting_(sums) {
    if (laid_out == nullptr)
      x_ = {static_cast<const char*>(args.x), s.channels * kHalf, kLine};
    else
      x_ = {static_cast<const char*>(laid_out) + kStep * kLine, kLine,
            s.batch * s.laid_out() * kLine};
  }

  // Steps [first, last) of all items' positions.
  void run(int64_t first, int64_t last) {
    for (int64_t step = first; step < last; ++step) {
      const int64_t item = step / s_.steps(), m = step % s_.steps() * kStep;
      // A map as it is ends with its last pixel: its last step begins before.
      const int64_t begin = s_.takes_as_it_is() ? min64(m, s_.positions() - kStep) : m;
      finish();  // what stands in the places
      see(begin);
      if (place(item, begin, m)) multiply(item * s_.laid_out() + begin);
      waiting_ += waiting_ == nullptr ? 0 : outputs() * kStep * kStep;
    }
    finish();
  }

 private:
  static constexpr int64_t kHalf = sizeof(BFloat16);

  int64_t outputs() const { return block_.last_output - block_.first_output; }

  // The taps that see some of the map, from positions `begin` on of an item.
  void see(int64_t begin) {
    seen_ = 0;
    const int64_t end = s_.positions() + s_.pad();
    for (int64_t tap = 0; tap < s_.taps(); ++tap) {
      const int64_t i = tap / s_.side - s_.side / 2, j = tap % s_.side;
      const int64_t moved = (i * s_.pitch() + j) * s_.dilation, from = begin + moved;
      if (from + kStep > 0 && from < end) taps_[seen_++] = {moved * x_.bytes, tap * kStep * kStep};
    }
  }

  // Which pixels the positions from `begin` on are, of those from `first` on; whether any are.
  bool place(int64_t item, int64_t begin, int64_t first) {
    bool any = false;
    for (int64_t i = 0; i < kStep; ++i) {
      const int64_t at = begin + i, row = at / s_.pitch(), x = at % s_.pitch();
      const bool is_result = at >= first && row < s_.rows() && x < s_.pitch() - s_.pad();
      places_[i] = is_result ? (item * s_.rows() + row) * (s_.pitch() - s_.pad()) + x : -1;
      any = any || is_result;
    }
    return any;
  }

  void multiply(int64_t begin) {
    const int64_t steps = (block_.last_channel - block_.first_channel) * seen_;
    const int64_t rows = (kStep + steps - 1) / steps;
    for (int64_t n = block_.first_output; n < block_.last_output; ++n) {
      float* sums =
          waiting_ == nullptr ? nullptr : waiting_ + (n - block_.first_output) * kStep * kStep;
      if (block_.is_first)
        clear_tile_block<2, 2>();
      else
        load_tile_block<2, 2>(sums, kStep);
      const BFloat16* weight = static_cast<const BFloat16*>(args_.weight) +
                               (n * s_.channel_steps() + block_.first_channel) * s_.weight_step();
      const char* x = x_.data + begin * x_.bytes + block_.first_channel * x_.channel_bytes;
      // What the next positions bring that these have not seen, for the first results.
      const char* next =
          n > block_.first_output ? nullptr : x + kStep * x_.bytes + taps_[seen_ - 1].distance;
      asked_ = {block_.is_last ? 0 : kStep, n * kStep, nullptr};
      for (int64_t c = block_.first_channel; c < block_.last_channel; ++c) {
        add_taps(x, weight, next, rows);
        x += x_.channel_bytes;
        if (next != nullptr) next += x_.channel_bytes;
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
                                                      const char* next, int64_t rows) {
    const int64_t lines = (kStep + seen_ - 1) / seen_;
    for (int64_t tap = 0; tap < seen_; ++tap) {
      const char* from = x + taps_[tap].distance;
      const BFloat16* with = weight + taps_[tap].weight;
      multiply_tile_block<2, 2>({from, from + kTileRows * x_.bytes}, x_.bytes,
                                {with, with + kTileRows * kStep}, kLine);
      if (next != nullptr)
        for (int64_t i = 0; i < lines; ++i)
          __builtin_prefetch(next + (tap * lines + i) * x_.bytes, 0, 2);
      for (int64_t i = 0; i < rows; ++i) {
        write_row();
        ask_for_row();
      }
    }
  }

  // Results leave a row at a time, while the next ones are multiplied, and what they are written
  // to is asked for while they are.
  inline __attribute__((always_inline)) void ask_for_row() {
    if (asked_.row >= kStep) return;
    const int64_t place = places_[asked_.row++], at = place * s_.outputs + asked_.n;
    if (place < 0) return;
    asm volatile("prefetchw %0" ::"m"(static_cast<BFloat16*>(args_.out)[at]));
    if (args_.residual != nullptr)
      __builtin_prefetch(static_cast<const BFloat16*>(args_.residual) + at);
  }

  inline __attribute__((always_inline)) void write_row() {
    if (written_.row >= kStep) return;
    const int64_t row = written_.row++, n = written_.n, place = places_[row];
    if (place < 0) return;
    const int64_t count = min64(kStep, s_.outputs - n), at = place * s_.outputs + n;
    const float* sums = written_.sums + row * kStep;
    VecF v[2] = {load(sums), load(sums + kVector)};
    if (args_.bias != nullptr) {
      v[0] += load_lanes(args_.bias + n, count);
      if (count > kVector) v[1] += load_lanes(args_.bias + n + kVector, count - kVector);
    }
    if (args_.residual != nullptr) {
      const BFloat16* more = static_cast<const BFloat16*>(args_.residual) + at;
      v[0] += load_lanes(more, count);
      if (count > kVector) v[1] += load_lanes(more + kVector, count - kVector);
    }
    if (s_.relu)
      for (VecF& part : v) part = select(part < 0.0f, VecF{}, part);
    const HalfLanes halves[2] = {rounded(v[0]), rounded(v[1])};
    BFloat16* out = static_cast<BFloat16*>(args_.out) + at;
    if (count == kStep)
      memcpy(out, halves, sizeof(halves));
    else
      memcpy(out, halves, static_cast<size_t>(count) * sizeof(BFloat16));
  }

  void finish() {
    while (written_.row < kStep) write_row();
  }

  // The next row, of 32, of results [n, n + 32).
  struct Rows {
    int64_t row, n;
    const float* sums;
  };

  const ConvolutionShape& s_;
  const ConvolutionBlock& block_;
  const ConvolutionArguments& args_;
  float* waiting_;  // sums of these positions between two blocks of channels, or null
  Positions x_{};
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
              const ConvolutionArguments& args, const void* laid_out, int64_t first, int64_t last,
              float* sums) {
  const TileRegisters tiles(true);
  Product(s, block, args, laid_out, sums).run(first, last);
}

constexpr ConvolutionKernels kKernels = {lay_out, multiply};

}  // namespace

const ConvolutionKernels* convolution_in_tiles() { return &kKernels; }
#else
const ConvolutionKernels* convolution_in_tiles() { return nullptr; }
#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
