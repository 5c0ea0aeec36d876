// Runs one strip_conv problem through the emulated CUDA kernels.
//
//   strip_conv_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request), the lengths of rows and of columns, then the maps in
// the given layout and the parameters: x, taps, biases for the forward; grad, x, taps, biases for
// the backward. RESULT receives out; or the gradients of x, taps and biases.
#include "cuda/strip_conv/launch.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  Form form;
  int64_t batch, channels, height, width;
  int64_t kernel_height, kernel_width, strips;
};

struct Driver {
  using Fields = Request;
  static constexpr const char* kRefused = "kernels";

  static StripProblem problem(const Request& request, const char*& bytes) {
    const std::vector<int64_t> rows = take<int64_t>(bytes, request.strips);
    const std::vector<int64_t> columns = take<int64_t>(bytes, request.strips);
    return {request.batch,
            request.channels,
            request.height,
            request.width,
            request.kernel_height,
            request.kernel_width,
            rows,
            columns,
            request.form.channels_last != 0,
            static_cast<int>(request.form.multiprocessors)};
  }
  static bool supported(const StripProblem& problem) { return strip_conv_supported(problem); }

  template <typename T>
  static void run(const Request& request, const StripProblem& problem, const char* input,
                  std::ostream& file) {
    const StripPlan sums = plan_strip_pass<T>(problem, StripPass::kTaps);
    const size_t elements = request.batch * request.channels * request.height * request.width;
    const size_t all_taps = request.channels * sums.taps;
    const size_t all_biases = request.channels * (1 + 2 * request.strips);
    Array<T> x(elements, request.form.misalign), taps(all_taps), biases(all_biases);
    if (!request.form.backward) {
      Array<T> out(elements, request.form.misalign);
      biases.read(taps.read(x.read(input)));
      strip_forward<T>(problem, x.data(), taps.data(), biases.data(), out.data(), nullptr);
      out.write(file);
      return;
    }
    Array<T> grad(elements, request.form.misalign), grad_x(elements, request.form.misalign);
    Array<T> grad_taps(all_taps), grad_biases(all_biases);
    Array<accumulator_t<T>> partials(strip_partials(sums));
    biases.read(taps.read(x.read(grad.read(input))));
    strip_backward<T>(problem, sums, grad.data(), x.data(), taps.data(), biases.data(),
                      grad_x.data(), grad_taps.data(), grad_biases.data(), partials.data(),
                      nullptr);
    grad_x.write(file);
    grad_taps.write(file);
    grad_biases.write(file);
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
