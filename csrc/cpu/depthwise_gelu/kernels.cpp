// The steps of a unit of depthwise_gelu in either layout; compiled once per instruction set.
#include "contiguous.h"
#include "cpu/common/arena.h"
#include "cpu/depthwise/channels_last.h"
#include "cpu/depthwise/gelu.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// Contiguous maps: a unit is a strip of a plane.
template <class S>
class Contiguous {
 public:
  using C = Compute<S>;
  using V = typename Vec<C>::V;

  // parameters: [channels][taps + 1], the bias last.
  Contiguous(const GeluShape& s, int64_t rows, bool backward, Arena& arena)
      : s_(s),
        up_(s.kernel_height / 2),
        side_(s.kernel_width / 2),
        x_{nullptr, PaddedRows<C>::stride_for(s.maps.width, side_)},
        g_(x_) {
    x_.data = arena.take<C>((rows + (backward ? 4 : 2) * up_) * x_.stride);
    g_.data = arena.take<C>(backward ? (rows + 2 * up_) * g_.stride : 0);
    lane_sums_ = arena.take<double>(backward ? (s.taps() + 1) * kWidth<C> : 0);
  }

  static int64_t rows(const GeluShape& s) {
    constexpr int64_t kBytes = int64_t{24} << 10;  // of a strip
    const int64_t row = PaddedRows<C>::stride_for(s.maps.width, s.kernel_width / 2) *
                        static_cast<int64_t>(sizeof(C));
    const int64_t strips = max64(1, s.maps.height / max64(8, kBytes / row));
    return (s.maps.height + strips - 1) / strips;
  }

  void forward(const GeluUnit& unit, const C* parameters, const S* x, S* out) {
    start(unit, parameters, unit.last - unit.first + 2 * up_);
    const int64_t plane = plane_of(unit), width = s_.maps.width, rows = unit.last - unit.first;
    pad_rows(x + plane, s_.maps.height, width, unit.first - up_, rows + 2 * up_, side_, x_);
    S* target = out + plane + unit.first * width;
    convolve_contiguous(
        kernel_, read_only(x_), rows,
        width, [&](int64_t r, int64_t at, V z) __attribute__((always_inline)) {
          store_lanes(target + r * width + at, gelu_lanes<C>(z + bias_),
                      min64(kWidth<C>, width - at));
        });
  }

  void backward(const GeluUnit& unit, const C* parameters, const S* grad, const S* x, S* dx,
                double* sums) {
    start(unit, parameters, unit.last - unit.first + 4 * up_);
    const int64_t plane = plane_of(unit), height = s_.maps.height, width = s_.maps.width;
    const int64_t rows = unit.last - unit.first, top = unit.first - up_;
    pad_rows(x + plane, height, width, top - up_, rows + 4 * up_, side_, x_);
    // Rows of dz that are in the map.
    const int64_t begin = max64(0, -top), end = min64(rows + 2 * up_, height - top);
    g_.clear_margins(rows + 2 * up_, width, side_);
    for (int64_t r = 0; r < rows + 2 * up_; ++r)
      if (r < begin || r >= end) memset(g_.row(r), 0, static_cast<size_t>(g_.stride) * sizeof(C));
    const S* incoming = grad + plane + (top + begin) * width;
    convolve_contiguous(
        kernel_, PaddedRows<const C>{x_.row(begin), x_.stride}, end - begin,
        width, [&](int64_t r, int64_t at, V z) __attribute__((always_inline)) {
          const int64_t lanes = min64(kWidth<C>, width - at);
          const V g = load_lanes(incoming + r * width + at, lanes);
          const V dz = g * gelu_slope_lanes<C>(z + bias_);
          store_lanes(g_.row(begin + r) + side_ + at, dz, lanes);
        });
    S* target = dx + plane + unit.first * width;
    convolve_contiguous(
        ContiguousKernel<C>{s_.kernel_height, s_.kernel_width, kernel_.taps + s_.taps() - 1, -1},
        read_only(g_), rows, width, [&](int64_t r, int64_t at, V v) __attribute__((always_inline)) {
          store_lanes(target + r * width + at, v, min64(kWidth<C>, width - at));
        });
    const int64_t count = (s_.taps() + 1) * kWidth<C>;
    memset(lane_sums_, 0, static_cast<size_t>(count) * sizeof(double));
    sum_contiguous(kernel_, PaddedRows<const C>{g_.row(up_) + side_, g_.stride},
                   PaddedRows<const C>{x_.row(up_), x_.stride}, rows, width, lane_sums_);
    for (int64_t t = 0; t <= s_.taps(); ++t) {
      double sum = 0;
      for (int64_t i = 0; i < kWidth<C>; ++i) sum += lane_sums_[t * kWidth<C> + i];
      sums[t * kWidth<C>] = sum;
    }
  }

 private:
  static PaddedRows<const C> read_only(const PaddedRows<C>& rows) {
    return {rows.data, rows.stride};
  }
  int64_t plane_of(const GeluUnit& unit) const {
    return (unit.item * s_.maps.channels + unit.channel) * s_.maps.height * s_.maps.width;
  }
  void start(const GeluUnit& unit, const C* parameters, int64_t rows) {
    const C* own = parameters + unit.channel * (s_.taps() + 1);
    kernel_ = {s_.kernel_height, s_.kernel_width, own, 1};
    bias_ = own[s_.taps()];
    x_.clear_margins(rows, s_.maps.width, side_);
  }

  const GeluShape& s_;
  const int64_t up_, side_;
  PaddedRows<C> x_, g_;
  double* lane_sums_;
  ContiguousKernel<C> kernel_ = {};
  C bias_ = 0;
};

// Maps with contiguous channels: a unit is some rows of all, or for the backward of some channels.
template <class S>
class ChannelsLast {
 public:
  using C = Compute<S>;
  using V = typename Vec<C>::V;

  // parameters: [taps + 1][channels, padded], the bias last.
  ChannelsLast(const GeluShape& s, int64_t channels, bool backward, Arena& arena)
      : s_(s),
        up_(s.kernel_height / 2),
        stride_(round_up(s.maps.channels, kWidth<C>)),
        pixel_(round_up(channels, kWidth<C>)),
        seen_(arena.take<const S*>(s.kernel_height)),
        ring_rows_(arena.take<const C*>(s.kernel_height)),
        ring_(arena.take<C>(backward ? s.kernel_height * s.maps.width * pixel_ : 0)) {}

  void forward(const GeluUnit& unit, const C* parameters, const S* x, S* out) {
    const int64_t width = s_.maps.width, channels = s_.maps.channels;
    const S* source = x + unit.item * s_.maps.height * width * channels;
    const C* bias = parameters + s_.taps() * stride_;
    const ChannelsLastKernel<C> kernel = {s_.kernel_height, s_.kernel_width, parameters, stride_};
    for (int64_t y = unit.first; y < unit.last; ++y) {
      see(source, y);
      S* target = out + (unit.item * s_.maps.height + y) * width * channels;
      convolve_channels_last(
          kernel, SeenRows<S>{seen_, channels, width}, 0, width,
          channels, [&](int64_t at, int64_t c, int64_t lanes, V z) __attribute__((always_inline)) {
            store_lanes(target + at * channels + c, gelu_lanes<C>(z + load(bias + c)), lanes);
          });
    }
  }

  void backward(const GeluUnit& unit, const C* parameters, const S* grad, const S* x, S* dx,
                double* sums) {
    const int64_t width = s_.maps.width, channels = s_.maps.channels, height = s_.maps.height;
    const int64_t item = unit.item * height * width * channels + unit.channel;
    const ChannelsLastKernel<C> kernel = {s_.kernel_height, s_.kernel_width,
                                          parameters + unit.channel, stride_};
    const ChannelsLastKernel<C> turned = {s_.kernel_height, s_.kernel_width,
                                          kernel.taps + (s_.taps() - 1) * stride_, -stride_};
    const C* bias = kernel.taps + s_.taps() * stride_;
    memset(sums, 0, static_cast<size_t>((s_.taps() + 1) * pixel_) * sizeof(double));
    int64_t next = max64(0, unit.first - up_);  // row of dz to compute
    for (int64_t y = unit.first; y < unit.last; ++y) {
      for (const int64_t end = min64(height, y + up_ + 1); next < end; ++next) {
        see(x + item, next);
        C* row = ring_row(next);
        const S* incoming = grad + item + next * width * channels;
        convolve_channels_last(
            kernel, SeenRows<S>{seen_, channels, width}, 0, width, unit.channels,
            [&](int64_t at, int64_t c, int64_t lanes, V z) __attribute__((always_inline)) {
              const V g = load_lanes(incoming + at * channels + c, lanes);
              // Lanes past the channels are zero, as their g is.
              store(row + at * pixel_ + c, g * gelu_slope_lanes<C>(z + load(bias + c)));
            });
      }
      for (int64_t i = 0; i < s_.kernel_height; ++i) {
        const int64_t row = y + i - up_;
        ring_rows_[i] = row < 0 || row >= height ? nullptr : ring_row(row);
      }
      S* target = dx + item + y * width * channels;
      convolve_channels_last(
          turned, SeenRows<C>{ring_rows_, pixel_, width}, 0, width, unit.channels,
          [&](int64_t at, int64_t c, int64_t lanes, V v) __attribute__((always_inline)) {
            store_lanes(target + at * channels + c, v, lanes);
          });
      see(x + item, y);
      sum_channels_last(kernel, ring_row(y), pixel_, SeenRows<S>{seen_, channels, width},
                        unit.channels, sums, pixel_);
    }
  }

 private:
  C* ring_row(int64_t y) const { return ring_ + y % s_.kernel_height * s_.maps.width * pixel_; }
  // Points seen_ at the rows of a batch item around row y.
  void see(const S* item, int64_t y) {
    for (int64_t i = 0; i < s_.kernel_height; ++i) {
      const int64_t row = y + i - up_;
      const bool inside = row >= 0 && row < s_.maps.height;
      seen_[i] = inside ? item + row * s_.maps.width * s_.maps.channels : nullptr;
    }
  }

  const GeluShape& s_;
  const int64_t up_, stride_, pixel_;
  const S** seen_;
  const C** ring_rows_;
  C* ring_;  // the last rows of dz [width][pixel_]
};

template <class S>
struct GeluEntries {
  using C = Compute<S>;

  static int64_t parameter_bytes(const GeluShape& s) {
    const int64_t channels =
        s.maps.channels_last ? round_up(s.maps.channels, kWidth<C>) : s.maps.channels;
    return channels * (s.taps() + 1) * static_cast<int64_t>(sizeof(C));
  }
  static void pack(const GeluShape& s, const void* weight, const void* bias, void* parameters) {
    const int64_t taps = s.taps();
    const bool inner = s.maps.channels_last;
    const int64_t padded = round_up(s.maps.channels, kWidth<C>);
    const int64_t tap_step = inner ? padded : 1, channel_step = inner ? 1 : taps + 1;
    C* out = static_cast<C*>(parameters);
    memset(out, 0, static_cast<size_t>(parameter_bytes(s)));
    for (int64_t c = 0; c < s.maps.channels; ++c) {
      for (int64_t t = 0; t < taps; ++t)
        out[c * channel_step + t * tap_step] =
            load_one(static_cast<const S*>(weight) + c * taps + t);
      if (bias != nullptr)
        out[c * channel_step + taps * tap_step] = load_one(static_cast<const S*>(bias) + c);
    }
  }

  static int64_t scratch_bytes(const GeluShape& s, int64_t rows, int64_t channels, bool backward) {
    Arena arena(nullptr);
    if (s.maps.channels_last)
      ChannelsLast<S>(s, channels, backward, arena);
    else
      Contiguous<S>(s, rows, backward, arena);
    return arena.bytes();
  }
  static void forward(const GeluShape& s, const GeluUnit& unit, const void* parameters,
                      const void* x, void* out, void* scratch) {
    Arena arena(scratch);
    const C* own = static_cast<const C*>(parameters);
    if (s.maps.channels_last)
      ChannelsLast<S>(s, unit.channels, false, arena)
          .forward(unit, own, static_cast<const S*>(x), static_cast<S*>(out));
    else
      Contiguous<S>(s, unit.last - unit.first, false, arena)
          .forward(unit, own, static_cast<const S*>(x), static_cast<S*>(out));
  }
  static void backward(const GeluShape& s, const GeluUnit& unit, const void* parameters,
                       const void* grad, const void* x, void* dx, double* sums, void* scratch) {
    Arena arena(scratch);
    const C* own = static_cast<const C*>(parameters);
    const S *incoming = static_cast<const S*>(grad), *source = static_cast<const S*>(x);
    if (s.maps.channels_last)
      ChannelsLast<S>(s, unit.channels, true, arena)
          .backward(unit, own, incoming, source, static_cast<S*>(dx), sums);
    else
      Contiguous<S>(s, unit.last - unit.first, true, arena)
          .backward(unit, own, incoming, source, static_cast<S*>(dx), sums);
  }
  static void round(const double* sums, int64_t stride, int64_t count, void* out) {
    for (int64_t i = 0; i < count; ++i)
      store_one(static_cast<S*>(out) + i, static_cast<C>(sums[i * stride]));
  }
  static constexpr GeluKernels kernels = {
      kWidth<C>, Contiguous<S>::rows, parameter_bytes, pack, scratch_bytes, forward, backward,
      round};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(GeluKernels, gelu_kernels, GeluEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
