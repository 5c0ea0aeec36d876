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
using attnops::emulation::Array;

struct Request {
  int64_t dtype;  // 0 float32, 1 float16, 2 bfloat16, 3 float64
  int64_t backward, mask, channels_last;
  int64_t batch, key_channels, value_channels, height, width;
  int64_t kernel_height, kernel_width, dilation_height, dilation_width;
  int64_t multiprocessors, misalign;
  double scale;
};

template <typename T>
void run(const Request& request, const LocalProblem& problem, const char* input,
         std::ostream& file) {
  using Acc = accumulator_t<T>;
  const size_t pixels = request.batch * request.height * request.width;
  const size_t keys = pixels * request.key_channels;
  const size_t values = pixels * request.value_channels;
  Array<T> query(keys, request.misalign), key(keys, request.misalign);
  Array<T> value(values, request.misalign), out(values, request.misalign);
  Array<Acc> lse(pixels);
  if (!request.backward) {
    input = value.read(key.read(query.read(input)));
    local_forward<T>(problem, query.data(), key.data(), value.data(), out.data(), lse.data(),
                     nullptr);
    out.write(file);
    lse.write(file);
    return;
  }
  Array<T> dquery(keys, request.misalign), dkey(keys, request.misalign);
  Array<T> dvalue(values, request.misalign);
  Array<QueryStatistics<Acc>> statistics(pixels);
  input = out.read(input);  // its gradient
  lse.read(value.read(key.read(query.read(input))));
  local_backward<T>(problem, out.data(), query.data(), key.data(), value.data(), lse.data(),
                    statistics.data(), dquery.data(), dkey.data(), dvalue.data(), nullptr);
  dquery.write(file);
  dkey.write(file);
  dvalue.write(file);
}

int answer(const char* bytes, std::ostream& file) {
  Request request;
  std::memcpy(&request, bytes, sizeof(request));
  const LocalProblem problem{request.batch,
                             request.key_channels,
                             request.value_channels,
                             request.height,
                             request.width,
                             request.kernel_height,
                             request.kernel_width,
                             request.dilation_height,
                             request.dilation_width,
                             request.scale,
                             request.mask != 0,
                             request.channels_last != 0,
                             static_cast<int>(request.multiprocessors)};
  if (!local_attention_supported(problem)) {
    std::cerr << "unsupported window\n";
    return 2;
  }
  const bool known = attnops::emulation::with_dtype(request.dtype, [&](auto element) {
    run<decltype(element)>(request, problem, bytes + sizeof(request), file);
  });
  return known ? 0 : 2;
}

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive(argc, argv, answer); }
