// Runs of Winograd tiles: into the 16 parts, products, and back; vectors run along the channels.
#include "cpu/common/arena.h"
#include "products.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

ATTNOPS_INLINE void store_part(float* p, VecF v) { store(p, v); }

#if defined(__AVX512F__)
// Only where the processor multiplies bfloat16, and so rounds to it.
ATTNOPS_INLINE void store_part(BFloat16* p, VecF v) {
  __m256i rounded;
  asm("vcvtneps2bf16\t{%1, %0|%0, %1}" : "=v"(rounded) : "v"(v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded);
}
#endif

// B' d B, in place.
ATTNOPS_INLINE void to_parts(VecF (&d)[4][4]) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const VecF first = d[0][j] - d[2][j], last = d[1][j] - d[3][j];
    const VecF sum = d[1][j] + d[2][j];
    d[2][j] = d[2][j] - d[1][j];
    d[0][j] = first, d[1][j] = sum, d[3][j] = last;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const VecF first = d[i][0] - d[i][2], last = d[i][1] - d[i][3];
    const VecF sum = d[i][1] + d[i][2];
    d[i][2] = d[i][2] - d[i][1];
    d[i][0] = first, d[i][1] = sum, d[i][3] = last;
  }
}

// A' m A.
ATTNOPS_INLINE void from_parts(const VecF (&m)[4][4], VecF (&out)[2][2]) {
  VecF sums[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    sums[0][j] = m[0][j] + m[1][j] + m[2][j];
    sums[1][j] = m[1][j] - m[2][j] - m[3][j];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    out[i][0] = sums[i][0] + sums[i][1] + sums[i][2];
    out[i][1] = sums[i][1] - sums[i][2] - sums[i][3];
  }
}

// Of a run of tiles.
template <class S>
class Run {
 public:
  Run(const WinogradShape& s, int64_t tiles, Arena& arena)
      : s_(s),
        rows_(round_up(tiles, kRows)),
        stride_(odd_lines<S>(s.channels)),
        sums_stride_(odd_lines<float>(s.padded_outputs())),
        zeros_(arena.take<S>(s.channels)),
        parts_(arena.take<S>(kWinogradParts * rows_ * stride_)),
        sums_(arena.take<float>(kWinogradParts * rows_ * sums_stride_)) {}

  void compute(const S* x, const S* weight, const float* bias, int64_t first, int64_t last,
               S* out) {
    memset(zeros_, 0, static_cast<size_t>(s_.channels) * sizeof(S));
    for (int64_t tile = first; tile < last; ++tile) spread(x, tile, tile - first);
    const int64_t used = last - first, rows = round_up(used, kRows);
    const int64_t rest = (rows - used) * stride_ * static_cast<int64_t>(sizeof(S));
    const int64_t depth = s_.group_channels(), panels = s_.group_panels();
    const int64_t columns = panels * kWinogradPanel;
    for (int64_t part = 0; part < kWinogradParts; ++part) {
      S* left = parts_ + part * rows_ * stride_;
      memset(left + used * stride_, 0, static_cast<size_t>(rest));
      for (int64_t group = 0; group < s_.groups; ++group)
        multiply_tiles(left + group * depth, stride_,
                       weight + (part * s_.groups + group) * columns * depth, depth, panels, rows,
                       sums_ + part * rows_ * sums_stride_ + group * columns, sums_stride_);
    }
    for (int64_t tile = first; tile < last; ++tile) gather(bias, tile, tile - first, out);
  }

 private:
  // A tile's values in the 16 parts.
  void spread(const S* x, int64_t tile, int64_t row) {
    const int64_t y = s_.starts[tile / s_.columns] - s_.dilation;
    const int64_t left = s_.starts[s_.rows + tile % s_.columns] - s_.dilation;
    const S* pixels[4][4];
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t at_y = y + i * s_.dilation, at_x = left + j * s_.dilation;
        const bool inside = at_y >= 0 && at_y < s_.height && at_x >= 0 && at_x < s_.width;
        pixels[i][j] = inside ? x + (at_y * s_.width + at_x) * s_.channels : zeros_;
      }
    S* to = parts_ + row * stride_;
    for (int64_t c = 0; c < s_.channels; c += kWidth<float>) {
      VecF d[4][4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) d[i][j] = load(pixels[i][j] + c);
      to_parts(d);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store_part(to + (4 * i + j) * rows_ * stride_ + c, d[i][j]);
    }
  }

  // A tile's results from the 16 sums.
  void gather(const float* bias, int64_t tile, int64_t row, S* out) {
    const int64_t y = s_.starts[tile / s_.columns], x = s_.starts[s_.rows + tile % s_.columns];
    const int64_t outputs = s_.group_outputs(), columns = s_.group_panels() * kWinogradPanel;
    for (int64_t group = 0; group < s_.groups; ++group)
      gather_group(sums_ + row * sums_stride_ + group * columns,
                   bias == nullptr ? nullptr : bias + group * outputs, y, x, out + group * outputs);
  }

  void gather_group(const float* from, const float* bias, int64_t y, int64_t x, S* out) {
    const int64_t outputs = s_.group_outputs();
    for (int64_t c = 0; c < outputs; c += kWidth<float>) {
      const int64_t lanes = outputs - c;
      VecF m[4][4], results[2][2];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) m[i][j] = load(from + (4 * i + j) * rows_ * sums_stride_ + c);
      from_parts(m, results);
      const VecF shift = bias == nullptr ? VecF{} : load_lanes(bias + c, lanes);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          const int64_t at_y = y + i * s_.dilation, at_x = x + j * s_.dilation;
          if (at_y >= s_.height || at_x >= s_.width) continue;
          VecF v = results[i][j] + shift;
          if (s_.relu) v = select(v < 0.0f, VecF{}, v);
          store_lanes(out + (at_y * s_.width + at_x) * s_.outputs + c, v, lanes);
        }
    }
  }

  const WinogradShape& s_;
  const int64_t rows_, stride_, sums_stride_;
  S* zeros_;
  S* parts_;     // [16][rows_][stride_]
  float* sums_;  // [16][rows_][sums_stride_]
};

template <class S>
struct WinogradEntries {
  static int64_t scratch_bytes(const WinogradShape& s, int64_t tiles) {
    Arena arena(nullptr);
    Run<S>(s, tiles, arena);
    return arena.bytes();
  }
  static void run(const WinogradShape& s, const void* x, const void* weight, const float* bias,
                  int64_t first, int64_t last, void* out, void* scratch) {
    Arena arena(scratch);
    Run<S>(s, last - first, arena)
        .compute(static_cast<const S*>(x), static_cast<const S*>(weight), bias, first, last,
                 static_cast<S*>(out));
  }
  static constexpr WinogradKernels kernels = {scratch_bytes, run};
};

}  // namespace

const WinogradKernels& winograd_of_float() { return WinogradEntries<float>::kernels; }

const WinogradKernels* winograd_of_bfloat16() {
#if defined(__AVX512F__)
  return &WinogradEntries<BFloat16>::kernels;
#else
  return nullptr;
#endif
}

}  // namespace attnops::cpu::ATTNOPS_ISA
