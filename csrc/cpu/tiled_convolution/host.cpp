// Host entry of convolutions in tiles: blocks of weights, shares of the positions.
#include "host.h"

#include <algorithm>
#include <optional>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

constexpr int64_t kWeightBytes = int64_t{1} << 20;  // of a block: half of a second-level cache
constexpr int64_t kFewestOutputs = 4;               // steps of a block that does not hold all terms

const ConvolutionKernels* kernels() {
  if (!multiplies_tiles()) return nullptr;
  ATTNOPS_IF_AVX512(avx512::convolution_in_tiles());
  return nullptr;
}

// Steps of results and of channels in a block, of about equal blocks.
struct Blocks {
  int64_t outputs, channels;

  explicit Blocks(const ConvolutionShape& s) {
    const int64_t step = s.weight_step() * 2, column = s.channel_steps() * step;
    const int64_t fit = kWeightBytes / column, all = s.output_steps();
    outputs = even(all, std::max(fit, kFewestOutputs));
    channels = outputs <= fit
                   ? s.channel_steps()
                   : even(s.channel_steps(), std::max<int64_t>(1, kWeightBytes / (outputs * step)));
  }

 private:
  static int64_t even(int64_t all, int64_t most) {
    const int64_t count = (all + most - 1) / most;
    return (all + count - 1) / count;
  }
};

void check(const Tensor& x, const Tensor& weight, const ConvolutionShape& s) {
  STD_TORCH_CHECK(kernels() != nullptr, "tiled_convolution: this processor has no AMX");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16 && x.numel() > 0,
                  "tiled_convolution: expected a map in bfloat16");
  STD_TORCH_CHECK((s.side == 1 || s.side == 3) && s.dilation > 0 && s.outputs > 0,
                  "tiled_convolution: expected 1x1 or 3x3 weights");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::BFloat16 && weight.is_contiguous() &&
                      weight.numel() == s.output_steps() * s.channel_steps() * s.weight_step(),
                  "tiled_convolution: expected weights in tiles of ", s.channels, " channels and ",
                  s.outputs, " outputs");
}

bool has_inner_channels(const Tensor& x) {
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  return (channels == 1 || x.stride(1) == 1) && (width == 1 || x.stride(3) == channels) &&
         (height == 1 || x.stride(2) == width * channels) &&
         (x.size(0) == 1 || x.stride(0) == height * width * channels);
}

Tensor tiled_convolution(Tensor x, Tensor weight, std::optional<Tensor> bias,
                         std::optional<Tensor> residual, int64_t outputs, int64_t side,
                         int64_t dilation, bool relu) {
  STD_TORCH_CHECK(x.dim() == 4 && has_inner_channels(x),
                  "tiled_convolution: expected a map [B, C, H, W] with contiguous channels");
  const ConvolutionShape s = {x.size(0), x.size(1), outputs,  x.size(2),
                              x.size(3), side,      dilation, relu};
  check(x, weight, s);
  if (residual)
    STD_TORCH_CHECK(residual->scalar_type() == ScalarType::BFloat16 && residual->dim() == 4 &&
                        residual->size(0) == s.batch && residual->size(1) == outputs &&
                        residual->size(2) == s.height && residual->size(3) == s.width &&
                        has_inner_channels(*residual),
                    "tiled_convolution: expected a residual like the result");
  if (bias)
    STD_TORCH_CHECK(bias->scalar_type() == ScalarType::Float && bias->numel() == outputs &&
                        bias->is_contiguous(),
                    "tiled_convolution: expected a bias [O] in float32");
  Tensor out = empty_map(x, outputs, s.height, s.width, true);
  const ConvolutionArguments args = {
      x.const_data_ptr(), weight.const_data_ptr(), residual ? residual->const_data_ptr() : nullptr,
      bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr, out.mutable_data_ptr()};

  const int64_t steps = s.items() * s.steps();
  const int64_t workers = std::min(thread_count(), steps);
  const Blocks blocks(s);
  // Tensors, because deployments keep the memory of tensors.
  std::optional<Tensor> laid_out, waiting;
  if (!s.takes_as_it_is()) {
    laid_out = new_output(x, {s.channel_steps() * s.batch * s.laid_out() * kConvolutionStep});
    const int64_t rows = s.batch * s.height, parts = std::min(thread_count(), rows);
    for_each_worker(parts, [&](int64_t part) {
      kernels()->lay_out(s, args.x, rows * part / parts, rows * (part + 1) / parts,
                         laid_out->mutable_data_ptr());
    });
  }
  constexpr int64_t kSums = kConvolutionStep * kConvolutionStep;
  const bool waits = blocks.channels < s.channel_steps();
  if (waits) waiting = new_output(x, {steps * blocks.outputs * kSums * 2});
  const void* const from = laid_out ? laid_out->const_data_ptr() : nullptr;
  float* const sums = waiting ? static_cast<float*>(waiting->mutable_data_ptr()) : nullptr;
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t begin = steps * worker / workers, end = steps * (worker + 1) / workers;
    for (int64_t n = 0; n < s.output_steps(); n += blocks.outputs)
      for (int64_t c = 0; c < s.channel_steps(); c += blocks.channels) {
        const int64_t last_output = std::min(n + blocks.outputs, s.output_steps());
        const int64_t last_channel = std::min(c + blocks.channels, s.channel_steps());
        const ConvolutionBlock block = {
            n, last_output, c, last_channel, c == 0, last_channel == s.channel_steps()};
        kernels()->multiply(s, block, args, from, begin, end,
                            sums == nullptr ? nullptr : sums + begin * blocks.outputs * kSums);
      }
  });
  return out;
}
// x [B, C, H, W] and residual [B, outputs, H, W] in bfloat16 with contiguous channels, weight in
// tiles, bias [outputs] float32 -> out like residual.
ATTNOPS_REGISTER(cpu, CPU, tiled_convolution,
                 "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int outputs, int side, "
                 "int dilation, bool relu) -> Tensor")

}  // namespace
}  // namespace attnops::cpu
