// Host entries of depthwise_gelu: outputs, the split into units and the sums over them.
#include "host.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const GeluKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(gelu_kernels, dtype); }

GeluShape shape_of(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type() &&
                      (!bias.has_value() || x.scalar_type() == bias->scalar_type()),
                  "depthwise_gelu: expected tensors of one dtype");
  STD_TORCH_CHECK(weight.dim() == 4 && x.dim() == 4 && weight.size(0) == x.size(1),
                  "depthwise_gelu: expected x [B, C, H, W] and weight [C, 1, kh, kw]");
  return {map_sizes(x), weight.size(2), weight.size(3)};
}

// All maps in units of `rows` rows and `channels` channels.
std::vector<GeluUnit> units_of(const MapSizes& m, int64_t rows, int64_t channels) {
  std::vector<GeluUnit> units;
  for (int64_t item = 0; item < m.batch; ++item)
    for (int64_t channel = 0; channel < m.channels; channel += channels)
      for (int64_t first = 0; first < m.height; first += rows)
        units.push_back({item, channel, std::min(channels, m.channels - channel), first,
                         std::min(m.height, first + rows)});
  return units;
}

// The arguments of an op, understood.
class Gelu {
 public:
  Gelu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool backward)
      : shape(shape_of(x, weight, bias)), kernels(kernels_for(dtype_of(x))) {
    const MapSizes& m = shape.maps;
    if (!m.channels_last) {
      rows_ = kernels.contiguous_rows(shape);
    } else if (!backward) {
      channels = m.channels;
      rows_ = std::min<int64_t>(m.height, 8);
    } else {
      // Rows between units are computed twice, and every unit has its own sums.
      constexpr int64_t kVectors = 4, kFewestRows = 16, kMostUnits = 32;
      channels = std::min(m.channels, kVectors * kernels.lanes);
      rows_ = std::min(m.height, std::max(kFewestRows, m.batch * m.height / kMostUnits));
    }
    units = units_of(m, rows_, channels);
    parameters_ = std::make_unique<Scratch>(kernels.parameter_bytes(shape));
    kernels.pack(shape, weight.const_data_ptr(),
                 bias.has_value() ? bias->const_data_ptr() : nullptr, parameters_->at(0));
    scratch_bytes_ = (kernels.scratch_bytes(shape, rows_, channels, backward) + 63) / 64 * 64;
  }

  const void* parameters() const { return parameters_->at(0); }

  // Calls body(index of the unit, scratch) for all units, a run of neighbours on every worker.
  template <class Body>
  void run(const Body& body) const {
    const int64_t count = static_cast<int64_t>(units.size());
    const int64_t workers = std::min(thread_count(), count);
    const Scratch scratch(workers * scratch_bytes_);
    for_each_worker(workers, [&](int64_t worker) {
      for (int64_t i = count * worker / workers; i < count * (worker + 1) / workers; ++i)
        body(i, static_cast<void*>(scratch.at(worker * scratch_bytes_)));
    });
  }

  const GeluShape shape;
  const GeluKernels& kernels;
  int64_t channels = 1;  // of a unit
  std::vector<GeluUnit> units;

 private:
  int64_t rows_, scratch_bytes_;
  std::unique_ptr<Scratch> parameters_;
};

Tensor depthwise_gelu(Tensor x, Tensor weight, std::optional<Tensor> bias) {
  const Gelu op(x, weight, bias, false);
  const MapSizes& m = op.shape.maps;
  Tensor out = empty_map(x, m);
  const void* source = x.const_data_ptr();
  void* target = out.mutable_data_ptr();
  op.run([&](int64_t i, void* scratch) {
    op.kernels.forward(op.shape, op.units[i], op.parameters(), source, target, scratch);
  });
  return out;
}
// x [B, C, H, W], weight [C, 1, kh, kw], bias [C] -> out like x; dbias [C] also without a bias.
ATTNOPS_REGISTER(cpu, CPU, depthwise_gelu, "(Tensor x, Tensor weight, Tensor? bias) -> Tensor out")

std::tuple<Tensor, Tensor, Tensor> depthwise_gelu_backward(Tensor grad, Tensor x, Tensor weight,
                                                           std::optional<Tensor> bias) {
  const Gelu op(x, weight, bias, true);
  const MapSizes& m = op.shape.maps;
  const int64_t taps = op.shape.taps(), lanes = op.kernels.lanes;
  Tensor dx = empty_map(x, m);
  Tensor dweight = torch::stable::new_empty(
      weight, {m.channels, 1, op.shape.kernel_height, op.shape.kernel_width});
  Tensor dbias = torch::stable::new_empty(weight, {m.channels});
  const void *incoming = grad.const_data_ptr(), *source = x.const_data_ptr();
  void* target = dx.mutable_data_ptr();
  const auto padded = [&](int64_t channels) { return (channels + lanes - 1) / lanes * lanes; };
  const int64_t unit_sums = (taps + 1) * padded(op.channels);
  std::vector<double> sums(op.units.size() * unit_sums);
  op.run([&](int64_t i, void* scratch) {
    op.kernels.backward(op.shape, op.units[i], op.parameters(), incoming, source, target,
                        sums.data() + i * unit_sums, scratch);
  });
  std::vector<double> totals(m.channels * (taps + 1));
  for (size_t i = 0; i < op.units.size(); ++i) {
    const GeluUnit& unit = op.units[i];
    const int64_t pixel = padded(unit.channels);
    for (int64_t c = 0; c < unit.channels; ++c)
      for (int64_t t = 0; t <= taps; ++t)
        totals[(unit.channel + c) * (taps + 1) + t] += sums[i * unit_sums + t * pixel + c];
  }
  char* weights = static_cast<char*>(dweight.mutable_data_ptr());
  const int64_t channel_bytes = taps * static_cast<int64_t>(dweight.element_size());
  for (int64_t c = 0; c < m.channels; ++c)
    op.kernels.round(totals.data() + c * (taps + 1), 1, taps, weights + c * channel_bytes);
  op.kernels.round(totals.data() + taps, taps + 1, m.channels, dbias.mutable_data_ptr());
  return {dx, dweight, dbias};
}
ATTNOPS_REGISTER(cpu, CPU, depthwise_gelu_backward,
                 "(Tensor grad, Tensor x, Tensor weight, Tensor? bias) -> (Tensor dx, "
                 "Tensor dweight, Tensor dbias)")

}  // namespace
}  // namespace attnops::cpu
