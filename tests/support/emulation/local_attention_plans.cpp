// Plans of local_attention for shapes far beyond what the emulation can run. Prints the first
// problem whose plan breaks a limit of the kernels; exit status 0 if none does.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "cuda/local_attention/plan.h"

namespace {

using namespace attnops::cuda;

void require(bool holds, const char* what, const LocalProblem& p) {
  if (holds) return;
  std::printf("%s: [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "], kernel %" PRId64
              " x %" PRId64 ", dilation %" PRId64 " x %" PRId64 ", channels_last %d, %d\n",
              what, p.batch, p.key_channels, p.height, p.width, p.kernel_height, p.kernel_width,
              p.dilation_height, p.dilation_width, p.channels_last, p.multiprocessors);
  std::exit(1);
}

void check_plan(const LocalProblem& problem, int span, int weight_arrays, size_t weight_bytes) {
  const LocalPlan plan = plan_local_attention(problem, span, weight_arrays, weight_bytes);
  const size_t shared_bytes = local_shared_bytes(plan, weight_arrays, weight_bytes);
  require(shared_bytes <= kLocalSharedLimit, "shared memory", problem);
  const int threads = local_threads(plan, span);
  require(threads >= 32 && threads <= kLocalThreads && threads % 32 == 0, "threads", problem);
  require(plan.tile_columns % kRun == 0 && plan.tile_rows >= 1 && plan.tile_images >= 1, "tile",
          problem);
  require(plan.halo_pitch % 2 == 1 && plan.own_pitch % 2 == 1 && plan.plane % 8 == 2, "pitches",
          problem);
  require(plan.halo_positions() + plan.own_positions() <= plan.plane, "plane", problem);

  const auto covers = [&](int64_t tiles, int64_t tile, int64_t size) {
    require(tiles * tile >= size && (tiles - 1) * tile < size, "tiles cover exactly", problem);
  };
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  covers(plan.row_tiles, plan.tile_rows, divide_up(plan.height, plan.dilation_height));
  covers(plan.column_tiles, plan.tile_columns, divide_up(plan.width, plan.dilation_width));
  covers(plan.image_tiles, plan.tile_images, plan.dilation_width);
}

}  // namespace

int main() {
  for (int64_t height : {1, 5, 64, 97, 46340}) {
    for (int64_t width : {1, 6, 64, 129, 46340}) {
      for (int64_t kernel_height = 1; kernel_height <= kMaxKernel; kernel_height += 2) {
        for (int64_t kernel_width = 1; kernel_width <= kMaxKernel; kernel_width += 2) {
          for (int64_t dilation : {1, 3, 6, 24, 1000000}) {
            for (bool channels_last : {false, true}) {
              for (int multiprocessors : {1, 132}) {
                const LocalProblem problem{
                    8,        256,      512, height, width,         kernel_height,  kernel_width,
                    dilation, dilation, 1.0, false,  channels_last, multiprocessors};
                if (!local_attention_supported(problem)) continue;
                const int spans[] = {7, 5, 3, 1};
                for (int span : spans) {
                  if (kernel_width % span != 0) continue;
                  check_plan(problem, span, 1, sizeof(float));
                  check_plan(problem, span, 2, sizeof(float));
                  break;
                }
                check_plan(problem, 1, 2, sizeof(double));
              }
            }
          }
        }
      }
    }
  }
  return 0;
}
