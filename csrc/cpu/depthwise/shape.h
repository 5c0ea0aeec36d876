// What the host code and the vector code of depthwise convolutions share: plain data.
//
// Every channel of every batch item is a plane of its own, and lanes of vectors are planes: a group
// is as many planes as a vector has lanes, neighbours in [batch, channels] for contiguous maps,
// neighbouring channels of one batch item for channels_last maps. Groups at an end may be smaller.
#pragma once

#include <cstdint>

namespace attnops::cpu {

struct DepthwiseMaps {
  int64_t batch, channels, height, width;
  bool channels_last;
};

// Rows [top, bottom) and columns [left, right) of the planes of a group.
struct DepthwisePiece {
  int64_t group, top, bottom, left, right;
};

// Pieces are cut between rows that are a multiple of this.
constexpr int64_t kPieceRows = 8;

}  // namespace attnops::cpu
