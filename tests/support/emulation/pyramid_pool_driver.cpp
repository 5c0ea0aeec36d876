// Runs one pyramid_pool problem through the emulated CUDA kernels.
//
//   pyramid_pool_driver REQUEST RESULT
//
// REQUEST holds int64 fields (struct Request), the level sizes, then the input elements: x in the
// given layout for the forward; grad `[B, C, S]`, then for max argmax `[B, C, S]` int32 for the
// backward. RESULT receives out, then for max argmax; or grad_x.
#include "cuda/pyramid_pool/launch.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  Form form;
  int64_t use_max;
  int64_t batch, channels, height, width;
  int64_t levels;
};

struct Driver {
  using Fields = Request;
  static constexpr const char* kRefused = "levels";

  static PoolProblem problem(const Request& request, const char*& bytes) {
    const std::vector<int64_t> sizes = take<int64_t>(bytes, request.levels);
    return {request.batch,
            request.channels,
            static_cast<int>(request.height),
            static_cast<int>(request.width),
            sizes,
            request.use_max != 0,
            request.form.channels_last != 0,
            static_cast<int>(request.form.multiprocessors)};
  }
  static bool supported(const PoolProblem& problem) { return levels_supported(problem.sizes); }

  template <typename T>
  static void run(const Request& request, const PoolProblem& problem, const char* input,
                  std::ostream& file) {
    const size_t pixels = problem.planes() * problem.height * problem.width;
    const size_t cells = problem.planes() * make_levels(problem.sizes).cells;
    Array<T> map(pixels, request.form.misalign);
    Array<T> pooled(cells, request.form.misalign);
    Array<int32_t> argmax(problem.use_max ? cells : 0);
    if (request.form.backward) {
      input = pooled.read(input);
      argmax.read(input);
      pool_backward<T>(problem, pooled.data(), argmax.data(), map.data(), nullptr);
      map.write(file);
      return;
    }
    map.read(input);
    const PoolSchedule schedule = schedule_forward<T>(problem, is_aligned(map.data()));
    Array<char> scratch(schedule.scratch_bytes);
    pool_forward<T>(problem, schedule, map.data(), pooled.data(), argmax.data(),
                    schedule.scratch_bytes > 0 ? scratch.data() : nullptr, nullptr);
    pooled.write(file);
    argmax.write(file);
  }
};

}  // namespace

int main(int argc, char** argv) { return attnops::emulation::drive<Driver>(argc, argv); }
