// How strip convolutions divide maps into tiles, and what a tile takes of shared memory.
//
// A block works on a tile of tile_rows x tile_columns positions of `lanes` neighbouring channels:
// one of contiguous maps, as many as coalesced accesses want of channels_last ones. Around the tile
// it recomputes what the strips reach. In shared memory an area of positions is laid out as
// [rows, pitch, lanes].
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "common/host_device.h"

namespace attnops::cuda {

// Neighbouring sums along an axis that one thread keeps in registers.
constexpr int kStripRun = 4;
constexpr int kStripThreads = 512;
constexpr int kWarp = 32;
// Shared memory of a block, which any device since sm_80 can give to one; sm_90 runs two at a time.
constexpr size_t kStripSharedLimit = 96 * 1024;

// Any kernels within these have a tile that fits the shared memory.
constexpr int64_t kMaxStrips = 8;
constexpr int64_t kMaxStripSide = 63;
constexpr int64_t kMaxLocalSide = 11;
constexpr int64_t kMaxStripPixels = INT32_MAX - 4096;
constexpr int64_t kMaxStripChannels = INT32_MAX - 4096;

struct StripProblem {
  int64_t batch;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t kernel_height;
  int64_t kernel_width;
  std::vector<int64_t> rows;     // lengths of the 1 x k kernels, all odd
  std::vector<int64_t> columns;  // lengths of the k x 1 kernels, all odd
  bool channels_last;
  int multiprocessors;  // of the device; few tiles are made smaller to occupy them all
};

inline bool operator==(const StripProblem& a, const StripProblem& b) {
  const auto all = [](const StripProblem& problem) {
    return std::tie(problem.batch, problem.channels, problem.height, problem.width,
                    problem.kernel_height, problem.kernel_width, problem.rows, problem.columns,
                    problem.channels_last, problem.multiprocessors);
  };
  return all(a) == all(b);
}

inline bool strip_conv_supported(const StripProblem& problem) {
  const auto fits = [](int64_t side) { return side <= kMaxStripSide; };
  return problem.rows.size() <= kMaxStrips &&
         std::all_of(problem.rows.begin(), problem.rows.end(), fits) &&
         std::all_of(problem.columns.begin(), problem.columns.end(), fits) &&
         std::max(problem.kernel_height, problem.kernel_width) <= kMaxLocalSide &&
         problem.height <= kMaxStripPixels / problem.width && problem.channels <= kMaxStripChannels;
}

enum class StripPass {
  kForward,  // out
  kMap,      // the gradient of x
  kTaps,     // the gradients of taps and biases
};

// Positions in shared memory.
struct StripArea {
  int rows;
  int columns;

  // Odd, so that threads which read down a column hit different banks.
  ATTNOPS_HOST_DEVICE int pitch() const { return columns | 1; }
  ATTNOPS_HOST_DEVICE int size() const { return rows * pitch(); }
};

// Where the parameters of every kernel lie: the local one, then row and column of every strip.
// Weights [C, taps]; biases [C], null if there is none. With a T that is not const: their
// gradients. Passed to the kernels by value.
template <typename T>
struct StripParameters {
  T* weights[1 + 2 * kMaxStrips];
  T* biases[1 + 2 * kMaxStrips];
};

// Passed to the kernels by value.
struct StripPlan {
  int channels;
  int height;
  int width;
  bool channels_last;
  int kernel_height;
  int kernel_width;
  int strips;
  int rows[kMaxStrips];
  int columns[kMaxStrips];
  int taps;     // of a channel, all kernels together
  int reach_y;  // of the longest column to either side
  int reach_x;  // of the longest row

  int tile_rows;  // a multiple of kStripRun, like tile_columns
  int tile_columns;
  int lanes;         // a power of two, at most a warp
  int row_tiles;     // of a map
  int column_tiles;  // of a map
  int groups;        // of `lanes` channels
  int64_t tiles;     // of all samples, each of one group of channels
  int slices;        // into which StripPass::kTaps divides the tiles

  ATTNOPS_HOST_DEVICE static int round_up(int n) {
    return (n + kStripRun - 1) / kStripRun * kStripRun;
  }
  ATTNOPS_HOST_DEVICE int kernels() const { return 1 + 2 * strips; }
  ATTNOPS_HOST_DEVICE int parameters() const { return taps + kernels(); }
  ATTNOPS_HOST_DEVICE int taps_of(int kernel) const {
    if (kernel == 0) return kernel_height * kernel_width;
    return kernel % 2 == 1 ? rows[kernel / 2] : columns[kernel / 2 - 1];
  }
  ATTNOPS_HOST_DEVICE int runs() const { return tile_rows / kStripRun * tile_columns * lanes; }
  ATTNOPS_HOST_DEVICE int threads() const { return (runs() + kWarp - 1) / kWarp * kWarp; }

  // The result of the local kernel that the strips read, and what the kernel reads for it.
  ATTNOPS_HOST_DEVICE StripArea local() const {
    return {round_up(tile_rows + 2 * reach_y), tile_columns + 2 * reach_x};
  }
  ATTNOPS_HOST_DEVICE StripArea source() const {
    return {local().rows + kernel_height - 1, local().columns + kernel_width - 1};
  }
  // The result of a row, for the longest column.
  ATTNOPS_HOST_DEVICE StripArea horizontal() const {
    return {tile_rows + 2 * reach_y, tile_columns};
  }
  ATTNOPS_HOST_DEVICE StripArea own() const { return {tile_rows, tile_columns}; }

  // StripPass::kMap: the gradient of the local kernel's result, of a row's result, and of out.
  ATTNOPS_HOST_DEVICE StripArea grad_local() const {
    return {round_up(tile_rows + kernel_height - 1), round_up(tile_columns + kernel_width - 1)};
  }
  ATTNOPS_HOST_DEVICE StripArea grad_horizontal() const {
    return {grad_local().rows, grad_local().columns + 2 * reach_x};
  }
  ATTNOPS_HOST_DEVICE StripArea grad_out() const {
    return {grad_local().rows + 2 * reach_y, grad_horizontal().columns};
  }

  // StripPass::kTaps: a row's gradient and out's, where the tile's own positions need them.
  ATTNOPS_HOST_DEVICE StripArea own_grad_horizontal() const {
    return {tile_rows, tile_columns + 2 * reach_x};
  }
  ATTNOPS_HOST_DEVICE StripArea own_grad_out() const {
    return {tile_rows + 2 * reach_y, tile_columns + 2 * reach_x};
  }

  // Sizes of the buffers that take turns.
  ATTNOPS_HOST_DEVICE int source_or_horizontal() const {
    return source().size() > horizontal().size() ? source().size() : horizontal().size();
  }
  ATTNOPS_HOST_DEVICE int row_results() const {
    const int ahead = horizontal().size(), back = own_grad_horizontal().size();
    return ahead > back ? ahead : back;
  }
};

// `sum_bytes` is the size of the numbers in shared memory.
inline size_t strip_shared_bytes(const StripPlan& plan, StripPass pass, size_t sum_bytes) {
  size_t positions = plan.parameters();
  size_t sums = 0;
  switch (pass) {
    case StripPass::kForward:
      positions += plan.source_or_horizontal() + plan.local().size();
      break;
    case StripPass::kMap:
      positions +=
          plan.grad_out().size() + plan.grad_horizontal().size() + plan.grad_local().size();
      break;
    case StripPass::kTaps:
      positions +=
          plan.source().size() + plan.local().size() + plan.row_results() + plan.own().size();
      sums = static_cast<size_t>(kStripRun + 1) * plan.threads();
      break;
  }
  return (positions * plan.lanes + sums) * sum_bytes;
}

namespace detail {

inline int64_t strip_ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Work of a block in multiply-adds, roughly: which of two tiles is the better one.
inline double strip_work(const StripPlan& plan, StripPass pass, size_t element_bytes) {
  constexpr double kLoad = 16;  // multiply-adds in the time of a load
  constexpr double kSector = 32;
  double load = kLoad;
  if (plan.channels_last) load *= std::max(1.0, kSector / (plan.lanes * element_bytes));
  const double kernel = double(plan.kernel_height) * plan.kernel_width;
  const double own = plan.own().size();
  double work = load * own;
  if (pass != StripPass::kMap) {
    work += load * plan.source().size() + kernel * plan.local().size();
    for (int s = 0; s < plan.strips; ++s) {
      work += double(plan.rows[s]) * plan.horizontal().size() + plan.columns[s] * own;
    }
  }
  if (pass == StripPass::kMap) {
    work += load * plan.grad_out().size() + kernel * own;
    for (int s = 0; s < plan.strips; ++s) {
      work += double(plan.columns[s]) * plan.grad_horizontal().size() +
              double(plan.rows[s]) * plan.grad_local().size();
    }
  }
  if (pass == StripPass::kTaps) {
    work += load * plan.own_grad_out().size() + kernel * own;
    for (int s = 0; s < plan.strips; ++s) {
      work += double(plan.columns[s]) * plan.own_grad_horizontal().size() + 2 * plan.rows[s] * own;
    }
  }
  return work * plan.lanes;
}

}  // namespace detail

// Chooses the tile that is done first: of least work, on all multiprocessors together.
inline StripPlan plan_strip_conv(const StripProblem& problem, StripPass pass, size_t element_bytes,
                                 size_t sum_bytes) {
  using detail::strip_ceil_divide;
  constexpr int kLongest = 64;
  constexpr int kWaves = 8;  // blocks a multiprocessor that divide the tiles of StripPass::kTaps
  StripPlan plan{};
  plan.channels = static_cast<int>(problem.channels);
  plan.height = static_cast<int>(problem.height);
  plan.width = static_cast<int>(problem.width);
  plan.channels_last = problem.channels_last;
  plan.kernel_height = static_cast<int>(problem.kernel_height);
  plan.kernel_width = static_cast<int>(problem.kernel_width);
  plan.strips = static_cast<int>(problem.rows.size());
  plan.taps = plan.kernel_height * plan.kernel_width;
  for (int s = 0; s < plan.strips; ++s) {
    plan.rows[s] = static_cast<int>(problem.rows[s]);
    plan.columns[s] = static_cast<int>(problem.columns[s]);
    plan.taps += plan.rows[s] + plan.columns[s];
    plan.reach_x = std::max(plan.reach_x, plan.rows[s] / 2);
    plan.reach_y = std::max(plan.reach_y, plan.columns[s] / 2);
  }

  StripPlan best{};
  double least = 0;
  const int most_lanes = problem.channels_last ? kWarp : 1;
  for (plan.lanes = 1; plan.lanes <= most_lanes && plan.lanes < 2 * problem.channels;
       plan.lanes *= 2) {
    for (plan.tile_rows = kStripRun;
         plan.tile_rows <= kLongest && plan.tile_rows < 2 * problem.height + kStripRun;
         plan.tile_rows *= 2) {
      for (plan.tile_columns = kStripRun;
           plan.tile_columns <= kLongest && plan.tile_columns < 2 * problem.width + kStripRun;
           plan.tile_columns *= 2) {
        if (plan.threads() > kStripThreads) continue;
        if (strip_shared_bytes(plan, pass, sum_bytes) > kStripSharedLimit) continue;
        plan.row_tiles = static_cast<int>(strip_ceil_divide(problem.height, plan.tile_rows));
        plan.column_tiles = static_cast<int>(strip_ceil_divide(problem.width, plan.tile_columns));
        plan.groups = static_cast<int>(strip_ceil_divide(problem.channels, plan.lanes));
        plan.tiles = problem.batch * plan.row_tiles * plan.column_tiles;
        const int64_t rounds = strip_ceil_divide(plan.tiles * plan.groups, problem.multiprocessors);
        const double work = double(rounds) * detail::strip_work(plan, pass, element_bytes);
        if (best.lanes == 0 || work < least) {
          least = work;
          best = plan;
        }
      }
    }
  }
  best.slices = static_cast<int>(std::min(
      best.tiles, strip_ceil_divide(int64_t{kWaves} * problem.multiprocessors, best.groups)));
  return best;
}

// Numbers of scratch memory that StripPass::kTaps leaves its sums in: `[slices, C, parameters]`.
inline int64_t strip_partials(const StripPlan& plan) {
  return int64_t{plan.slices} * plan.channels * plan.parameters();
}

}  // namespace attnops::cuda
