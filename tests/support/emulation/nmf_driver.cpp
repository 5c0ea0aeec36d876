// Runs one nmf problem through the emulated CUDA kernels.
//
//   nmf_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request), inv_t and eps as doubles, then x in the given layout
// and the bases. RESULT receives found bases, coefficients, past bases, past coefficients.
#include "cuda/nmf/launch.cuh"
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
      const size_t xs = request.batch * request.channels * request.positions;
      const size_t tables = request.batch * request.channels * request.rank;
      const size_t coefs = request.batch * request.positions * request.rank;
      Array<T> x(xs, request.form.misalign), bases(tables), found(tables), coef(coefs);
      input = bases.read(x.read(input));
      const int multiprocessors = static_cast<int>(request.form.multiprocessors);
      const auto record = static_cast<NmfRecord>(request.record);
      const size_t kept = record == NmfRecord::kAll ? request.steps : record != NmfRecord::kNothing;
      const size_t kept_coef = record == NmfRecord::kAll ? kept + 2 : kept;
      Array<float> past_bases(kept * tables), past_coef(kept_coef * coefs), state(coefs);
      const NmfPlan plan = plan_nmf_forward<T>(problem, x.data(), multiprocessors);
      Array<float> scratch(plan.items * nmf_scratch_size(plan));
      Array<unsigned> counters(plan.items);
      nmf_forward<T>(plan,
                     {x.data(), bases.data(), found.data(), coef.data(), past_bases.data(),
                      past_coef.data(), record, state.data(), scratch.data(), counters.data()},
                     nullptr);
      found.write(file);
      coef.write(file);
      past_bases.write(file);
      past_coef.write(file);
    }
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
