// Host entries of grouped attention: outputs, and runs of the maps whose sums are added in order.
#include "host.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/register.h"
#include "cpu/common/host.h"
#include "cpu/common/maps.h"

namespace attnops::cpu {
namespace {

const GroupKernels& kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(group_kernels, dtype); }

// The maps of one call cut into runs: of elements of one group (contiguous), or of pixels of one
// item (channels_last). The cut depends on shapes alone, so sums are the same with any number of
// threads.
class Groups {
 public:
  // `outputs`: maps that the call writes.
  Groups(const Tensor& map, int64_t groups, int64_t outputs)
      : kernels_(kernels_for(dtype_of(map))),
        element_(static_cast<int64_t>(map.element_size())),
        batch_(map.size(0)),
        channels_(map.size(1)),
        groups_(groups),
        channels_last_(is_channels_last(map)),
        streamed_(is_streamed(map, outputs)) {
    constexpr int64_t kElements = 16384;
    const int64_t area = map.size(2) * map.size(3);
    // Either way a row is cut along its length into runs.
    rows_ = channels_last_ ? batch_ : batch_ * groups;
    length_ = channels_last_ ? area : channels_ / groups * area;
    run_ = channels_last_ ? std::max<int64_t>(1, kElements / channels_) : kElements;
    runs_ = (length_ + run_ - 1) / run_;
  }

  // <x, y> by item and group; with `out`, factors times x goes there.
  std::vector<double> dot(const Tensor& x, const Tensor& y, const std::vector<double>& factors,
                          Tensor* out) const {
    const int64_t width = channels_last_ ? groups_ : 1;  // sums a run
    std::vector<double> partial(rows_ * runs_ * width), sums(batch_ * groups_, 0.0);
    for_each_run([&](int64_t row, int64_t run, int64_t start, int64_t count, void* scratch) {
      const char *a = at(x, start), *b = at(y, start);
      char* to = out ? at(*out, start) : nullptr;
      double* sum = partial.data() + (row * runs_ + run) * width;
      const double* factor = out ? factors.data() + row * width : nullptr;
      if (channels_last_)
        kernels_.dot_channels_last(a, b, count, channels_, groups_, factor, to, streamed_, sum,
                                   scratch);
      else
        *sum = kernels_.dot_contiguous(a, b, count, factor ? *factor : 0.0, to, streamed_);
    });
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t run = 0; run < runs_; ++run)
        for (int64_t i = 0; i < width; ++i)
          sums[row * width + i] += partial[(row * runs_ + run) * width + i];
    return sums;
  }

  void scale(const Tensor& x, const std::vector<double>& factors, Tensor& out) const {
    const int64_t width = channels_last_ ? groups_ : 1;
    for_each_run([&](int64_t row, int64_t, int64_t start, int64_t count, void* scratch) {
      const double* factor = factors.data() + row * width;
      if (channels_last_)
        kernels_.scale_channels_last(at(x, start), count, channels_, groups_, factor,
                                     at(out, start), streamed_, scratch);
      else
        kernels_.scale_contiguous(at(x, start), count, *factor, at(out, start), streamed_);
    });
  }

  Tensor empty_like(const Tensor& map) const {
    return empty_map(map, channels_, map.size(2), map.size(3), channels_last_);
  }

 private:
  // Calls body(row, run, first element, count, scratch).
  template <class Body>
  void for_each_run(const Body& body) const {
    const int64_t total = rows_ * runs_, workers = std::min(thread_count(), total);
    const int64_t bytes = channels_last_ ? kernels_.scratch_bytes(channels_) : 0;
    const Scratch scratch(workers * bytes);
    const int64_t unit = channels_last_ ? channels_ : 1;
    for_each_worker(workers, [&](int64_t worker) {
      for (int64_t i = total * worker / workers; i < total * (worker + 1) / workers; ++i) {
        const int64_t row = i / runs_, first = i % runs_ * run_;
        body(row, i % runs_, (row * length_ + first) * unit, std::min(run_, length_ - first),
             static_cast<void*>(scratch.at(worker * bytes)));
      }
    });
  }

  char* at(const Tensor& map, int64_t element) const {
    return static_cast<char*>(map.mutable_data_ptr()) + element * element_;
  }

  const GroupKernels& kernels_;
  int64_t element_, batch_, channels_, groups_;
  bool channels_last_, streamed_;
  int64_t rows_, length_, run_, runs_;
};

void check(const Tensor& a, const Tensor& b, const Tensor& c, int64_t groups) {
  STD_TORCH_CHECK(a.dim() == 4 && a.numel() == b.numel() && a.numel() == c.numel(),
                  "group_attention: expected maps [B, P, H, W] of one shape");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.scalar_type() == c.scalar_type(),
                  "group_attention: expected tensors of one dtype");
  STD_TORCH_CHECK(groups > 0 && a.size(1) % groups == 0,
                  "group_attention: expected groups that divide the channels");
}

std::tuple<Tensor, Tensor> group_attention(Tensor theta, Tensor phi, Tensor g, int64_t groups) {
  check(theta, phi, g, groups);
  const Groups maps(theta, groups, 1);
  const bool is_double = theta.scalar_type() == ScalarType::Double;
  Tensor out = maps.empty_like(theta);
  Tensor affinity = torch::stable::new_empty(theta, {theta.size(0), groups},
                                             is_double ? ScalarType::Double : ScalarType::Float);
  std::vector<double> sums = maps.dot(phi, g, {}, nullptr);
  for (size_t i = 0; i < sums.size(); ++i) {
    if (is_double) {
      static_cast<double*>(affinity.mutable_data_ptr())[i] = sums[i];
    } else {
      const float rounded = static_cast<float>(sums[i]);
      static_cast<float*>(affinity.mutable_data_ptr())[i] = rounded;
      sums[i] = rounded;
    }
  }
  maps.scale(theta, sums, out);
  return {out, affinity};
}
// Maps [B, P, H, W]; affinity [B, groups] float32 or float64.
ATTNOPS_REGISTER(
    cpu, CPU, group_attention,
    "(Tensor theta, Tensor phi, Tensor g, int groups) -> (Tensor out, Tensor affinity)")

std::tuple<Tensor, Tensor, Tensor> group_attention_backward(Tensor grad, Tensor theta, Tensor phi,
                                                            Tensor g, Tensor affinity,
                                                            int64_t groups) {
  check(theta, phi, g, groups);
  const Groups maps(theta, groups, 3);
  std::vector<double> factors(theta.size(0) * groups);
  for (size_t i = 0; i < factors.size(); ++i)
    factors[i] = affinity.scalar_type() == ScalarType::Double
                     ? static_cast<const double*>(affinity.const_data_ptr())[i]
                     : static_cast<const float*>(affinity.const_data_ptr())[i];
  Tensor dtheta = maps.empty_like(theta), dphi = maps.empty_like(theta),
         dg = maps.empty_like(theta);
  const std::vector<double> daffinity = maps.dot(grad, theta, factors, &dtheta);
  maps.scale(g, daffinity, dphi);
  maps.scale(phi, daffinity, dg);
  return {dtheta, dphi, dg};
}
ATTNOPS_REGISTER(
    cpu, CPU, group_attention_backward,
    "(Tensor grad, Tensor theta, Tensor phi, Tensor g, Tensor affinity, int groups) -> "
    "(Tensor dtheta, Tensor dphi, Tensor dg)")

}  // namespace
}  // namespace attnops::cpu
