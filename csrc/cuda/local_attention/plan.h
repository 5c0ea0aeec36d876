// How local attention divides a map into tiles, and what a tile takes of shared memory.
//
// With dilation (dh, dw) a map is dh * dw interleaved images: the position (y, x) belongs to image
// (y mod dh, x mod dw) and sees positions of that image alone, in a dense window. A block owns a
// tile of tile_rows x tile_columns positions of one image. Of contiguous maps, whose columns are
// side by side in memory, it owns the same tile of tile_images images that are neighbours along x;
// their columns alternate. The tile with the margin that its windows reach is its "halo".
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace attnops::cuda {

// Positions along a row of an image that one thread has scores for.
constexpr int kRun = 4;
// 16-byte vectors of channels that a position has in shared memory at a time.
constexpr int kStaged = 4;
constexpr int kLocalThreads = 256;
// Shared memory of a block, which any device since sm_80 can give to one; sm_90 runs two at a time.
constexpr size_t kLocalSharedLimit = 96 * 1024;

// Any kernel within these has a tile that fits the shared memory.
constexpr int64_t kMaxKernel = 63;       // along an axis
constexpr int64_t kMaxNeighbours = 441;  // 21 x 21
constexpr int64_t kMaxMapPixels = INT32_MAX;
constexpr int64_t kMaxMapChannels = INT32_MAX / 2;

struct LocalProblem {
  int64_t batch;
  int64_t key_channels;
  int64_t value_channels;
  int64_t height;
  int64_t width;
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t dilation_height;
  int64_t dilation_width;
  double scale;
  bool mask;
  bool channels_last;
  int multiprocessors;  // of the device; small maps get small tiles to occupy them all
};

inline bool local_attention_supported(const LocalProblem& problem) {
  return std::max(problem.kernel_height, problem.kernel_width) <= kMaxKernel &&
         problem.kernel_height * problem.kernel_width <= kMaxNeighbours &&
         problem.height <= kMaxMapPixels / problem.width &&
         std::max(problem.key_channels, problem.value_channels) <= kMaxMapChannels;
}

// Passed to the kernels by value.
struct LocalPlan {
  int key_channels;
  int value_channels;
  int height;
  int width;
  int kernel_height;
  int kernel_width;
  int dilation_height;  // at most the height: a larger one sees as little
  int dilation_width;   // at most the width
  bool mask;
  bool channels_last;
  bool wide_keys;    // query and key are read 16 bytes at a time
  bool wide_values;  // value (and its gradient) likewise

  int tile_rows;
  int tile_columns;  // of one image; a multiple of kRun
  int tile_images;
  int row_tiles;     // in an image
  int column_tiles;  // in an image
  int image_tiles;   // along the residues of x

  // Positions in shared memory: rows of the halo, then rows of the tile's own; the length of such
  // rows, and of a plane, which holds one vector of every position.
  int halo_pitch;
  int own_pitch;
  int plane;

  ATTNOPS_HOST_DEVICE int64_t pixels() const { return static_cast<int64_t>(height) * width; }
  ATTNOPS_HOST_DEVICE int neighbours() const { return kernel_height * kernel_width; }
  ATTNOPS_HOST_DEVICE int runs() const { return tile_rows * (tile_columns / kRun) * tile_images; }
  ATTNOPS_HOST_DEVICE int own_positions() const { return tile_rows * own_pitch; }
  ATTNOPS_HOST_DEVICE int halo_positions() const {
    return (tile_rows + kernel_height - 1) * halo_pitch;
  }
};

namespace detail {

constexpr int kVectorBytes = 16;

// Threads that read one vector each from consecutive rows hit different banks if a row is an odd
// number of vectors, and so do two rows by four planes if a plane is 2 (mod 8) of them.
inline void set_pitches(LocalPlan& plan) {
  plan.halo_pitch = (plan.tile_columns + plan.kernel_width - 1) * plan.tile_images | 1;
  plan.own_pitch = plan.tile_columns * plan.tile_images | 1;
  plan.plane = (plan.halo_positions() + plan.own_positions() + 5) / 8 * 8 + 2;
}

inline int ceil_divide(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

}  // namespace detail

// `weight_arrays` of one number a position and neighbour, of `weight_bytes` each.
inline size_t local_shared_bytes(const LocalPlan& plan, int weight_arrays, size_t weight_bytes) {
  const size_t weights =
      static_cast<size_t>(weight_arrays) * plan.neighbours() * plan.runs() * kRun;
  return static_cast<size_t>(plan.plane) * (kStaged * detail::kVectorBytes + sizeof(int)) +
         weights * weight_bytes;
}

inline int64_t local_blocks(const LocalProblem& problem, const LocalPlan& plan) {
  return problem.batch * plan.dilation_height * plan.row_tiles * plan.image_tiles *
         plan.column_tiles;
}

namespace detail {

// Chooses the length of the tile's rows, for `runs` runs in a row of an image: the longest that
// fits, in equal parts; shorter where blocks are few, but no shorter than two runs, and only where
// the last part then reaches little beyond the map.
template <typename Fits>
void divide_columns(const LocalProblem& problem, LocalPlan& plan, int runs, const Fits& fits) {
  int most = 1;
  while (most < runs) {
    plan.tile_columns = (most + 1) * kRun;
    if (!fits()) break;
    ++most;
  }
  const int fewest = ceil_divide(runs, most);
  for (int tiles = fewest; tiles <= runs; ++tiles) {
    const int length = ceil_divide(runs, tiles);
    const int padded = ceil_divide(runs, length) * length;
    if (tiles > fewest && (length < 2 || padded > runs + runs / 8)) continue;
    plan.column_tiles = padded / length;
    plan.tile_columns = length * kRun;
    if (local_blocks(problem, plan) >= 2 * problem.multiprocessors) break;
  }
}

// The next number of images below tile_images of which tiles reach little beyond the last image.
inline void take_fewer_images(LocalPlan& plan) {
  const int images = plan.dilation_width;
  do {
    --plan.tile_images;
  } while (ceil_divide(images, plan.tile_images) * plan.tile_images > images + images / 8);
}

}  // namespace detail

// Chooses the tile. `span`: columns of the window that one thread works on, a divisor of the
// kernel's width; weights as for local_shared_bytes. wide_keys and wide_values are left false.
inline LocalPlan plan_local_attention(const LocalProblem& problem, int span, int weight_arrays,
                                      size_t weight_bytes) {
  using detail::ceil_divide;
  constexpr int kMostRows = 8;    // like half as many, they rule out bank conflicts
  constexpr int kMostImages = 8;  // contiguous columns of a contiguous map
  LocalPlan plan{};
  plan.key_channels = static_cast<int>(problem.key_channels);
  plan.value_channels = static_cast<int>(problem.value_channels);
  plan.height = static_cast<int>(problem.height);
  plan.width = static_cast<int>(problem.width);
  plan.kernel_height = static_cast<int>(problem.kernel_height);
  plan.kernel_width = static_cast<int>(problem.kernel_width);
  plan.dilation_height = static_cast<int>(std::min(problem.dilation_height, problem.height));
  plan.dilation_width = static_cast<int>(std::min(problem.dilation_width, problem.width));
  plan.mask = problem.mask;
  plan.channels_last = problem.channels_last;

  const int units = plan.kernel_height * (plan.kernel_width / span);  // threads a run
  const auto fits_shared = [&] {
    detail::set_pitches(plan);
    return local_shared_bytes(plan, weight_arrays, weight_bytes) <= kLocalSharedLimit;
  };
  const auto fits = [&] { return fits_shared() && plan.runs() * units <= kLocalThreads; };
  const int rows = ceil_divide(plan.height, plan.dilation_height);
  plan.tile_rows = kMostRows;
  while (plan.tile_rows / 2 >= rows) plan.tile_rows /= 2;
  // A quarter of the work saved is worth the larger halo.
  if (rows > kMostRows && rows <= kMostRows * 3 / 2) plan.tile_rows = kMostRows / 2;
  plan.tile_columns = kRun;
  plan.tile_images = 1;
  if (!problem.channels_last) {
    plan.tile_images =
        ceil_divide(plan.dilation_width, ceil_divide(plan.dilation_width, kMostImages));
  }
  while (plan.tile_images > 1 && !fits()) detail::take_fewer_images(plan);
  while (plan.tile_rows > 1 && !fits_shared()) plan.tile_rows /= 2;
  plan.row_tiles = ceil_divide(rows, plan.tile_rows);

  const int runs = ceil_divide(ceil_divide(plan.width, plan.dilation_width), kRun);
  for (;;) {
    plan.image_tiles = ceil_divide(plan.dilation_width, plan.tile_images);
    detail::divide_columns(problem, plan, runs, fits);
    if (plan.tile_images == 1 || local_blocks(problem, plan) >= problem.multiprocessors) break;
    detail::take_fewer_images(plan);
  }
  detail::set_pitches(plan);
  return plan;
}

// Threads of a block: one for every run and part of the window, enough for the other phases.
inline int local_threads(const LocalPlan& plan, int span) {
  const int64_t units = int64_t{plan.runs()} * plan.kernel_height * (plan.kernel_width / span);
  const int64_t wanted = std::max<int64_t>(units, int64_t{plan.runs()} * kStaged);
  return static_cast<int>(std::min<int64_t>((wanted + 31) / 32 * 32, kLocalThreads));
}

}  // namespace attnops::cuda
