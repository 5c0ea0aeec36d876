// Host entry of convolutions in tiles: blocks of weights, shares of the positions.
#include "host.h"

#include <algorithm>
#include <optional>

#include "common/register.h"
#include "cpu/common/float_parts.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"
#include "plan.h"

namespace attnops::cpu {
namespace {

constexpr int64_t kWeightBytes = int64_t{1} << 20;  // of a block: half of a second-level cache
constexpr int64_t kMostBytes = int64_t{3} << 19;    // of all, of 1x1 convolutions in parts
constexpr int64_t kFewestOutputs = 4;               // steps of a block that does not hold all terms
constexpr int64_t kStripeBytes = int64_t{1} << 17;  // of pixels that are multiplied once laid out
constexpr int64_t kSums = kConvolutionStep * kConvolutionStep;

const ConvolutionKernels* kernels() {
  if (!multiplies_tiles()) return nullptr;
  ATTNOPS_IF_AVX512(avx512::convolution_in_tiles());
  return nullptr;
}

// Steps of results and of channels in a block, of about equal blocks.
struct Blocks {
  int64_t outputs, channels;
  bool is_one;

  explicit Blocks(const ConvolutionShape& s) {
    const int64_t terms = s.group_channel_steps(), step = s.weight_step() * 2;
    const bool is_small = s.side == 1 && s.parts > 1 && s.weights() * 2 <= kMostBytes;
    const int64_t most = is_small ? kMostBytes : kWeightBytes;
    const int64_t fit = most / (terms * step), all = s.group_output_steps();
    outputs = even(all, std::max(fit, kFewestOutputs));
    is_one = outputs == s.output_steps() && outputs <= fit;
    channels = outputs <= fit ? terms : even(terms, std::max<int64_t>(1, most / (outputs * step)));
  }

 private:
  static int64_t even(int64_t all, int64_t most) {
    const int64_t count = (all + most - 1) / most;
    return (all + count - 1) / count;
  }
};

// Steps that are multiplied once they are laid out.
int64_t stripe_of(const ConvolutionShape& s) {
  const int64_t bytes =
      s.channel_steps() * s.parts * kSums * static_cast<int64_t>(sizeof(BFloat16));
  return std::max<int64_t>(1, kStripeBytes / bytes);
}

bool takes_as_it_is(const ConvolutionShape& s) {
  return !s.float_in && s.side == 1 && s.channels % kConvolutionStep == 0 &&
         s.batch * s.height * s.width >= kConvolutionStep;
}

// What a worker does.
struct Work {
  const ConvolutionShape& shape;
  const ConvolutionArguments& args;
  const Blocks& blocks;
  const Plan& plan;
  const Tensor* scale;  // of maps that are split, or null
  BFloat16* laid_out;   // null where x is taken as it is
  float* waiting;       // null where a block holds all terms
  bool in_one_place;    // a worker lays out one stripe after the other

  LaidOut place(const LaidOut& rows, int64_t at) const {
    return {rows.item, rows.first, rows.last, laid_out == nullptr ? nullptr : laid_out + at};
  }

  // Share `part` of `parts` of all rows, where all workers share them.
  void lay_out(int64_t part, int64_t parts) const {
    const int64_t all = shape.batch * shape.height, end = all * (part + 1) / parts;
    for (int64_t row = all * part / parts; row < end;) {
      const int64_t first = row % shape.height;
      const int64_t last = std::min(first + end - row, shape.height);
      LaidOut item = {row / shape.height, 0, shape.height, nullptr};
      item = place(item, item.item * item.elements(shape));
      lay_out(first, last, nullptr, item);
      row += last - first;
    }
  }

  void multiply(int64_t worker) const {
    const int64_t outputs = shape.group_output_steps(), terms = shape.group_channel_steps();
    bool is_first = true;
    for (int64_t group = 0; group < shape.groups; ++group)
      for (int64_t n = 0; n < outputs; n += blocks.outputs)
        for (int64_t c = 0; c < terms; c += blocks.channels) {
          const int64_t last_output = std::min(n + blocks.outputs, outputs);
          const int64_t last_term = std::min(c + blocks.channels, terms);
          const ConvolutionBlock block = {group * outputs + n,
                                          group * outputs + last_output,
                                          group * terms + c,
                                          group * terms + last_term,
                                          c == 0,
                                          last_term == terms};
          for (const Part& part : plan.workers[static_cast<size_t>(worker)])
            multiply(block, part,
                     in_one_place || (is_first && laid_out != nullptr && !plan.shares));
          is_first = false;
        }
  }

 private:
  void lay_out(int64_t first, int64_t last, const ConvolutionBlock* block,
               const LaidOut& to) const {
    const float* const factors =
        scale == nullptr ? nullptr : reinterpret_cast<const float*>(Items(*scale)[to.item]);
    kernels()->lay_out(shape, args.x, factors, first, last, block, to);
  }

  // With `lays_out` rows are laid out as they are needed.
  void multiply(const ConvolutionBlock& block, const Part& part, bool lays_out) const {
    const int64_t stripe = lays_out ? stripe_of(shape) : part.last - part.first;
    LaidOut rows = place(part.rows, part.at);
    int64_t row = rows.first;
    for (int64_t step = part.first; step < part.last; step += stripe) {
      const int64_t last = std::min(step + stripe, part.last), needed = shape.last_row(last);
      if (in_one_place) {
        rows.first = step;
        rows.last = last;
      }
      if (lays_out && row < needed) {
        lay_out(row, needed, in_one_place ? &block : nullptr, rows);
        row = needed;
      }
      const int64_t before = rows.item * shape.steps() + step;
      float* const sums = waiting == nullptr ? nullptr : waiting + before * blocks.outputs * kSums;
      kernels()->multiply(shape, block, args, rows, step, last, sums);
    }
  }
};

ScalarType result_type(const ConvolutionShape& s) {
  return s.float_out ? ScalarType::Float : ScalarType::BFloat16;
}

void check(const Tensor& x, const Tensor& weight, const ConvolutionShape& s) {
  STD_TORCH_CHECK(kernels() != nullptr, "tiled_convolution: this processor has no AMX");
  STD_TORCH_CHECK((s.float_in || x.scalar_type() == ScalarType::BFloat16) && x.numel() > 0,
                  "tiled_convolution: expected a map in bfloat16 or float32");
  STD_TORCH_CHECK((s.side == 1 || s.side == 3) && s.dilation > 0 && s.outputs > 0,
                  "tiled_convolution: expected 1x1 or 3x3 weights");
  STD_TORCH_CHECK(s.stride == 1 || (s.stride == 2 && s.side == 3 && s.dilation == 1),
                  "tiled_convolution: expected stride 1, or 2 of 3x3 weights without dilation");
  const int64_t step = kConvolutionStep * s.groups;
  STD_TORCH_CHECK(
      s.groups == 1 || (s.groups > 1 && s.channels % step == 0 && s.outputs % step == 0),
      "tiled_convolution: expected groups of multiples of 32 channels and outputs");
  STD_TORCH_CHECK(s.parts == 1 || (s.float_in && s.float_out),
                  "tiled_convolution: expected float32 maps for weights in parts");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::BFloat16 && weight.is_contiguous() &&
                      weight.numel() == s.weights(),
                  "tiled_convolution: expected weights in tiles of ", s.channels / s.groups,
                  " channels and ", s.outputs, " outputs");
}

void check_more(const Tensor& out, const ConvolutionShape& s, const std::optional<Tensor>& bias,
                const std::optional<Tensor>& gate, const std::optional<Tensor>& residual,
                const std::optional<Tensor>& factor, const std::optional<Tensor>& scale,
                int64_t activation) {
  const ScalarType type = s.parts > 1 ? ScalarType::Float : ScalarType::BFloat16;
  STD_TORCH_CHECK(!scale || (s.side == 1 && s.groups == 1 && scale->dim() == 4 &&
                             scale->scalar_type() == type && scale->size(0) == s.batch &&
                             scale->size(1) == s.channels &&
                             scale->numel() == s.batch * s.channels && has_inner_channels(*scale)),
                  "tiled_convolution: expected a scale [B, C, 1, 1] in the type of products, of "
                  "a 1x1 convolution of one group");
  STD_TORCH_CHECK(!gate || is_map_like(*gate, out, s.outputs, type),
                  "tiled_convolution: expected a gate in the type of products, of the result's "
                  "size");
  STD_TORCH_CHECK(!residual || is_map_like(*residual, out, s.outputs, result_type(s)),
                  "tiled_convolution: expected a residual like the result");
  for (const std::optional<Tensor>* row : {&bias, &factor})
    STD_TORCH_CHECK(!*row || ((*row)->scalar_type() == ScalarType::Float &&
                              (*row)->numel() == s.outputs && (*row)->is_contiguous()),
                    "tiled_convolution: expected a bias and a factor [O] in float32");
  STD_TORCH_CHECK(is_activation(activation), "tiled_convolution: expected an activation");
}

const void* data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

void convolve(ConvolutionShape s, const ConvolutionArguments& args, const Tensor& weight,
              const Tensor* scale = nullptr) {
  const bool as_it_is = takes_as_it_is(s);
  if (as_it_is || (s.side == 1 && scale == nullptr)) {
    s.pixels *= s.batch;
    s.batch = 1;
  }
  if (s.side == 1) {
    s.width = as_it_is ? s.pixels : kConvolutionStep;
    s.height = (s.pixels + s.width - 1) / s.width;
  }
  const Blocks blocks(s);
  const bool in_one_place = s.side == 1 && !as_it_is && (blocks.is_one || s.parts > 1);
  const Plan plan(s, as_it_is, in_one_place ? stripe_of(s) : 0, thread_count());
  // Tensors, because deployments keep the memory of tensors.
  std::optional<Tensor> laid_out, waiting;
  if (!as_it_is) laid_out = new_output(weight, {plan.elements});
  if (blocks.channels < s.group_channel_steps())
    waiting = new_output(weight, {s.batch * s.steps() * blocks.outputs * kSums * 2});
  const Work work = {s,
                     args,
                     blocks,
                     plan,
                     scale,
                     laid_out ? static_cast<BFloat16*>(laid_out->mutable_data_ptr()) : nullptr,
                     waiting ? static_cast<float*>(waiting->mutable_data_ptr()) : nullptr,
                     in_one_place};
  const int64_t workers = static_cast<int64_t>(plan.workers.size());
  if (plan.shares) for_each_worker(workers, [&](int64_t worker) { work.lay_out(worker, workers); });
  for_each_worker(workers, [&](int64_t worker) { work.multiply(worker); });
}

int64_t bytes_of(bool is_float) { return is_float ? sizeof(float) : sizeof(BFloat16); }

// `values`, or null, past so many of them.
const void* past(const void* values, int64_t count, bool are_float) {
  return values == nullptr ? nullptr
                           : static_cast<const char*>(values) + count * bytes_of(are_float);
}

// One image after the other, each with weights of its own.
void convolve_scaled(ConvolutionShape s, ConvolutionArguments args, const Tensor& weight,
                     const Tensor& scale) {
  const int64_t pixels = s.pixels, steps = s.output_steps();
  const int64_t workers = std::min(thread_count(), steps), images = s.batch;
  const Tensor scaled = new_output(weight, {weight.numel()});
  const Items scales(scale);
  s.batch = 1;
  const void* const given = args.weight;
  args.weight = scaled.const_data_ptr();
  for (int64_t image = 0; image < images; ++image) {
    for_each_worker(workers, [&](int64_t worker) {
      kernels()->scale(s, given, scales[image], steps * worker / workers,
                       steps * (worker + 1) / workers, scaled.mutable_data_ptr());
    });
    convolve(s, args, weight);
    args.x = past(args.x, pixels * s.channels, s.float_in);
    args.gate = past(args.gate, pixels * s.outputs, false);
    args.residual = past(args.residual, pixels * s.outputs, s.float_out);
    args.out = static_cast<char*>(args.out) + pixels * s.outputs * bytes_of(s.float_out);
  }
}

Tensor tiled_convolution(Tensor x, Tensor weight, std::optional<Tensor> bias,
                         std::optional<Tensor> gate, std::optional<Tensor> residual,
                         std::optional<Tensor> factor, std::optional<Tensor> scale, int64_t outputs,
                         int64_t side, int64_t dilation, int64_t groups, int64_t activation,
                         bool wide, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4 && has_inner_channels(x),
                  "tiled_convolution: expected a map [B, C, H, W] with contiguous channels");
  const auto result = [&](int64_t side) { return stride == 2 ? (side + 1) / 2 : side; };
  const int64_t height = result(x.size(2)), width = result(x.size(3));
  ConvolutionShape s = {x.size(0),
                        x.size(1),
                        outputs,
                        height,
                        width,
                        side,
                        dilation,
                        groups,
                        static_cast<Activation>(activation),
                        x.scalar_type() == ScalarType::Float,
                        wide,
                        1,
                        height * width,
                        stride,
                        x.size(2),
                        x.size(3)};
  if (groups > 0 && weight.numel() == kFloatParts * s.weights()) s.parts = kFloatParts;
  check(x, weight, s);
  Tensor out = empty_map(x, outputs, s.height, s.width, true, result_type(s));
  check_more(out, s, bias, gate, residual, factor, scale, activation);
  const ConvolutionArguments args = {x.const_data_ptr(),
                                     weight.const_data_ptr(),
                                     data(gate),
                                     data(residual),
                                     static_cast<const float*>(data(bias)),
                                     static_cast<const float*>(data(factor)),
                                     out.mutable_data_ptr()};
  if (scale && s.parts == 1)
    convolve_scaled(s, args, weight, *scale);
  else
    convolve(s, args, weight, scale ? &*scale : nullptr);
  return out;
}
// x [B, C, H, W] in bfloat16 or float32, weight in tiles, bias and factor [outputs] in float32,
// gate [B, outputs, H, W] in bfloat16, residual like it, with `wide` in float32, scale [B, C, 1, 1]
// in bfloat16 -> out like residual. Maps have contiguous channels. activation: by number, as in
// cpu/common/activation.h, GELU and SiLU to the precision of bfloat16. With weights in parts all
// are float32. stride: 1, or 2 of 3x3 weights.
ATTNOPS_REGISTER(cpu, CPU, tiled_convolution,
                 "(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, "
                 "Tensor? factor, Tensor? scale, int outputs, int side, int dilation, int groups, "
                 "int activation, bool wide, int stride=1) -> Tensor")

}  // namespace
}  // namespace attnops::cpu
