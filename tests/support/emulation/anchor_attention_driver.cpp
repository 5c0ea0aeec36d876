// Runs one anchor attention problem through the emulated CUDA kernels.
//
//   anchor_attention_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request) and the scale as a double, then query in the given
// layout, key, value, and bias if there is one; for the backward also the gradient and lse. RESULT
// receives out and lse; or the gradients of query, key, value, and bias.
#include "cuda/anchor_attention/backward_launch.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  Form form;
  int64_t batch, key_channels, value_channels, positions, anchors, has_bias, slab_tiles;
  double scale;
};

struct Driver {
  using Fields = Request;
  static constexpr const char* kRefused = "number of anchors";

  static AnchorProblem problem(const Request& request, const char*&) {
    return {request.batch,         request.key_channels, request.value_channels,
            request.positions,     request.anchors,      request.form.channels_last != 0,
            request.has_bias != 0, request.scale};
  }
  static bool supported(const AnchorProblem& problem) {
    return anchor_attention_supported(problem);
  }

  template <typename T>
  static void run(const Request& request, const AnchorProblem& problem, const char* input,
                  std::ostream& file) {
    if constexpr (!std::is_same_v<T, double>) {
      request.form.backward ? backward<T>(request, problem, input, file)
                            : forward<T>(request, problem, input, file);
    }
  }

  template <typename T>
  struct Inputs {
    Array<T> query, key, value, bias;
    Inputs(const Request& request, const char*& input)
        : query(request.batch * request.key_channels * request.positions, request.form.misalign),
          key(request.batch * request.key_channels * request.anchors, request.form.misalign),
          value(request.batch * request.value_channels * request.anchors, request.form.misalign),
          bias(request.has_bias * request.batch * request.anchors) {
      input = bias.read(value.read(key.read(query.read(input))));
    }
  };

  template <typename T>
  static T* if_any(const Request& request, Array<T>& array) {
    return request.has_bias ? array.data() : nullptr;
  }

  template <typename T>
  static void forward(const Request& request, const AnchorProblem& problem, const char* input,
                      std::ostream& file) {
    Inputs<T> in(request, input);
    Array<T> out(request.batch * request.value_channels * request.positions, request.form.misalign);
    Array<float> lse(request.batch * request.positions);
    run_anchor_attention<T>(plan_anchor_attention(problem),
                            {in.query.data(), in.key.data(), in.value.data(),
                             if_any(request, in.bias), out.data(), lse.data()},
                            nullptr);
    out.write(file);
    lse.write(file);
  }

  template <typename T>
  static void backward(const Request& request, const AnchorProblem& problem, const char* input,
                       std::ostream& file) {
    Inputs<T> in(request, input);
    const size_t maps = request.batch * request.positions, tables = request.batch * request.anchors;
    Array<T> grad(maps * request.value_channels, request.form.misalign);
    Array<float> lse(maps);
    lse.read(grad.read(input));
    Array<T> dquery(maps * request.key_channels, request.form.misalign);
    Array<T> dkey(tables * request.key_channels), dvalue(tables * request.value_channels);
    Array<T> dbias(request.has_bias * tables);
    const AnchorBackwardPlan plan =
        plan_anchor_attention_backward(problem, static_cast<int>(request.slab_tiles));
    Array<T> p(slab_size(plan)), ds(slab_size(plan));
    Array<float> sums(plan.has_bias ? sums_size(plan) : 0), parts(parts_size(plan));
    run_anchor_attention_backward<T>(
        plan,
        {grad.data(), in.query.data(), in.key.data(), in.value.data(), if_any(request, in.bias),
         lse.data(), dquery.data(), dkey.data(), dvalue.data(), if_any(request, dbias), p.data(),
         ds.data(), sums.data(), parts.data()},
        nullptr);
    dquery.write(file);
    dkey.write(file);
    dvalue.write(file);
    dbias.write(file);
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
