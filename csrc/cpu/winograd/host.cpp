// Host entry of Winograd's convolution: the tiles of a map, and runs of them for each thread.
#include "host.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const WinogradKernels& float_kernels() {
  ATTNOPS_IF_AVX512(avx512::winograd_of_float());
  ATTNOPS_IF_AVX2(avx2::winograd_of_float());
  return baseline::winograd_of_float();
}

const WinogradKernels* bfloat16_kernels() {
#if defined(__x86_64__) && defined(ATTNOPS_HAVE_AVX512)
  static const bool multiplies = __builtin_cpu_supports("avx512bf16");
  if (multiplies && current_isa() == Isa::kAvx512) return avx512::winograd_of_bfloat16();
#endif
  return nullptr;
}

// The first result of every tile along a side: of every `dilation`-th result from each of the first
// ones on, every second one.
void append_starts(int64_t side, int64_t dilation, std::vector<int64_t>& starts) {
  for (int64_t first = 0; first < std::min(side, dilation); ++first)
    for (int64_t at = first; at < side; at += 2 * dilation) starts.push_back(at);
}

Tensor winograd(Tensor x, Tensor weight, std::optional<Tensor> bias, int64_t outputs,
                int64_t groups, int64_t dilation, bool relu) {
  const bool is_float = x.scalar_type() == ScalarType::Float;
  const WinogradKernels* kernels = is_float ? &float_kernels() : bfloat16_kernels();
  STD_TORCH_CHECK(is_float || (x.scalar_type() == ScalarType::BFloat16 && kernels != nullptr),
                  "winograd: expected float32, or bfloat16 on a processor with AVX512_BF16");
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && groups > 0 && x.size(1) % (16 * groups) == 0 &&
                      outputs > 1 && outputs % groups == 0,
                  "winograd: expected maps [B, C, H, W], a group with C a multiple of 16");
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  STD_TORCH_CHECK(has_inner_channels(x), "winograd: expected maps with contiguous channels");
  std::vector<int64_t> starts;
  append_starts(height, dilation, starts);
  const int64_t rows = static_cast<int64_t>(starts.size());
  append_starts(width, dilation, starts);
  const int64_t columns = static_cast<int64_t>(starts.size()) - rows;
  const WinogradShape shape{channels, outputs, groups,  height,        width,
                            dilation, rows,    columns, starts.data(), relu};
  STD_TORCH_CHECK(
      weight.scalar_type() == x.scalar_type() && weight.is_contiguous() &&
          weight.numel() == kWinogradParts * shape.padded_outputs() * shape.group_channels(),
      "winograd: expected weights of the maps' dtype in panels");

  Tensor out = empty_map(x, outputs, height, width, true);
  const int64_t total = x.size(0) * rows * columns, tiles = rows * columns;
  const int64_t workers = std::min(thread_count(), (total + 7) / 8);
  // Of a run: the weights of many channels are read from memory for each.
  const int64_t most = channels < 128 ? 96 : 192;
  const int64_t bytes = (kernels->scratch_bytes(shape, most) + 63) / 64 * 64;
  // A tensor, because deployments keep the memory of tensors.
  const Tensor scratch = new_output(x, {workers * bytes / static_cast<int64_t>(x.element_size())});
  char* const memory = static_cast<char*>(scratch.mutable_data_ptr());
  const Items from(x), to(out);
  const float* shift = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  for_each_worker(workers, [&](int64_t worker) {
    int64_t at = total * worker / workers;
    const int64_t end = total * (worker + 1) / workers;
    while (at < end) {
      const int64_t item = at / tiles, first = at % tiles;
      // Runs of about one size, the last one too.
      const int64_t left = std::min(end - at, tiles - first), runs = (left + most - 1) / most;
      const int64_t count = std::min(left, ((left + runs - 1) / runs + 7) / 8 * 8);
      kernels->run(shape, from[item], weight.const_data_ptr(), shift, first, first + count,
                   to[item], memory + worker * bytes);
      at += count;
    }
  });
  return out;
}
// x [B, C, H, W] with contiguous channels, weights in panels, bias [outputs] float32.
ATTNOPS_REGISTER(
    cpu, CPU, winograd,
    "(Tensor x, Tensor weight, Tensor? bias, int outputs, int groups, int dilation, bool relu) -> "
    "Tensor")

}  // namespace
}  // namespace attnops::cpu
