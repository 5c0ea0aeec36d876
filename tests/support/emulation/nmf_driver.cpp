// Runs one nmf problem through the emulated CUDA kernels.
//
//   nmf_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request), inv_t and eps as doubles, then x in the given layout
// and the bases; for the backward also the gradients of both results, past bases, past
// coefficients. RESULT receives found bases, coefficients, past bases, past coefficients; or the
// gradients of x and of the bases.
#include "cuda/nmf/backward_launch.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  Form form;
  int64_t batch, channels, positions, rank, steps, record;
  double inv_t, eps;
};

struct Driver {
  using Fields = Request;
  static constexpr const char* kRefused = "rank or channels";

  static NmfProblem problem(const Request& request, const char*&) {
    return {request.batch,
            request.channels,
            request.positions,
            request.rank,
            request.form.channels_last != 0,
            request.steps,
            static_cast<float>(request.inv_t),
            static_cast<float>(request.eps)};
  }
  static bool supported(const NmfProblem& problem) { return nmf_supported(problem); }

  template <typename T>
  static void run(const Request& request, const NmfProblem& problem, const char* input,
                  std::ostream& file) {
    if constexpr (!std::is_same_v<T, double>) {
      request.form.backward ? backward<T>(request, problem, input, file)
                            : forward<T>(request, problem, input, file);
    }
  }

  struct Sizes {
    size_t x, bases, coef, past_bases, past_coef;
    explicit Sizes(const Request& request)
        : x(request.batch * request.channels * request.positions),
          bases(request.batch * request.channels * request.rank),
          coef(request.batch * request.positions * request.rank) {
      const auto record = static_cast<NmfRecord>(request.record);
      const size_t one = record != NmfRecord::kNothing;
      past_bases = bases * (record == NmfRecord::kAll ? request.steps : one);
      past_coef = coef * (record == NmfRecord::kAll ? request.steps + 2 : one);
    }
  };

  template <typename T>
  static void forward(const Request& request, const NmfProblem& problem, const char* input,
                      std::ostream& file) {
    const Sizes sizes(request);
    Array<T> x(sizes.x, request.form.misalign), bases(sizes.bases);
    bases.read(x.read(input));
    Array<T> found(sizes.bases), coef(sizes.coef);
    Array<float> past_bases(sizes.past_bases), past_coef(sizes.past_coef), state(sizes.coef);
    const NmfPlan plan =
        plan_nmf_forward<T>(problem, x.data(), static_cast<int>(request.form.multiprocessors));
    Array<float> scratch(plan.items * nmf_scratch_size(plan));
    Array<unsigned> counters(plan.items);
    run_nmf_forward<T>(
        plan,
        {x.data(), bases.data(), found.data(), coef.data(), past_bases.data(), past_coef.data(),
         static_cast<NmfRecord>(request.record), state.data(), scratch.data(), counters.data()},
        nullptr);
    found.write(file);
    coef.write(file);
    past_bases.write(file);
    past_coef.write(file);
  }

  template <typename T>
  static void backward(const Request& request, const NmfProblem& problem, const char* input,
                       std::ostream& file) {
    const Sizes sizes(request);
    const bool one_step = static_cast<NmfRecord>(request.record) == NmfRecord::kLast;
    Array<T> x(sizes.x, request.form.misalign), bases(sizes.bases), grad_bases(sizes.bases),
        grad_coef(sizes.coef);
    Array<float> past_bases(sizes.past_bases), past_coef(sizes.past_coef);
    input = grad_coef.read(grad_bases.read(bases.read(x.read(input))));
    past_coef.read(past_bases.read(input));
    Array<T> dx(sizes.x, request.form.misalign), dbases(sizes.bases);
    const NmfPlan plan =
        plan_nmf_backward<T>(problem, x.data(), static_cast<int>(request.form.multiprocessors));
    const int64_t tables = problem.batch * nmf_tables(plan, one_step);
    Array<float> left(tables * plan.table()), right(tables * nmf_right_table(plan));
    Array<float> scratch(plan.items * nmf_backward_scratch_size(plan));
    Array<unsigned> counters(plan.items);
    run_nmf_backward<T>(plan,
                        {x.data(), bases.data(), one_step ? nullptr : grad_bases.data(),
                         grad_coef.data(), past_bases.data(), past_coef.data(), dbases.data(),
                         left.data(), right.data(), scratch.data(), counters.data(), one_step},
                        dx.data(), nullptr);
    dx.write(file);
    dbases.write(file);
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
