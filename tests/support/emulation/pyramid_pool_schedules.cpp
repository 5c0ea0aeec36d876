// Launch configurations of pyramid_pool for shapes far beyond what the emulation can run. Prints
// the first problem whose configuration breaks a limit of the kernels; exit status 0 if none does.
#include <cinttypes>

#include "cuda/pyramid_pool/launch.cuh"

namespace {

using namespace attnops::cuda;

const PoolProblem* current = nullptr;

void require(bool holds, const char* what) {
  if (holds) return;
  const PoolProblem& p = *current;
  std::printf("%s: [%" PRId64 ", %" PRId64 ", %d, %d], %zu levels, max %d, channels_last %d, %d\n",
              what, p.batch, p.channels, p.height, p.width, p.sizes.size(), p.use_max,
              p.channels_last, p.multiprocessors);
  std::exit(1);
}

void check_axis(const Axis& axis, const Levels& levels) {
  require(axis.pieces >= 1 && axis.pieces <= kMaxPieces, "pieces of an axis");
  require(axis.cut[0] == 0 && axis.cut[axis.pieces] == axis.size, "ends of an axis");
  for (int k = 0; k < axis.pieces; ++k) require(axis.cut[k] < axis.cut[k + 1], "order of cuts");
  for (int level = 0, bin = 0; level < levels.count; ++level) {
    const int n = levels.size[level];
    for (int i = 0; i < n; ++i, ++bin) {
      require(axis.cut[axis.first[bin]] == attnops::bin_start(i, n, axis.size), "start of a bin");
      require(axis.cut[axis.last[bin]] == attnops::bin_end(i, n, axis.size), "end of a bin");
    }
  }
}

void check_schedule(const PoolSchedule& schedule, int threads, int vector) {
  const Plan& plan = schedule.plan;
  check_axis(plan.rows, plan.levels);
  check_axis(plan.columns, plan.levels);
  require(schedule.threads <= threads && schedule.threads % 32 == 0, "threads");
  require(schedule.shared_bytes <= 48 * 1024, "shared memory");
  require(schedule.blocks >= 1, "blocks");
  if (!current->channels_last) return;
  const ChannelsLastTiling& tiling = schedule.channels_last;
  const int64_t tile = static_cast<int64_t>(tiling.lanes) * vector;
  require(tiling.lanes >= 1 && tiling.walkers >= 1, "lanes");
  require(tiling.lanes * tiling.walkers <= schedule.threads, "lanes and walkers");
  require(tile * tiling.channel_tiles >= current->channels, "channels covered");
  require(tile * (tiling.channel_tiles - 1) < current->channels, "no empty tile");
  require(schedule.blocks == current->batch * plan.rows.pieces * tiling.channel_tiles, "grid");
}

template <typename T>
void check_problem(const PoolProblem& problem, bool aligned) {
  current = &problem;
  constexpr int kWidest = kAccessBytes / sizeof(T);
  const PoolSchedule forward = schedule_forward<T>(problem, aligned);
  check_schedule(forward, problem.channels_last ? kChannelsLastThreads : kContiguousThreads,
                 forward.wide ? kWidest : 1);
  if (!problem.channels_last) {
    const ContiguousTiling& tiling = forward.contiguous;
    const int strips = forward.plan.rows.pieces;
    require(tiling.lanes * tiling.groups <= forward.threads && tiling.groups >= 1, "groups");
    require(tiling.tile <= 4096 && tiling.pitch >= tiling.tile, "tile");
    require(tiling.strips_per_round >= 1 && tiling.bins_pitch >= tiling.strips, "strips");
    require(tiling.strips * forward.shares >= strips, "strips covered");
    require(tiling.strips * (forward.shares - 1) < strips, "no empty share");
    require((forward.scratch_bytes > 0) == (forward.shares > 1), "scratch");
  }
  if (problem.use_max) return;
  const PoolSchedule backward = schedule_spread<T>(problem, aligned);
  check_schedule(backward, kSpreadThreads, backward.wide ? kWidest : 1);
  if (!problem.channels_last) {
    const SpreadTiling& tiling = backward.spread;
    const int strips = backward.plan.rows.pieces;
    require(tiling.lanes * tiling.groups <= backward.threads && tiling.groups >= 1, "groups");
    require(tiling.lanes * kWidest <= 4096, "tile");
    require(tiling.strips >= 1 && tiling.strips_pitch >= tiling.strips, "strips");
    require(tiling.pieces_pitch >= backward.plan.columns.pieces, "pieces");
    require(tiling.strips * backward.shares >= strips, "strips covered");
    require(tiling.strips * (backward.shares - 1) < strips, "no empty share");
  }
}

}  // namespace

int main() {
  const std::vector<std::vector<int64_t>> pyramids = {{1, 3, 6, 8},
                                                      {1},
                                                      {64},
                                                      {1, 4, 8, 12},
                                                      {31, 33},
                                                      {1, 2, 3, 4, 5, 6, 7, 8, 9, 10},
                                                      {10, 11, 13, 14, 16},
                                                      std::vector<int64_t>(16, 4)};
  const std::vector<std::pair<int, int>> maps = {{1, 1},
                                                 {1, 97},
                                                 {97, 1},
                                                 {96, 96},
                                                 {97, 97},
                                                 {128, 256},
                                                 {129, 257},
                                                 {1009, 601},
                                                 {45000, 40000},
                                                 {1, INT32_MAX - 4096},
                                                 {INT32_MAX - 4096, 1},
                                                 {16384, 512}};
  const std::vector<std::pair<int64_t, int64_t>> planes = {
      {1, 1}, {1, 2048}, {8, 2048}, {1, 257}, {3, 12}, {1, 100000}, {60000, 1}};
  for (const auto& sizes : pyramids) {
    for (const auto& [height, width] : maps) {
      for (const auto& [batch, channels] : planes) {
        for (int flags = 0; flags < 16; ++flags) {
          const PoolProblem problem{batch, channels,         height,           width,
                                    sizes, (flags & 1) != 0, (flags & 2) != 0, flags & 4 ? 132 : 8};
          const bool aligned = flags & 8;
          check_problem<float>(problem, aligned);
          check_problem<__half>(problem, aligned);
          check_problem<double>(problem, aligned);
        }
      }
    }
  }
  return 0;
}
