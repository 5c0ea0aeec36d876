// GELU of a depthwise convolution; compiled once per instruction set.
//
//   out = gelu(c), c = local(x) + bias    dc = grad gelu'(c), from it dx, dweight and dbias
//
// Pieces are walked down a few rows at a time: x, grad, out and dx move once, and c and dc are
// never in memory as a whole.
#include "depthwise_gelu.h"
#include "depthwise_gradient.h"
#include "gelu.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// The taps and the bias of the planes of a group.
template <class S>
class GeluParameters {
 public:
  using C = Compute<S>;

  GeluParameters(Arena& arena, const GeluShape& s)
      : taps(arena.take<C>(round_up(s.taps(), kWidth<C>) * kWidth<C>)),
        bias(arena.take<C>(kWidth<C> * kWidth<C>)),
        count_(s.taps()) {}

  void pack(const LaneGroup<S>& group, const S* weight, const S* shifts) const {
    group.pack_parameters(weight, count_, taps);
    store(bias, typename Vec<C>::V{});
    if (shifts != nullptr) group.pack_parameters(shifts, 1, bias);
  }
  // Turns the convolution into its transpose.
  void reverse() const { reverse_taps(taps, count_); }

  C *const taps, *const bias;

 private:
  int64_t count_;
};

template <class S>
class GeluForward {
 public:
  using C = Compute<S>;

  // For pieces of up to `columns` columns.
  GeluForward(const GeluShape& shape, int64_t columns, void* scratch)
      : shape_(shape),
        arena_(scratch),
        parameters_(arena_, shape),
        convolution_(arena_, shape.kernel_height, shape.kernel_width),
        x_(arena_, shape.kernel_height, columns + shape.kernel_width - 1),
        out_(arena_, 1, columns),
        zeros_(arena_.take<C>(x_.rows.stride)) {}

  int64_t bytes() const { return arena_.bytes(); }

  void run(const DepthwisePiece& piece, const S* x, const S* weight, const S* bias, S* out) {
    const LaneGroup<S> group(shape_.maps, piece.group);
    const Span own = {piece.left, piece.right};
    const int64_t up = shape_.kernel_height / 2, side = shape_.kernel_width / 2;
    const int64_t height = shape_.maps.height;
    parameters_.pack(group, weight, bias);
    memset(zeros_, 0, static_cast<size_t>(x_.rows.stride) * sizeof(C));
    x_.start(x, widen(own, side, shape_.maps.width), piece.top - up, own.left - side);
    out_.origin = own.left;
    for (int64_t y = piece.top; y < piece.bottom; ++y) {
      x_.advance(group, y + 1 + up, height);
      convolution_.run(x_.rows, height, parameters_.taps, parameters_.bias, zeros_, own, y, 1,
                       out_);
      C* row = out_.at(y, own.left);
      for (int64_t i = 0; i < own.width() * kWidth<C>; i += kWidth<C>)
        store(row + i, gelu_lanes<C>(load(row + i)));
      group.unpack(row, y, own.left, own.width(), out);
    }
  }

 private:
  const GeluShape& shape_;
  Arena arena_;
  const GeluParameters<S> parameters_;
  const LocalConvolution<C> convolution_;
  RowReader<S> x_;
  RowRing<C> out_;
  C* zeros_;
};

template <class S>
class GeluBackward {
 public:
  using C = Compute<S>;

  // For pieces of up to `columns` columns.
  GeluBackward(const GeluShape& shape, int64_t columns, void* scratch)
      : shape_(shape),
        arena_(scratch),
        parameters_(arena_, shape),
        reversed_(arena_, shape),
        convolution_(arena_, shape.kernel_height, shape.kernel_width),
        local_(arena_, shape.kernel_height, shape.kernel_width, columns, shape.kernel_width - 1),
        c_(arena_, kSlide, columns + shape.kernel_width - 1),
        zeros_(arena_.take<C>(local_.x.rows.stride)) {}

  int64_t bytes() const { return arena_.bytes(); }

  // sums: [taps + 1][kWidth], zero.
  void run(const DepthwisePiece& piece, const S* grad, const S* x, const S* weight, const S* bias,
           S* dx, double* sums) {
    const LaneGroup<S> group(shape_.maps, piece.group);
    const int64_t up = shape_.kernel_height / 2, side = shape_.kernel_width / 2;
    const int64_t height = shape_.maps.height, width = shape_.maps.width;
    parameters_.pack(group, weight, bias);
    reversed_.pack(group, weight, bias);
    reversed_.reverse();
    memset(zeros_, 0, static_cast<size_t>(local_.x.rows.stride) * sizeof(C));
    local_.start(shape_.maps, piece, reversed_.taps);
    const Span around = local_.around();
    c_.origin = around.left;
    local_.x.start(x, widen(around, side, width), piece.top - 2 * up, piece.left - 2 * side);
    local_.for_each_block([&](int64_t y, int64_t rows, bool own) {
      local_.x.advance(group, y + rows + up, height);
      convolution_.run(local_.x.rows, height, parameters_.taps, parameters_.bias, zeros_, around, y,
                       rows, c_);
      for (int64_t r = y; r < y + rows; ++r) {
        const C* c = c_.at(r, around.left);
        C* dc = local_.gradient.at(r, around.left);
        group.pack(grad, r, around.left, around.width(), dc);
        for (int64_t i = 0; i < around.width() * kWidth<C>; i += kWidth<C>)
          store(dc + i, load(dc + i) * gelu_slope_lanes<C>(load(c + i)));
      }
      if (own) local_.add_sums(y, rows, sums, sums + shape_.taps() * kWidth<C>);
      local_.write(group, y + rows, dx);
    });
  }

 private:
  const GeluShape& shape_;
  Arena arena_;
  const GeluParameters<S> parameters_, reversed_;
  const LocalConvolution<C> convolution_;
  LocalGradient<S> local_;
  RowRing<C> c_;
  C* zeros_;
};

template <class S>
struct Table {
  using C = Compute<S>;

  static int64_t scratch_bytes(const GeluShape& s, int64_t columns, bool backward) {
    return backward ? GeluBackward<S>(s, columns, nullptr).bytes()
                    : GeluForward<S>(s, columns, nullptr).bytes();
  }
  static void forward(const GeluShape& s, const DepthwisePiece& piece, const void* x,
                      const void* weight, const void* bias, void* out, void* scratch) {
    GeluForward<S>(s, piece.right - piece.left, scratch)
        .run(piece, static_cast<const S*>(x), static_cast<const S*>(weight),
             static_cast<const S*>(bias), static_cast<S*>(out));
  }
  static void backward(const GeluShape& s, const DepthwisePiece& piece, const void* grad,
                       const void* x, const void* weight, const void* bias, void* dx, double* sums,
                       void* scratch) {
    GeluBackward<S>(s, piece.right - piece.left, scratch)
        .run(piece, static_cast<const S*>(grad), static_cast<const S*>(x),
             static_cast<const S*>(weight), static_cast<const S*>(bias), static_cast<S*>(dx), sums);
  }
  static void reduce(const GeluShape& s, const DepthwisePiece* pieces, int64_t count,
                     const double* sums, void* dweight, void* dbias, double* totals) {
    reduce_sums<S>(s.maps, pieces, count, sums, s.taps() + 1, 0, s.taps(), totals,
                   static_cast<S*>(dweight));
    reduce_sums<S>(s.maps, pieces, count, sums, s.taps() + 1, s.taps(), 1, totals,
                   static_cast<S*>(dbias));
  }
  static constexpr GeluKernels kernels = {kWidth<C>, scratch_bytes, forward, backward, reduce};
};

}  // namespace

const GeluKernels& gelu_kernels(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return Table<double>::kernels;
    case DType::kFloat16:
      return Table<Half>::kernels;
    case DType::kBFloat16:
      return Table<BFloat16>::kernels;
    default:
      return Table<float>::kernels;
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
