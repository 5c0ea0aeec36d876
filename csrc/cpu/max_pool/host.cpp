// Host entry of max pooling: sizes, and shares of the result's rows.
#include "host.h"

#include <algorithm>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const MaxPoolKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(max_pool_kernels, dtype); }

int64_t windows(int64_t size, int64_t stride, bool ceil_mode) {
  return (size - 1 + (ceil_mode ? stride - 1 : 0)) / stride + 1;
}

Tensor max_pool(Tensor x, int64_t stride, bool ceil_mode) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0 && has_inner_channels(x),
                  "max_pool: expected a map [B, C, H, W] with contiguous channels");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "max_pool: expected a stride of 1 or 2");
  const int64_t height = x.size(2), width = x.size(3);
  const MaxPoolShape s = {x.size(1),
                          height,
                          width,
                          windows(height, stride, ceil_mode),
                          windows(width, stride, ceil_mode),
                          stride};
  Tensor out = empty_map(x, s.channels, s.out_height, s.out_width, true);
  const MaxPoolKernels& kernels = kernels_for(dtype_of(x));
  const Items from(x), to(out);
  const int64_t rows = x.size(0) * s.out_height, workers = std::min(thread_count(), rows);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t end = rows * (worker + 1) / workers;
    for (int64_t row = rows * worker / workers; row < end;) {
      const int64_t item = row / s.out_height, first = row % s.out_height;
      const int64_t last = std::min(first + end - row, s.out_height);
      kernels.run(s, from[item], first, last, to[item]);
      row += last - first;
    }
  });
  return out;
}
// x [B, C, H, W] with contiguous channels -> [B, C, (H - 1) / stride + 1, ...], with ceil_mode
// rounded up.
ATTNOPS_REGISTER(cpu, CPU, max_pool, "(Tensor x, int stride, bool ceil_mode) -> Tensor")

}  // namespace
}  // namespace attnops::cpu
