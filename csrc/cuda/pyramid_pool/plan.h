// How the bins of a pooling pyramid divide a map: both axes are cut at the edges of all bins of all
// levels, so that every bin is a run of whole pieces along each axis and each pixel is read once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/bins.h"

namespace attnops::cuda {

constexpr int kMaxLevels = 16;
constexpr int kMaxBins = 64;     // bins along an axis, all levels together
constexpr int kMaxPieces = 256;  // at most 2 * kMaxBins - 1 cuts by bins, the rest by length

// Most pixels of a plane: a row of threads may step past the end of a row of pixels, in int.
constexpr int64_t kMaxPixels = INT32_MAX - 4096;

struct Levels {
  int count;
  int bins;   // sum of n: bins along an axis, all levels together
  int cells;  // sum of n * n: bins of a plane, "S"
  int size[kMaxLevels];
};

struct Axis {
  int size;    // inputs along the axis
  int pieces;  // piece k holds the inputs [cut[k], cut[k + 1])
  int cut[kMaxPieces + 1];
  // Bin j (levels in order) holds the pieces [first[j], last[j]).
  uint16_t first[kMaxBins];
  uint16_t last[kMaxBins];
};

// Passed to the kernels by value.
struct Plan {
  Levels levels;
  Axis rows;
  Axis columns;
};
static_assert(sizeof(Plan) <= 3072, "a kernel's parameters must stay below 4 KiB");

// Whether the kernels take these levels: 1 to 16 of them, with at most 64 bins in total along an
// axis. This bounds the tables of a Plan whatever the size of the map.
inline bool levels_supported(const std::vector<int64_t>& sizes) {
  if (sizes.empty() || sizes.size() > kMaxLevels) return false;
  int64_t bins = 0;
  for (int64_t n : sizes) {
    if (n < 1 || n > kMaxBins) return false;
    bins += n;
  }
  return bins <= kMaxBins;
}

inline Levels make_levels(const std::vector<int64_t>& sizes) {
  Levels levels{};
  for (int64_t n : sizes) {
    levels.size[levels.count++] = static_cast<int>(n);
    levels.bins += static_cast<int>(n);
    levels.cells += static_cast<int>(n * n);
  }
  return levels;
}

// Shortest max_length that keeps the pieces of an axis within kMaxPieces.
inline int shortest_piece(int size) {
  constexpr int kCutByLength = kMaxPieces - 2 * kMaxBins;
  return (size - 1) / kCutByLength + 1;
}

// Cuts an axis at every bin edge, then into pieces of at most about `max_length` inputs.
inline Axis make_axis(int size, const Levels& levels, int max_length) {
  max_length = std::max(max_length, shortest_piece(size));
  std::vector<int> edges;
  for (int level = 0; level < levels.count; ++level) {
    const int n = levels.size[level];
    for (int i = 0; i < n; ++i) {
      edges.push_back(static_cast<int>(bin_start(i, n, size)));
      edges.push_back(static_cast<int>(bin_end(i, n, size)));
    }
  }
  std::sort(edges.begin(), edges.end());
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());

  Axis axis{};
  axis.size = size;
  for (size_t k = 0; k + 1 < edges.size(); ++k) {
    const int64_t length = edges[k + 1] - edges[k];
    const int64_t parts = (length + max_length - 1) / max_length;
    for (int64_t part = 0; part < parts; ++part) {
      axis.cut[axis.pieces++] = static_cast<int>(edges[k] + part * length / parts);
    }
  }
  axis.cut[axis.pieces] = size;

  const auto piece_at = [&axis](int64_t input) {
    const int* begin = axis.cut;
    return static_cast<uint16_t>(std::lower_bound(begin, begin + axis.pieces + 1, input) - begin);
  };
  int bin = 0;
  for (int level = 0; level < levels.count; ++level) {
    const int n = levels.size[level];
    for (int i = 0; i < n; ++i, ++bin) {
      axis.first[bin] = piece_at(bin_start(i, n, size));
      axis.last[bin] = piece_at(bin_end(i, n, size));
    }
  }
  return axis;
}

}  // namespace attnops::cuda
