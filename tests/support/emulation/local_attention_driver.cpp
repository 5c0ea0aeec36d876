// Runs one local_attention problem through the emulated CUDA kernels.
//
//   local_attention_driver REQUEST RESULT
//
// REQUEST holds int64 fields and the scale (struct Request), then the maps in the given layout:
// query, key, value for the forward; grad, query, key, value and then lse for the backward. RESULT
// receives out and lse; or dquery, dkey and dvalue.
#include "cuda/local_attention/backward_launch.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  Form form;
  int64_t batch, key_channels, value_channels, height, width;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width, mask_border;
  double scale;
};

struct Driver {
  using Fields = Request;
  static constexpr const char* kRefused = "window";

  static LocalProblem problem(const Request& request, const char*&) {
    return {request.batch,
            request.key_channels,
            request.value_channels,
            request.height,
            request.width,
            request.kernel_height,
            request.kernel_width,
            request.dilation_height,
            request.dilation_width,
            request.scale,
            request.mask_border != 0,
            request.form.channels_last != 0,
            static_cast<int>(request.form.multiprocessors)};
  }
  static bool supported(const LocalProblem& problem) { return local_attention_supported(problem); }

  template <typename T>
  static void run(const Request& request, const LocalProblem& problem, const char* input,
                  std::ostream& file) {
    using Acc = accumulator_t<T>;
    const size_t pixels = request.batch * request.height * request.width;
    const size_t keys = pixels * request.key_channels;
    const size_t values = pixels * request.value_channels;
    Array<T> query(keys, request.form.misalign), key(keys, request.form.misalign);
    Array<T> value(values, request.form.misalign), out(values, request.form.misalign);
    Array<Acc> lse(pixels);
    if (!request.form.backward) {
      input = value.read(key.read(query.read(input)));
      local_forward<T>(problem, query.data(), key.data(), value.data(), out.data(), lse.data(),
                       nullptr);
      out.write(file);
      lse.write(file);
      return;
    }
    Array<T> dquery(keys, request.form.misalign), dkey(keys, request.form.misalign);
    Array<T> dvalue(values, request.form.misalign);
    Array<QueryStatistics<Acc>> statistics(pixels);
    input = out.read(input);  // its gradient
    lse.read(value.read(key.read(query.read(input))));
    local_backward<T>(problem, out.data(), query.data(), key.data(), value.data(), lse.data(),
                      statistics.data(), dquery.data(), dkey.data(), dvalue.data(), nullptr);
    dquery.write(file);
    dkey.write(file);
    dvalue.write(file);
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
