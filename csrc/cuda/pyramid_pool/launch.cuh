// Launch configurations of pyramid pooling: how shapes become grids, blocks and shared memory.
// Knows raw pointers only; the host entry and the emulation both launch through it.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "backward_kernels.cuh"
#include "kernels.cuh"

namespace attnops::cuda {

struct PoolProblem {
  int64_t batch;
  int64_t channels;
  int height;
  int width;
  std::vector<int64_t> sizes;
  bool use_max;
  bool channels_last;
  int multiprocessors;  // of the device; few planes are shared between blocks to occupy them all

  int64_t planes() const { return batch * channels; }
};

struct PoolSchedule {
  Plan plan;
  bool wide;  // accesses of 16 bytes, else of one element
  int64_t blocks;
  int shares;  // blocks that share a plane
  int threads;
  size_t shared_bytes;
  size_t scratch_bytes;  // partials between pooling and combining
  ContiguousTiling contiguous;
  SpreadTiling spread;
  ChannelsLastTiling channels_last;
};

template <typename T>
using Partial = typename Max<accumulator_t<T>>::Partial;

namespace detail {

// The shared memory that every device gives a block without being asked.
constexpr int kSharedLimit = 48 * 1024;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 checked_grid(int64_t x, int64_t y = 1) {
  if (x > INT32_MAX || y > 65535) {
    throw std::runtime_error("attnops: pyramid_pool: the tensor has too many planes for one grid");
  }
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

// Threads along a row of `vectors` accesses: all of them, or an equal share that fits a block.
inline int choose_lanes(int64_t vectors, int limit) {
  return static_cast<int>(divide_up(vectors, divide_up(vectors, limit)));
}

// Rows of `lanes` threads for `tasks`, as many as fit, but no more than keep all equally busy.
inline int choose_groups(int tasks, int lanes, int threads) {
  const int64_t rounds = divide_up(tasks, std::max(threads / lanes, 1));
  return static_cast<int>(divide_up(tasks, rounds));
}

// Whole warps, and enough of them for the parts of a kernel that are not divided into lanes.
inline int round_threads(int threads) {
  return std::max(static_cast<int>(divide_up(threads, 32)) * 32, 128);
}

// Shares of the strips of a plane: one, unless that leaves multiprocessors idle.
inline int choose_shares(const PoolProblem& problem, int strips) {
  if (problem.planes() >= problem.multiprocessors) return 1;
  return static_cast<int>(
      std::min<int64_t>(strips, divide_up(2 * problem.multiprocessors, problem.planes())));
}

// Channel tiles and strips of the channels_last kernels: wide and tall ones move the fewest
// partials, but there must be blocks for all multiprocessors. `bytes_per_channel` is shared memory.
inline void divide_channels_last(const PoolProblem& problem, PoolSchedule& schedule, int vector,
                                 int threads, const Levels& levels, size_t bytes_per_channel) {
  constexpr int kMaxLanes = 32;
  constexpr int kFewestLanes = 8;
  const int64_t vectors = problem.channels / vector;
  int limit = kMaxLanes;
  while (limit > 1 && bytes_per_channel * limit * vector > kSharedLimit * 3 / 4) limit /= 2;
  int max_height = 8;
  for (;;) {
    schedule.plan.rows = make_axis(problem.height, levels, max_height);
    const int lanes = choose_lanes(vectors, limit);
    const int64_t tiles = divide_up(vectors, lanes);
    schedule.channels_last.lanes = lanes;
    schedule.channels_last.channel_tiles = static_cast<int>(tiles);
    schedule.blocks = problem.batch * schedule.plan.rows.pieces * tiles;
    if (schedule.blocks >= 2 * problem.multiprocessors) break;
    if (max_height > 2) {
      max_height /= 2;
    } else if (limit > kFewestLanes) {
      limit /= 2;
    } else if (max_height > 1) {
      max_height = 1;
    } else {
      break;
    }
  }
  const int lanes = schedule.channels_last.lanes;
  schedule.channels_last.walkers = choose_groups(schedule.plan.columns.pieces, lanes, threads);
  schedule.threads = std::min(round_threads(lanes * schedule.channels_last.walkers), threads);
}

}  // namespace detail

// `wide`: x is aligned to 16 bytes.
template <typename T>
PoolSchedule schedule_forward(const PoolProblem& problem, bool aligned) {
  using namespace detail;
  using Acc = accumulator_t<T>;
  constexpr int kWidest = kAccessBytes / sizeof(T);
  const int partial_bytes = problem.use_max ? 2 * sizeof(Acc) : sizeof(Acc);
  PoolSchedule schedule{};
  schedule.plan.levels = make_levels(problem.sizes);
  const Levels& levels = schedule.plan.levels;
  Axis& rows = schedule.plan.rows;
  Axis& columns = schedule.plan.columns;

  if (problem.channels_last) {
    schedule.wide = aligned && problem.channels % kWidest == 0;
    // About 32 pieces, so that the walkers are evenly loaded.
    columns = make_axis(problem.width, levels, static_cast<int>(divide_up(problem.width, 32)));
    divide_channels_last(problem, schedule, schedule.wide ? kWidest : 1, kChannelsLastThreads,
                         levels, static_cast<size_t>(columns.pieces) * partial_bytes);
    const int tile_channels = schedule.channels_last.lanes * (schedule.wide ? kWidest : 1);
    schedule.shared_bytes = static_cast<size_t>(columns.pieces) * tile_channels * partial_bytes;
    schedule.scratch_bytes =
        static_cast<size_t>(problem.planes()) * rows.pieces * levels.bins * partial_bytes;
    return schedule;
  }

  constexpr int kBinsBytes = 16 * 1024;
  constexpr int kRoundBytes = 28 * 1024;
  constexpr int64_t kBytesWorthSharing = 64 * 1024;
  schedule.wide = aligned && problem.width % kWidest == 0;
  const int vector = schedule.wide ? kWidest : 1;
  columns = make_axis(problem.width, levels, problem.width);
  // A strip's rows are loaded together, and there are enough strips for all rows of threads.
  rows = make_axis(problem.height, levels,
                   std::max<int>(vector > 1 ? 4 : 8, divide_up(problem.height, 48)));

  ContiguousTiling& tiling = schedule.contiguous;
  tiling.lanes = choose_lanes(problem.width / vector, kContiguousThreads);
  tiling.tile = tiling.lanes * vector;
  tiling.pitch = tiling.tile | 1;
  const int64_t plane_bytes = static_cast<int64_t>(problem.height) * problem.width * sizeof(T);
  const int shares = plane_bytes < kBytesWorthSharing ? 1 : choose_shares(problem, rows.pieces);
  const int most_strips = kBinsBytes / (levels.bins * partial_bytes);
  tiling.strips = std::min<int>(divide_up(rows.pieces, shares), most_strips);
  schedule.shares = static_cast<int>(divide_up(rows.pieces, tiling.strips));
  tiling.bins_pitch = tiling.strips | 1;
  const int strip_bytes = (tiling.pitch + columns.pieces) * partial_bytes;
  const int64_t rounds = divide_up(tiling.strips, std::max(kRoundBytes / strip_bytes, 1));
  tiling.strips_per_round = static_cast<int>(divide_up(tiling.strips, rounds));
  tiling.groups = choose_groups(tiling.strips_per_round, tiling.lanes, kContiguousThreads);
  schedule.blocks = problem.planes();
  schedule.threads = round_threads(tiling.lanes * tiling.groups);
  schedule.shared_bytes = static_cast<size_t>(tiling.strips_per_round) * strip_bytes +
                          static_cast<size_t>(levels.bins) * tiling.bins_pitch * partial_bytes;
  if (schedule.shares > 1) {
    schedule.scratch_bytes =
        static_cast<size_t>(problem.planes()) * rows.pieces * levels.bins * partial_bytes;
  }
  return schedule;
}

namespace detail {

template <typename T, int kVec, typename Reduce>
void launch_forward(const PoolProblem& problem, const PoolSchedule& schedule, const T* x, T* out,
                    int32_t* argmax, void* scratch, cudaStream_t stream) {
  auto* partials = static_cast<typename Reduce::Partial*>(scratch);
  int64_t batch = problem.batch;
  int64_t channels = problem.channels;
  if (problem.channels_last) {
    ATTNOPS_LAUNCH((pool_channels_last_kernel<T, kVec, Reduce>), checked_grid(schedule.blocks),
                   dim3(schedule.threads), schedule.shared_bytes, stream, x, partials, channels,
                   schedule.channels_last, schedule.plan);
  } else {
    ATTNOPS_LAUNCH((pool_contiguous_kernel<T, kVec, Reduce>),
                   checked_grid(schedule.blocks, schedule.shares), dim3(schedule.threads),
                   schedule.shared_bytes, stream, x, out, argmax, partials, problem.planes(),
                   schedule.contiguous, schedule.plan);
    if (schedule.shares == 1) return;
    channels = problem.planes();
    batch = 1;
  }
  const int64_t blocks = batch * divide_up(channels, kCombineTile) *
                         divide_up(schedule.plan.levels.cells, kCombineTile);
  ATTNOPS_LAUNCH((pool_combine_kernel<T, Reduce>), checked_grid(blocks), dim3(kCombineThreads), 0,
                 stream, static_cast<const typename Reduce::Partial*>(partials), out, argmax,
                 channels, schedule.plan);
}

template <typename T, int kVec>
void launch_spread(const PoolProblem& problem, const PoolSchedule& schedule, const T* grad,
                   T* grad_x, cudaStream_t stream) {
  if (problem.channels_last) {
    ATTNOPS_LAUNCH((spread_channels_last_kernel<T, kVec>), checked_grid(schedule.blocks),
                   dim3(schedule.threads), schedule.shared_bytes, stream, grad, grad_x,
                   problem.channels, schedule.channels_last, schedule.plan);
  } else {
    ATTNOPS_LAUNCH((spread_contiguous_kernel<T, kVec>),
                   checked_grid(schedule.blocks, schedule.shares), dim3(schedule.threads),
                   schedule.shared_bytes, stream, grad, grad_x, schedule.spread, schedule.plan);
  }
}

}  // namespace detail

// x in the problem's layout -> out `[B, C, S]`, and argmax `[B, C, S]` for max (else not touched).
// scratch: schedule.scratch_bytes, aligned to 16.
template <typename T>
void pool_forward(const PoolProblem& problem, const PoolSchedule& schedule, const T* x, T* out,
                  int32_t* argmax, void* scratch, cudaStream_t stream) {
  using Acc = accumulator_t<T>;
  constexpr int kWidest = kAccessBytes / sizeof(T);
  const auto launch = [&](auto... arguments) {
    if (problem.use_max) {
      if (schedule.wide) {
        detail::launch_forward<T, kWidest, Max<Acc>>(arguments...);
      } else {
        detail::launch_forward<T, 1, Max<Acc>>(arguments...);
      }
    } else if (schedule.wide) {
      detail::launch_forward<T, kWidest, Mean<Acc>>(arguments...);
    } else {
      detail::launch_forward<T, 1, Mean<Acc>>(arguments...);
    }
  };
  launch(problem, schedule, x, out, argmax, scratch, stream);
}

// For mean; `aligned`: grad_x is aligned to 16 bytes.
template <typename T>
PoolSchedule schedule_spread(const PoolProblem& problem, bool aligned) {
  using namespace detail;
  using Acc = accumulator_t<T>;
  constexpr int kWidest = kAccessBytes / sizeof(T);
  PoolSchedule schedule{};
  schedule.plan.levels = make_levels(problem.sizes);
  const Levels& levels = schedule.plan.levels;
  Axis& rows = schedule.plan.rows;
  Axis& columns = schedule.plan.columns;

  if (problem.channels_last) {
    schedule.wide = aligned && problem.channels % kWidest == 0;
    const int vector = schedule.wide ? kWidest : 1;
    columns = make_axis(problem.width, levels, static_cast<int>(divide_up(problem.width, 32)));
    divide_channels_last(problem, schedule, vector, kSpreadThreads, levels,
                         levels.bins * sizeof(Acc));
    schedule.shared_bytes = levels.bins * sizeof(Acc) * schedule.channels_last.lanes * vector +
                            2 * levels.bins * sizeof(int) +
                            sizeof(BinRange) * levels.count * columns.pieces;
    return schedule;
  }

  constexpr int kStripsBytes = 36 * 1024;
  schedule.wide = aligned && problem.width % kWidest == 0;
  const int vector = schedule.wide ? kWidest : 1;
  columns = make_axis(problem.width, levels, problem.width);
  rows = make_axis(problem.height, levels, std::max<int>(8, divide_up(problem.height, 48)));
  SpreadTiling& tiling = schedule.spread;
  tiling.lanes = choose_lanes(problem.width / vector, kSpreadThreads);
  tiling.pieces_pitch = columns.pieces | 1;
  const size_t strip_bytes =
      (levels.bins + tiling.pieces_pitch) * sizeof(Acc) + levels.count * sizeof(BinRange);
  tiling.strips = std::min<int>(divide_up(rows.pieces, choose_shares(problem, rows.pieces)),
                                static_cast<int>(kStripsBytes / strip_bytes));
  tiling.strips_pitch = tiling.strips | 1;
  tiling.groups = choose_groups(tiling.strips, tiling.lanes, kSpreadThreads);
  schedule.shares = static_cast<int>(divide_up(rows.pieces, tiling.strips));
  schedule.blocks = problem.planes();
  schedule.threads = round_threads(tiling.lanes * tiling.groups);
  schedule.shared_bytes =
      sizeof(Acc) * (levels.bins * tiling.strips_pitch + tiling.strips * tiling.pieces_pitch) +
      sizeof(int) * (columns.pieces + 1 + 2 * levels.bins) +
      sizeof(BinRange) * levels.count * (tiling.strips + columns.pieces);
  return schedule;
}

// grad `[B, C, S]` (argmax `[B, C, S]` for max) -> grad_x in the problem's layout.
template <typename T>
void pool_backward(const PoolProblem& problem, const T* grad, const int32_t* argmax, T* grad_x,
                   cudaStream_t stream) {
  constexpr int kWidest = kAccessBytes / sizeof(T);
  if (problem.use_max) {
    const Levels levels = make_levels(problem.sizes);
    const int64_t planes = problem.planes();
    const size_t pixels = static_cast<size_t>(problem.height) * problem.width;
    fill_zero(grad_x, planes * pixels * sizeof(T), stream);
    ATTNOPS_LAUNCH((scatter_max_kernel<T>),
                   detail::checked_grid(detail::divide_up(planes * levels.cells, kScatterThreads)),
                   dim3(kScatterThreads), 0, stream, grad, argmax, grad_x, planes, problem.channels,
                   problem.height, problem.width, problem.channels_last, levels);
    return;
  }
  const PoolSchedule schedule = schedule_spread<T>(problem, is_aligned(grad_x));
  if (schedule.wide) {
    detail::launch_spread<T, kWidest>(problem, schedule, grad, grad_x, stream);
  } else {
    detail::launch_spread<T, 1>(problem, schedule, grad, grad_x, stream);
  }
}

}  // namespace attnops::cuda
