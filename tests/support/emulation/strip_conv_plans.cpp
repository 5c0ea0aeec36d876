// Plans of strip_conv for shapes far beyond what the emulation can run. Prints the first problem
// whose plan breaks a limit of the kernels; exit status 0 if none does.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "cuda/strip_conv/plan.h"

namespace {

using namespace attnops::cuda;

void require(bool holds, const char* what, const StripProblem& p) {
  if (holds) return;
  std::printf("%s: [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "], kernel %" PRId64
              " x %" PRId64 ", %zu strips of %" PRId64 ", channels_last %d, %d\n",
              what, p.batch, p.channels, p.height, p.width, p.kernel_height, p.kernel_width,
              p.rows.size(), p.rows.empty() ? 0 : p.rows[0], p.channels_last, p.multiprocessors);
  std::exit(1);
}

void check_plan(const StripProblem& problem, StripPass pass, size_t element_bytes,
                size_t sum_bytes) {
  const StripPlan plan = plan_strip_conv(problem, pass, element_bytes, sum_bytes);
  require(plan.lanes >= 1, "no tile fits", problem);
  require(strip_shared_bytes(plan, pass, sum_bytes) <= kStripSharedLimit, "shared memory", problem);
  const int threads = plan.threads();
  require(threads >= kWarp && threads <= kStripThreads && threads % kWarp == 0, "threads", problem);
  require(plan.runs() <= threads, "a thread for every run", problem);
  require(kWarp % plan.lanes == 0, "lanes", problem);
  require(problem.channels_last || plan.lanes == 1, "contiguous lanes", problem);
  require(plan.tile_rows % kStripRun == 0 && plan.tile_columns % kStripRun == 0, "tile", problem);
  // The sums over positions give every line of a tile a thread at least.
  require(std::max(plan.tile_rows, plan.tile_columns) * plan.lanes <= threads, "lines", problem);

  const auto covers = [&](int64_t tiles, int64_t tile, int64_t size) {
    require(tiles * tile >= size && (tiles - 1) * tile < size, "tiles cover exactly", problem);
  };
  covers(plan.row_tiles, plan.tile_rows, problem.height);
  covers(plan.column_tiles, plan.tile_columns, problem.width);
  covers(plan.groups, plan.lanes, problem.channels);
  require(plan.slices >= 1 && plan.slices <= plan.tiles, "slices", problem);

  const auto within = [&](StripArea inner, StripArea outer) {
    require(inner.rows <= outer.rows && inner.columns <= outer.columns, "areas", problem);
  };
  within(plan.own_grad_out(), plan.source());
  within({plan.tile_rows + plan.kernel_height - 1, plan.tile_columns + plan.kernel_width - 1},
         plan.grad_local());
}

}  // namespace

int main() {
  for (int64_t height : {1, 5, 64, 97, 46340}) {
    for (int64_t width : {1, 6, 64, 129, 46340}) {
      for (int64_t kernel : {1, 3, 5, 11}) {
        for (int64_t side : {1, 3, 21, 31, 63}) {
          for (size_t strips : {0, 1, 3, 8}) {
            for (int64_t channels : {1, 3, 64, 513}) {
              for (bool channels_last : {false, true}) {
                for (int multiprocessors : {1, 132}) {
                  const StripProblem problem{8,
                                             channels,
                                             height,
                                             width,
                                             kernel,
                                             kernel,
                                             std::vector<int64_t>(strips, side),
                                             std::vector<int64_t>(strips, side),
                                             channels_last,
                                             multiprocessors};
                  require(strip_conv_supported(problem), "supported", problem);
                  for (StripPass pass : {StripPass::kForward, StripPass::kMap, StripPass::kTaps}) {
                    check_plan(problem, pass, 2, sizeof(float));
                    check_plan(problem, pass, sizeof(float), sizeof(float));
                    check_plan(problem, pass, sizeof(double), sizeof(double));
                  }
                }
              }
            }
          }
        }
      }
    }
  }
  return 0;
}
