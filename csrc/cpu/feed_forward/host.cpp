// Host entry of feed_forward: packs the weights, then rows.h.
#include "arguments.h"
#include "common/register.h"
#include "rows.h"

namespace attnops::cpu {
namespace {

const FeedForwardKernels& kernels_for(DType dtype) {
  ATTNOPS_SELECT_KERNELS(feed_forward_kernels, dtype);
}
Tensor feed_forward(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases,
                    std::vector<int64_t> biased) {
  const FeedForwardArguments args(x, weights, biases, biased);
  const FeedForwardShape& shape = args.shape;
  const FeedForwardPacking& packing = packing_for(dtype_of(x));
  const InnerWeights inner(args, packing);
  const int64_t padded = shape.padded_channels(), hidden = shape.hidden;
  const Scratch expand(hidden * padded * packing.panel_bytes);
  const Scratch contract(shape.padded_outputs() * hidden * packing.panel_bytes);
  const int64_t workers = thread_count();
  for_each_worker(workers, [&](int64_t worker) {
    const auto pack = [&](const void* matrix, int64_t rows, int64_t columns, int64_t wide,
                          const Scratch& panels) {
      const int64_t count = quotient_up(rows, kPanelRows);
      packing.panels(matrix, rows, columns, wide, count * worker / workers,
                     count * (worker + 1) / workers, panels.at(0));
    };
    pack(args.kernels[0], args.channels[0], shape.channels, padded, expand);
    pack(args.kernels[2], args.channels[2], args.channels[1], hidden, contract);
  });
  Tensor out = empty_map(x, shape.outputs, shape.height, shape.width, shape.channels_last);
  FeedForwardRows(shape, kernels_for(dtype_of(x)),
                  {expand.at(0), contract.at(0), inner.inner(), inner.outer()}, x, out)
      .run();
  return out;
}
// x [B, C, H, W], weights [D, C, 1, 1], [D, 1, 3, 3] and [K, D, 1, 1], biases of those whose
// numbers `biased` has -> out [B, K, H, W].
ATTNOPS_REGISTER(cpu, CPU, feed_forward,
                 "(Tensor x, Tensor[] weights, Tensor[] biases, int[] biased) -> Tensor out")

}  // namespace
}  // namespace attnops::cpu
