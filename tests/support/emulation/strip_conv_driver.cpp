// Runs one strip_conv problem through the emulated CUDA kernels.
//
//   strip_conv_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request), the lengths of rows and of columns, then the maps in
// the given layout and the parameters: x, weights, biases for the forward; grad, x, weights, biases
// for the backward. RESULT receives out; or the gradients of x, weights and biases.
#include "cuda/strip_conv/launch.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  Form form;
  int64_t batch, channels, height, width;
  int64_t kernel_height, kernel_width, strips, biased;
};

// A tensor for every parameter, each an allocation of its own.
template <typename T>
struct Parameters {
  Parameters(const StripPlan& plan, bool biased) {
    for (int kernel = 0; kernel < plan.kernels(); ++kernel) {
      weights.emplace_back(static_cast<size_t>(plan.channels) * plan.taps_of(kernel));
      if (biased) biases.emplace_back(static_cast<size_t>(plan.channels));
    }
  }
  template <typename Function>
  void for_each(const Function& function) {
    for (Array<T>& weight : weights) function(weight);
    for (Array<T>& bias : biases) function(bias);
  }
  template <typename Pointee>
  StripParameters<Pointee> pointers() {
    StripParameters<Pointee> found{};
    for (size_t i = 0; i < weights.size(); ++i) found.weights[i] = weights[i].data();
    for (size_t i = 0; i < biases.size(); ++i) found.biases[i] = biases[i].data();
    return found;
  }

  std::vector<Array<T>> weights, biases;
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
    Array<T> x(elements, request.form.misalign);
    Parameters<T> parameters(sums, request.biased), gradients(sums, request.biased);
    const auto read = [](Parameters<T>& to, const char* bytes) {
      to.for_each([&](Array<T>& array) { bytes = array.read(bytes); });
    };
    if (!request.form.backward) {
      Array<T> out(elements, request.form.misalign);
      read(parameters, x.read(input));
      strip_forward<T>(problem, x.data(), parameters.template pointers<const T>(), out.data(),
                       nullptr);
      out.write(file);
      return;
    }
    Array<T> grad(elements, request.form.misalign), grad_x(elements, request.form.misalign);
    Array<accumulator_t<T>> partials(strip_partials(sums));
    read(parameters, x.read(grad.read(input)));
    strip_backward<T>(problem, sums, grad.data(), x.data(), parameters.template pointers<const T>(),
                      grad_x.data(), gradients.template pointers<T>(), partials.data(), nullptr);
    grad_x.write(file);
    gradients.for_each([&](Array<T>& array) { array.write(file); });
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
