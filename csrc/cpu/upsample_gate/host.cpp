// Host entries of the upsampled gate: tables of the resize, outputs and the split of work over
// threads.
#include "host.h"

#include <algorithm>
#include <tuple>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"
#include "cpu/resize/tables.h"

namespace attnops::cpu {
namespace {

const GateKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(gate_kernels, dtype); }

// The arguments of an op, understood: options, tables and sizes.
struct Gate {
  int64_t batch, channels, height, width, small;
  bool channels_last;
  ResizeTables rows, columns;
  GateShape shape;

  Gate(const Tensor& x, const Tensor& logits, int64_t activation, bool activation_first,
       int64_t residual, double input_weight, bool align_corners)
      : batch(x.size(0)),
        channels(x.size(1)),
        height(x.size(2)),
        width(x.size(3)),
        small(logits.size(2) * logits.size(3)),
        channels_last(is_channels_last(x)),
        rows(logits.size(2), height, align_corners, dtype_of(x)),
        columns(logits.size(3), width, align_corners, dtype_of(x)),
        shape{channels,         rows.view(),
              columns.view(),   static_cast<Activation>(activation),
              activation_first, static_cast<Residual>(residual),
              input_weight} {
    STD_TORCH_CHECK(x.dim() == 4 && logits.dim() == 4 && logits.size(1) == channels,
                    "upsample_gate: expected x [B, C, H, W] and logits [B, C, h, w]");
    STD_TORCH_CHECK(x.scalar_type() == logits.scalar_type(),
                    "upsample_gate: expected tensors of one dtype");
  }
};

// Calls body(begin, end, scratch) for runs of `units`, one run a worker.
template <class Body>
void for_each_run(int64_t units, int64_t scratch_bytes, const Body& body) {
  const int64_t workers = std::min(thread_count(), units);
  const Scratch scratch(workers * scratch_bytes);
  for_each_worker(workers, [&](int64_t worker) {
    const int64_t begin = units * worker / workers, end = units * (worker + 1) / workers;
    body(begin, end, scratch.at(worker * scratch_bytes));
  });
}

Tensor upsample_gate(Tensor x, Tensor logits, int64_t activation, bool activation_first,
                     int64_t residual, double input_weight, bool align_corners) {
  const Gate gate(x, logits, activation, activation_first, residual, input_weight, align_corners);
  const GateKernels& kernels = kernels_for(dtype_of(x));
  Tensor out = empty_map(x, gate.channels, gate.height, gate.width, gate.channels_last);
  const int64_t element = static_cast<int64_t>(x.element_size());
  const int64_t plane = gate.height * gate.width * element, small = gate.small * element;
  const char* source = static_cast<const char*>(x.const_data_ptr());
  const char* gates = static_cast<const char*>(logits.const_data_ptr());
  char* target = static_cast<char*>(out.mutable_data_ptr());
  if (!gate.channels_last) {
    for_each_run(gate.batch * gate.channels, kernels.scratch_bytes(gate.shape, false, false, 1),
                 [&](int64_t begin, int64_t end, void* scratch) {
                   kernels.forward_contiguous(gate.shape, source + begin * plane,
                                              gates + begin * small, target + begin * plane,
                                              end - begin, scratch);
                 });
    return out;
  }
  // Rows of all items one after the other; a run that crosses items is done item by item.
  for_each_run(gate.batch * gate.height,
               kernels.scratch_bytes(gate.shape, false, true, gate.channels),
               [&](int64_t begin, int64_t end, void* scratch) {
                 for (int64_t at = begin; at < end;) {
                   const int64_t item = at / gate.height, first = at % gate.height;
                   const int64_t last = std::min(gate.height, first + end - at);
                   const int64_t skipped = item * gate.channels;
                   kernels.forward_channels_last(gate.shape, source + skipped * plane,
                                                 gates + skipped * small, target + skipped * plane,
                                                 first, last, scratch);
                   at += last - first;
                 }
               });
  return out;
}
// x [B, C, H, W], logits [B, C, h, w] in its layout; the numbers of activation and residual are
// those of host.h.
ATTNOPS_REGISTER(cpu, CPU, upsample_gate,
                 "(Tensor x, Tensor logits, int activation, bool activation_first, int residual, "
                 "float input_weight, bool align_corners) -> Tensor out")

std::tuple<Tensor, Tensor> upsample_gate_backward(Tensor grad, Tensor x, Tensor logits,
                                                  int64_t activation, bool activation_first,
                                                  int64_t residual, double input_weight,
                                                  bool align_corners) {
  const Gate gate(x, logits, activation, activation_first, residual, input_weight, align_corners);
  const GateKernels& kernels = kernels_for(dtype_of(x));
  Tensor dx = empty_map(x, gate.channels, gate.height, gate.width, gate.channels_last);
  Tensor dlogits =
      empty_map(logits, gate.channels, logits.size(2), logits.size(3), gate.channels_last);
  const int64_t element = static_cast<int64_t>(x.element_size());
  const int64_t plane = gate.height * gate.width * element, small = gate.small * element;
  const char* incoming = static_cast<const char*>(grad.const_data_ptr());
  const char* source = static_cast<const char*>(x.const_data_ptr());
  const char* gates = static_cast<const char*>(logits.const_data_ptr());
  char* target = static_cast<char*>(dx.mutable_data_ptr());
  char* dgates = static_cast<char*>(dlogits.mutable_data_ptr());
  if (!gate.channels_last) {
    for_each_run(gate.batch * gate.channels, kernels.scratch_bytes(gate.shape, true, false, 1),
                 [&](int64_t begin, int64_t end, void* scratch) {
                   kernels.backward_contiguous(gate.shape, incoming + begin * plane,
                                               source + begin * plane, gates + begin * small,
                                               target + begin * plane, dgates + begin * small,
                                               end - begin, scratch);
                 });
    return {dx, dlogits};
  }
  // A unit owns all pixels of some channels, so that nobody else adds to its gradients: whole cache
  // lines, narrow enough for a unit a thread and for its small maps to stay in cache.
  constexpr int64_t kLine = 32, kMost = 128;
  const int64_t wanted = (thread_count() + gate.batch - 1) / gate.batch;
  const int64_t share = (gate.channels + wanted - 1) / wanted;
  const int64_t lanes = std::clamp<int64_t>((share + kLine - 1) / kLine * kLine, kLine, kMost);
  const int64_t per_item = (gate.channels + lanes - 1) / lanes;
  for_each_run(gate.batch * per_item, kernels.scratch_bytes(gate.shape, true, true, lanes),
               [&](int64_t begin, int64_t end, void* scratch) {
                 for (int64_t unit = begin; unit < end; ++unit) {
                   const int64_t item = unit / per_item, channel = unit % per_item * lanes;
                   const int64_t big = item * gate.channels * plane + channel * element;
                   const int64_t little = item * gate.channels * small + channel * element;
                   kernels.backward_channels_last(
                       gate.shape, incoming + big, source + big, gates + little, target + big,
                       dgates + little, std::min(lanes, gate.channels - channel), scratch);
                 }
               });
  return {dx, dlogits};
}
ATTNOPS_REGISTER(
    cpu, CPU, upsample_gate_backward,
    "(Tensor grad, Tensor x, Tensor logits, int activation, bool activation_first, int "
    "residual, float input_weight, bool align_corners) -> (Tensor dx, Tensor dlogits)")

}  // namespace
}  // namespace attnops::cpu
